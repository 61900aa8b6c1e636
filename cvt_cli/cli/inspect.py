"""`cvt inspect`: what a model is and what it costs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import completion, options
from cvt_cli.cli.compute_options import dtype_option
from cvt_cli.cli.model_options import CheckpointFiles, ImageSizeOption
from cvt_cli.cli.option_groups import Panel, grouped
from cvt_cli.cli.output_options import ReportOptions
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.model.cost import BYTES_PER_VALUE

if TYPE_CHECKING:
    from cvt_cli.inspection.facts import Inspection
    from cvt_cli.output.report_tables import Report

SHOW = Panel("What to show")
COST = Panel("Cost")
DTYPES = tuple(BYTES_PER_VALUE)
COMPARED = 2  # models that --diff takes

EXAMPLES = """\
[bold]Examples[/]

cvt inspect

cvt inspect microsoft/cvt-w24-384-22k --image-size 512x384

cvt inspect ./my-cvt --layers --format csv -o layers.csv

cvt inspect microsoft/cvt-13 --labels | grep -i cat

cvt inspect microsoft/cvt-13 ./my-cvt --diff

cvt inspect --compare --plot accuracy.svg
"""


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options for what to show of a model."""

    layers: Annotated[
        bool, SHOW.option("--layers", help="Show every layer: shapes, parameters, MACs, memory.")
    ] = False
    labels: Annotated[bool, SHOW.option("--labels", help="Show the labels by class index.")] = False
    weights: Annotated[
        bool,
        SHOW.option(
            "--weights",
            help="Read the weights: dtypes, statistics, NaN, missing and unexpected keys.",
        ),
    ] = False
    diff: Annotated[bool, SHOW.option("--diff", help="Compare two models.")] = False
    compare: Annotated[
        bool, SHOW.option("--compare", help="Compare CvT with ViT, DeiT, CPVT, TNT, T2T and PVT.")
    ] = False
    plot: Annotated[
        Path | None,
        SHOW.option(
            "--plot",
            metavar="FILE",
            help="With --compare: plot accuracy over MACs: .png, .svg or .pdf.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Options for the workload whose cost is counted."""

    batch_size: Annotated[
        int, COST.option("--batch-size", "-b", min=1, help="Images per batch.")
    ] = 1
    dtype: Annotated[
        str,
        dtype_option(COST, help=f"{', '.join(DTYPES)}: dtype of weights and activations."),
    ] = "float32"


@grouped
def inspect(
    *,
    models: Annotated[
        list[str] | None,
        options.MODEL.argument(
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="A CvT on the Hub, a folder or a file; two of them with --diff. "
            f"Default: $CVT_MODEL, or {DEFAULT_MODEL}.",
        ),
    ] = None,
    show: ShowOptions,
    image_size: ImageSizeOption = None,
    cost: CostOptions,
    files: CheckpointFiles,
    report: ReportOptions,
) -> None:
    """Describe a model and its cost without running or downloading it.

    Shows stages, parameters, multiply-adds (MACs), memory, labels, files, and whether it is cached,
    from the configuration alone.
    """
    _check(models or [], show, cost.batch_size)
    if cost.dtype not in DTYPES:
        raise UsageError(f"{cost.dtype}: no such dtype", hint=f"one of {', '.join(DTYPES)}")

    from cvt_cli.images.size import parse_image_size
    from cvt_cli.output.report_tables import check_new, write_report

    size = None if image_size is None else parse_image_size(image_size)
    format_ = report.pick_format()
    check_new(show.plot, report.overwrite, instead="name a picture")
    if show.plot is not None:
        from cvt_cli.cli.plot_file import check_plot_file

        check_plot_file(show.plot, report.output)

    from cvt_cli.inspection.facts import Workload, inspect_checkpoint

    # Typer's envvar would split a path at its spaces.
    names = models or ([] if show.compare else [os.environ.get("CVT_MODEL") or DEFAULT_MODEL])
    found = [
        inspect_checkpoint(
            name,
            revision=files.revision,
            refresh=files.refresh,
            offline=files.offline,
            needs_labels=show.labels,
            workload=Workload(
                image_size=size,
                batch_size=cost.batch_size,
                dtype=cost.dtype,
            ),
            weights_key=files.weights_key,
        )
        for name in names
    ]
    if show.compare:
        shown = _compare(found, show.plot)
    elif show.diff:
        from cvt_cli.inspection.difference import Difference
        from cvt_cli.inspection.difference_tables import difference_report

        shown = difference_report(Difference(*found))
    else:
        shown = _one(found[0], show)
    write_report(shown, format_, report.output)


def _check(models: list[str], show: ShowOptions, batch_size: int) -> None:
    """Check that what was asked for can be shown together. Raises `UsageError` if not."""
    details = show.layers or show.weights
    if sum((show.labels, details, show.diff, show.compare)) > 1:
        raise UsageError("--labels, --diff and --compare can't be combined with other views")
    if show.plot is not None and not show.compare:
        raise UsageError("--plot needs --compare")
    if show.compare and batch_size != 1:
        raise UsageError("--compare counts a single image", hint="leave out --batch-size")
    if show.diff and len(models) != COMPARED:
        raise UsageError(f"--diff needs two models, not {len(models)}")
    if not show.diff and len(models) > 1:
        raise UsageError("one model at a time", hint="--diff shows two side by side")


def _one(found: "Inspection", show: ShowOptions) -> "Report":
    from cvt_cli.inspection.inspection_tables import inspection_report, labels_report

    if show.labels:
        return labels_report(found)
    facts = None
    if show.weights:
        from cvt_cli.inspection.weights import weights_facts

        if found.files is None or not found.has_local_weights:
            raise ModelError(
                f"{found.name}: its weights are not on this machine",
                hint=f"`cvt models --download {found.name}` fetches them",
            )
        facts = weights_facts(found.config, found.files)
    return inspection_report(found, show.layers, facts)


def _compare(found: "list[Inspection]", plot: Path | None) -> "Report":
    from cvt_cli.inspection import families
    from cvt_cli.inspection.families_table import comparison_report
    from cvt_cli.output.report_tables import write_whole

    rows = families.rows()
    rows += [families.counted_row(one.name, one.cost) for one in found]
    if plot is not None:
        write_whole(plot, lambda file: families.plot_families(rows, file, plot.suffix))
    return comparison_report(rows)
