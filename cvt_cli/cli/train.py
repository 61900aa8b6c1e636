"""`cvt train`: a folder of labelled images in, a checkpoint out."""

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli.cli import options
from cvt_cli.cli.groups import Panel, grouped
from cvt_cli.cli.head_only import check_head_only, name_errors, tell_calibration, train_head
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import LOG_SECONDS, Shown, how_shown, in_rate, in_time
from cvt_cli.errors import CvtError, Finished, Interrupted, UsageError
from cvt_cli.records import masked
from cvt_cli.system.text import counted
from cvt_cli.training.architectures import ARCHITECTURES, IMAGE_SIZES

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from cvt_cli.training.loop import EpochProgress, Trainer
    from cvt_cli.training.temperature import TemperatureFit
    from cvt_cli.training.time_limit import TimeLimit
    from cvt_cli.training.training_run import Training

EXAMPLES = """\
[bold]Examples[/]

cvt train data/ -o my-cvt --model microsoft/cvt-13

cvt train data/ -o my-cvt --model microsoft/cvt-13 --resume

cvt train data/ -o my-cvt --model microsoft/cvt-13 --head-only

cvt train data/ -o my-cvt --arch cvt-tiny --image-size 32 --val-fraction 0.1

cvt train data/ -o calibrated --model my-cvt --epochs 0 --calibrate
"""

RUN = Panel("Run")
LEARNING = Panel("Learning")
AUGMENTATION = Panel("Augmentation")

CROPS = ("auto", "padded", "resized", "none")
DTYPES = ("auto", "bfloat16", "float32")
# Learning rates that suit batches of 64 to 128 images.
SCRATCH_LR = 1e-3
FINE_TUNE_LR = 2e-4
EPOCHS = 30
IN_SECONDS = 90  # up to here the time left is told in seconds, then in minutes


