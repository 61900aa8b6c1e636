"""Sinks: the files, or standard output, that the records of a run go to."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvt_cli import __version__
from cvt_cli.cli.messages import say
from cvt_cli.errors import Finished, UsageError
from cvt_cli.images.source import IMAGE_SUFFIXES
from cvt_cli.output import ConvertedWriter, WriterClass, writer_class
from cvt_cli.output.journal import Journal, check_output, part_of, run_file_of
from cvt_cli.output.run_file import Kept
from cvt_cli.output.several_outputs import SeveralOutputs
from cvt_cli.output.stream import StreamOutput
from cvt_cli.output.update import Pruning, Update, UpdatedJournal, can_update, check_update
from cvt_cli.records import RecordShape

Sink = Journal | SeveralOutputs | StreamOutput | Update


def check_targets(
    targets: Sequence[tuple[Path | None, WriterClass]],
    inputs: list[str],
    *,
    resume: bool,
    overwrite: bool,
    update: bool = False,
) -> None:
    """Check, before anything is started, that the outputs can be written.

    Args:
        targets: each with its format; None for standard output.

    Raises:
        UsageError: if one can't be, or would replace a file without --overwrite.
    """
    files = [(path, writer) for path, writer in targets if path is not None]
    if not files:
        _check_stdout(targets, resume=resume, update=update)
    if update and (resume or overwrite):
        other = "--resume" if resume else "--overwrite"
        raise UsageError(f"--update and {other} exclude each other")
    for path, writer in files:
        if update:
            check_update(path, writer)
        # An update needs what others must not replace.
        check_output(path, resume, overwrite or update, can_update=lambda: can_update(files))
        check_not_an_input(path, inputs)


def _check_stdout(
    targets: Sequence[tuple[Path | None, WriterClass]], *, resume: bool, update: bool
) -> None:
    if resume or update:
        raise UsageError(f"--{'resume' if resume else 'update'} needs --output")
    if any(issubclass(writer, ConvertedWriter) for _, writer in targets):
        raise UsageError(
            "this format can't be written to standard output", hint="name a file with --output"
        )


def check_prune(prune: bool, update: bool) -> None:
    """Raise `UsageError` for --prune without --update."""
    if prune and not update:
        raise UsageError("--prune needs --update")


def check_not_an_input(output: Path, inputs: list[str]) -> None:
    """Check that a file to write is not one of the files to read. Patterns and addresses are not
    expanded.

    Raises:
        UsageError: if it is one.
    """
    if not output.exists():
        return
    for path in inputs:
        # os.path, because Path raises an error for a name that is too long.
        in_folder = os.path.isdir(path) and output.resolve().is_relative_to(Path(path).resolve())
        if in_folder and output.suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{output} is one of the inputs")
        if os.path.exists(path) and output.samefile(path):
            raise UsageError(f"{output} is one of the inputs")


def unfinished(outputs: Sequence[Path], resume: bool) -> list[Path]:
    """Return the outputs that are still to be written: all, except those that an interrupted run
    had finished before it was cut short at the next. Prints which those are.

    Raises:
        Finished: if nothing is left to resume.
    """
    interrupted = resume and any(map(os.path.lexists, map(part_of, outputs)))
    if resume and outputs and not interrupted and all(map(os.path.isfile, outputs)):
        pages = any(path.suffix.lower() == ".html" for path in outputs)
        raise Finished(", ".join(map(str, outputs)), can_update=not pages)
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
    """Tell whether a run continues an interrupted one, to which the files beside the output
    belong."""
    return resume and part_of(output).exists()


def recorded_form(
    outputs: Sequence[Path], *, resume: bool, update: bool = False
) -> dict[str, Any] | None:
    """Return the form of the network in the run that is resumed, or whose outputs are updated; None
    without any.

    Args:
        outputs: of the run; the first that tells decides.
    """
    for output in outputs if resume or update else ():
        with suppress(OSError, ValueError, AttributeError):
            form = json.loads(run_file_of(output).read_text("utf-8")).get("form")
            if isinstance(form, dict):
                return form
        kept = Kept.read(output) if update else None
        if kept is not None and isinstance(form := kept.run.get("form"), dict):
            return form
    return None


def open_sink(
    output: Path | None,
    writer_class: WriterClass,
    shape: RecordShape,
    *,
    run: Mapping[str, Any],
    resume: bool,
    overwrite: bool = False,
) -> Journal | StreamOutput:
    """Open a file, or standard output, for records.

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
    writer_class: Callable[[str], WriterClass] = writer_class,
) -> Journal | SeveralOutputs | StreamOutput:
    """Open several files, each with the name of its format, or standard output."""
    sinks: list[Journal | StreamOutput] = []
    try:
        for path, name in targets:
            sinks.append(
                open_sink(
                    path,
                    writer_class(name),
                    _shape_of(name, shape),
                    run=_run_of(name, shape, run),
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
    writer_class: Callable[[str], WriterClass] = writer_class,
) -> Update:
    """Open finished outputs to bring them up to date.

    Args:
        pruning: which records may go; None for none.
    """
    journals: list[UpdatedJournal] = []
    try:
        for path, name in targets:
            made_with = {**_run_of(name, shape, run), "version": __version__}
            own_shape = _shape_of(name, shape)
            journals.append(UpdatedJournal(path, writer_class(name), own_shape, run=made_with))
    except UsageError:
        for journal in journals:
            journal.abandon()
        raise
    return Update(journals, pruning.may_drop if pruning is not None else lambda _: False)


def _shape_of(format_: str, shape: RecordShape) -> RecordShape:
    """Return the shape of records in an output of that format."""
    return replace(shape, thumbnails=shape.thumbnails and format_ == "xlsx")


def _run_of(format_: str, shape: RecordShape, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an output of that format is made with."""
    pictures = {"thumbnails": True} if _shape_of(format_, shape).thumbnails else {}
    return {**run, "format": format_, **pictures}
