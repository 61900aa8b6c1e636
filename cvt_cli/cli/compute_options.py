"""Options for how images go through the network."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from cvt_cli.cli.input_options import Input, Pictures
from cvt_cli.cli.model_options import ModelOptions
from cvt_cli.cli.option_groups import Panel
from cvt_cli.cli.options import MAX_BATCH_SIZE, PERFORMANCE
from cvt_cli.errors import CvtError, Remark
from cvt_cli.system.cores import share_cores
from cvt_cli.system.garbage import loading

if TYPE_CHECKING:
    from cvt_cli.checkpoint.group_table import GroupedLabel
    from cvt_cli.images.pool import ReaderPool
    from cvt_cli.inference.classifier import Classifier


def dtype_option(panel: Panel, *, help: str, metavar: str = "DTYPE") -> Any:
    """Declare `--dtype`."""
    return panel.option("--dtype", metavar=metavar, help=help)


class DecodeChoice(StrEnum):
    """Ways to decode images."""

    FAST = "fast"
    EXACT = "exact"


DecodeOption = Annotated[
    DecodeChoice,
    PERFORMANCE.option(
        "--decode",
        help="fast: scale large JPEGs down while decoding, and 16- and 32-bit greys to 8 "
        "bits. exact: decode as Transformers does.",
    ),
]
DeviceOption = Annotated[
    str,
    PERFORMANCE.option(
        "--device", envvar="CVT_DEVICE", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps."
    ),
]
DtypeOption = Annotated[
    str,
    dtype_option(PERFORMANCE, help="Precision: auto, float32, bfloat16 or float16."),
]


class TuneChoice(StrEnum):
    """The values of `--tune`: when to measure which form of the network is the fastest."""

    NEVER = "never"
    AUTO = "auto"
    NOW = "now"


TuneOption = Annotated[
    TuneChoice,
    PERFORMANCE.option(
        "--tune",
        help="Measure which form of the network is fastest on this CPU. auto: once, in a long run, "
        "and keep it in the cache. never: use the default form. now: measure again.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Options for how images go through the network."""

    decode: DecodeOption = DecodeChoice.FAST
    device: Annotated[
        str,
        PERFORMANCE.option(
            "--device",
            envvar="CVT_DEVICE",
            metavar="DEVICE",
            help="auto, cpu, cuda, cuda:N or mps; several share the work: cuda:0,cuda:1.",
        ),
    ] = "auto"
    dtype: DtypeOption = "auto"
    batch_size: Annotated[
        int | None,
        PERFORMANCE.option(
            "--batch-size",
            "-b",
            min=1,
            max=MAX_BATCH_SIZE,
            help="Images per batch. Default: chosen for the network and the device.",
        ),
    ] = None
    tune: TuneOption = TuneChoice.AUTO

    @property
    def exact_decode(self) -> bool:
        """Whether to decode images as Transformers does."""
        return self.decode is DecodeChoice.EXACT

    def classifier(
        self,
        model: ModelOptions,
        *,
        images: "Input | Pictures | None" = None,
        only: Sequence[str] = (),
        groups: "Sequence[GroupedLabel] | None" = None,
        readers: "ReaderPool | None" = None,
        verify: bool = False,
    ) -> "Classifier":
        """Load torch and the network. Both share the cores with the decoders.

        Args:
            model: the checkpoint.
            images: how they are read; None for the defaults.
            only: the labels to choose from; empty for all.
            groups: the rows of --groups; None for none.
            readers: who reads; None for threads of this process.

        Raises:
            ModelError: if the checkpoint can't be found or loaded.
            UsageError: if the device, the dtype or a label does not exist.
        """
        images = images or Input()
        background = images.background_colour
        share_cores()
        with loading():
            from cvt_cli.images.decode import MAX_PIXELS
            from cvt_cli.inference.classifier import Classifier

            return Classifier(
                model.model,
                revision=model.revision,
                device=self.device,
                dtype=self.dtype,
                batch_size=self.batch_size,
                hidden_act=model.activation,
                refresh=model.refresh,
                offline=model.offline,
                image_size=model.input_size,
                class_names=model.names,
                weights_key=model.weights_key,
                verify=verify,
                exact_decode=self.exact_decode,
                only=only,
                groups=groups,
                max_pixels=getattr(images, "max_pixels", None) or MAX_PIXELS,
                background=background,
                accept_truncated=images.accept_truncated,
                readers=readers,
            )

    def settle(
        self,
        classifier: "Classifier",
        count: Callable[[int], int | None],
        recorded: Mapping[str, Any] | None = None,
    ) -> None:
        """Give the classifier the form of the network for its run; where that was measured now,
        say so on a terminal. A run of one batch pays nothing for it.

        Args:
            count: counts the images of the run, up to so many; None if nobody knows.
            recorded: the form of the run that is taken up; None without any.
        """

        def counted(most: int) -> int | None:
            try:
                return count(most)
            except CvtError:  # the run itself reports it
                return None

        if recorded is None:
            if self.tune is TuneChoice.NEVER:
                return
            few = classifier.batch_size + 1
            if self.tune is TuneChoice.AUTO and (counted(few) or few) < few:
                return
        from cvt_cli.inference.tuning import Origin, Request, Tune, settle

        before = time.perf_counter()
        origin = settle(classifier, Request(Tune(self.tune), counted, recorded))
        if origin is Origin.MEASURED:
            seconds = time.perf_counter() - before
            warnings.warn(
                f"fastest form of the network here, measured in {seconds:.1f} s: {classifier.form}",
                Remark,
                stacklevel=2,
            )


@dataclass(frozen=True, kw_only=True)
class ExactCompute(Compute):
    """The same options, with float32 as the default: for numbers that are compared."""

    dtype: DtypeOption = "float32"
