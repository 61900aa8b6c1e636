"""Options of `cvt classify` alone: its records, and where the work is done."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cvt_cli.cli.compute_options import Compute
from cvt_cli.cli.input_options import Input, Reading
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.options import OUTPUT, SCALE, split_names
from cvt_cli.cli.output_options import (
    ErrorsOption,
    GroupsOption,
    OverwriteOption,
    ProgressOption,
    PruneOption,
    ResumeOption,
    RunRecordOption,
    UpdateOption,
    format_option,
    output_option,
    read_groups_option,
)
from cvt_cli.errors import UsageError
from cvt_cli.output import FORMATS
from cvt_cli.records import COLUMNS, THUMBNAIL
from cvt_cli.system.text import reason_of

if TYPE_CHECKING:
    from cvt_cli.checkpoint.group_table import GroupedLabel


def _lines_of(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} can't be read: {reason_of(error)}",
            hint="--labels @FILE has one label per line",
        ) from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UsageError(f"{path} names no label")
    return lines


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options for what a record of `cvt classify` holds, and where it goes."""

    top_k: Annotated[
        int | None,
        OUTPUT.option(
            "--top-k",
            "-k",
            min=1,
            help="Labels per image. Default: 5; for a multi-label model with --threshold, all "
            "that reach it.",
        ),
    ] = None
    format_: Annotated[
        str | None,
        format_option(
            OUTPUT,
            FORMATS,
            help=f"{', '.join(FORMATS)}. Default: by the suffix of --output; else a table on a "
            "terminal, plain lines (path, best label, score) in a pipe.",
        ),
    ] = None
    output: Annotated[
        list[str] | None,
        output_option(
            help="Write to this file instead of standard output; it appears complete or not at"
            " all. .html makes a page to browse. Repeatable: -o labels.csv -o "
            "report.html. With --engine ray: a folder, or an address like "
            "s3://bucket/labels."
        ),
    ] = None
    resume: ResumeOption = False
    update: UpdateOption = False
    prune: PruneOption = False
    overwrite: OverwriteOption = False
    threshold: Annotated[
        float | None,
        OUTPUT.option(
            "--threshold",
            metavar="SCORE",
            help="Lowest score of a label, 0 to 1 (any number for a regression); an image may "
            "get no label.",
        ),
    ] = None
    labels: Annotated[
        list[str] | None,
        OUTPUT.option(
            "--labels",
            metavar="A,B,...|@FILE",
            help="Choose among these labels only: names, synonyms, WordNet ids or #INDEX, or a"
            " file with one per line. Softmax scores are over these. Repeatable.",
        ),
    ] = None
    groups: GroupsOption = None
    columns: Annotated[
        str | None,
        OUTPUT.option(
            "--columns",
            metavar="A,B,...",
            help=f"Columns to add: {', '.join(COLUMNS)}; in .xlsx also {THUMBNAIL}, for up to "
            "5,000 images.",
        ),
    ] = None
    run_record: RunRecordOption = None
    errors: ErrorsOption = None
    progress: ProgressOption = None

    @property
    def outputs(self) -> list[str]:
        """Return the files, folders and addresses to write to."""
        return self.output or []

    @cached_property  # a file may be a pipe, which is read once
    def only(self) -> list[str]:
        """Return the labels to choose from, as `inference.labels.pick_indexes` takes them; none for
        all.

        Raises:
            UsageError: if a file of them can't be read, or has none.
        """
        only: list[str] = []
        for value in self.labels or ():
            only += _lines_of(Path(value[1:])) if value.startswith("@") else [value]
        return only

    @cached_property
    def group_rows(self) -> "list[GroupedLabel] | None":
        """The rows of --groups; None for none.

        Raises:
            UsageError: if the file can't be read, or has none.
        """
        return read_groups_option(self.groups)

    @property
    def facts(self) -> tuple[str, ...]:
        """Return the facts to add to each record, out of `records.COLUMNS`.

        Raises:
            UsageError: if there is no such column.
        """
        names = tuple(name for name in split_names(self.columns) if name != THUMBNAIL)
        for name in names:
            if name not in COLUMNS:
                known = ", ".join((*COLUMNS, THUMBNAIL))
                raise UsageError(f"{name}: no such column", hint=f"one of {known}")
        return names

    @property
    def thumbnails(self) -> bool:
        """Whether `THUMBNAIL` is among the columns."""
        return THUMBNAIL in split_names(self.columns)


class EngineChoice(StrEnum):
    """Engines that run the stages: this machine, or Ray."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Options for where the work is done: here, on a cluster, or as one of several jobs."""

    engine: Annotated[
        EngineChoice,
        SCALE.option(
            "--engine",
            help="local: this machine. ray: a Ray cluster, or this machine through Ray; "
            "--output is then a folder of parts, which cvt merge joins.",
        ),
    ] = EngineChoice.LOCAL
    ray_address: Annotated[
        str | None,
        SCALE.option(
            "--ray-address",
            envvar="RAY_ADDRESS",
            metavar="HOST:PORT",
            help="The cluster's head, or auto on one of its nodes. Default: start Ray here.",
        ),
    ] = None
    workers: Annotated[
        str | None,
        SCALE.option(
            "--workers",
            metavar="N|MIN:MAX",
            help="Number of copies of the network. Default: chosen for the cluster.",
        ),
    ] = None
    gpus_per_worker: Annotated[
        float | None,
        SCALE.option(
            "--gpus-per-worker",
            min=0,
            metavar="N",
            help="GPUs per copy; fractions are allowed. Default: 1 if there are any.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        SCALE.option(
            "--shard",
            metavar="K/N",
            help="Label only the share of job K of N, by a hash of each path: 3/64.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Classification:
    """All option groups of `cvt classify`."""

    images: Input
    model: ModelOptions
    output: Output
    compute: Compute
    reading: Reading
    scale: Scale
