"""The run behind the commands that make one record of each input: sources in, records out, with
progress, resumption and a summary."""

import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from cvt_cli import __version__
from cvt_cli.cli.messages import say
from cvt_cli.cli.options import Settings
from cvt_cli.cli.progress import Progress, how_shown
from cvt_cli.errors import (
    CvtError,
    ExitCode,
    Finished,
    InputsError,
    Interrupted,
    NoTemporaryFiles,
    UsageError,
)
from cvt_cli.images.find import IMAGE_SUFFIXES, Source, remaining
from cvt_cli.output import ConvertedWriter, WriterClass, writer_class
from cvt_cli.output.journal import (
    Journal,
    check_output,
    part_of,
    run_file_of,
)
from cvt_cli.output.kept import stamp_of
from cvt_cli.output.several import SeveralOutputs
from cvt_cli.output.stream import StreamOutput
from cvt_cli.output.update import Pruning, Update, UpdatedJournal, check_update
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import check_file, write_atomically
from cvt_cli.system.text import counted, reason_of, visible

Sink = Journal | SeveralOutputs | StreamOutput | Update

# Of the inputs that failed, how many a summary names.
NAMED_FAILURES = 5
# More than a run record has, whatever was typed.
_MAX_BYTES = 2**24


def check_target(
    output: Path | None,
    writer_class: WriterClass,
    inputs: list[str],
    *,
    resume: bool,
    overwrite: bool,
    update: bool = False,
) -> None:
    """Before anything is started.

    Raises:
        UsageError: if the output can't be written or would replace what nobody said to replace.
    """
    if output is None:
        if resume or update:
            raise UsageError(f"--{'resume' if resume else 'update'} needs --output")
        if issubclass(writer_class, ConvertedWriter):
            raise UsageError(
                "this format can't be written to standard output", hint="--output names a file"
            )
        return
    if update:
        if resume or overwrite:
            other = "--resume" if resume else "--overwrite"
            raise UsageError(f"--update and {other} exclude each other")
        check_update(output, writer_class)
    # What is there is to be there.
    check_output(output, resume, overwrite or update)
    check_not_an_input(output, inputs)


def check_run_record(
    path: Path | None, outputs: Sequence[Path], inputs: list[str], *, overwrite: bool
) -> None:
    """Before anything is started.

    Args:
        path: the run record, if there is to be one.
        outputs: the other files that the run writes.

    Raises:
        UsageError: if it can't be written, or would replace an input, one of the outputs, or what
            nobody said to replace.
    """
    if path is None:
        return
    check_file(path)
    check_not_an_input(path, inputs)
    written = {
        os.path.realpath(each)
        for output in outputs
        for each in (output, part_of(output), run_file_of(output))
    }
    if os.path.realpath(path) in written:
        raise UsageError(f"{path} is one of the outputs", hint="name another --run-record")
    if os.path.lexists(path) and not (overwrite or RunRecord.is_at(path)):
        raise UsageError(f"{path} exists and is no run record", hint="--overwrite replaces it")


def unfinished(outputs: Sequence[Path], resume: bool) -> list[Path]:
    """Those of several outputs that a run is to write: all, but for one that an interrupted run
    had finished before it was cut at the next. Says which.

    Raises:
        Finished: if nothing is left to resume.
    """
    interrupted = resume and any(map(os.path.lexists, map(part_of, outputs)))
    if resume and outputs and not interrupted and all(map(os.path.isfile, outputs)):
        raise Finished(", ".join(map(str, outputs)))
    left = [
        output
        for output in outputs
        if not interrupted or os.path.lexists(part_of(output)) or not os.path.lexists(output)
    ]
    for output in outputs:
        if output not in left:
            say(f"{output} is finished and stays as it is")
    return left


def is_taken_up(output: Path, resume: bool) -> bool:
    """Whether a run goes on with an interrupted one, whose are the files beside the output."""
    return resume and part_of(output).exists()


def open_sink(
    output: Path | None,
    writer_class: WriterClass,
    shape: RecordShape,
    *,
    run: Mapping[str, Any],
    resume: bool,
    overwrite: bool = False,
) -> Journal | StreamOutput:
    """Where records go: a file, or standard output.

    Args:
        output: the file; None for standard output.
        writer_class: the format.
        shape: what a record has room for.
        run: what the records depend on; a run that differs in it is not resumed.
        resume: take up the journal of an interrupted run.
        overwrite: replace what is there.
    """
    if output is None:
        return StreamOutput(sys.stdout, writer_class, shape)
    made_with = {**run, "version": __version__}
    return Journal(output, writer_class, shape, run=made_with, resume=resume, overwrite=overwrite)


