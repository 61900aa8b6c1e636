"""The main loop of the commands that make one record per input: sources in, records out, with
progress, resumption and a summary."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from cvt_cli.cli.errors_file import ErrorsFile
from cvt_cli.cli.messages import say
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.progress import Progress, how_shown, in_rate
from cvt_cli.cli.run_record import RunRecord, command
from cvt_cli.cli.sinks import Sink
from cvt_cli.errors import (
    CvtError,
    ExitCode,
    InputsError,
    Interrupted,
    NoTemporaryFiles,
    UsageError,
)
from cvt_cli.images.remaining import remaining
from cvt_cli.images.source import TEXT, Source
from cvt_cli.images.standard_input import STDIN
from cvt_cli.output.journal import Journal
from cvt_cli.output.run_file import stamp_of
from cvt_cli.output.several_outputs import SeveralOutputs
from cvt_cli.output.stream import StreamOutput
from cvt_cli.output.update import Update
from cvt_cli.records import Record, as_written
from cvt_cli.system.text import counted, visible

# Failed inputs that a summary names, at most.
NAMED_FAILURES = 5


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


def write_records(
    settings: GlobalOptions,
    sources: Sources,
    process: Callable[[Iterator[Source], int], Iterator[Sequence[Record]]],
    *,
    sink: Sink,
    batch_size: int,
    progress: bool | None,
    run_record: Path | None,
    description: Mapping[str, Any],
    errors_file: ErrorsFile | None = None,
) -> None:
    """Write a record for each source that has none yet.

    Where no input can be read, as of a disk that is not mounted, no file is finished and none is
    replaced.

    Args:
        settings: the global options.
        sources: what to make records of.
        process: makes one record of each source, in order, and yields those of a batch together;
            is given the number of their first batch in the whole run, too.
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
    found = replace(sources, find=lambda: tally.recognise(sources.find()))
    left, again = _left(found, sink, batch_size=batch_size, bar=bar)
    # An update has batches of its own: of what the output lacks.
    first_batch = 0 if isinstance(sink, Update) else tally.before // batch_size
    start = time.perf_counter()  # time.monotonic stands still between its ticks on Windows
    rate = 0.0
    outcome = "interrupted"
    try:
        # The first records of a batch that was cut short are computed again, but not written again.
        for batch in process(tally.watch(left), first_batch):
            records, again = batch[again:], max(0, again - len(batch))
            with bar.paused() if isinstance(sink, StreamOutput) else nullcontext():
                sink.write(records)
            for record in records:
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
                # Nobody knows how long the inputs took that were done before a resumption.
                "images_per_second": rate if tally.new else None,
            }
        )
        outcome = "finished"
        _write_errors(errors_file, tally)
    except KeyboardInterrupt:
        if isinstance(sink, StreamOutput):
            sink.finish()  # completes the document
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
                say(f"error: {error}")  # the exit code is that of what ended the run
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
    """Return the sources to do, and how many of the first already have a record; see
    `remaining`."""
    if isinstance(sink, Update):
        return sink.left(sources.find(), lambda: bar.add(False)), 0
    return remaining(sources.find, sink.done, batch_size)


def _interrupted(count: int, sink: Sink) -> Interrupted:
    """Make the error of a run that was interrupted after `count` inputs."""
    parts = " and ".join(f"{path}.part" for path in sink.paths)
    keep = "keep" if len(sink.paths) > 1 else "keeps"
    option = "--update" if isinstance(sink, Update) else "--resume"
    kept = f"; {parts} {keep} them: {option} continues" if parts else ""
    return Interrupted(f"interrupted after {counted(count, 'input')}{kept}")


def _resumable(error: NoTemporaryFiles, sink: Sink) -> NoTemporaryFiles:
    """Add to the error how to go on."""
    if not sink.paths:
        return error
    again = ", then run the same command" + ("" if isinstance(sink, Update) else " with --resume")
    return NoTemporaryFiles(str(error), hint=error.hint + again)


def _write_errors(file: ErrorsFile | None, tally: "_Tally") -> None:
    if file is not None:
        file.write(tally.failed_as_named())


