"""The run behind the commands that make one record of each input: sources in, records out, with
progress, resumption and a summary."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from cvt_cli import __version__
from cvt_cli.cli.messages import say
from cvt_cli.cli.options import Settings
from cvt_cli.cli.progress import Progress
from cvt_cli.errors import CvtError, ExitCode, Finished, Interrupted, UsageError
from cvt_cli.images.find import IMAGE_SUFFIXES, Source, remaining
from cvt_cli.output import ConvertedWriter, WriterClass, writer_class
from cvt_cli.output.journal import Journal, check_output, part_of, run_file_of
from cvt_cli.output.several import SeveralOutputs
from cvt_cli.output.stream import StreamOutput
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.files import check_file, write_atomically
from cvt_cli.system.text import counted, reason_of

Search = Callable[[], Iterator[Source]]

# More than a run record has, whatever was typed.
_MAX_BYTES = 2**24


def check(
    output: Path | None,
    writer_class: WriterClass,
    inputs: list[str],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Before anything is started.

    Raises:
        UsageError: if the output can't be written or would replace what nobody said to replace.
    """
    if output is None:
        if resume:
            raise UsageError("--resume needs --output")
        if issubclass(writer_class, ConvertedWriter):
            raise UsageError(
                "this format can't be written to standard output", hint="--output names a file"
            )
        return
    check_output(output, resume, overwrite)
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
) -> Journal | StreamOutput:
    """Where records go: a file, or standard output.

    Args:
        output: the file; None for standard output.
        writer_class: the format.
        shape: what a record has room for.
        run: what the records depend on; a run that differs in it is not resumed.
        resume: take up the journal of an interrupted run.
    """
    if output is None:
        return StreamOutput(sys.stdout, writer_class, shape)
    return Journal(output, writer_class, shape, {**run, "version": __version__}, resume)


def open_sinks(
    targets: Sequence[tuple[Path | None, str]],
    shape: RecordShape,
    run: Mapping[str, Any],
    *,
    resume: bool,
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
                )
            )
    except UsageError:
        for sink in sinks:
            sink.abandon()
        raise
    journals = [sink for sink in sinks if isinstance(sink, Journal)]
    return SeveralOutputs(journals) if len(journals) > 1 else sinks[0]


def run(
    settings: Settings,
    search: Search,
    process: Callable[[Iterator[Source]], Iterator[Record]],
    *,
    sink: Journal | SeveralOutputs | StreamOutput,
    batch_size: int,
    progress: bool | None,
    run_record: Path | None,
    description: Mapping[str, Any],
    count_sources: Callable[[], int | None] = lambda: None,
) -> None:
    """Write a record for each source that has none yet.

    Args:
        settings: the global options.
        search: starts the search for the sources.
        process: makes one record of each source, in order.
        sink: where they go.
        batch_size: the sources that go through the network together.
        progress: whether to show a bar; None where stderr is a terminal.
        run_record: a file for what was run and how it went, written at the end, whatever that is.
        description: what the records depend on.
        count_sources: how many there are, or None if nobody knows; called in a thread of its own.

    Raises:
        UsageError: if the run record can't be written.
        Interrupted: on Ctrl-C or SIGTERM; says what was kept.
        typer.Exit: with the code that says so if an input could not be read.
    """
    try:
        record_of_run = RunRecord(run_record, description) if run_record is not None else None
    except UsageError:
        sink.abandon()
        raise
    sources, again = remaining(search, sink.done, batch_size)
    before = count = len(sink.done)
    errors = sink.errors
    bar = Progress(is_shown(settings, progress), count_sources, count)
    start = time.perf_counter()  # never at a stand, as Windows' other clock is between its ticks
    rate = 0.0
    outcome = "interrupted"
    try:
        # The first records of a batch that was cut are computed again, not written again.
        for record in islice(process(sources), again, None):
            with bar.paused() if isinstance(sink, StreamOutput) else nullcontext():
                sink.write([record])
            failed = record.error is not None
            bar.add(failed)
            errors += failed
            count += 1
        rate = (count - before) / (time.perf_counter() - start)
        sink.finish(
            {
                "command": command(),
                "end": datetime.now(UTC).isoformat(),
                # What a resumed run had done before took a time that nobody knows now.
                "images_per_second": rate if count > before else None,
            }
        )
        outcome = "finished"
    except KeyboardInterrupt:
        if isinstance(sink, StreamOutput):
            sink.finish()  # what was written reads as a whole document
        parts = " and ".join(f"{path}.part" for path in sink.paths)
        keep = "keep" if len(sink.paths) > 1 else "keeps"
        kept = f"; {parts} {keep} them: --resume goes on" if parts else ""
        raise Interrupted(f"interrupted after {counted(count, 'input')}{kept}") from None
    finally:
        bar.close()
        if outcome != "finished":
            rate = (count - before) / (time.perf_counter() - start)
        if record_of_run is not None:
            counts = {"inputs": count, "errors": errors, "done_before": before}
            try:
                record_of_run.write(outcome, counts, rate)
            except UsageError as error:
                if outcome == "finished":
                    raise CvtError(str(error), hint="the output is whole") from None
                say(f"error: {error}")  # what ended the run decides the exit code
    sum_up(settings, [str(path) for path in sink.paths], count=count, errors=errors, rate=rate)


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


def is_shown(settings: Settings, progress: bool | None) -> bool:
    """Whether there is to be a bar; `progress` is None where nobody said."""
    return not settings.quiet and (sys.stderr.isatty() if progress is None else progress)


def command() -> str:
    """What was typed."""
    return shlex.join(["cvt", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """What records depend on, beside the machine."""
    names = ("torch", "pillow", "numpy", "huggingface_hub", "safetensors")
    ours = {"cvt": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in names}


def sum_up(
    settings: Settings, outputs: Sequence[str], *, count: int, errors: int, rate: float
) -> None:
    """Say how a run went.

    Raises:
        typer.Exit: with the code that says so if an input could not be read.
    """
    if not settings.quiet:
        if outputs:
            say(f"{', '.join(outputs)}: {counted(count, 'input')}, {rate:.1f} images/s")
        if errors:
            of = counted(count, "input")
            say(f"{errors} of {of} could not be read; each has its error in the output")
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
