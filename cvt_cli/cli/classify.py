"""`cvt classify`: image files in, labels out."""

import glob
import re
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import cluster, options, run
from cvt_cli.cli.options import DecodeChoice
from cvt_cli.errors import UsageError
from cvt_cli.images.find import Search, check, count, find
from cvt_cli.images.shard import Shard
from cvt_cli.images.size import parse_image_size
from cvt_cli.images.source import MAX_BYTES, TIMEOUT
from cvt_cli.output import FILE_FORMATS, FORMATS, check_format, format_of_file, writer_class
from cvt_cli.output.thumbnails import check_thumbnails, thumbnails_of
from cvt_cli.records import COLUMNS
from cvt_cli.system.cores import share_cores
from cvt_cli.system.files import TO_STDOUT, check_name

EXAMPLES = """\
[bold]Examples[/]

cvt classify cat.jpg

cvt classify photos/ --top-k 3 -o labels.csv

cvt classify photos/ -o labels.csv -o report.html

cvt classify photos/ --format jsonl | jq .

cvt classify 'photos/**/*.png' archive.zip shards.tar https://example.org/cat.jpg

find . -newer stamp -name '*.jpg' -print0 | cvt classify --files-from - --null -o new.jsonl

cat cat.jpg | cvt classify - --model microsoft/cvt-21

cvt classify s3://bucket/photos/ -o s3://bucket/labels/ --engine ray --ray-address auto
"""


SCALE = "Scale"


class Engine(StrEnum):
    """What runs the stages."""

    LOCAL = "local"
    RAY = "ray"


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
        int | None,
        typer.Option(
            "--top-k",
            "-k",
            min=1,
            help="Labels for each image. Default: 5; all that reach a --threshold where the model "
            "has several labels at once.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
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
        float | None,
        typer.Option(
            metavar="SCORE",
            help="The least score of a label, 0 to 1, or of a regression any number; an image may "
            "be left without one.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
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
            help=f"Facts to add to each record: {', '.join(COLUMNS)} (the best label's).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    run_record: options.RunRecordOption = None,
    decode: options.DecodeOption = DecodeChoice.FAST,
    device: options.DevicesOption = "auto",
    dtype: options.DtypeOption = "auto",
    batch_size: options.BatchSizeOption = None,
    progress: options.ProgressOption = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: this machine. ray: a Ray cluster, or all of this machine by Ray; --output "
            "is a folder of parts then, which cvt merge makes one file of.",
            rich_help_panel=SCALE,
        ),
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            metavar="HOST:PORT",
            help="The cluster's head, or auto on a node of it. Default: start Ray here.",
            show_default=False,
            rich_help_panel=SCALE,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX",
            help="How many copies of the network. Default: what suits the cluster.",
            show_default=False,
            rich_help_panel=SCALE,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="N",
            help="GPUs of each copy, maybe a part of one. Default: 1 where there are any.",
            show_default=False,
            rich_help_panel=SCALE,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Only every Nth input, from the Kth on: 3/64 is job 3 of 64.",
            show_default=False,
            rich_help_panel=SCALE,
        ),
    ] = None,
) -> None:
    """Label images: the best classes of each, with scores."""
    facts = _pick_columns(columns)
    size = parse_image_size(image_size) if image_size is not None else None
    inputs, outputs, only = inputs or [], output or [], _split(labels)
    search = Search(
        recursive,
        tuple(include or ()),
        tuple(exclude or ()),
        files_from,
        null,
        timeout,
        max_bytes,
    )
    if engine is Engine.RAY:
        pool = cluster.parse_workers(workers)
        folder, format_ = cluster.check(inputs, search, outputs, format_)
        for name, value in (("--shard", shard), ("--run-record", run_record)):
            if value is not None:
                raise UsageError(f"{name} is for --engine local")
        cluster.run(
            context.obj,
            inputs,
            search,
            folder,
            format_,
            top_k,
            facts,
            threshold,
            cluster.Network(
                model,
                revision,
                refresh,
                offline,
                activation,
                device,
                dtype,
                batch_size,
                size,
                decode is DecodeChoice.EXACT,
                max_pixels,
                tuple(only),
            ),
            ray_address,
            pool,
            gpus_per_worker,
            resume,
            overwrite,
            progress,
        )
        return
    if workers is not None or gpus_per_worker is not None:
        name = "--workers" if workers is not None else "--gpus-per-worker"
        raise UsageError(f"{name} is for --engine ray")
    for name in outputs:
        if "://" in name:
            raise UsageError(
                f"{name}: an output is a file of this machine", hint="--engine ray writes there"
            )
    paths = [Path(name) for name in outputs]
    for path in paths:
        check_name(path, TO_STDOUT)
    targets = _pick_targets(format_, run.unfinished(paths, resume and not overwrite))
    pages = [path for path, name in targets if name == "html" and path is not None]
    thumbnails = (glob.escape(thumbnails_of(page).name) for page in pages)
    search = replace(search, exclude=(*search.exclude, *thumbnails))
    part = Shard.parse(shard) if shard is not None else Shard(1, 1)
    check(inputs, search)
    for target, name in targets:
        run.check(target, writer_class(name), inputs, resume, overwrite)
    run.check_run_record(run_record, paths, inputs, overwrite)
    for page in pages:
        check_thumbnails(page, overwrite or run.is_taken_up(page, resume))

    # Torch is loaded only now that all that was typed makes sense.
    share_cores()
    from cvt_cli.images.decode import MAX_PIXELS
    from cvt_cli.inference.classifier import Classifier
    from cvt_cli.inference.scores import record_shape

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
        only=only,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    shape = record_shape(classifier.score_kind, len(classifier.indexes), top_k, threshold, facts)
    # To read all of the weights once more for their digest takes a while: only for the record.
    recorded = bool(outputs) or run_record is not None
    description = classifier.description(digest=recorded) | {
        "top_k": shape.top_k,
        "threshold": threshold,
        "columns": list(shape.columns),
        "shard": str(part),
    }
    sink = run.open_sinks(targets, shape, description, resume)
    description["format"] = ", ".join(name for _, name in targets)
    run.run(
        context.obj,
        lambda: part.take(find(inputs, search)),
        lambda sources: classifier.classify(
            sources, shape.top_k, threshold, shape.columns, thumbnails=bool(pages)
        ),
        sink,
        classifier.batch_size,
        progress,
        run_record,
        description,
        lambda: part.count(count(inputs, search)),
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