def open_sinks(
    targets: Sequence[tuple[Path | None, str]],
    shape: RecordShape,
    run: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool = False,
) -> Journal | SeveralOutputs | StreamOutput:
    """The same for several files at once, each with the name of its format."""
    sinks: list[Journal | StreamOutput] = []
    try:
        for path, name in targets:
            sinks.append(
                open_sink(
                    path,
                    writer_class(name),
                    shape,
                    run={**run, "format": name},
                    resume=resume,
                    overwrite=overwrite,
                )
            )
    except UsageError:
        for sink in sinks:
            sink.abandon()
        raise
    journals = [sink for sink in sinks if isinstance(sink, Journal)]
    return SeveralOutputs(journals) if len(journals) > 1 else sinks[0]


def open_update(
    targets: Sequence[tuple[Path, str]],
    shape: RecordShape,
    *,
    run: Mapping[str, Any],
    pruning: Pruning | None,
) -> Update:
    """The same for finished outputs that are brought up to date.

    Args:
        pruning: which records may go; None for none.
    """
    journals: list[UpdatedJournal] = []
    try:
        for path, name in targets:
            made_with = {**run, "format": name, "version": __version__}
            journals.append(UpdatedJournal(path, writer_class(name), shape, run=made_with))
    except UsageError:
        for journal in journals:
            journal.abandon()
        raise
    return Update(journals, pruning.may_drop if pruning is not None else lambda _: False)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The sources of a run.

    Attributes:
        find: starts the search for them.
        count: counts them; None if nobody knows. Called in a thread of its own.
        has_others: tells whether there are inputs for other jobs, so that this one may well have
            none.
    """

    find: Callable[[], Iterator[Source]]
    count: Callable[[], int | None] = lambda: None
    has_others: Callable[[], bool] = lambda: False


def run(
    settings: Settings,
    sources: Sources,
    process: Callable[[Iterator[Source]], Iterator[Record]],
    *,
    sink: Sink,
    batch_size: int,
    progress: bool | None,
    run_record: Path | None,
    description: Mapping[str, Any],
    errors_file: "ErrorsFile | None" = None,
) -> None:
    """Write a record for each source that has none yet.

    Where no input can be read, as of a disk that is not mounted, no file is finished and none is
    replaced.

    Args:
        settings: the global options.
        sources: what to make records of.
        process: makes one record of each source, in order.
        sink: where they go.
        batch_size: the sources that go through the network together.
        progress: whether to show a bar; None where stderr is a terminal.
        run_record: a file for what was run and how it went, written at the end, whatever that is.
        description: what the records depend on.
        errors_file: for the names of the inputs that could not be read.

    Raises:
        UsageError: if the run record can't be written.
        InputsError: if no input could be read.
        Interrupted: on Ctrl-C or SIGTERM; says what was kept.
        typer.Exit: with the code that says so if an input could not be read.
    """
    try:
        record_of_run = RunRecord(run_record, description) if run_record is not None else None
    except UsageError:
        sink.abandon()
        raise
    tally = _Tally(sink)
    bar = Progress(how_shown(settings.quiet, progress), sources.count, tally.before)
    left, again = _left(sources, sink, batch_size=batch_size, bar=bar)
    start = time.perf_counter()  # never at a stand, as Windows' other clock is between its ticks
    rate = 0.0
    outcome = "interrupted"
    try:
        # The first records of a batch that was cut are computed again, not written again.
        for record in islice(process(tally.watch(left)), again, None):
            with bar.paused() if isinstance(sink, StreamOutput) else nullcontext():
                sink.write([record])
            bar.add(record.error is not None)
            tally.add(record)
        rate = tally.new / (time.perf_counter() - start)
        if sink.paths and tally.is_nothing(sources.has_others):
            outcome = "failed"
            sink.abandon()
            _write_errors(errors_file, tally)
            raise tally.error(sink.paths)
        sink.finish(
            {
                "command": command(),
                "end": datetime.now(UTC).isoformat(),
                # What a resumed run had done before took a time that nobody knows now.
                "images_per_second": rate if tally.new else None,
            }
        )
        outcome = "finished"
        _write_errors(errors_file, tally)
    except KeyboardInterrupt:
        if isinstance(sink, StreamOutput):
            sink.finish()  # what was written reads as a whole document
        raise _interrupted(tally.count, sink) from None
    except NoTemporaryFiles as error:
        raise _resumable(error, sink) from None
    finally:
        bar.close()
        if outcome == "interrupted":
            rate = tally.new / (time.perf_counter() - start)
        if record_of_run is not None:
            try:
                record_of_run.write(outcome, tally.counts(), rate)
            except UsageError as error:
                if outcome == "finished":
                    raise CvtError(str(error), hint="the output is whole") from None
                say(f"error: {error}")  # what ended the run decides the exit code
    sum_up(
        settings,
        [str(path) for path in sink.paths],
        count=tally.count,
        errors=tally.errors,
        rate=rate,
        failed=[] if sink.is_seen else tally.failed,
        kept=sink.kept if isinstance(sink, Update) else 0,
        done=sink.in_words() if isinstance(sink, Update) else "",
    )


def _left(
    sources: Sources, sink: Sink, *, batch_size: int, bar: Progress
) -> tuple[Iterator[Source], int]:
    """The sources to do, and how many of the first have a record already; see `remaining`."""
    if isinstance(sink, Update):
        return sink.left(sources.find(), lambda: bar.add(False)), 0
    return remaining(sources.find, sink.done, batch_size)


def _interrupted(count: int, sink: Sink) -> Interrupted:
    """What to say of a run that was interrupted after so many inputs."""
    parts = " and ".join(f"{path}.part" for path in sink.paths)
    keep = "keep" if len(sink.paths) > 1 else "keeps"
    option = "--update" if isinstance(sink, Update) else "--resume"
    kept = f"; {parts} {keep} them: {option} goes on" if parts else ""
    return Interrupted(f"interrupted after {counted(count, 'input')}{kept}")


def _resumable(error: NoTemporaryFiles, sink: Sink) -> NoTemporaryFiles:
    """Make the error say what to do then."""
    if not sink.paths:
        return error
    again = ", then run the same command" + ("" if isinstance(sink, Update) else " with --resume")
    return NoTemporaryFiles(str(error), hint=error.hint + again)


def _write_errors(file: "ErrorsFile | None", tally: "_Tally") -> None:
    if file is not None:
        file.write(tally.failed)


class _Tally:
    """What became of the inputs.

    Attributes:
        before: inputs that an earlier run has done.
        count: those and the new ones.
        errors: how many of them have no result.
        failed: path and error of each of those.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.before = self.count = len(sink.done)
        self.errors = sink.errors
        self.failed = list(sink.failed)
        # What is not there, or can't be searched.
        self._missing: set[str] = set()
        self._missed = 0
        self._first: tuple[str, str] | None = None

    @property
    def new(self) -> int:
        """Inputs that this run has done."""
        return self.count - self.before

    def watch(self, sources: Iterator[Source]) -> Iterator[Source]:
        """The same sources."""
        for source in sources:
            if source.error is not None:
                self._missing.add(source.path)
            if isinstance(
                self._sink, Journal | SeveralOutputs
            ):  # others have noted it, or need not
                self._sink.note(as_written(source.path), stamp_of(source.path))
            yield source

    def add(self, record: Record) -> None:
        """Count one more."""
        self.count += 1
        if record.error is None:
            return
        self.errors += 1
        self._first = self._first or (record.path, record.error)
        self._missed += record.path in self._missing
        self.failed.append((record.path, record.error))

    def is_nothing(self, has_others: Callable[[], bool]) -> bool:
        """Whether no input could be read, or all that was left to read has gone since."""
        if isinstance(self._sink, Update) and self._sink.kept:
            return False
        if self.errors == self.count:
            return self.count > 0 or not has_others()
        return self.before > 0 and self._missed == self.new > 0

    def error(self, outputs: Sequence[Path]) -> InputsError:
        """What to say then."""
        names, several = ", ".join(map(str, outputs)), len(outputs) > 1
        if any(map(os.path.lexists, outputs)):
            outcome = f"{names} {'stay as they are' if several else 'stays as it is'}"
        elif self.errors < self.count:
            names = ", ".join(f"{path}.part" for path in outputs)
            outcome = f"{names} {'stay as they are' if several else 'stays as it is'}"
        else:
            outcome = f"{names} {'are' if several else 'is'} not written"
        if self._first is None:
            return InputsError("there is no input", hint=outcome)
        path, error = self._first
        of = f"none of {self.new} inputs could be read, as " if self.new > 1 else ""
        return InputsError(f"{of}{visible(path)}: {error}", hint=outcome)

    def counts(self) -> dict[str, int]:
        """For a run record."""
        return {"inputs": self.count, "errors": self.errors, "done_before": self.before}


