"""The Typer app. Errors become messages and exit codes here, and only here."""

import errno
import os
import re
import sys
import traceback
import warnings
from typing import Annotated, Any, NoReturn

import typer

import cvt_cli
from cvt_cli.checkpoint import hub_timeouts
from cvt_cli.checkpoint.catalog import BUNDLED_MODEL
from cvt_cli.cli import hints
from cvt_cli.cli.commands import NAMES, Commands
from cvt_cli.cli.messages import report, say
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.errors import CvtError, ExitCode, Finished, Remark, UsageError
from cvt_cli.records import masked
from cvt_cli.system.signals import act_if_stuck, handle_endings, once
from cvt_cli.system.stderr import open_stderr
from cvt_cli.system.text import FULL, neutral, reason_of

# What Typer's parser says of a value, and what people say.
_VALUES_IN_WORDS = {
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
    r"Input should be greater than or equal to (\S+)$": r"must be \1 or more",
    r"Input should be less than or equal to (\S+)$": r"must be \1 or less",
    r"Input should be (greater|less) than (\S+)$": r"must be \1 than \2",
    # of older releases of Typer
    r"(?<=: )'.*' is not a valid int(eger)?( range)?": "not a whole number",
    r"(?<=: )'.*' is not a valid float( range)?": "not a number",
    # A pattern that the shell expands where one name is wanted may stand for thousands.
    r"(?<=^got unexpected extra argument\(s\) \()(.{60}\S*) .*(?=\))": r"\1 …",
}
# Errors of a limit of this process or user, and what raises it.
_LIMITS = {
    errno.EMFILE: "raise the limit on open files: ulimit -n 1024",
    errno.EAGAIN: "the limit on processes may be too low: ulimit -u",
}

app = typer.Typer(
    name="cvt",
    cls=Commands,
    help="Classify image files with CvT, the convolutional vision transformer.",
    epilog="[bold]Start with[/]\n\ncvt classify cat.jpg\n\n"
    f"cvt classify cat.jpg --model {BUNDLED_MODEL}   # needs no network",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Options of `cvt` itself that people type after the subcommand.
_ANYWHERE = ("--debug", "--quiet", "-q")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cvt {cvt_cli.__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only: no progress, no warnings.")
    ] = False,
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    context.obj = GlobalOptions(debug=debug, quiet=quiet)
    try:
        os.getcwd()
    except FileNotFoundError:  # in which some of torch's libraries end the process
        gone = "the current folder has been deleted"
        raise UsageError(gone, hint="cd to one that exists") from None
    # Read when huggingface_hub is imported. What it would warn of, our error says in one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    hub_timeouts.set_wrong_ones_aside()
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.showwarning = _show_warning
    if quiet:
        warnings.simplefilter("ignore")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, Remark):
        say(f"warning: {message}")
    elif sys.stderr.isatty():
        say(str(message))


def main() -> NoReturn:
    """Run the command line of this process, and end it with the command's exit code."""
    _end_in_order()
    _open_streams()
    arguments = _in_order(sys.argv[1:])
    debug = "--debug" in arguments
    # In files and pipes documents are the same bytes on every system: UTF-8, and the line ends that
    # their format has. A file name may hold bytes that are no UTF-8.
    sys.stdout.reconfigure(  # type: ignore[union-attr]
        encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace", newline="\n"
    )
    try:
        code = app(arguments, prog_name="cvt", standalone_mode=False)
        sys.stdout.flush()
        if code == ExitCode.INTERRUPTED:  # Typer turns Ctrl-C into a code
            raise KeyboardInterrupt
    except Finished as finished:
        say(f"{finished}; {finished.hint}")
        code = finished.exit_code
    except CvtError as error:
        _report(str(error), hints.with_whole_command(error.hint, sys.argv[1:]), debug)
        code = error.exit_code
    except SystemExit as error:  # what Typer makes of a broken pipe
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = _leave_stdout()
    except KeyboardInterrupt:
        say("interrupted")
        code = ExitCode.INTERRUPTED
    except Exception as error:
        if _reader_is_gone(error):
            code = _leave_stdout()
        else:
            message, hint, code = _in_words(error)
            if message:
                _report(message, hint, debug)
    sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:  # said already
        _leave_stdout()
    if "torch" in sys.modules:
        # Threads may still be decoding, and to take torch down object by object takes half a
        # second that nobody should wait for.
        os._exit(code or 0)
    sys.exit(code or 0)


