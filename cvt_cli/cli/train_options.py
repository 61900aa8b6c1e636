"""The groups of options of `cvt train`."""

from dataclasses import dataclass
from typing import Annotated, Any

from cvt_cli.cli import options
from cvt_cli.cli.option_groups import Panel
from cvt_cli.training.architectures import ARCHITECTURES, IMAGE_SIZES

RUN = Panel("Run")
LEARNING = Panel("Learning")
AUGMENTATION = Panel("Augmentation")
CROPS = ("auto", "padded", "resized", "none")
# Learning rates that suit batches of 64 to 128 images.
SCRATCH_LR = 1e-3
FINE_TUNE_LR = 2e-4
EPOCHS = 30
# Two years; and more epochs than anybody trains for.
MAX_MINUTES = 1e6
MAX_WARMUP_EPOCHS = 1e6


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
    train_blocks: Annotated[
        int | None,
        RUN.option(
            "--train-blocks",
            metavar="N",
            min=1,
            help="Train only the last N blocks and what follows them, with --model: for few images "
            "and slow machines. Default: the whole network.",
        ),
    ] = None
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
            max=MAX_MINUTES,
        ),
    ] = None
    batch_size: Annotated[
        int,
        RUN.option(
            "--batch-size", "-b", min=2, max=options.MAX_BATCH_SIZE, help="Images per step."
        ),
    ] = 64
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
        float,
        LEARNING.option(
            "--warmup-epochs",
            help="Epochs of rising learning rate.",
            min=0.0,
            max=MAX_WARMUP_EPOCHS,
        ),
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
