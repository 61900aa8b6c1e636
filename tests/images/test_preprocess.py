"""Preprocessing: pixel for pixel what the Pillow backend of `transformers` makes."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_cli.checkpoint.processors import read_processor
from cvt_cli.images.decode import decode
from cvt_cli.images.preprocess import Preprocessing
from tests.photos import picture

SQUEEZED = Preprocessing(resize_to=(64, 256), shortest_edge=None, crop=None)
AS_IT_IS = Preprocessing(shortest_edge=None, crop=None)

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CONVNEXT: dict[str, dict[str, Any]] = {
    "224": {"size": {"shortest_edge": 224}, **IMAGENET},
    "384": {"size": {"shortest_edge": 384}, **IMAGENET},
    "its-defaults": {},
    "crop-pct": {"size": {"shortest_edge": 64}, "crop_pct": 0.95, "resample": 2},
    "crop-pct-above-1": {"size": {"shortest_edge": 96}, "crop_pct": 1.3},
    "not-rescaled": {"size": {"shortest_edge": 50}, "do_rescale": False, "do_normalize": False},
    "not-resized": {"do_resize": False},
    "cropped-again": {
        "size": {"shortest_edge": 384},
        "do_center_crop": True,
        "crop_size": {"height": 200, "width": 301},
    },
}
VIT: dict[str, dict[str, Any]] = {
    "its-defaults": {},
    "squeezed": {"size": {"height": 40, "width": 72}, **IMAGENET},
    "nearest": {"size": {"height": 64, "width": 64}, "resample": 0},
    "lanczos": {"size": {"height": 64, "width": 64}, "resample": 1},
    "squeezed-and-cropped": {
        "size": {"height": 128, "width": 90},
        "do_center_crop": True,
        "crop_size": {"height": 65, "width": 64},
    },
    "crop-pads": {
        "size": {"height": 60, "width": 61},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
    },
    "crop-only": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 65, "width": 64},
    },
    "shortest-edge-and-crop": {
        "size": {"shortest_edge": 73},
        "do_center_crop": True,
        "crop_size": {"height": 64, "width": 64},
        "resample": 3,
    },
    "shortest-edge": {"size": {"shortest_edge": 31}},
    "rescaled-by-half": {"size": {"height": 32, "width": 32}, "rescale_factor": 0.5},
}


def theirs(kind: str, settings: dict[str, Any], path: Path, folder: Path) -> tuple[Any, Any]:
    """Pixel values from `transformers`, and the settings as it saves them."""
    from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil
    from transformers.image_utils import load_image

    processor = {"convnext": ConvNextImageProcessorPil, "vit": ViTImageProcessorPil}[kind]
    processor = processor(**settings)
    processor.save_pretrained(folder)
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    return processor(load_image(str(path)), return_tensors="pt")["pixel_values"], saved


def ours(settings: dict[str, Any], path: Path) -> torch.Tensor:
    rule = read_processor(settings)
    with path.open("rb") as file:
        pixels = rule.pixels(decode(file, exact=True))
    assert pixels.dtype == np.uint8
    assert rule.image_size in (None, pixels.shape[:2])
    return rule.normalize(torch.from_numpy(pixels.copy())[None])


def check(kind: str, settings: dict[str, Any], path: Path, folder: Path) -> None:
    expected, saved = theirs(kind, settings, path, folder)
    found = ours(saved, path)
    assert found.shape == expected.shape
    # Values that are not rescaled reach 255, where 1e-6 is below what a float32 tells apart.
    scale = max(1, expected.abs().max().item() / 3)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6 * scale)
    # What we save reads the same, here and there.
    again = read_processor(saved).to_dict()
    assert read_processor(again) == read_processor(saved)
    expected, _ = theirs("vit", again, path, folder)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("settings", ["224", "384"])
def test_published_rules_on_every_kind_of_file(settings: str, photo: Path, tmp_path: Path) -> None:
    check("convnext", CONVNEXT[settings], photo, tmp_path)


@pytest.mark.parametrize("settings", ["its-defaults", "shortest-edge-and-crop"])
def test_vit_rules_on_every_kind_of_file(settings: str, photo: Path, tmp_path: Path) -> None:
    check("vit", VIT[settings], photo, tmp_path)


@pytest.mark.parametrize("name", ["rgb.png", "large.jpg", "very_high.jpg", "one_pixel.png"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("convnext", name) for name in CONVNEXT] + [("vit", name) for name in VIT],
)
def test_every_rule(
    kind: str, settings: str, name: str, photos: dict[str, Path], tmp_path: Path
) -> None:
    check(kind, {"convnext": CONVNEXT, "vit": VIT}[kind][settings], photos[name], tmp_path)


OLD = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "resample": 3,
    **IMAGENET,
}


@pytest.mark.parametrize("size", [224, 384])
def test_files_of_the_published_checkpoints(size: int) -> None:
    rule = read_processor({**OLD, "size": size})
    assert rule == Preprocessing.convnext(size)
    new = {**OLD, "size": {"shortest_edge": size}, "image_processor_type": "ConvNextImageProcessor"}
    assert read_processor(new) == rule
    unnamed = {key: value for key, value in OLD.items() if "type" not in key}
    assert read_processor({**unnamed, "size": size}) == rule


def test_a_silent_file_has_the_processors_defaults(photos: dict[str, Path]) -> None:
    """A file of nothing but the processor's name, which `transformers` reads too."""
    from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

    for processor in (ConvNextImageProcessorPil(), ViTImageProcessorPil()):
        kind = type(processor).__name__.removesuffix("Pil")
        found = ours({"image_processor_type": kind}, photos["rgb.png"])
        expected = processor(Image.open(photos["rgb.png"]), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_extreme_aspect_is_not_blown_up() -> None:
    """1 x 60,000 pixels would be 256 x 15,360,000 before the crop."""
    image = picture(60_000, 1)
    start = time.process_time()
    pixels = Preprocessing.convnext(224).pixels(image)
    assert time.process_time() - start < 5
    assert pixels.shape == (224, 224, 3)
    # The pixels in the middle, each far wider than the crop.
    middle = np.asarray(image)[0, 29_990:30_010].reshape(-1, 3)
    assert (pixels >= middle.min(0).astype(int) - 30).all()
    assert (pixels <= middle.max(0).astype(int) + 30).all()


def test_the_short_cut_for_extreme_aspects_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(700, 31)
    rule = Preprocessing.convnext(64)
    whole = rule.pixels(image)
    monkeypatch.setattr("cvt_cli.images.preprocess.MAX_RESIZED_PIXELS", 0)
    assert np.abs(rule.pixels(image).astype(int) - whole).max() <= 1


VIT_64 = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
CONVNEXT_64 = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}}


