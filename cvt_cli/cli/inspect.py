"""`cvt inspect`: what a model is and what it costs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import options
from cvt_cli.errors import ModelError, UsageError
from cvt_cli.model.cost import BYTES_PER_VALUE

if TYPE_CHECKING:
    from cvt_cli.inspection.facts import Inspection
    from cvt_cli.output.tables import Report

SHOW = "What to show"
COST = "Cost"
DTYPES = tuple(BYTES_PER_VALUE)

EXAMPLES = """\
[bold]Examples[/]

cvt inspect

cvt inspect microsoft/cvt-w24-384-22k --image-size 512x384

cvt inspect ./my-cvt --layers --format csv -o layers.csv

cvt inspect microsoft/cvt-13 --labels | grep -i cat

cvt inspect microsoft/cvt-13 ./my-cvt --diff

cvt inspect --compare --plot accuracy.svg
"""


def inspect(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="A CvT on the Hub, a folder or a file; two of them with --diff. "
            f"Default: $CVT_MODEL, or {DEFAULT_MODEL}.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Every layer: shapes, parameters, MACs, memory.",
            rich_help_panel=SHOW,
        ),
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Its labels by class index.", rich_help_panel=SHOW)
    ] = False,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights",
            help="Open the weights: dtypes, statistics of each, NaN, missing or left-over keys.",
            rich_help_panel=SHOW,
        ),
    ] = False,
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Two models side by side.", rich_help_panel=SHOW),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="CvT beside ViT, DeiT, CPVT, TNT, T2T and PVT.",
            rich_help_panel=SHOW,
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="With --compare: accuracy over MACs as a picture, .png, .svg or .pdf.",
            rich_help_panel=SHOW,
        ),
    ] = None,
    image_size: options.ImageSizeOption = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", "-b", min=1, help="Images at once.", rich_help_panel=COST),
    ] = 1,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help=f"{', '.join(DTYPES)}: of weights and activations.",
            rich_help_panel=COST,
        ),
    ] = "float32",
    revision: options.RevisionOption = None,
    refresh: options.RefreshOption = False,
    offline: options.OfflineOption = False,
    format_: options.ReportFormatOption = None,
    output: options.OutputOption = None,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Tell what a model is and what it costs, without running or downloading it.

    Stages, parameters, multiply-adds (MACs), memory, labels, files, whether it is in the cache.
    Counted from the configuration alone.
    """
    _check(models or [], labels, layers or weights, diff, compare, plot)
    if dtype not in DTYPES:
        raise UsageError(f"{dtype}: no such dtype", hint=f"one of {', '.join(DTYPES)}")

    from cvt_cli.images.size import parse_image_size
    from cvt_cli.output.tables import check_new, pick_format, write_report

    size = None if image_size is None else parse_image_size(image_size)
    check_new(output, overwrite)
    format_ = pick_format(format_, output)
    check_new(plot, overwrite, instead="name a picture")
    if plot is not None:
        from cvt_cli.inspection.families import check_plot_file

        check_plot_file(plot)

    from cvt_cli.inspection.facts import inspect as find

    # Not Typer's envvar: that would split a path at its spaces.
    names = models or ([] if compare else [os.environ.get("CVT_MODEL") or DEFAULT_MODEL])
    found = [
        # The comparison is about one image.
        find(name, revision, refresh, offline, labels, size, 1 if compare else batch_size, dtype)
        for name in names
    ]
    if compare:
        report = _compare(found, plot)
    elif diff:
        from cvt_cli.inspection.difference import Difference
        from cvt_cli.inspection.inspection_tables import difference_report

        report = difference_report(Difference(*found))
    else:
        report = _one(found[0], labels, layers, weights)
    write_report(report, format_, output)


def _check(
    models: list[str], labels: bool, details: bool, diff: bool, compare: bool, plot: Path | None
) -> None:
    """Raises `UsageError` if what was asked for can't be shown together."""
    if sum((labels, details, diff, compare)) > 1:
        raise UsageError(
            "--labels, --diff and --compare each stand alone; --layers and --weights go together"
        )
    if plot is not None and not compare:
        raise UsageError("--plot needs --compare")
    if diff and len(models) != 2:
        raise UsageError(f"--diff needs two models, not {len(models)}")
    if not diff and len(models) > 1:
        raise UsageError("one model at a time", hint="--diff shows two side by side")


def _one(found: "Inspection", labels: bool, layers: bool, weights: bool) -> "Report":
    from cvt_cli.inspection.inspection_tables import inspection_report, labels_report

    if labels:
        return labels_report(found)
    facts = None
    if weights:
        from cvt_cli.inspection.weights import weights_facts

        if found.files is None or not found.is_here:
            raise ModelError(
                f"{found.name}: its weights are not on this machine",
                hint=f"`cvt models --download {found.name}` fetches them",
            )
        facts = weights_facts(found.config, found.files)
    return inspection_report(found, layers, facts)


def _compare(found: "list[Inspection]", plot: Path | None) -> "Report":
    from cvt_cli.inspection import families
    from cvt_cli.inspection.families_table import comparison_report
    from cvt_cli.output.tables import write_whole

    rows = families.rows()
    rows += [families.counted_row(one.name, one.cost) for one in found]
    if plot is not None:
        write_whole(plot, lambda file: families.plot(rows, file, plot.suffix))
    return comparison_report(rows)
