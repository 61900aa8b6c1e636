"""`cvt classify`: image files in, labels out."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import options, run
from cvt_cli.images.find import find
from cvt_cli.output import FORMATS, check_format, format_of_file, writer_class
from cvt_cli.records import RecordShape

EXAMPLES = """\
[bold]Examples[/]

cvt classify cat.jpg

cvt classify photos/ --top-k 3 -o labels.csv

cvt classify photos/ --format jsonl | jq .

cat cat.jpg | cvt classify - --model microsoft/cvt-21
"""


def classify(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER...",
            help="Image files, folders (searched with all that is in them), or - for one image "
            "on standard input.",
            show_default=False,
            rich_help_panel=options.INPUT,
        ),
    ],
    model: options.ModelOption = DEFAULT_MODEL,
    revision: options.RevisionOption = None,
    activation: options.ActivationOption = None,
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
    output: options.OutputOption = None,
    resume: options.ResumeOption = False,
    overwrite: options.OverwriteOption = False,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    batch_size: options.BatchSizeOption = 16,
    progress: options.ProgressOption = None,
) -> None:
    """Label images: the best classes of each, with scores."""
    format_ = _pick_format(format_, output)
    writer = writer_class(format_)
    run.check(output, writer, inputs, resume, overwrite)

    # Torch is loaded only now that all that was typed makes sense.
    from cvt_cli.classifier import Classifier

    classifier = Classifier(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        hidden_act=activation,
        refresh=refresh,
        offline=offline,
    )
    description = classifier.description() | {"format": format_, "top_k": top_k}
    sink = run.open_sink(output, writer, RecordShape(top_k), description, resume)
    run.run(
        context.obj,
        lambda: find(inputs),
        lambda sources: classifier.classify(sources, top_k),
        sink,
        batch_size,
        progress,
    )


def _pick_format(name: str | None, output: Path | None) -> str:
    if name is not None:
        return check_format(name)
    if output is not None:
        return format_of_file(output)
    return "table" if sys.stdout.isatty() else "plain"
