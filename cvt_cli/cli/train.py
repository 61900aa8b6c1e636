"""`cvt train`: a folder of labelled images in, a checkpoint out."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvt_cli.cli import options
from cvt_cli.cli.compute_options import DeviceOption, dtype_option
from cvt_cli.cli.head_only import check_head_only, train_head
from cvt_cli.cli.input_options import Pictures, Reading
from cvt_cli.cli.messages import say
from cvt_cli.cli.model_options import CheckpointFiles
from cvt_cli.cli.option_groups import grouped
from cvt_cli.cli.output_options import output_option
from cvt_cli.cli.train_options import (
    CROPS,
    EPOCHS,
    FINE_TUNE_LR,
    SCRATCH_LR,
    AugmentationOptions,
    LearningOptions,
    RunOptions,
    StartOptions,
)
from cvt_cli.cli.train_progress import calibrate, compile_network, run_epochs
from cvt_cli.errors import CvtError, Finished, UsageError
from cvt_cli.records import masked
from cvt_cli.system.cores import share_cores
from cvt_cli.system.text import counted, reason_of
from cvt_cli.training.architectures import ARCHITECTURES

if TYPE_CHECKING:
    import torch

    from cvt_cli.images.pool import ReaderPool


EXAMPLES = """\
[bold]Examples[/]

cvt train data/ -o my-cvt --model microsoft/cvt-13

cvt train data/ -o my-cvt --model microsoft/cvt-13 --resume

cvt train data/ -o my-cvt --model microsoft/cvt-13 --head-only

cvt train data/ -o my-cvt --arch cvt-tiny --image-size 32 --val-fraction 0.1