@dataclass(frozen=True)
class ErrorsFile:
    """A list of the inputs that could not be read, as --files-from takes it.

    Attributes:
        path: where it is.
        null: NUL bytes end its names, not line ends.
    """

    path: Path
    null: bool

    @classmethod
    def of(cls, path: Path | None, null: bool) -> "ErrorsFile | None":
        """None where nobody asked for one."""
        return None if path is None else cls(path, null)

    def check(self, others: Sequence[Path], inputs: list[str], *, replace: bool) -> None:
        """Before anything is started.

        Args:
            others: what else the run writes.
            inputs: what it reads.
            replace: what is there.

        Raises:
            UsageError: if it can't be written, or would replace one of those, or what nobody said
                to replace.
        """
        check_file(self.path)
        check_not_an_input(self.path, inputs)
        written = {os.path.realpath(each) for other in others for each in (other, part_of(other))}
        if os.path.realpath(self.path) in written:
            raise UsageError(f"{self.path} is one of the outputs", hint="name another --errors")
        if os.path.lexists(self.path) and not replace:
            raise UsageError(f"{self.path} exists", hint="--overwrite replaces it")

    def write(self, failed: Sequence[tuple[str, str]]) -> None:
        """Write it whole, also where there is none.

        Raises:
            CvtError: if it can't be written.
        """
        end = b"\0" if self.null else b"\n"
        names = [os.fsencode(_as_found(path)) for path, _ in failed]
        listed = [name for name in names if self.null or not re.search(rb"\n|\r\Z", name)]
        if left_out := len(names) - len(listed):
            say(
                f"warning: {self.path}: {counted(left_out, 'name')} with a line break left out; "
                "--null has room for them"
            )
        try:
            write_atomically(self.path, lambda file: file.writelines(name + end for name in listed))
        except OSError as error:
            raise CvtError(f"{self.path} can't be written: {reason_of(error)}") from None


