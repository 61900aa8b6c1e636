"""`cvt benchmark`: how fast a model is on this machine."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.cli import options
from cvt_cli.cli.compute_options import (
    DecodeChoice,
    DecodeOption,
    DeviceOption,
    TuneChoice,
    TuneOption,
    dtype_option,
)
from cvt_cli.cli.messages import say
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import Panel, grouped
from cvt_cli.cli.output_options import ProgressOption, ReportOptions
from cvt_cli.errors import ExitCode, Interrupted, UsageError
from cvt_cli.system.cores import share_cores
from cvt_cli.system.text import counted

if TYPE_CHECKING:
    from cvt_cli.benchmark.machine import Machine
    from cvt_cli.benchmark.network import Measurement
    from cvt_cli.benchmark.pipeline import PipelineMeasurement

MEASURE = Panel("What to measure")
BATCH_SIZES = "1,8,32"
BATCH_SIZES_FROM_FILES = "16"
MAX_DIGITS = 9  # of a batch size
DEFAULT_IMAGE_SIZE = (224, 224)  # where the preprocessing leaves the size open

EXAMPLES = """\
[bold]Examples[/]

cvt benchmark

cvt benchmark --batch-size 1,32 --dtype float32,bfloat16 --plot speed.png

cvt benchmark --baseline transformers --batch-size 16 --dtype float32

cvt benchmark --images photos/ --baseline transformers

cvt benchmark --model ./my-cvt --format csv -o speed.csv
"""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel(ModelOptions):
    """Options for the model that is measured; nothing is downloaded for it."""

    class_names: Path | None = field(default=None, init=False)
    refresh: bool = field(default=False, init=False)
    offline: bool = field(default=True, init=False)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Options for the cases that are measured."""

    images: Annotated[
        Path | None,
        MEASURE.option(
            "--images",
            metavar="FOLDER",
            help="Measure whole runs on the files in this folder instead of the network alone.",
        ),
    ] = None
    baseline: Annotated[
        str | None,
        MEASURE.option(
            "--baseline",
            metavar="NAME",
            help="Compare with transformers, onnxruntime or openvino, in turns, on the same "
            "weights and inputs. With --images: transformers.",
        ),
    ] = None
    batch_size: Annotated[
        str | None,
        MEASURE.option(
            "--batch-size",
            "-b",
            metavar="N,N,...",
            help=f"Images per batch. Default: {BATCH_SIZES}; with --images "
            f"{BATCH_SIZES_FROM_FILES}.",
        ),
    ] = None
    dtype: Annotated[
        str,
        dtype_option(
            MEASURE,
            metavar="DTYPE,...",
            help="Precision: auto, float32, bfloat16 or float16.",
        ),
    ] = "auto"
    duration: Annotated[
        float,
        MEASURE.option(
            "--duration",
            min=0.01,
            metavar="SECONDS",
            help="Seconds per case, and per side with --baseline.",
        ),
    ] = 5.0
    compiled: Annotated[
        bool,
        MEASURE.option(
            "--compile",
            help="Use torch.compile, and measure its start too. Needs a C++ compiler.",
        ),
    ] = False
    tune: TuneOption = TuneChoice.AUTO