cvt train data/ -o calibrated --model my-cvt --epochs 0 --calibrate
"""


DTYPES = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class TrainCompute(Reading, Pictures):
    """Options for what the network is trained on."""

    device: DeviceOption = "auto"
    dtype: Annotated[
        str,
        dtype_option(
            options.PERFORMANCE,
            help="Precision of matrix products: auto, bfloat16 or float32. auto: bfloat16 where "
            "the device has it.",
        ),
    ] = "auto"
    compile_: Annotated[
        bool,
        options.PERFORMANCE.option(
            "--compile",
            help="Use torch.compile: a minute at the start, faster epochs on a GPU.",
        ),
    ] = False

    def start(self, context: typer.Context) -> "ReaderPool":
        """Start the processes that read, and share the cores with them."""
        share_cores()
        return super().start(context)


@grouped
def train(
    context: typer.Context,
    *,
    data: Annotated[
        Path,
        options.INPUT.argument(
            metavar="FOLDER|LABELS",
            parser=options.named_path,
            help="A folder with train/<label>/ and val/<label>/ (or test/), or with <label>/ "
            "and --val-fraction. Or a table of labels, such as the corrections.csv of a report, "
            "or the metadata.csv of an imagefolder.",
        ),
    ],
    output: Annotated[
        Path,
        output_option(
            metavar="FOLDER",
            help="Where the checkpoint goes: config.json, preprocessor_config.json, "
            "model.safetensors, README.md, metrics.jsonl. Usable after the first epoch.",
        ),
    ],
    start: StartOptions,
    files: CheckpointFiles,
    val_fraction: Annotated[
        float | None,
        options.INPUT.option(
            "--val-fraction",
            min=0.0,
            max=0.9,
            help="Validate on this share of each class's training images instead of val/. 0: "
            "do not validate.",
        ),
    ] = None,
    run: RunOptions,
    learning: LearningOptions,
    augmentation: AugmentationOptions,
    compute: TrainCompute,
) -> None:
    """Train a CvT on your own labels, from a checkpoint or from scratch."""
    quiet = context.obj.quiet
    check_head_only(context, run.head_only, run.class_weights)
    _check_options(start, augmentation, compute)
    _check_run(run, start)
    _check_output(output, run.resume, run.overwrite, epochs=run.epochs)

    from cvt_cli.training.dataset import find_dataset

    dataset = find_dataset(data, val_fraction, run.seed, needs_val=not run.head_only)
    if run.calibrate and not dataset.val:
        raise UsageError(
            "--calibrate needs validation images", hint="--val-fraction 0.1 sets some aside"
        )

    if run.head_only:
        train_head(
            context,
            dataset,
            output,
            start=start,
            files=files,
            run=run,
            compute=compute,
            alone=_folder_alone(output, run),
        )
        print(output)
        return
    # Torch is loaded only now that all that was typed makes sense.
    readers = compute.start(context)
    from cvt_cli.checkpoint.load import load
    from cvt_cli.checkpoint.resolve import resolve
    from cvt_cli.inference.devices import pick_device
    from cvt_cli.training.augment import Augmentation
    from cvt_cli.training.settings import Settings
    from cvt_cli.training.start import from_checkpoint, from_scratch, pick_crop
    from cvt_cli.training.time_limit import TimeLimit
    from cvt_cli.training.training_run import Training

    device = pick_device(compute.device)
    if start.model is None:
        network = from_scratch(
            start.arch or "",
            dataset.labels,
            start.image_size,
            crop=augmentation.crop,
            seed=run.seed,
        )
    else:
        resolved = resolve(
            start.model,
            files.revision,
            files.refresh,
            offline=files.offline,
            weights_key=files.weights_key,
            verify=True,
        )
        checkpoint = load(resolved)
        network = from_checkpoint(checkpoint, dataset.labels, start.image_size, seed=run.seed)
        if run.epochs == 0 and network.new_head:
            raise UsageError(
                f"--epochs 0: the labels of {start.model} are not those of {data}, in this order",
                hint="a new last layer needs at least one epoch",
            )
    usual_rate = SCRATCH_LR if start.model is None else FINE_TUNE_LR
    most_epochs = EPOCHS if run.epochs is None and run.minutes is None else run.epochs
    settings = Settings(
        epochs=EPOCHS if most_epochs is None else most_epochs,
        batch_size=run.batch_size,
        learning_rate=usual_rate if learning.lr is None else learning.lr,
        weight_decay=learning.weight_decay,
        warmup_epochs=learning.warmup_epochs,
        label_smoothing=learning.label_smoothing,
        clip_norm=learning.clip_norm,
        ema_decay=learning.ema_decay,
        seed=run.seed,
        dtype=_fast_dtype(device) if compute.dtype == "auto" else compute.dtype,
        augmentation=Augmentation(
            crop=pick_crop(augmentation.crop, network.preprocessing),
            min_scale=augmentation.min_scale,
            flip=augmentation.flip,
            rand_augment=augmentation.rand_augment,
            random_erasing=augmentation.random_erasing,
            mixup=augmentation.mixup,
            cutmix=augmentation.cutmix,
        ),
        background=compute.background_colour,
        accept_truncated=compute.accept_truncated,
        train_blocks=run.train_blocks,
    )
    training = Training(
        output,
        dataset,
        network,
        settings=settings,
        device=device,
        command=["cvt", *map(masked, sys.argv[1:])],
        readers=readers,
    )
    trainer = training.trainer
    with _folder_alone(output, run):
        training.open(run.overwrite)
        limit = None if run.minutes is None else TimeLimit(trainer, 60 * run.minutes, most_epochs)
        if not quiet:
            say(
                f"{len(dataset.train)} images to train on, {len(dataset.val)} to validate on, "
                f"{len(dataset.labels)} labels; from {network.origin}, "
                f"{'a new last layer' if network.new_head else 'its last layer kept'}"
            )
            if run.resume:
                say(f"continuing after epoch {trainer.epochs_done} of {trainer.settings.epochs}")
        if compute.compile_ and not trainer.is_done:
            compile_network(trainer, quiet)
        run_epochs(training, limit, quiet)
        training.finish(calibrate(trainer, quiet) if run.calibrate else None)
    print(output)


@contextmanager
def _folder_alone(output: Path, run: RunOptions) -> Iterator[None]:
    """Make the folder of the result, and keep other runs out of it for as long as the context
    lasts.

    Raises:
        UsageError: if another run is there, or has filled it.
        CvtError: if a file can't be written.
    """
    from cvt_cli.system.locks import locked_folder

    try:
        output.mkdir(parents=True, exist_ok=True)
        with ExitStack() as lock:
            try:
                lock.enter_context(locked_folder(output))
            except BlockingIOError:  # from the lock alone: a fork may raise it too
                raise UsageError(
                    f"{output} is being written by another run",
                    hint="wait for it to finish, or name another --output",
                ) from None
            _check_output(output, run.resume, run.overwrite, epochs=run.epochs)
            yield
    except OSError as error:
        raise CvtError(f"{output}: {reason_of(error)}") from error


def _check_run(run: RunOptions, start: StartOptions) -> None:
    if run.train_blocks is not None and start.arch is not None:
        raise UsageError(
            "--train-blocks needs a trained network, not --arch", hint="--model names one"
        )
    if run.epochs == 0 and not (run.calibrate and start.model):
        raise UsageError(
            "--epochs 0 trains nothing", hint="with --model and --calibrate it calibrates a model"
        )


def _check_options(
    start: StartOptions, augmentation: AugmentationOptions, compute: TrainCompute
) -> None:
    dtype, _ = compute.dtype, compute.background_colour
    if (start.model is None) == (start.arch is None):
        raise UsageError(
            "name what to start from: either --model or --arch",
            hint="--model microsoft/cvt-13 fine-tunes, --arch cvt-tiny starts from random weights",
        )
    if start.arch is not None and start.arch not in ARCHITECTURES:
        raise UsageError(
            f"{start.arch}: no such architecture", hint=f"one of {', '.join(ARCHITECTURES)}"
        )
    if augmentation.crop not in CROPS:
        raise UsageError(f"{augmentation.crop}: no such crop", hint=f"one of {', '.join(CROPS)}")
    if dtype not in DTYPES:
        raise UsageError(f"{dtype}: no such dtype", hint=f"one of {', '.join(DTYPES)}")
    if augmentation.mixup + augmentation.cutmix > 1:
        raise UsageError("--mixup and --cutmix are shares of the images: their sum is at most 1")


def _fast_dtype(device: "torch.device") -> str:
    import torch

    # Other devices emulate it in float32.
    has_bfloat16 = device.type == "cpu" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return "bfloat16" if has_bfloat16 else "float32"


def _check_output(output: Path, resume: bool, overwrite: bool, *, epochs: int | None) -> None:
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a folder")
    if not output.is_dir() or overwrite or not any(output.iterdir()):
        return
    if not resume:
        raise UsageError(
            f"{output}: not empty",
            hint="--resume continues an interrupted training, --overwrite starts over",
        )
    if not (output / "training.pt").is_file():
        if all((output / name).is_file() for name in ("metrics.jsonl", "model.safetensors")):
            with (output / "metrics.jsonl").open("rb") as lines:
                done = sum(b'"train_loss"' in line for line in lines)
            if epochs is not None and epochs > done:
                raise UsageError(
                    f"{output} is finished after {counted(done, 'epoch')}, and its training "
                    "state is gone",
                    hint=f"continue in another folder with --model {output}",
                )
            raise Finished(str(output))
        raise UsageError(
            f"{output}: nothing to resume: no training wrote it", hint="--overwrite starts over"
        )
