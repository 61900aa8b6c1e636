"""`cvt classify`: image files in, labels out."""

import glob
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import options, run
from cvt_cli.cli.options import DecodeChoice
from cvt_cli.errors import UsageError
from cvt_cli.images.find import Search, check, count, find
from cvt_cli.images.size import parse_image_size
from cvt_cli.images.source import MAX_BYTES, TIMEOUT
from cvt_cli.output import FILE_FORMATS, FORMATS, check_format, format_of_file, writer_class
from cvt_cli.output.thumbnails import check_thumbnails, thumbnails_of
from cvt_cli.records import COLUMNS, RecordShape

EXAMPLES = """\
[bold]Examples[/]

cvt classify cat.jpg

cvt classify photos/ --top-k 3 -o labels.csv

cvt classify photos/ -o labels.csv -o report.html

cvt classify photos/ --format jsonl | jq .

cvt classify 'photos/**/*.png' archive.zip shards.tar https://example.org/cat.jpg

find . -newer stamp -name '*.jpg' -print0 | cvt classify --files-from - --null -o new.jsonl

cat cat.jpg | cvt classify - --model microsoft/cvt-21
"""


def classify(
    context: typer.Context,
    inputs: options.InputsArgument = None,
    files_from: options.FilesFromOption = None,
    null: options.NullOption = False,
    recursive: options.RecursiveOption = True,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    timeout: options.TimeoutOption = TIMEOUT,
    max_pixels: options.MaxPixelsOption = None,
    max_bytes: options.MaxBytesOption = MAX_BYTES,
    model: options.ModelOption = DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    activation: options.ActivationOption = None,
    image_size: options.ImageSizeOption = None,
    refresh: options.RefreshOption = False,
    offline: options.OfflineOption = False,
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k", "-k", min=1, help="Labels for each image.", rich_help_panel=options.OUTPUT
        ),
    ] = 5,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help=f"{', '.join(FORMATS)}. Default: what the suffix of --output says, a table on a "
            "terminal, plain lines (path, best label, score) in a pipe.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    output: options.OutputsOption = None,
    resume: options.ResumeOption = False,
    overwrite: options.OverwriteOption = False,
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="The least score of a label; an image may be left without one.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 0.0,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Choose among these labels only; scores are their shares.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help=f"Facts to add to each record: {', '.join(COLUMNS)}.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    run_record: options.RunRecordOption = None,
    decode: options.DecodeOption = DecodeChoice.FAST,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    batch_size: options.BatchSizeOption = None,
    progress: options.ProgressOption = None,
) -> None:
    """Label images: the best classes of each, with scores."""
    targets = _pick_targets(format_, run.unfinished(output or [], resume))
    pages = [path for path, name in targets if name == "html" and path is not None]
    shape = RecordShape(top_k, _pick_columns(columns))
    size = parse_image_size(image_size) if image_size is not None else None
    inputs = inputs or []
    search = Search(
        recursive,
        tuple(include or ()),
        (*(exclude or ()), *(glob.escape(thumbnails_of(page).name) for page in pages)),
        files_from,
        null,
        timeout,
        max_bytes,
    )
    check(inputs, search)
    for path, name in targets:
        run.check(path, writer_class(name), inputs, resume, overwrite)
    for page in pages:
        check_thumbnails(page, resume or overwrite)

    # Torch is loaded only now that all that was typed makes sense.
    from cvt_cli.classifier import Classifier
    from cvt_cli.images.decode import MAX_PIXELS

    classifier = Classifier(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        hidden_act=activation,
        refresh=refresh,
        offline=offline,
        image_size=size,
        exact_decode=decode is DecodeChoice.EXACT,
        only=_split(labels),
        max_pixels=max_pixels or MAX_PIXELS,
    )
    # To read all of the weights once more for their digest takes a while: only for the record.
    recorded = bool(output) or run_record is not None
    description = classifier.description(digest=recorded) | {
        "top_k": top_k,
        "threshold": threshold,
        "columns": list(shape.columns),
    }
    sink = run.open_sinks(targets, shape, description, resume)
    description["format"] = ", ".join(name for _, name in targets)
    run.run(
        context.obj,
        lambda: find(inputs, search),
        lambda sources: classifier.classify(
            sources, top_k, threshold, shape.columns, thumbnails=bool(pages)
        ),
        sink,
        classifier.batch_size,
        progress,
        run.RunRecord(run_record, description) if run_record is not None else None,
        lambda: count(inputs, search),
    )


def _split(names: str | None) -> list[str]:
    """Comma-separated names; a comma that is part of a label is written with a backslash."""
    if names is None:
        return []
    parts = re.split(r"(?<!\\),", names)
    return [part.replace("\\,", ",").strip() for part in parts if part.strip()]


def _pick_columns(names: str | None) -> tuple[str, ...]:
    columns = tuple(_split(names))
    for name in columns:
        if name not in COLUMNS:
            raise UsageError(f"{name}: no such column", hint=f"one of {', '.join(COLUMNS)}")
    return columns


def _pick_targets(name: str | None, outputs: list[Path]) -> list[tuple[Path | None, str]]:
    """Each output with its format; without any, standard output."""
    if name is not None:
        check_format(name)
    if not outputs:
        return [(None, name or ("table" if sys.stdout.isatty() else "plain"))]
    for path in outputs:
        if outputs.count(path) > 1:
            raise UsageError(f"{path} is named twice as --output")
    # Beside a report, --format is that of the records.
    return [
        (path, name if name and (path.suffix != ".html" or len(outputs) == 1) else _format_of(path))
        for path in outputs
    ]


def _format_of(path: Path) -> str:
    return format_of_file(path, FILE_FORMATS)
