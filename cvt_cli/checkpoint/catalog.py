"""The catalogue: the published checkpoints and the bundled ones, known without any file or
request."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_cli.model.config import CvtConfig

if TYPE_CHECKING:
    from cvt_cli.images.preprocess import Preprocessing

DEFAULT_MODEL = "microsoft/cvt-13"
# The model for a first try: it ships with the package.
BUNDLED_MODEL = "cvt-small-everyday100"
# Ships too: the cheapest to compute, with ten labels.
CIFAR10_MODEL = "cvt-tiny-cifar10"
BUNDLED_FOLDER = Path(__file__).parent / "bundled"

CVT_13 = CvtConfig()
CVT_21 = CvtConfig(depth=(1, 4, 16))
CVT_W24 = CvtConfig(
    embed_dim=(192, 768, 1024), num_heads=(3, 12, 16), depth=(2, 2, 20), drop_path_rate=(0, 0, 0.3)
)


@dataclass(frozen=True)
class CatalogEntry:
    """A checkpoint on the Hub, as its authors publish it.

    Attributes:
        name: its Hub id.
        image_size: height and width of its input in pixels.
        pretrained_on: the data that it saw first.
        top1: accuracy on the ImageNet-1k validation set in percent, as published.
        gmacs: 10^9 multiply-adds an image, as published (the paper's "FLOPs").
    """

    name: str
    config: CvtConfig
    image_size: int
    pretrained_on: str
    top1: float
    gmacs: float

    @property
    def preprocessing(self) -> "Preprocessing":
        """Return the preprocessing in its `preprocessor_config.json`."""
        from cvt_cli.images.preprocess import Preprocessing

        return Preprocessing.convnext(self.image_size)


# Figures from the paper's table 3; those of W24 from the README of the authors' code.
PUBLISHED = (
    CatalogEntry("microsoft/cvt-13", CVT_13, 224, "ImageNet-1k", 81.6, 4.5),
    CatalogEntry("microsoft/cvt-21", CVT_21, 224, "ImageNet-1k", 82.5, 7.1),
    CatalogEntry("microsoft/cvt-13-384", CVT_13, 384, "ImageNet-1k", 83.0, 16.3),
    CatalogEntry("microsoft/cvt-21-384", CVT_21, 384, "ImageNet-1k", 83.3, 24.9),
    CatalogEntry("microsoft/cvt-13-384-22k", CVT_13, 384, "ImageNet-22k", 83.3, 16.3),
    CatalogEntry("microsoft/cvt-21-384-22k", CVT_21, 384, "ImageNet-22k", 84.9, 24.9),
    CatalogEntry("microsoft/cvt-w24-384-22k", CVT_W24, 384, "ImageNet-22k", 87.6, 193.2),
)


def bundled_names() -> list[str]:
    """List the checkpoints that ship inside this package."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))


def known_names() -> list[str]:
    """List every name of the catalogue, bundled ones first."""
    return bundled_names() + [entry.name for entry in PUBLISHED]