@pytest.mark.parametrize("base", [VIT_64, CONVNEXT_64], ids=["vit", "convnext"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"size": {"longest_edge": 64}},
        {"size": {"height": 64}},
        {"size": "64"},
        {"size": None},
        {"size": 0},
        {"size": -5},
        {"size": True},
        {"size": 64.5},
        {"size": 10**9},
        {"size": []},
        {"size": {"height": 64, "width": "64"}},
        {"size": {"height": 65_000, "width": 65_000}},
        {"resample": 99},
        {"resample": "bicubic"},
        {"resample": [3]},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5, 0.5, None]},
        {"image_mean": [0.5, 0.5, "0.5"]},
        {"image_mean": "0.5"},
        {"image_mean": [0.5, 0.5, math.nan]},
        {"image_std": [0.5, 0.5, 0]},
        {"image_std": [0.5, 0.5, math.inf]},
        {"rescale_factor": "1/255"},
        {"rescale_factor": 0},
        {"rescale_factor": math.nan},
        {"rescale_factor": math.inf},
        {"rescale_factor": 10**400},
        {"image_mean": 10**400},
        {"image_std": [1, 1, -(10**400)]},
        {"do_center_crop": True, "crop_size": {"shortest_edge": 64}},
        {"do_center_crop": True, "crop_size": {"height": 60_000, "width": 60_000}},
    ],
    ids=lambda value: str(value)[:60],
)
def test_settings_that_make_no_sense(base: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_processor(base | wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "crop_pct",
    [0, -1, "0.875", 5e-324, 1e-300, 1e300, 10**400, math.nan, True],
    ids=lambda value: str(value)[:60],
)
def test_crop_pct_that_makes_no_sense(crop_pct: object) -> None:
    with pytest.raises(ValueError, match="crop_pct"):
        read_processor(CONVNEXT_64 | {"crop_pct": crop_pct})


def test_two_crops_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="crop_size"):
        read_processor(CONVNEXT_64 | {"do_center_crop": True, "crop_size": 60})
    same = read_processor(CONVNEXT_64 | {"do_center_crop": True, "crop_size": 64})
    assert same == read_processor(CONVNEXT_64)


def test_a_decoder_leaves_twice_what_the_resize_needs() -> None:
    assert Preprocessing(shortest_edge=256).reduce_to == 512
    assert SQUEEZED.reduce_to == 512
    assert AS_IT_IS.reduce_to is None


def test_sizes_and_parts_that_are_seen() -> None:
    assert AS_IT_IS.size_of(30, 20) == (20, 30)
    assert SQUEEZED.size_of(30, 20) == (64, 256)
    assert Preprocessing(shortest_edge=10, crop=None).size_of(30, 20) == (10, 15)
    assert AS_IT_IS.visible_box(30, 20) == (0, 0, 30, 20)
    # Of 9 columns 4 are kept: two go on the left, three on the right.
    assert Preprocessing(shortest_edge=None, crop=(6, 4)).visible_box(9, 6) == (2, 0, 6, 6)


def test_what_is_written_names_no_step_that_is_not_done() -> None:
    assert "crop_size" not in SQUEEZED.to_dict()
    assert not {"size", "crop_size"} & AS_IT_IS.to_dict().keys()
    for rule in (SQUEEZED, AS_IT_IS, Preprocessing()):
        assert read_processor(rule.to_dict()) == rule