class _Tally:
    """Counts the inputs and their errors.

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
        # Paths that do not exist or can't be searched.
        self._missing: set[str] = set()
        self._missed = 0
        self._first: tuple[str, str] | None = None
        # Addresses as they were named of those that failed before, by how records show them.
        self._named: dict[str, str] = {}

    @property
    def new(self) -> int:
        """Inputs that this run has done."""
        return self.count - self.before

    def recognise(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Pass on the sources, and note the whole addresses of what failed in an earlier run."""
        failed = {path for path, _ in self._sink.failed if "://" in path}
        for source in sources:
            if failed and (path := as_written(source.path)) in failed:
                self._named[path] = source.path
            yield source

    def failed_as_named(self) -> list[tuple[str, str]]:
        """Return `failed` with whole addresses: with their passwords and signatures."""
        return [(self._named.get(path, path), error) for path, error in self.failed]

    def watch(self, sources: Iterator[Source]) -> Iterator[Source]:
        """Pass on the sources, and note the missing ones."""
        # Others have noted it, or need not.
        sink = self._sink if isinstance(self._sink, Journal | SeveralOutputs) else None
        for source in sources:
            if source.error is not None:
                self._missing.add(source.path)
            if sink is not None:
                sink.note(as_written(source.path), stamp_of(source.path))
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
        """Tell whether no input could be read, or all that was left to read has vanished since."""
        if isinstance(self._sink, Update) and self._sink.kept:
            return False
        if self.errors == self.count:
            return self.count > 0 or not has_others()
        return self.before > 0 and self._missed == self.new > 0

    def error(self, outputs: Sequence[Path]) -> InputsError:
        """Make the error of a run that could read nothing."""
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
        path, reason = self._first
        of = f"none of {self.new} inputs could be read, for example " if self.new > 1 else ""
        return InputsError(f"{of}{visible(path)}: {reason}", hint=outcome)

    def counts(self) -> dict[str, int]:
        """Return the counts for a run record."""
        return {"inputs": self.count, "errors": self.errors, "done_before": self.before}


def sum_up(
    settings: GlobalOptions,
    outputs: Sequence[str],
    *,
    count: int,
    errors: int,
    rate: float,
    failed: Sequence[tuple[str, str]] = (),
    kept: int = 0,
    done: str = "",
) -> None:
    """Print the summary of a run.

    Args:
        outputs: the files written.
        count: the inputs.
        errors: those that could not be read.
        rate: in images/s.
        failed: path and error of those, of which the first few of each reason are named.
        kept: inputs on top of those whose record was there before.
        done: what was done with them all, in words.

    Raises:
        typer.Exit: with the code that says so if an input could not be read.
    """
    if outputs and not settings.quiet:
        what = f"{counted(count + kept, 'input')}" + (f": {done}" if done else "")
        pace = f", {in_rate(rate)} images/s" if count else ""
        say(f"{', '.join(outputs)}: {what}{pace}")
    # On standard output the errors are there to see; a file says nothing by itself.
    if errors and (outputs or not settings.quiet):
        lines, named = failure_lines(failed)
        for line in lines:
            say(line)
        unnamed = f", {errors - named} of them not named here" if failed and errors > named else ""
        of = counted(count + kept, "input")
        where = "each has its error" if errors > 1 else "its error is"
        a_list = "; --files-from - reads a list of names" if (STDIN, TEXT) in failed else ""
        say(f"{errors} of {of} could not be read{unnamed}; {where} in the output{a_list}")
    if errors:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def failure_lines(failed: Sequence[tuple[str, str]]) -> tuple[list[str], int]:
    """Return lines that name failed inputs, and how many they name. A reason that more than a few
    share is one line, with the first of them; of the other inputs the first few have one each.

    Args:
        failed: path and error of each.
    """
    shared = {
        reason: count
        for reason, count in Counter(error for _, error in failed).most_common(NAMED_FAILURES)
        if count > NAMED_FAILURES
    }
    lines, named = [], 0
    for reason, count in shared.items():
        paths = islice((path for path, error in failed if error == reason), NAMED_FAILURES)
        lines.append(f"{count} inputs: {reason}: {', '.join(map(visible, paths))}, …")
        named += NAMED_FAILURES
    alone = [(path, error) for path, error in failed if error not in shared][:NAMED_FAILURES]
    lines += [f"{visible(path)}: {error}" for path, error in alone]
    return lines, named + len(alone)
