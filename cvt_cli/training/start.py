"""The start of a training: the network, from scratch or from a checkpoint, and its
preprocessing."""

import dataclasses
import warnings
from dataclasses import dataclass

import torch
from PIL import Image

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.inference.scores import kind_of
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.records import ScoreKind
from cvt_cli.training.architectures import ARCHITECTURES, IMAGE_SIZE, IMAGE_SIZES
from cvt_cli.training.augment import PADDED_CROP_UP_TO


@dataclass(frozen=True)
class Start:
    """A network to train and the preprocessing that it will be published with.

    Attributes:
        origin: the checkpoint or architecture, in words.
        new_head: whether the last layer starts from random numbers.
    """

    model: Cvt
    preprocessing: Preprocessing
    origin: str
    new_head: bool


def from_scratch(
    name: str, labels: tuple[str, ...], image_size: int | None, *, crop: str, seed: int
) -> Start:
    """Build a network of a named architecture with random weights.

    Args:
        name: one of `ARCHITECTURES`.
        image_size: height and width of its input in pixels; None for what it is made for.
        crop: how training images are to be cropped. After resized crops, in which things look
            larger, what is classified is cropped at its centre.

    Raises:
        UsageError: if the input is too small for it.
    """
    config = dataclasses.replace(ARCHITECTURES[name], num_labels=len(labels))
    image_size = image_size or IMAGE_SIZES.get(name, IMAGE_SIZE)
    _check_size(config, image_size)
    if image_size <= PADDED_CROP_UP_TO and crop != "resized":
        # With so few pixels the whole picture is needed.
        size = (image_size, image_size)
        bicubic = int(Image.Resampling.BICUBIC)
        preprocessing = Preprocessing(size, None, None, resample=bicubic)
    else:
        preprocessing = Preprocessing.convnext(image_size)
    torch.manual_seed(seed)
    return Start(Cvt(config), preprocessing, f"random weights, architecture {name}", new_head=True)


def from_checkpoint(
    checkpoint: Checkpoint, labels: tuple[str, ...], image_size: int | None, *, seed: int
) -> Start:
    """Load a checkpoint's network. Its last layer is replaced if it has other labels, or the same
    ones in another order, or is a regression's. Warns if its scores are not softmax, as those of
    the result will be. It continues with GELU, because Transformers, which is to read the result,
    knows no other activation.

    Args:
        image_size: height and width of its input in pixels; None leaves the checkpoint's.

    Raises:
        UsageError: if the input is too small for it, or the checkpoint names no input size.
        ModelError: if the weights can't be read.
    """
    preprocessing = checkpoint.preprocessing
    if image_size is not None:
        _check_size(checkpoint.config, image_size)
        preprocessing = preprocessing.scaled_to((image_size, image_size))
    if preprocessing.image_size is None:
        raise UsageError(
            f"{checkpoint.name} names no input size", hint="--image-size 224 gives one"
        )
    weights, has_head = checkpoint.weights_to_train()
    kind = kind_of(checkpoint)
    new_head = not has_head or checkpoint.labels != labels or kind is ScoreKind.RAW
    if kind is not ScoreKind.SOFTMAX:
        warnings.warn(
            f"{checkpoint.name} has {kind} scores; what is trained here has one label for each "
            "image, by softmax",
            stacklevel=2,
        )
    torch.manual_seed(seed)
    model = Cvt(dataclasses.replace(checkpoint.config, num_labels=len(labels), hidden_act="gelu"))
    if new_head:
        weights |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
    model.load_state_dict(weights)
    origin = checkpoint.name
    if checkpoint.config.hidden_act != "gelu":
        origin += ", which had QuickGELU; trained on with GELU, as transformers computes it"
    return Start(model, preprocessing, origin, new_head=new_head)


def pick_crop(crop: str, preprocessing: Preprocessing) -> str:
    """Return the crop itself; for "auto" the one that suits the input size."""
    if crop != "auto" or preprocessing.image_size is None:
        return crop
    return "padded" if max(preprocessing.image_size) <= PADDED_CROP_UP_TO else "resized"


def for_training(preprocessing: Preprocessing, crop: str) -> Preprocessing:
    """Return the preprocessing before augmentation: for a resized crop the square at the picture's
    centre, with sides a seventh longer than the input's; else the network's own."""
    if crop != "resized" or preprocessing.image_size is None:
        return preprocessing
    edge = round(max(preprocessing.image_size) * 8 / 7)
    return dataclasses.replace(preprocessing, resize_to=None, shortest_edge=edge, crop=(edge, edge))


def _check_size(config: CvtConfig, image_size: int) -> None:
    try:
        config.tokens(image_size, image_size)
    except ValueError as error:
        raise UsageError(f"--image-size {image_size}: {error}") from None
