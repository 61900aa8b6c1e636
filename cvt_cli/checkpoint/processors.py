"""Image processors of Transformers: a `preprocessor_config.json` becomes a `Preprocessing`, by the
rule of the type that it names.

Each type is an entry in a table: the defaults of the class of that name in Transformers, and how
its resize and its colours differ from the usual ones. The types that are left out do more than
resize, crop, rescale and normalise a picture; they are refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as repr_of
from sys import float_info
from typing import Any

from PIL import Image

from cvt_cli.images.preprocess import (
    CHANNELS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_RESIZED_PIXELS,
    SQUEEZE_FROM,
    Preprocessing,
)
from cvt_cli.system.text import MAX_QUOTED

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BILINEAR, BICUBIC, LANCZOS = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)

# Without a type, Transformers takes the one for the model's architecture.
TYPE_OF_CVT = "ConvNextImageProcessor"
SUFFIX = "ImageProcessor"

Size = tuple[int, int] | int  # (height, width), or a shorter side, in pixels
Values = Mapping[str, Any]
# The resize, and the crop that belongs to it: (resize_to, shortest_edge, crop).
Resize = tuple[tuple[int, int] | None, int | None, tuple[int, int] | None]


def _plain(size: Size, values: Values) -> Resize:
    return (None, size, None) if isinstance(size, int) else (size, None, None)


def _convnext(size: Size, values: Values) -> Resize:
    if not isinstance(size, int):
        raise ValueError(f"size is {size}, without a shortest_edge")
    if size >= SQUEEZE_FROM:
        return (size, size), None, None
    return None, _divided(size, _number(values, "crop_pct", 224 / 256)), (size, size)


def _levit(size: Size, values: Values) -> Resize:
    return _plain(int(256 / 224 * size) if isinstance(size, int) else size, values)


def _poolformer(size: Size, values: Values) -> Resize:
    if values.get("crop_pct", 0.9) is None:
        return _plain(size, values)
    crop_pct = _number(values, "crop_pct", 0.9)
    if isinstance(size, int):
        return None, _divided(size, crop_pct), None
    height, width = (_divided(edge, crop_pct) for edge in size)
    return (None, height, None) if size[0] == size[1] else ((height, width), None, None)


@dataclass(frozen=True)
class ProcessorType:
    """A class of image processors in Transformers.

    Attributes:
        size, crop_size, resample, mean, std, rescale_factor: its defaults, as in the JSON.
        square: whether a single number as `size` means a square, not a shorter side.
        center_crop, normalize: whether it does so by default; None: it never does.
        pads: whether it heeds `do_pad`.
        flip: whether it puts blue first by default; None: it never does.
        top: whether it divides by the standard deviation a second time (EfficientNet's
            `include_top`), and may shift by one (`rescale_offset`).
        resize: its rule.
    """

    size: Any = 224
    crop_size: Any = None
    resample: int = BICUBIC
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    rescale_factor: float = 1 / 255
    square: bool = True
    center_crop: bool | None = False
    normalize: bool | None = True
    pads: bool = True
    flip: bool | None = None
    top: bool = False
    resize: Callable[[Size, Values], Resize] = _plain


_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_CLIP: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD}
_SHORTER_SIDE: dict[str, Any] = {"square": False, "crop_size": 224, "center_crop": True}

TYPES: Mapping[str, ProcessorType] = {
    "Beit": ProcessorType(crop_size=224, pads=False),
    "Bit": ProcessorType(**_CLIP, **_SHORTER_SIDE),
    "Blip": ProcessorType(384, **_CLIP),
    "CLIP": ProcessorType(**_CLIP, **_SHORTER_SIDE),
    "Chameleon": ProcessorType(
        512,
        512,
        resample=LANCZOS,
        mean=(1.0, 1.0, 1.0),
        std=(1.0, 1.0, 1.0),
        rescale_factor=0.0078,
        square=False,
        center_crop=True,
    ),
    "ChineseCLIP": ProcessorType(**_CLIP, **_SHORTER_SIDE),
    "ConvNext": ProcessorType(384, square=False, pads=False, resize=_convnext),
    "DeiT": ProcessorType(256, 224, center_crop=True),
    "EfficientNet": ProcessorType(346, 289, pads=False, top=True),
    "Levit": ProcessorType(**_IMAGENET, **_SHORTER_SIDE, resize=_levit),
    "MobileNetV1": ProcessorType(256, resample=BILINEAR, **_SHORTER_SIDE),
    "MobileNetV2": ProcessorType(256, resample=BILINEAR, **_SHORTER_SIDE, pads=False),
    "MobileViT": ProcessorType(
        224, 256, square=False, center_crop=True, normalize=None, pads=False, flip=True
    ),
    "PoolFormer": ProcessorType(**_IMAGENET, **_SHORTER_SIDE, resize=_poolformer),
    "Pvt": ProcessorType(**_IMAGENET),
    "Segformer": ProcessorType(512, resample=BILINEAR, **_IMAGENET, center_crop=None, pads=False),
    "Siglip": ProcessorType([224, 224], square=False),
    "ViT": ProcessorType(resample=BILINEAR),
}


def read_processor(values: Values, config: Values | None = None) -> Preprocessing:
    """Read the preprocessing that the contents of a `preprocessor_config.json` describe.

    Args:
        config: the contents of the `config.json` beside it, which may name the type.

    Raises:
        ValueError: if the type is not supported, or Transformers would refuse a value.
    """
    name = _type_name(values, config or {})
    kind = TYPES.get(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    if kind is None:
        names = ", ".join(TYPES)
        raise ValueError(f"{name} is not supported; supported: {names}")
    if name == f"CLIP{SUFFIX}" and values.get("use_square_size"):  # a key of KOSMOS-2 alone
        values = {**values, "size": [224, 224]}
    resize_to, shortest_edge, crop, resample = _geometry(kind, values)
    factor, mean, std = _colours(kind, values)
    rule = Preprocessing(
        resize_to,
        shortest_edge=shortest_edge,
        crop=crop,
        resample=resample,
        rescale_factor=factor,
        mean=mean,
        std=std,
        bgr=kind.flip is not None and bool(values.get("do_flip_channel_order", kind.flip)),
    )
    height, width = rule.image_size or (1, 1)
    if height * width > MAX_RESIZED_PIXELS:
        raise ValueError(f"size is {height}x{width}, more pixels than any network takes")
    _check_padding(name, kind, values, rule=rule)
    return rule


def _type_name(values: Values, config: Values) -> str:
    """Return the name of the type, which is looked for in the order of Transformers; fast variants
    go by the plain name."""
    name = values.get("image_processor_type")
    auto_map = values.get("auto_map")
    has_code = isinstance(auto_map, Mapping) and "AutoImageProcessor" in auto_map
    if name is None and not has_code and values.get("feature_extractor_type") is not None:
        name = str(values["feature_extractor_type"]).replace("FeatureExtractor", SUFFIX)
    if name is None:
        name = config.get("image_processor_type")
    if name is None:
        name = TYPE_OF_CVT
    return str(name)[:MAX_QUOTED].removesuffix("Fast").removesuffix("Pil")


def _geometry(
    kind: ProcessorType, values: Values
) -> tuple[tuple[int, int] | None, int | None, tuple[int, int] | None, int]:
    """Read `resize_to`, `shortest_edge`, `crop` and `resample` of the preprocessing."""
    resample = int(BICUBIC)
    resized: Resize = (None, None, None)
    if values.get("do_resize", True):
        square = bool(values.get("default_to_square", kind.square))
        size = _size("size", values.get("size", kind.size), square)
        resample = _resample(values.get("resample", kind.resample))
        resized = kind.resize(size, values)
    resize_to, shortest_edge, crop = resized
    if kind.center_crop is not None and values.get("do_center_crop", kind.center_crop):
        wanted = _size("crop_size", values.get("crop_size", kind.crop_size), square=True)
        if isinstance(wanted, int):
            raise ValueError(
                f"crop_size is {repr_of(values['crop_size'])}, without height and width"
            )
        if crop not in (None, wanted):
            raise ValueError(f"crop_size is {wanted}, but crop_pct crops to {crop} before")
        crop = wanted
    return resize_to, shortest_edge, crop, resample


def _colours(
    kind: ProcessorType, values: Values
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """Read `rescale_factor`, `mean` and `std` of the preprocessing."""
    factor, shift = 1.0, 0.0
    if values.get("do_rescale", True):
        factor = _number(values, "rescale_factor", kind.rescale_factor)
        shift = float(kind.top and bool(values.get("rescale_offset")))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if kind.normalize is not None and values.get("do_normalize", kind.normalize):
        mean = _channels("image_mean", values.get("image_mean", kind.mean))
        std = _channels("image_std", values.get("image_std", kind.std))
    mean = (mean[0] + shift, mean[1] + shift, mean[2] + shift)
    if kind.top and values.get("include_top", True):
        again = _channels("image_std", values.get("image_std", kind.std))
        std = (std[0] * again[0], std[1] * again[1], std[2] * again[2])
    return factor, mean, std


def _check_padding(name: str, kind: ProcessorType, values: Values, *, rule: Preprocessing) -> None:
    """Check that padding changes nothing: a single image is padded to its own size, unless the file
    names another."""
    if not kind.pads or not values.get("do_pad") or values.get("pad_size") is None:
        return
    size = _size("pad_size", values["pad_size"], square=True)
    if size != rule.image_size:
        raise ValueError(f"a {name} that pads to {repr_of(values['pad_size'])} is not supported")


def _size(name: str, value: Any, square: bool) -> Size:
    """Read a pair (height, width), or a shorter side."""
    match value:
        case [height, width]:
            value = {"height": height, "width": width}
    if isinstance(value, Mapping):
        if value.keys() == {"height", "width"}:
            numbers, square = [value["height"], value["width"]], True
        elif value.keys() == {"shortest_edge"}:
            numbers, square = [value["shortest_edge"]], False
        else:
            raise ValueError(
                f"{name} is {repr_of(dict(value))}: neither height and width nor shortest_edge"
            )
    else:
        numbers = [value] * (2 if square else 1)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**16:
            raise ValueError(f"{name} has {repr_of(number)}, not a number of pixels")
    return (numbers[0], numbers[1]) if square else numbers[0]


def _divided(edge: int, crop_pct: float) -> int:
    if not 1 <= edge / crop_pct < 2**16:
        raise ValueError(f"crop_pct is {repr_of(crop_pct)}, out of range")
    return int(edge / crop_pct)


def _resample(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in set(Image.Resampling):
        raise ValueError(f"resample is {repr_of(value)}, not the number of one of Pillow's filters")
    return value


def _number(values: Values, name: str, default: float) -> float:
    value = values.get(name, default)
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} is {repr_of(value)}, not a positive number")
    return float(value)


def _channels(name: str, value: Any) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list | tuple) else [value] * CHANNELS
    if len(numbers) != CHANNELS or not all(map(_is_number, numbers)):
        raise ValueError(
            f"{name} is {repr_of(value)}, not a number for each of {CHANNELS} channels"
        )
    if name == "image_std" and not all(numbers):
        raise ValueError(f"{name} has a zero")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that fits a float: JSON's integers may have any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= float_info.max
