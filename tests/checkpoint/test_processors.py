"""Preprocessing of every type: what `transformers` makes of a picture, or a refusal by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, CvtConfig

from cvt_cli.checkpoint.load import load
from cvt_cli.checkpoint.processors import TYPES
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import Preprocessing
from tests.photos import picture

PICTURES = (picture(90, 61), picture(33, 140))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROP = {"do_center_crop": True, "crop_size": {"height": 48, "width": 40}}


def of(kind: str, **settings: Any) -> dict[str, Any]:
    return {"image_processor_type": f"{kind}ImageProcessor", **settings}


# Beside these, every type with nothing but its own defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    # No type: that of the architecture, whatever else is there.
    "no-type": {"size": {"shortest_edge": 64}, **IMAGENET},
    "no-type-crop-pct": {"size": 64, "crop_pct": 0.8, "resample": 2},
    "no-type-from-384": {"size": {"shortest_edge": 384}},
    "feature-extractor": {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, **IMAGENET},
    "feature-extractor-null-type": {
        "image_processor_type": None,
        "feature_extractor_type": "DeiTFeatureExtractor",
        "size": 48,
    },
    "fast": of("ViT", size={"height": 50, "width": 48})
    | {"image_processor_type": "ViTImageProcessorFast"},
    "remote-code-has-a-local-twin": {
        "auto_map": {"AutoImageProcessor": "code.Processor"},
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": {"shortest_edge": 64},
    },
    # Flags that are null are false.
    "null-flags": of(
        "ViT", do_resize=None, do_rescale=None, do_normalize=None, do_center_crop=None
    ),
    "null-crop": of("CLIP", do_center_crop=None, size=50),
    "null-normalize": of("ConvNext", do_normalize=None, size={"shortest_edge": 64}),
    "null-crop-pct": of("PoolFormer", crop_pct=None, size=50, **CROP),
    "null-size-unused": of("ViT", do_resize=False, size=None, resample=None, **CROP),
    # Single numbers mean a square to some types, a shorter side to others.
    "vit-number": of("ViT", size=40),
    "clip-number": of("CLIP", size=50, crop_size=48),
    "clip-number-square": of("CLIP", size=50, crop_size=48, default_to_square=True),
    "vit-number-shorter-side": of("ViT", size=50, default_to_square=False),
    "siglip-number": of("Siglip", size=50),
    "pair": of("ViT", size=[40, 56]),
    "clip-square": of("CLIP", use_square_size=True, size=77),
    # Rules of their own.
    "levit": of("Levit", size={"shortest_edge": 56}, **CROP),
    "levit-square": of("Levit", size={"height": 56, "width": 60}, **CROP),
    "poolformer": of("PoolFormer", size={"shortest_edge": 56}, crop_pct=0.95, **CROP),
    "poolformer-square": of("PoolFormer", size={"height": 56, "width": 56}, **CROP),
    "poolformer-rectangle": of("PoolFormer", size={"height": 56, "width": 70}, **CROP),
    "efficientnet": of("EfficientNet", size=48, rescale_offset=True, **IMAGENET),
    "efficientnet-127.5": of(
        "EfficientNet", size=48, rescale_offset=True, rescale_factor=1 / 127.5
    ),
    "efficientnet-once": of("EfficientNet", size=48, include_top=False, **IMAGENET),
    "efficientnet-not-normalized": of("EfficientNet", size=48, do_normalize=False, **IMAGENET),
    "efficientnet-crop": of("EfficientNet", size=64, **CROP),
    "mobilevit": of("MobileViT", size={"shortest_edge": 56}, crop_size=48),
    "mobilevit-rgb": of("MobileViT", size=56, crop_size=48, do_flip_channel_order=False),
    "mobilevit-never-normalizes": of("MobileViT", size=56, crop_size=48, do_normalize=True),
    "segformer-never-crops": of("Segformer", size=48, **CROP),
    "segformer-reduces-labels-only": of("Segformer", size=48, do_reduce_labels=True),
    "beit-crop": of("Beit", size=64, **CROP),
    "deit": of("DeiT", size=64, crop_size=56, **IMAGENET),
    "bit": of("Bit", size={"shortest_edge": 60}, crop_size=56),
    "chameleon": of("Chameleon", size=64, crop_size=48),
    "mobilenet": of("MobileNetV2", size=60, **CROP),
    "pvt-mean-of-one-number": of("Pvt", size=60, image_mean=0.4, image_std=0.3),
    # Padding: of one image to its own size, or not at all.
    "pad-nothing": of("ViT", size=48, do_pad=True),
    "pad-same": of("ViT", size=48, do_pad=True, pad_size={"height": 48, "width": 48}),
    "pad-never": of("Segformer", size=48, do_pad=True, pad_size={"height": 64, "width": 64}),
}
for _kind in TYPES:
    SETTINGS[f"{_kind}-defaults"] = of(_kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    CvtConfig(id2label={0: "a", 1: "b"}).save_pretrained(tmp_path)
    return tmp_path


def ours(folder: Path) -> Preprocessing:
    return load(resolve(str(folder), weights=False)).preprocessing


def pixel_values(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return preprocessing.normalize(torch.from_numpy(preprocessing.pixels(image).copy())[None])


def check(folder: Path) -> None:
    """Ours is equal to theirs, and so is what is written of it."""
    preprocessing = ours(folder)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = [theirs(image, return_tensors="pt")["pixel_values"].float() for image in PICTURES]
    for image, values in zip(PICTURES, expected, strict=True):
        torch.testing.assert_close(pixel_values(preprocessing, image), values, rtol=1e-6, atol=1e-5)
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict()))
    assert ours(folder) == preprocessing
    written = AutoImageProcessor.from_pretrained(folder, backend="pil")
    values = written(PICTURES[0], return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(values, expected[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_type_is_computed_by_its_own_rule(name: str, folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS[name]))
    check(folder)


def test_the_newer_file_goes_first(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(of("ViT", size=40)))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert ours(folder).image_size == (40, 40)
    newer = {"image_processor": of("Levit", size=56, crop_size=48)}
    (folder / "processor_config.json").write_text(json.dumps(newer))
    assert ours(folder).image_size == (48, 48)
    (folder / "preprocessor_config.json").unlink()
    check(folder)


def test_the_configuration_may_name_the_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["image_processor_type"] = "DeiTImageProcessor"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 64, "crop_size": 48}))
    assert ours(folder).image_size == (48, 48)
    check(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another-rule": (of("Perceiver"), "PerceiverImageProcessor"),
    "dpt": (of("DPT", size=64), "DPTImageProcessor"),
    "many-patches": (of("LlavaNext"), "LlavaNextImageProcessor"),
    "unknown": (of("Unheard"), "UnheardImageProcessor"),
    "no-processor": ({"image_processor_type": "Cvt"}, "Cvt"),
    "other-kind": ({"feature_extractor_type": "WhisperFeatureExtractor"}, "WhisperImageProcessor"),
    "number": ({"image_processor_type": 5}, "5"),
    "null-size": (of("ViT", size=None), "size"),
    "null-mean": (of("ViT", image_mean=None), "image_mean"),
    "null-factor": (of("ViT", rescale_factor=None), "rescale_factor"),
    "null-resample": (of("ViT", resample=None), "resample"),
    "null-crop-size": (of("CLIP", crop_size=None), "crop_size"),
    "no-crop-size": (of("ViT", do_center_crop=True), "crop_size"),
    "null-crop-pct": (of("ConvNext", size=224, crop_pct=None), "crop_pct"),
    "longest-edge": (of("ViT", size={"longest_edge": 64}), "size"),
    "too-many-edges": (of("ViT", size={"height": 6, "width": 6, "shortest_edge": 6}), "size"),
    "convnext-square": (of("ConvNext", size={"height": 64, "width": 64}), "size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_or_we_lack_is_named(name: str, folder: Path) -> None:
    settings, word = REFUSED[name]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError) as caught:
        ours(folder)
    assert "preprocessor_config.json: " in str(caught.value) and word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_margin_is_refused(folder: Path) -> None:
    padded = of("ViT", size=48, do_pad=True, pad_size={"height": 64, "width": 64})
    (folder / "preprocessor_config.json").write_text(json.dumps(padded))
    with pytest.raises(ModelError, match="ViTImageProcessor that pads to"):
        ours(folder)


@pytest.mark.parametrize("image_processor", [[], 5, "ViT"], ids=str)
def test_a_newer_file_that_makes_no_sense(image_processor: object, folder: Path) -> None:
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": image_processor}))
    with pytest.raises(ModelError, match=r"processor_config\.json: its image_processor"):
        ours(folder)
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"processor_config\.json is corrupt"):
        ours(folder)


@pytest.mark.parametrize(
    ("name", "card", "size"),
    [
        ("someone-cvt", None, 224),
        ("my-cvt-13-384", None, 384),
        ("cvt-21_320-food-101", None, 320),
        ("cvt-13-100-epochs", None, 224),
        ("cvt", "Trained at a resolution of 288x288 pixels.", 288),
        ("cvt", "Trained at 4:3, 640x480.", 224),
        ("cvt", "no size", 224),
    ],
)
def test_without_any_file_one_warning_says_what_was_assumed(
    name: str, card: str | None, size: int, tmp_path: Path
) -> None:
    folder = tmp_path / name
    CvtConfig(id2label={0: "a", 1: "b"}).save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_text(card)
    with pytest.warns(UserWarning, match=f"no preprocessor_config.json.*{size} × {size}") as said:
        assert ours(folder) == Preprocessing.convnext(size)
    assert len(said) == 1
