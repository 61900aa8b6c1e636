"""`cvt classify --engine ray`: the same run on a cluster, into a folder of parts."""

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cvt_cli import __version__
from cvt_cli.cli.classify_options import Classification, Output
from cvt_cli.cli.errors_file import ErrorsFile
from cvt_cli.cli.input_options import Input
from cvt_cli.cli.options import GlobalOptions
from cvt_cli.cli.progress import Progress, how_shown
from cvt_cli.cli.run import NAMED_FAILURES, sum_up
from cvt_cli.cli.run_record import command, versions
from cvt_cli.errors import InputsError, Interrupted, UsageError
from cvt_cli.images import find
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.standard_input import STDIN
from cvt_cli.output import FORMATS, writer_class
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.text import counted, visible

if TYPE_CHECKING:
    from cvt_cli.checkpoint.load import Checkpoint
    from cvt_cli.distributed.part_folder import PartFolder
    from cvt_cli.distributed.parts import Part
    from cvt_cli.distributed.ray_job import RayJob
    from cvt_cli.images.reading import ImageReader
    from cvt_cli.inference.tuning import Request

PART_FORMATS = ("csv", "tsv", "jsonl", "parquet")
# Inputs per part: their records are one file.
PART_INPUTS = 10_000


def parse_workers(text: str | None) -> tuple[int | None, int | None]:
    """Parse `8`, or `2:16` for a pool that grows and shrinks, into the fewest and the most workers.
    None leaves the number to the cluster.

    Raises:
        UsageError: if it is neither.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?::([1-9][0-9]{0,5}))?", text, re.ASCII)
    if not match:
        raise UsageError(f"--workers {text}: a number, or fewest:most, like 2:16")
    fewest, most = int(match[1]), int(match[2] or match[1])
    if most < fewest:
        raise UsageError(f"--workers {text}: the second number is less than the first")
    return fewest, most


@dataclass(frozen=True)
class Target:
    """A folder of parts, and the format of each."""

    folder: str
    format: str


def pick_target(images: Input, output: Output) -> Target:
    """Pick the output folder and the format of its parts, before anything is started.

    Raises:
        UsageError: if this can't be done on a cluster.
    """
    outputs = output.outputs
    if len(outputs) != 1 or outputs[0] in ("", "-"):
        raise UsageError("--engine ray needs one --output, a folder")
    folder = outputs[0]
    if STDIN in images.paths:
        raise UsageError("standard input can't be read on a cluster", hint="name the file")
    find.check_inputs(images.paths, images.search)
    format_ = output.format_ or PART_FORMATS[0]
    if format_ not in PART_FORMATS:
        formats = ", ".join(PART_FORMATS)
        raise UsageError(f"--engine ray writes no {format_}", hint=f"--format is one of {formats}")
    suffix = Path(folder).suffix.lower().removeprefix(".")
    if suffix in FORMATS or Path(folder).is_file():
        raise UsageError(
            f"{folder}: --engine ray writes a folder of parts",
            hint=f"-o labels/, then cvt merge labels/ -o {Path(folder).name}",
        )
    return Target(folder, format_)


def check_device(device: str, gpus: float | None) -> None:
    """Check that workers can have this device with this many GPUs. Raises `UsageError` if not."""
    if "," in device or device.startswith("cuda:"):
        raise UsageError(
            f"--device {device}: Ray picks the GPU of each worker", hint="--device cuda"
        )
    if gpus is not None and device != "auto" and (gpus > 0) != (device == "cuda"):
        raise UsageError(f"--device {device} and --gpus-per-worker {gpus:g} exclude each other")


def classify_on_cluster(settings: GlobalOptions, target: Target, wanted: Classification) -> None:
    """Label the inputs on a cluster.

    Args:
        target: as `pick_target` returns it.
        wanted: what was asked for.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM; says what was kept.
        typer.Exit: with the code that says so if an input could not be read.
    """
    from cvt_cli.distributed import execution
    from cvt_cli.distributed.connection import Cluster
    from cvt_cli.distributed.layout import Workers
    from cvt_cli.distributed.part_folder import PartFolder
    from cvt_cli.distributed.parts_left import left_of
    from cvt_cli.inference.conditions import Conditions
    from cvt_cli.inference.label_groups import groups_of
    from cvt_cli.inference.labels import pick_indexes
    from cvt_cli.inference.scores import kind_of, record_shape

    images, output, scale = wanted.images, wanted.output, wanted.scale
    errors_file = _errors_file(target, images, output)
    checkpoint = wanted.model.load(verify=True)
    indexes = tuple(pick_indexes(output.only, checkpoint))
    groups = groups_of(output.group_rows, checkpoint)
    answers = indexes or range(len(checkpoint.labels))
    shape = record_shape(
        kind_of(checkpoint),
        len(answers if groups is None else groups.answers(answers)),
        output.top_k,
        threshold=output.threshold,
        columns=output.facts,
    )
    folder = PartFolder(
        target.folder,
        target.format,
        writer_class(target.format),
        shape=shape,
    )
    folder.check_free(output.resume, output.overwrite)
    reader = _reader_for(checkpoint, wanted)
    with Cluster(scale.ray_address, settings.debug) as cluster, ExitStack() as stack:
        job, layout = cluster.settle(
            _job(wanted, checkpoint, reader, only=indexes, shape=shape),
            Workers(*parse_workers(scale.workers), scale.gpus_per_worker),
            _form_wanted(wanted, folder.recorded() if output.resume else {}),
        )
        conditions = Conditions(
            checkpoint=checkpoint,
            reader=reader,
            device=job.device,
            dtype=job.dtype,
            batch_size=job.batch_size or 0,
            only=[checkpoint.labels[index] for index in indexes] or None,
            form=job.form,
        )
        description = conditions.facts(digest=True) | {
            "top_k": shape.top_k,
            "threshold": output.threshold,
            "columns": list(shape.columns),
            "format": target.format,
            "default_excludes": images.default_excludes,
            "version": __version__,
            "groups": groups and groups.digest(),
        }
        all_parts, skipped = _find_parts(images)
        _check_left(all_parts, f"nothing is written to {target.folder}", errors_file)
        stack.enter_context(folder.held())
        folder.begin(description, output.resume, output.overwrite)
        parts, before, errors_before = left_of(all_parts, folder, PART_INPUTS)
        has_archives = any(part.is_archive for part in parts)
        total = None if has_archives else before + sum(len(part.paths) for part in parts)
        bar = Progress(how_shown(settings.quiet, output.progress), lambda: total, before)
        account = _Account(folder, before, errors_before)

        def on_record(record: Record) -> None:
            bar.add(record.error is not None)
            account.add(record)

        def facts(outcome: str) -> dict[str, Any]:
            return description | account.facts(outcome, layout.facts())

        try:
            execution.fill_parts(
                cluster,
                parts,
                job,
                layout=layout,
                on_record=on_record,
                on_part=lambda part: folder.write(part, description),
            )
            done = facts("finished")
            _finish(folder, done, errors_file, parts=all_parts, read=parts, skipped=skipped)
        except KeyboardInterrupt:
            done = facts("interrupted")
            folder.write_run(done)
            raise Interrupted(
                f"interrupted after {counted(account.count, 'input')}; "
                f"{folder.kept(done['counts']['inputs'])}"
            ) from None
        finally:
            bar.close()
    sum_up(
        settings,
        [target.folder],
        count=account.count,
        errors=done["counts"]["errors"],
        rate=done["images_per_second"],
        failed=account.failed,
    )


def _job(
    wanted: Classification,
    checkpoint: "Checkpoint",
    reader: "ImageReader",
    *,
    only: tuple[int, ...],
    shape: RecordShape,
) -> "RayJob":
    """Make the job that workers get, with what it leaves to their machines still open."""
    from cvt_cli.distributed.ray_job import RayJob

    output, compute = wanted.output, wanted.compute
    return RayJob(
        checkpoint=checkpoint,
        device=compute.device,
        dtype=compute.dtype,
        batch_size=compute.batch_size,
        reader=reader,
        only=only,
        groups=output.group_rows,
        top_k=shape.top_k,
        threshold=output.threshold,
        columns=shape.columns,
        search=replace(wanted.images.search, image_timeout=wanted.reading.image_timeout),
        offline=wanted.model.offline,
    )


def _reader_for(checkpoint: "Checkpoint", wanted: Classification) -> "ImageReader":
    from cvt_cli.images.decode import MAX_PIXELS
    from cvt_cli.images.reading import ImageReader

    images = wanted.images
    return ImageReader(
        checkpoint.config,
        checkpoint.preprocessing,
        images.max_pixels or MAX_PIXELS,
        exact_decode=wanted.compute.exact_decode,
        background=images.background_colour,
        accept_truncated=images.accept_truncated,
    )


def _form_wanted(wanted: Classification, recorded: Mapping[str, Any]) -> "Request":
    """Return how the form of the network is chosen: by the first worker, for all."""
    from cvt_cli.inference.batch_size import MAX_AUTO_BATCH_SIZE
    from cvt_cli.inference.tuning import LONG_RUN, Request, Tune

    tune, form = Tune(wanted.compute.tune), recorded.get("form")
    images = None
    if tune is Tune.AUTO:
        most = LONG_RUN * (wanted.compute.batch_size or MAX_AUTO_BATCH_SIZE)
        images = find.count_sources(wanted.images.paths, wanted.images.search, most=most)
    return Request(tune, lambda most: images, form if isinstance(form, dict) else None)


def _errors_file(target: Target, images: Input, output: Output) -> ErrorsFile | None:
    """Return the file for --errors, checked; None without it."""
    file = ErrorsFile.of(output.errors, images.null)
    if file is not None:
        others = [] if "://" in target.folder else [Path(target.folder)]
        replace = output.overwrite or output.resume
        file.check(others, images.inputs_and_list, replace=replace)
    return file


def _find_parts(images: Input) -> tuple[list["Part"], Skipped]:
    """Deal all inputs into parts, and count what is left out of folders."""
    from cvt_cli.distributed.parts import parts_of

    skipped = Skipped()
    found = find.find(images.paths, images.search, True, skipped=skipped)
    return list(parts_of(found, PART_INPUTS)), skipped


def _check_left(parts: Sequence["Part"], hint: str, errors_file: ErrorsFile | None) -> None:
    """Check that there is something to read. Raises `InputsError` if not."""
    if any(part.is_archive or part.missing() for part in parts):
        return
    records = (record for part in parts for record in part.in_order())
    failed = [(record.path, record.error or "") for record in records]
    if errors_file is not None:
        errors_file.write(_as_named(failed, parts))
    _nothing_read(failed, hint)


def _finish(
    folder: "PartFolder",
    done: Mapping[str, Any],
    errors_file: ErrorsFile | None,
    *,
    parts: Sequence["Part"],
    read: Sequence["Part"],
    skipped: Skipped,
) -> None:
    """Mark the folder of parts as finished, and warn of the files that were left out.

    Args:
        parts: all of the run.
        read: those that this run has read, which count what is left out of archives.
        skipped: what is left out of folders.

    Raises:
        InputsError: if no input could be read. No part is kept then.
    """
    for part in read:
        skipped.add(part.skipped)
    for line in skipped.in_words():
        warnings.warn(line, stacklevel=2)
    failed = folder.failed()
    if errors_file is not None:
        errors_file.write(_as_named(failed, parts))
    if done["counts"]["errors"] == done["counts"]["inputs"]:
        _nothing_read(failed, folder.give_up())
    folder.finish(done)


def _as_named(failed: Sequence[tuple[str, str]], parts: Sequence["Part"]) -> list[tuple[str, str]]:
    """Return path and error with whole addresses, with their passwords and signatures, which
    records lack."""
    # A member of an archive is named after that.
    ends = {path: [found.start() for found in re.finditer("::|$", path)] for path, _ in failed}
    heads = {path[:end] for path, its in ends.items() if "://" in path for end in its}
    whole = {
        shown: path
        for part in parts
        for path in part.paths
        if "://" in path and (shown := as_written(path)) in heads
    }

    def named(path: str) -> str:
        for end in ends[path]:
            if path[:end] in whole:
                return whole[path[:end]] + path[end:]
        return path

    return [(named(path), error) for path, error in failed]


def _nothing_read(failed: Sequence[tuple[str, str]], hint: str) -> NoReturn:
    """Raise the `InputsError` of a run that could read no input."""
    if not failed:
        raise InputsError("no input could be read", hint=hint)
    of = f"none of {len(failed)} inputs could be read, as " if len(failed) > 1 else ""
    path, error = failed[0]
    raise InputsError(f"{of}{visible(path)}: {error}", hint=hint)


class _Account:
    """Count the records of a run, for its run record.

    Args:
        folder: its output.
        before: records that were there before.
        errors_before: errors among them.

    Attributes:
        count: records that are there.
        failed: path and error of the first inputs that could not be read.
    """

    def __init__(self, folder: "PartFolder", before: int, errors_before: int) -> None:
        self.count = before
        self.failed: list[tuple[str, str]] = []
        self._folder = folder
        self._before = before
        self._errors_before = errors_before
        self._begin, self._start = datetime.now(UTC), time.monotonic()

    def add(self, record: Record) -> None:
        """Count one more record."""
        self.count += 1
        if record.error is not None and len(self.failed) < NAMED_FAILURES:
            self.failed.append((record.path, record.error))

    def facts(self, outcome: str, layout: Mapping[str, float]) -> dict[str, Any]:
        """Return how the run has gone so far."""
        seconds = time.monotonic() - self._start
        written, errors = self._folder.written()
        return {
            "outcome": outcome,
            "command": command(),
            "versions": versions(),
            "engine": {"name": "ray", **layout},
            "start": self._begin.isoformat(),
            "end": datetime.now(UTC).isoformat(),
            "seconds": round(seconds, 3),
            "counts": {
                "inputs": self._before + written,
                "errors": self._errors_before + errors,
                "done_before": self._before,
            },
            "images_per_second": round((self.count - self._before) / seconds, 3),
        }