@grouped
def benchmark(
    context: typer.Context,
    *,
    model: MeasuredModel,
    cases: Cases,
    decode: DecodeOption = DecodeChoice.FAST,
    device: DeviceOption = "auto",
    report: ReportOptions,
    plot: Annotated[
        Path | None,
        options.OUTPUT.option(
            "--plot",
            metavar="FILE",
            help="Plot throughput and latency over batch size: .png, .svg or .pdf.",
        ),
    ] = None,
    progress: ProgressOption = None,
) -> None:
    """Measure how fast a model is on this machine: latency, images/s, share of the device's peak.

    A published model that is not on this machine is measured with random weights; nothing is
    downloaded.
    """
    _check(cases, decode, plot)
    from_files = cases.images is not None
    if from_files:
        share_cores()  # as a run does
    default = BATCH_SIZES_FROM_FILES if from_files else BATCH_SIZES
    batch_sizes = _parse_batch_sizes(cases.batch_size or default)

    from cvt_cli.benchmark.baselines import import_baseline
    from cvt_cli.output.report_tables import check_new

    size = model.input_size
    format_ = report.pick_format()
    check_new(plot, report.overwrite, instead="name a picture")
    if plot is not None:
        from cvt_cli.cli.plot_file import check_plot_file

        check_plot_file(plot, report.output)
    if cases.baseline is not None:
        import_baseline(cases.baseline)

    # Torch is loaded only now that all that was typed makes sense.
    from cvt_cli.benchmark.engines import check_baseline
    from cvt_cli.benchmark.machine import describe_machine
    from cvt_cli.benchmark.model import find_model, pick_dtypes
    from cvt_cli.benchmark.network import Measurement, Plan
    from cvt_cli.benchmark.pipeline import PipelineMeasurement, PipelinePlan
    from cvt_cli.inference.devices import pick_device
    from cvt_cli.inference.tuning import Tune

    chosen = pick_device(device)
    dtypes = pick_dtypes(cases.dtype, chosen)
    checkpoint = find_model(
        model.model, model.revision, model.activation, weights_key=model.weights_key
    )
    if cases.baseline is not None:
        check_baseline(cases.baseline, checkpoint, chosen, dtypes=dtypes)
        if from_files and (size or checkpoint.preprocessing.image_size) is None:
            raise UsageError(
                f"{checkpoint.name} has no fixed input size: {cases.baseline} can't batch its "
                "images",
                hint="--image-size gives all images one size",
            )
    input_size = size or checkpoint.preprocessing.image_size or DEFAULT_IMAGE_SIZE
    try:
        checkpoint.config.tokens(*input_size)
    except ValueError as error:
        raise UsageError(str(error)) from None

    measurement: Measurement | PipelineMeasurement
    if cases.images is None:
        measurement = Measurement(
            Plan(
                checkpoint=checkpoint,
                image_size=input_size,
                batch_sizes=batch_sizes,
                dtypes=dtypes,
                device=chosen,
                duration=cases.duration,
                compiled=cases.compiled,
                peer=cases.baseline,
                tune=Tune(cases.tune),
            )
        )
    else:
        measurement = PipelineMeasurement(
            PipelinePlan(
                checkpoint=checkpoint,
                folder=cases.images,
                image_size=size,
                batch_sizes=batch_sizes,
                dtypes=dtypes,
                device=chosen,
                duration=cases.duration,
                exact_decode=decode is DecodeChoice.EXACT,
                with_peer=cases.baseline is not None,
                tune=Tune(cases.tune),
            )
        )
    machine = describe_machine(chosen, cases.baseline)
    shown = sys.stderr.isatty() if progress is None else progress
    tell = say if shown and not context.obj.quiet else _say_nothing
    _write(measurement, machine, tell, format_=format_, output=report.output, plot=plot)
    if not any(case.images_per_second for case in measurement.cases):
        raise typer.Exit(ExitCode.RUN_FAILED)


def _write(
    measurement: "Measurement | PipelineMeasurement",
    machine: "Machine",
    tell: Callable[[str], None],
    *,
    format_: str,
    output: Path | None,
    plot: Path | None,
) -> None:
    """Measure, and write the report. Raises `Interrupted` on Ctrl-C, after printing what there is;
    a file is written whole or not at all."""
    from cvt_cli.benchmark.benchmark_tables import benchmark_report
    from cvt_cli.benchmark.network import Measurement
    from cvt_cli.benchmark.plot import plot as draw
    from cvt_cli.output.report_tables import write_report, write_whole

    try:
        measurement.run(tell)
    except KeyboardInterrupt:
        if measurement.cases:
            write_report(benchmark_report(measurement, machine), format_, None)
        raise Interrupted(
            f"interrupted after {len(measurement.cases)} of {counted(measurement.planned, 'case')}"
        ) from None
    write_report(benchmark_report(measurement, machine), format_, output)
    if plot is not None and isinstance(measurement, Measurement):
        network = measurement
        write_whole(plot, lambda file: draw(network, file, plot.suffix))


def _check(cases: Cases, decode: DecodeChoice, plot: Path | None) -> None:
    """Check that what was asked for can be measured together. Raises `UsageError` if not."""
    if cases.images is None:
        if decode is DecodeChoice.EXACT:
            raise UsageError("--decode is for files: it needs --images")
        return
    if not cases.images.is_dir():
        raise UsageError(f"--images {cases.images}: no such folder")
    if cases.compiled or plot is not None:
        option = "--compile" if cases.compiled else "--plot"
        raise UsageError(f"{option} measures the network alone: leave --images out")
    if cases.baseline not in (None, "transformers"):
        raise UsageError(
            f"--baseline {cases.baseline} measures the network alone",
            hint="with --images: --baseline transformers",
        )


def _parse_batch_sizes(text: str) -> tuple[int, ...]:
    sizes = []
    for part in text.split(","):
        digits = part.strip()
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
        if not (is_number and int(digits)):
            raise UsageError(
                f"{part.strip()!r}: not a batch size",
                hint=f"whole numbers from 1, separated by commas: {BATCH_SIZES}",
            )
        sizes.append(int(digits))
    return tuple(dict.fromkeys(sizes))


def _say_nothing(_: str) -> None:
    pass
