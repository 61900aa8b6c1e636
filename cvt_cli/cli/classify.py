"""`cvt classify`: image files in, labels out."""

import sys
import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from cvt_cli import __version__
from cvt_cli.checkpoint.catalog import DEFAULT_MODEL
from cvt_cli.cli import options
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import Progress
from cvt_cli.errors import ExitCode, Interrupted, UsageError
from cvt_cli.images.find import IMAGE_SUFFIXES, find, remaining
from cvt_cli.output import FORMATS, check_format, format_of_file, writer_class
from cvt_cli.output.journal import Journal, check_output
from cvt_cli.output.stream import StreamOutput
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
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an --output that was interrupted: only what is missing.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace an --output that exists, or start an interrupted one anew.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = "auto",
    batch_size: options.BatchSizeOption = 16,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="A progress bar on stderr. Default: on a terminal.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
) -> None:
    """Label images: the best classes of each, with scores."""
    settings: options.Settings = context.obj
    format_ = _pick_format(format_, output)
    if output is not None:
        check_output(output, resume, overwrite)
        _check_not_an_input(output, inputs)
    elif resume:
        raise UsageError("--resume needs --output")

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
    shape = RecordShape(top_k)
    sink: Journal | StreamOutput
    if output is None:
        sink = StreamOutput(sys.stdout, writer_class(format_), shape)
        done: list[str] = []
    else:
        run = classifier.description() | {"format": format_, "top_k": top_k, "version": __version__}
        sink = Journal(output, writer_class(format_), shape, run, resume)
        done = sink.done
    sources, again = remaining(lambda: find(inputs), done, batch_size)
    errors = sink.errors if isinstance(sink, Journal) else 0
    count = len(done)
    shown = sys.stderr.isatty() if progress is None else progress
    bar = Progress(shown and not settings.quiet, lambda: sum(1 for _ in find(inputs)), count)
    start = time.monotonic()
    records = classifier.classify(sources, top_k)
    try:
        # The first records of a batch that was cut are computed again, not written again.
        for record in islice(records, again, None):
            with bar.paused():
                sink.write([record])
            failed = record.error is not None
            bar.add(failed)
            errors += failed
            count += 1
        sink.finish()
    except KeyboardInterrupt:
        kept = f"; {output}.part keeps them: --resume goes on" if output is not None else ""
        raise Interrupted(f"interrupted after {count} inputs{kept}") from None
    finally:
        bar.close()
    _sum_up(settings, output, count, errors, (count - len(done)) / (time.monotonic() - start))


def _sum_up(
    settings: options.Settings, output: Path | None, count: int, errors: int, rate: float
) -> None:
    if not settings.quiet:
        if output is not None:
            say(f"{output}: {count} inputs, {rate:.1f} images/s")
        if errors:
            say(f"{errors} of {count} inputs could not be read; each has its error in the output")
    if errors:
        raise typer.Exit(ExitCode.INPUTS_FAILED)


def _pick_format(name: str | None, output: Path | None) -> str:
    if name is not None:
        return check_format(name)
    if output is not None:
        return format_of_file(output)
    return "table" if sys.stdout.isatty() else "plain"


def _check_not_an_input(output: Path, inputs: list[str]) -> None:
    if not output.exists():
        return
    for path in inputs:
        in_folder = Path(path).is_dir() and output.resolve().is_relative_to(Path(path).resolve())
        if in_folder and output.suffix.lower() in IMAGE_SUFFIXES:
            raise UsageError(f"{output} is one of the inputs")
        if Path(path).exists() and output.samefile(path):
            raise UsageError(f"{output} is one of the inputs")