def _as_found(path: str) -> str:
    """The name of a file, of one that a record may have with escapes for bytes that are no text."""
    unescaped = re.sub(r"\\ud[c-f][0-9a-f]{2}", lambda found: chr(int(found[0][2:], 16)), path)
    return path if unescaped == path or os.path.lexists(path) else unescaped


class RunRecord:
    """What was run, for whoever asks later where the labels came from.

    Args:
        path: the JSON file.
        run: what the records depend on.

    Raises:
        UsageError: if nothing can be written there.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.start = datetime.now(UTC)
        self.run = run
        self._write({"outcome": "running"})

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a file is one."""
        try:
            with path.open("rb") as file:
                values = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(values, dict) and {"command", "outcome"} <= values.keys()

    def write(self, outcome: str, counts: Mapping[str, int], rate: float) -> None:
        """Write it whole, in place of what was there; `rate` in images/s."""
        end = datetime.now(UTC)
        seconds = (end - self.start).total_seconds()
        self._write(
            {
                "outcome": outcome,
                "end": end.isoformat(),
                "seconds": round(seconds, 3),
                "counts": dict(counts),
                "images_per_second": round(rate, 3),
            }
        )

    def _write(self, facts: Mapping[str, Any]) -> None:
        values = {
            "command": command(),
            "versions": versions(),
            "machine": platform.platform(),
            "start": self.start.isoformat(),
            **self.run,
            **facts,
        }
        try:
            text = json.dumps(values, indent=2) + "\n"
            write_atomically(self.path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UsageError(f"{self.path} can't be written: {reason_of(error)}") from None


def command() -> str:
    """What was typed."""
    return shlex.join(["cvt", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """What records depend on, beside the machine."""
    names = ("torch", "pillow", "numpy", "huggingface_hub", "safetensors")
    ours = {"cvt": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in names}


def sum_up(
    settings: Settings,
    outputs: Sequence[str],
    *,
    count: int,
    errors: int,
    rate: float,
    failed: Sequence[tuple[str, str]] = (),
    kept: int = 0,
    done: str = "",
) -> None:
    """Say how a run went.

    Args:
        outputs: the files written.
        count: the inputs.
        errors: those that could not be read.
        rate: in images/s.
        failed: path and error of those, the first few of which are named.
        kept: inputs on top of those whose record was there before.
        done: what was done with them all, in words.

    Raises:
        typer.Exit: with the code that says so if an input could not be read.
    """
    if not settings.quiet:
        if outputs:
            what = f"{counted(count + kept, 'input')}" + (f": {done}" if done else "")
            say(f"{', '.join(outputs)}: {what}, {rate:.1f} images/s")
        if errors:
            for path, error in failed[:NAMED_FAILURES]:
                say(f"{visible(path)}: {error}")
            more = errors - NAMED_FAILURES
            unnamed = f", {more} of them not named here" if failed and more > 0 else ""
            of = counted(count + kept, "input")
            say(f"{errors} of {of} could not be read{unnamed}; each has its error in the output")
    if errors:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def check_not_an_input(output: Path, inputs: list[str]) -> None:
    """See that a file to be written is not one to be read. Patterns and addresses are not looked
    into.

    Raises:
        UsageError: if it is.
    """
    if not output.exists():
        return
    for path in inputs:
        # os.path: a name may be too long to ask for, which Path takes for an error.
        in_folder = os.path.isdir(path) and output.resolve().is_relative_to(Path(path).resolve())
        if in_folder and output.suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{output} is one of the inputs")
        if os.path.exists(path) and output.samefile(path):
            raise UsageError(f"{output} is one of the inputs")