def _share(name: str, *, help: str) -> Any:
    """Declare an option for a share of the images."""
    return AUGMENTATION.option(name, min=0.0, max=1.0, help=help)


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Options for what the network starts from."""

    model: Annotated[
        str | None,
        options.MODEL.option(
            "--model",
            "-m",
            metavar="NAME",
            help="Fine-tune this checkpoint: a Hub id, a folder, a file or a bundled name.",
        ),
    ] = None
    arch: Annotated[
        str | None,
        options.MODEL.option(
            "--arch",
            metavar="NAME",
            help=f"Start from random weights instead: {', '.join(ARCHITECTURES)}.",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        options.MODEL.option(
            "--image-size",
            min=1,
            metavar="PIXELS",
            help="Height and width of the input. Default: the checkpoint's; 224 with --arch, "
            f"{', '.join(f'{size} with {name}' for name, size in IMAGE_SIZES.items())}.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options for how much to train, and whether to go on from before."""

    head_only: Annotated[
        bool,
        RUN.option(
            "--head-only",
            help="Train only the last layer, on embeddings computed once: minutes on a CPU, "
            "from five images per label. Cross-validates without val/ and --val-fraction.",
        ),
    ] = False
    class_weights: Annotated[
        str,
        RUN.option(
            "--class-weights",
            metavar="KIND",
            help="With --head-only. balanced: every label counts the same. none: every image does.",
        ),
    ] = "balanced"
    resume: Annotated[
        bool,
        RUN.option(
            "--resume",
            help="Continue an interrupted training; only --epochs may change.",
        ),
    ] = False
    overwrite: Annotated[
        bool, RUN.option("--overwrite", help="Start over in an existing --output.")
    ] = False
    epochs: Annotated[
        int | None,
        RUN.option(
            "--epochs",
            help=f"Passes over the training images. Default: {EPOCHS}, or as many as fit into "
            "--minutes. 0, with --model and --calibrate: only calibrate.",
            min=0,
        ),
    ] = None
    minutes: Annotated[
        float | None,
        RUN.option(
            "--minutes",
            help="Train for at most this long. The learning rate follows the number of epochs "
            "that fit, which the first ones show: at least one, at most --epochs.",
            min=0.01,
        ),
    ] = None
    batch_size: Annotated[int, RUN.option("--batch-size", "-b", min=2, help="Images per step.")] = (
        64
    )
    seed: Annotated[
        int, RUN.option("--seed", help="Seed of all random numbers.", min=0, max=2**40)
    ] = 0
    calibrate: Annotated[
        bool,
        RUN.option(
            "--calibrate",
            help="Afterwards scale the logits so that scores match the accuracy on the "
            "validation images; labels stay the same.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """Options for how the weights follow the loss."""

    lr: Annotated[
        float | None,
        LEARNING.option(
            "--lr",
            min=0.0,
            help="Peak learning rate of AdamW, after warm-up; then a cosine to 0. "
            f"Default: {FINE_TUNE_LR} with --model, {SCRATCH_LR} with --arch.",
        ),
    ] = None
    warmup_epochs: Annotated[
        float, LEARNING.option("--warmup-epochs", help="Epochs of rising learning rate.", min=0.0)
    ] = 1.0
    weight_decay: Annotated[
        float,
        LEARNING.option(
            "--weight-decay",
            help="Weight decay of all but norms, biases and class tokens.",
            min=0.0,
        ),
    ] = 0.05
    label_smoothing: Annotated[
        float,
        LEARNING.option(
            "--label-smoothing", help="Share of a target spread over all labels.", min=0.0, max=0.99
        ),
    ] = 0.1
    clip_norm: Annotated[
        float, LEARNING.option("--clip-norm", help="Clip gradients to this norm.", min=1e-6)
    ] = 1.0
    ema_decay: Annotated[
        float,
        LEARNING.option(
            "--ema-decay",
            help="Decay of the moving average of the weights, which is the result.",
            min=0.0,
            max=0.999999,
        ),
    ] = 0.999


@dataclass(frozen=True, kw_only=True)
class AugmentationOptions:
    """Options for how training images are varied."""

    crop: Annotated[
        str,
        AUGMENTATION.option(
            "--crop",
            metavar="KIND",
            help=f"{', '.join(CROPS)}. auto: padded up to 64 pixels of --image-size, else resized.",
        ),
    ] = "auto"
    min_scale: Annotated[
        float,
        AUGMENTATION.option(
            "--min-scale",
            help="Smallest share of the area that a resized crop keeps.",
            min=0.01,
            max=1.0,
        ),
    ] = 0.35
    flip: Annotated[
        bool, AUGMENTATION.option("--flip/--no-flip", help="Mirror images at random.")
    ] = True
    rand_augment: Annotated[
        int,
        AUGMENTATION.option(
            "--rand-augment", help="Magnitude of RandAugment; 0: none.", min=0, max=29
        ),
    ] = 0
    random_erasing: Annotated[
        float,
        _share("--random-erasing", help="Share of images with a rectangle of noise."),
    ] = 0.0
    mixup: Annotated[float, _share("--mixup", help="Share of images blended with another.")] = 0.0
    cutmix: Annotated[
        float, _share("--cutmix", help="Share of images with a rectangle of another pasted in.")
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainCompute(options.Reading, options.Pictures):
    """Options for what the network is trained on."""

    device: options.DeviceOption = "auto"
    dtype: Annotated[
        str,
        options.dtype_option(
            options.PERFORMANCE,
            help="Compute matrix products in auto, bfloat16 or float32. auto: bfloat16 where "
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


@grouped
def train(
    context: typer.Context,
    *,
    data: Annotated[
        Path,
        options.INPUT.argument(
            metavar="FOLDER",
            help="A folder with train/<label>/ and val/<label>/ (or test/), or with <label>/ "
            "and --val-fraction.",
        ),
    ],
    output: Annotated[
        Path,
        options.output_option(
            metavar="FOLDER",
            help="Where the checkpoint goes: config.json, preprocessor_config.json, "
            "model.safetensors, README.md, metrics.jsonl. Usable after the first epoch.",
        ),
    ],
    start: StartOptions,
    files: options.CheckpointFiles,
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
    if run.epochs == 0 and not (run.calibrate and start.model):
        raise UsageError(
            "--epochs 0 trains nothing", hint="with --model and --calibrate it calibrates a model"
        )
    _check_output(output, run.resume, run.overwrite, epochs=run.epochs)

    from cvt_cli.training.dataset import find_dataset

    dataset = find_dataset(data, val_fraction, run.seed, needs_val=not run.head_only)
    if run.calibrate and not dataset.val:
        raise UsageError(
            "--calibrate needs validation images", hint="--val-fraction 0.1 sets some aside"
        )

    if run.head_only:
        train_head(context, dataset, output, start=start, files=files, run=run, compute=compute)
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
        network = from_scratch(start.arch or "", dataset.labels, start.image_size, seed=run.seed)
    else:
        resolved = resolve(
            start.model,
            files.revision,
            files.refresh,
            offline=files.offline,
            weights_key=files.weights_key,
        )
        checkpoint = load(resolved)
        network = from_checkpoint(checkpoint, dataset.labels, start.image_size, seed=run.seed)
        if run.epochs == 0 and network.new_head:
            raise UsageError(
                f"--epochs 0: the labels of {start.model} are not those of {data}, in this order",
                hint="a new last layer needs at least one epoch",
            )
    most_epochs = EPOCHS if run.epochs is None and run.minutes is None else run.epochs
    settings = Settings(
        epochs=EPOCHS if most_epochs is None else most_epochs,
        batch_size=run.batch_size,
        learning_rate=learning.lr or (SCRATCH_LR if start.model is None else FINE_TUNE_LR),
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
    try:
        training.open(run.overwrite)
        limit = None if run.minutes is None else TimeLimit(trainer, 60 * run.minutes, most_epochs)
        if not quiet:
            say(
                f"{len(dataset.train)} images to train on, {len(dataset.val)} to validate on, "
                f"{len(dataset.labels)} labels; from {network.origin}, "
                f"{'a new last layer' if network.new_head else 'its last layer kept'}"
            )
            if run.resume:
                say(f"going on after epoch {trainer.epochs_done} of {trainer.settings.epochs}")
        if compute.compile_ and not trainer.is_done:
            _compile(trainer, quiet)
        _run(training, limit, quiet)
        training.finish(_fit(trainer, quiet) if run.calibrate else None)
    except OSError as error:
        raise CvtError(f"{output}: {error.strerror or error}") from error
    print(output)


def _check_options(
    start: StartOptions, augmentation: AugmentationOptions, compute: TrainCompute
) -> None:
    dtype, _ = compute.dtype, compute.background_colour
    if (start.model is None) == (start.arch is None):
        raise UsageError(
            "--model or --arch says what to start from: one of them",
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
        raise UsageError("--resume goes on and --overwrite starts over: one of them")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a folder")
    if not output.is_dir() or overwrite or not any(output.iterdir()):
        return
    if not resume:
        raise UsageError(
            f"{output}: not empty",
            hint="--resume goes on with a training that was interrupted, --overwrite starts over",
        )
    if not (output / "training.pt").is_file():
        if all((output / name).is_file() for name in ("metrics.jsonl", "model.safetensors")):
            with (output / "metrics.jsonl").open("rb") as lines:
                done = sum(1 for _ in lines)
            if epochs is not None and epochs > done:
                raise UsageError(
                    f"{output} is finished after {counted(done, 'epoch')}, and what it would take "
                    "to go on is gone",
                    hint=f"train on in another folder with --model {output}",
                )
            raise Finished(str(output))
        raise UsageError(
            f"{output}: nothing to resume: no training wrote it", hint="--overwrite starts over"
        )


def _compile(trainer: "Trainer", quiet: bool) -> None:
    start = time.monotonic()
    try:
        trainer.compile()
    except UsageError as error:
        # --compile asks for speed alone: the result is the same without.
        say(f"{error}; training continues without")
        return
    if not quiet:
        say(f"compiled in {time.monotonic() - start:.0f} s")


def _run(training: "Training", limit: "TimeLimit | None", quiet: bool) -> None:
    """Train every epoch that is left, with a bar on a terminal and a line for each."""
    from tqdm import tqdm

    from cvt_cli.training.loop import deferred_interrupts

    trainer = training.trainer
    with deferred_interrupts() as interrupted:
        while not trainer.is_done:
            number, epochs = trainer.epochs_done + 1, trainer.settings.epochs
            bar = tqdm(
                total=trainer.images_per_epoch,
                desc=f"epoch {number}/{epochs}",
                unit="img",
                disable=quiet or not sys.stderr.isatty(),
                dynamic_ncols=True,
                leave=False,  # a line follows
                file=sys.stderr,
            )
            log = _Log(f"epoch {number}/{epochs}", trainer.images_per_epoch, quiet)
            try:
                with bar:
                    metrics = training.epoch(partial(_show, bar, log), interrupted.is_set)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted in epoch {number} of {epochs}; "
                    "run the same command with --resume to continue"
                ) from None
            if limit is not None:
                limit.epoch_done()
            if not quiet:
                _tell(metrics, trainer.settings.epochs)
                name_errors(training.new_errors())


def _fit(trainer: "Trainer", quiet: bool) -> "TemperatureFit":
    fit = trainer.fit_temperature()
    if not quiet:
        tell_calibration(fit)
    return fit


class _Log:
    """Prints a line every minute where there is no terminal for a bar.

    Args:
        what: the name of what is done.
        total: number of images.
        quiet: print nothing.
    """

    def __init__(self, what: str, total: int, quiet: bool) -> None:
        self._what = what
        self._total = total
        self._shown = how_shown(quiet, None) is Shown.LINES
        self._start = self._last = time.monotonic()

    def tell(self, images: int, facts: str) -> None:
        """Print the progress, if a minute has passed."""
        now = time.monotonic()
        if not self._shown or now - self._last < LOG_SECONDS:
            return
        self._last = now
        rate = images / (now - self._start)
        left = f", {in_time((self._total - images) / rate)} left" if rate else ""
        say(f"{self._what}: {images:,} of {self._total:,}, {in_rate(rate)} images/s{left}, {facts}")


def _show(bar: "tqdm[Any]", log: _Log, progress: "EpochProgress") -> None:
    text = f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}"
    bar.set_postfix_str(text, refresh=False)
    bar.update(progress.images - bar.n)
    log.tell(progress.images, text)


def _tell(metrics: dict[str, Any], epochs: int) -> None:
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    in_words = f"{left:.0f} s" if left < IN_SECONDS else f"{left / 60:.0f} min"
    validation = f", validation {metrics['val_accuracy']:.2%}" if "val_accuracy" in metrics else ""
    say(
        f"epoch {metrics['epoch']}/{epochs}: loss {metrics['train_loss']:.3f}, "
        f"accuracy {metrics['train_accuracy']:.2%}{validation}, "
        f"{metrics['images_per_second']:.0f} images/s{f', {in_words} left' * (left > 0)}"
    )
