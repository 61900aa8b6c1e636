"""`cvt embed`: image files in, the vectors behind their labels out."""

import os
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
from cvt_cli.output import EMBEDDING_FORMATS, embedding_writer_class, format_of_file
from cvt_cli.records import RecordShape
from cvt_cli.system.cores import share_cores
from cvt_cli.system.files import check_file, check_name

EXAMPLES = """\
[bold]Examples[/]

cvt embed photos/ -o features.parquet

cvt embed photos/ -o features.npy --model microsoft/cvt-21

cvt embed photos/ -o features.npy --resume
"""


def embed(
    context: typer.Context,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=".parquet: columns path, embedding (a fixed-size list), error. .npy: a row for "
            "each input, NaN where there is an error; the paths are in .paths.txt beside it, the "
            "errors in .errors.txt.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
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
    resume: options.ResumeOption = False,
    overwrite: options.OverwriteOption = False,
    run_record: options.RunRecordOption = None,
    decode: options.DecodeOption = DecodeChoice.FAST,
    device: options.DevicesOption = "auto",
    dtype: options.DtypeOption = "float32",
    batch_size: options.BatchSizeOption = None,
    progress: options.ProgressOption = None,
) -> None:
    """Turn images into vectors, for search and clustering.

    A vector is the class token after the last norm, what the network's last layer makes the
    labels of: float32 numbers, 384 of them for CvT-13 and CvT-21, 1024 for CvT-W24.
    """
    check_name(output)
    format_ = format_of_file(output, EMBEDDING_FORMATS)
    size = parse_image_size(image_size) if image_size is not None else None
    writer = embedding_writer_class(format_)
    inputs = inputs or []
    search = Search(
        recursive, tuple(include or ()), tuple(exclude or ()), files_from, null, timeout, max_bytes
    )
    check(inputs, search)
    run.unfinished([output], resume and not overwrite)
    run.check(output, writer, inputs, resume, overwrite)
    beside = _beside(output) if format_ == "npy" else ()
    for path in beside:
        check_file(path)
        if os.path.lexists(path) and not (overwrite or run.is_taken_up(output, resume)):
            raise UsageError(f"{path} exists", hint="--overwrite replaces it")
    run.check_run_record(run_record, [output, *beside], inputs, overwrite)

    # Torch is loaded only now that all that was typed makes sense.
    share_cores()
    from cvt_cli.images.decode import MAX_PIXELS
    from cvt_cli.inference.classifier import Classifier

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
        max_pixels=max_pixels or MAX_PIXELS,
    )
    shape = RecordShape(top_k=0, embedding_dim=classifier.embedding_dim)
    description = classifier.description() | {
        "format": format_,
    }
    sink = run.open_sink(output, writer, shape, description, resume)
    run.run(
        context.obj,
        lambda: find(inputs, search),
        classifier.embed,
        sink,
        classifier.batch_size,
        progress,
        run_record,
        description,
        lambda: count(inputs, search),
    )


def _beside(output: Path) -> tuple[Path, ...]:
    from cvt_cli.output.npy import errors_of, paths_of

    return paths_of(output), errors_of(output)
