"""Options for the checkpoint, and what to change in it."""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cvt_cli.checkpoint.catalog import BUNDLED_MODEL, DEFAULT_MODEL
from cvt_cli.cli.options import MODEL
from cvt_cli.images.size import parse_image_size

if TYPE_CHECKING:
    from cvt_cli.checkpoint.load import Checkpoint

RevisionOption = Annotated[
    str | None, MODEL.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.")
]
RefreshOption = Annotated[
    bool,
    MODEL.option("--refresh", help="Check the Hub for a newer commit even if the model is cached."),
]
OfflineOption = Annotated[bool, MODEL.option("--offline", help="Make no requests to the Hub.")]
ImageSizeOption = Annotated[
    str | None,
    MODEL.option(
        "--image-size",
        metavar="SIZE",
        help="Input size in pixels: 320, or height x width: 512x384. Default: the model's own.",
    ),
]


class Activation(StrEnum):
    """Activations of an MLP, between its two layers."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Options for the revision of a model on the Hub, and for asking for it."""

    revision: RevisionOption = None
    refresh: RefreshOption = False
    offline: OfflineOption = False


WeightsKeyOption = Annotated[
    str | None,
    MODEL.option(
        "--weights-key",
        metavar="KEY",
        help="Which network to load from a weights file that holds several, such as model_ema.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles(Hub):
    """Options for the files a checkpoint is read from, and the network among them."""

    weights_key: WeightsKeyOption = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for the checkpoint, and what to change in it."""

    model: Annotated[
        str,
        MODEL.option(
            "--model",
            "-m",
            envvar="CVT_MODEL",
            metavar="NAME",
            help="A CvT on the Hub (org/name, org/name@revision), a folder, a file of weights "
            f"(.safetensors, .bin, .pth), or {BUNDLED_MODEL}, which ships with cvt.",
        ),
    ] = DEFAULT_MODEL
    revision: RevisionOption = None
    activation: Annotated[
        Activation | None,
        MODEL.option("--activation", help="Override the model's activation."),
    ] = None
    image_size: ImageSizeOption = None
    class_names: Annotated[
        Path | None,
        MODEL.option(
            "--class-names",
            metavar="FILE",
            help="Labels for a model that has none: one per line, or JSON (a list, id2label, "
            "ImageNet's class index).",
        ),
    ] = None
    weights_key: WeightsKeyOption = None
    refresh: RefreshOption = False
    offline: OfflineOption = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """Return the labels in --class-names.

        Raises:
            UsageError: if the file can't be read, or holds none.
        """
        from cvt_cli.checkpoint.class_names import read_class_names

        return None if self.class_names is None else read_class_names(self.class_names)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Return height and width of the network's input in pixels; None for the model's own.

        Raises:
            UsageError: if --image-size is not a size.
        """
        return None if self.image_size is None else parse_image_size(self.image_size)

    def check_threshold(self, threshold: float | None) -> None:
        """Check a --threshold against the kind of the model's scores, before its weights are
        fetched or loaded.

        Raises:
            ModelError: if the configuration can't be read.
            UsageError: if no score can be at it.
        """
        if threshold is None or 0 <= threshold <= 1:  # which any model's can
            return
        from cvt_cli.checkpoint.load import load
        from cvt_cli.checkpoint.resolve import resolve
        from cvt_cli.inference.scores import check_threshold, kind_of
        from cvt_cli.records import ScoreKind

        check_threshold(threshold, ScoreKind.RAW)
        kind = ScoreKind.SOFTMAX  # or sigmoid, of a file without a configuration
        files = resolve(
            self.model, self.revision, self.refresh, offline=self.offline, weights=False
        )
        if files.config is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is loaded again, and warns then
                kind = kind_of(load(files))
        check_threshold(threshold, kind)

    def load(self, verify: bool = False) -> "Checkpoint":
        """Load the checkpoint for the requested input size.

        Args:
            verify: as in `checkpoint.resolve`.

        Raises:
            ModelError: if it can't be found or loaded.
            UsageError: if --image-size is not a size.
        """
        from cvt_cli.checkpoint.load import load
        from cvt_cli.checkpoint.resolve import resolve

        checkpoint = load(
            resolve(
                self.model,
                self.revision,
                self.refresh,
                offline=self.offline,
                weights_key=self.weights_key,
                verify=verify,
            ),
            self.activation,
            self.names,
        )
        size = self.input_size
        return checkpoint if size is None else checkpoint.with_image_size(size)