def _end_in_order() -> None:
    """Make the signals that end a run raise KeyboardInterrupt, and each later one too, should
    ending take a while."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    handle_endings(once(interrupt))
    act_if_stuck(_end_at_once)


def _end_at_once() -> None:
    say("interrupted during a long computation; what was already written is kept")
    os._exit(ExitCode.INTERRUPTED)


def _open_streams() -> None:
    """Reopen standard streams that the caller closed, as with `>&-`. Python sets a closed one to
    None, and the system gives its number to the next file opened. Reading or writing it stays an
    error, but messages have no other place to go."""
    streams = (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    )
    for name, mode, access in streams:
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, access), mode))
    open_stderr(sys.stderr)


def _in_words(error: Exception) -> tuple[str, str, ExitCode]:
    """Describe an error that no command has described.

    Returns:
        The message, what to do about it, and the exit code.
    """
    if isinstance(error, OSError) and (
        error.filename or error.errno in (*FULL, *_LIMITS, errno.EIO)
    ):
        # EIO does not say whether it was to read or to write.
        doing = "can't write" if error.errno in FULL else ""
        words = (doing, str(error.filename or ""), reason_of(error))
        hint = _LIMITS.get(error.errno or 0, "")
        return ": ".join(filter(None, words)), hint, ExitCode.RUN_FAILED
    if isinstance(error, OSError) and error.errno == errno.EBADF and sys.__stdout__ is None:
        return "can't write: standard output is closed", "", ExitCode.RUN_FAILED
    if _is_of_a_library(error):
        return (
            f"a library can't be loaded: {error}",
            "check the memory limit (ulimit -v) and reinstall its package; on Windows torch needs "
            "Microsoft's Visual C++ Redistributable",
            ExitCode.RUN_FAILED,
        )
    if _is_out_of_memory(error):
        return (
            "out of memory",
            "a smaller --batch-size or --image-size, or another --device, may help",
            ExitCode.RUN_FAILED,
        )
    if hasattr(error, "format_message"):  # Typer's word for a wrong option or argument
        message, hint = _usage_in_words(error)
        return message, hint, ExitCode.USAGE
    return (
        f"{type(error).__name__}: {error}",
        "this is a bug in cvt: please report it, with the output of the same command with --debug "
        "and of `cvt doctor`",
        ExitCode.RUN_FAILED,
    )


def _usage_in_words(error: Any) -> tuple[str, str]:
    context = getattr(error, "ctx", None)
    message = str(error.format_message()).replace(": Value error, ", ": ").rstrip(".?")
    message = message[:1].lower() + message[1:]  # as our own messages begin
    for said, words in _VALUES_IN_WORDS.items():
        message = re.sub(said, words, message, flags=re.DOTALL)
    if not message:  # `cvt` alone has had its help instead
        return "", ""
    # The parser's word for an option without its value does not say of which command.
    command = next((each for each in sys.argv[1:] if each in NAMES), "")
    help_ = f"{context.command_path if context else f'cvt {command}'.rstrip()} --help"
    hint = ""
    if option := getattr(error, "option_name", None):
        if not hasattr(error, "possibilities"):
            return f"{message} (see {help_})", hint
        message = f"no such option: {option}"
        hint = hints.for_option(option, context)
    elif found := re.match(r"no such command '(.*?)'", message, re.DOTALL):
        name = found[1]
        message = f"no such command: {name}"
        hint = hints.for_command(name, sys.argv[1:], NAMES)
    return f"{message} (see {help_})", hint


def _is_of_a_library(error: Exception) -> bool:
    """Tell whether an error means that a compiled library is missing or broken. torch reports its
    own as an OSError."""
    if type(error) is OSError and not error.filename:
        # Windows' loader gives its errors numbers of their own, as EINVAL; others give none.
        return error.errno in (None, errno.EINVAL) and "torch" not in sys.modules
    return isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from cvt_cli.model.memory import is_out_of_memory

    return is_out_of_memory(error)


def _in_order(arguments: list[str]) -> list[str]:
    """Move the options of `cvt` itself to the front of the arguments, and turn `help` and `version`
    into options."""
    if arguments[:1] == ["help"]:
        return [*arguments[1:2], "--help"]
    if arguments[:1] == ["version"]:
        return ["--version"]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [each for each in arguments[:end] if each in _ANYWHERE]
    return moved + [each for each in arguments[:end] if each not in _ANYWHERE] + arguments[end:]


def _reader_is_gone(error: Exception) -> bool:
    """Tell whether an error means that nobody reads standard output any more."""
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        # Windows' word for that, and for other things; only here it takes nothing any more.
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return isinstance(error, BrokenPipeError)


def _leave_stdout() -> ExitCode:
    """Abandon standard output once its reader is gone, as with `| head`: nothing is left to say or
    to flush.

    Returns:
        The exit code of a program that ends there.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.READER_GONE


def _report(message: str, hint: str, debug: bool) -> None:
    if debug:
        sys.stderr.write(neutral(masked(traceback.format_exc())))
    report(message, hint)
