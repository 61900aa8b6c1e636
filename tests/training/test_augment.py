"""Random changes of batches."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from cvt_cli.training import augment as augment_module
from cvt_cli.training.augment import (
    Augmentation,
    Augmenter,
    draw_operations,
    geometry,
    recolor,
)

NOTHING = Augmentation(crop="none", flip=False)


def batch(count=8, size=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(count) % 3


def augment(augmentation, size=16, smoothing=0.0, seed=0):
    torch.manual_seed(seed)
    return Augmenter(augmentation, (size, size), 3, label_smoothing=smoothing)(*batch())


def test_nothing_changes_nothing():
    pixels, targets = augment(NOTHING)
    torch.testing.assert_close(pixels, batch()[0].float(), atol=1e-3, rtol=0)
    assert targets.argmax(1).tolist() == batch()[1].tolist()


def test_label_smoothing_spreads_its_share():
    _, targets = augment(NOTHING, smoothing=0.3)
    assert targets[0].tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_flip_mirrors_some_images_and_nothing_else():
    pixels, _ = augment(Augmentation(crop="none", flip=True))
    before = batch()[0].float()
    kept = [torch.allclose(a, b, atol=1e-3) for a, b in zip(pixels, before, strict=True)]
    flipped = [torch.allclose(a, b.flip(1), atol=1e-3) for a, b in zip(pixels, before, strict=True)]
    assert all(k != f for k, f in zip(kept, flipped, strict=True))
    assert any(kept) and any(flipped)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop="padded"),
        Augmentation(crop="resized"),
        Augmentation(rand_augment=9),
        Augmentation(random_erasing=0.5),
        Augmentation(mixup=0.5, cutmix=0.5),
    ],
)
def test_every_kind_is_a_function_of_the_seed(augmentation):
    pixels, targets = augment(augmentation)
    assert pixels.shape == (8, 16, 16, 3) and pixels.min() >= 0 and pixels.max() <= 255.01
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    again = augment(augmentation)
    assert (pixels == again[0]).all() and (targets == again[1]).all()
    assert (pixels != augment(augmentation, seed=1)[0]).any()


def test_rand_augment_changes_more_as_its_magnitude_grows():
    smooth = torch.linspace(0, 255, 16).round()[:, None, None].expand(16, 16, 3)
    pixels = smooth.to(torch.uint8).expand(8, 16, 16, 3)

    def change(magnitude):
        augment = Augmenter(
            Augmentation(crop="none", flip=False, rand_augment=magnitude),
            (16, 16),
            3,
            label_smoothing=0.0,
        )
        changes = []
        for seed in range(20):
            torch.manual_seed(seed)
            after = augment(pixels, torch.zeros(8, dtype=torch.int64))[0]
            changes.append((after - pixels.float()).abs().mean().item())
        return sum(changes) / len(changes)

    # Equalisation and automatic contrast do all or nothing, whatever the magnitude.
    assert change(1) < 10
    assert change(1) < change(9) < change(29)


def pictures():
    """Four of 20x24 pixels, (4, 20, 24, 3) uint8: spread, dark, bright and of one colour."""
    random = np.random.default_rng(0)
    kinds = ((128, 40), (60, 10), (200, 5), (100, 0))
    noise = [random.normal(mean, deviation, (20, 24, 3)) for mean, deviation in kinds]
    return np.stack(noise).clip(0, 255).astype(np.uint8)


STRENGTH = 0.5
AMOUNTS = (-1.0, 0.5, 1.0, -0.3)


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        ("_brightness", lambda image, a: ImageEnhance.Brightness(image).enhance(1 + 0.45 * a)),
        ("_saturation", lambda image, a: ImageEnhance.Color(image).enhance(1 + 0.45 * a)),
        ("_contrast", lambda image, a: ImageEnhance.Contrast(image).enhance(1 + 0.45 * a)),
        ("_sharpness", lambda image, a: ImageEnhance.Sharpness(image).enhance(1 + 0.45 * a)),
        ("_posterize", lambda image, a: ImageOps.posterize(image, 8 - round(2 * abs(a)))),
        ("_solarize", lambda image, a: ImageOps.solarize(image, round(255 * (1 - abs(a) / 2)))),
        ("_auto_contrast", lambda image, a: ImageOps.autocontrast(image)),
        ("_equalize", lambda image, a: ImageOps.equalize(image)),
    ],
)
def test_colours_change_as_pillow_changes_them(operation, reference):
    assert len(augment_module.COLOR_OPERATIONS) == 8
    images = pictures()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    amounts = torch.tensor(AMOUNTS)[:, None, None, None]
    changed = getattr(augment_module, operation)(x, amounts, STRENGTH) * 255
    expected = [
        np.array(reference(Image.fromarray(image), amount))
        for image, amount in zip(images, AMOUNTS, strict=True)
    ]
    # Pillow rounds, some of it twice.
    torch.testing.assert_close(
        changed.permute(0, 2, 3, 1), torch.from_numpy(np.stack(expected)).float(), atol=1.2, rtol=0
    )


def test_every_image_gets_the_operations_that_it_drew():
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 255
    operations, amounts = torch.tensor([[4, 0, 9, 7], [2, 2, 4, 13]]), torch.rand(2, 4)
    changed = recolor(x, operations, amounts, strength=STRENGTH)
    for number, image in enumerate(x):
        expected = image[None]
        for turn in range(2):
            drawn = int(operations[turn, number])
            if drawn < len(augment_module.COLOR_OPERATIONS):
                amount = amounts[turn, number].view(1, 1, 1, 1)
                expected = augment_module.COLOR_OPERATIONS[drawn](expected, amount, STRENGTH)
        torch.testing.assert_close(changed[number], expected[0])


def test_images_draw_alone_and_every_operation_is_drawn():
    torch.manual_seed(0)
    operations, amounts = draw_operations(1000)
    assert operations.shape == amounts.shape == (2, 1000)
    for drawn in operations:
        counts = drawn.bincount(minlength=augment_module.OPERATIONS)
        assert len(counts) == augment_module.OPERATIONS and counts.min() > 35
    assert -1 <= amounts.min() < -0.95 and 0.95 < amounts.max() <= 1


@pytest.mark.parametrize(
    ("operation", "amount", "place", "expected"),
    [
        # From 8 pixels right of the centre and 4 below it.
        (augment_module.SHIFT_X, 0.5, (8.0, 4.0), (8 + 0.225 * 32, 4.0)),
        (augment_module.SHIFT_Y, -0.5, (8.0, 4.0), (8.0, 4 - 0.225 * 16)),
        (augment_module.SHEAR_X, 1.0, (8.0, 4.0), (8 + 4 * math.tan(math.radians(17)), 4.0)),
        (augment_module.SHEAR_Y, 1.0, (8.0, 4.0), (8.0, 4 + 8 * math.tan(math.radians(17)))),
        (augment_module.ROTATE, 1.0, (8.0, 0.0), (8 * math.cos(math.pi / 6), 4.0)),
        (augment_module.IDENTITY, 1.0, (8.0, 4.0), (8.0, 4.0)),
        (0, 1.0, (8.0, 4.0), (8.0, 4.0)),
    ],
)
def test_pixels_move_by_the_amount_and_within_the_range(operation, amount, place, expected):
    operations = torch.tensor([[operation], [augment_module.IDENTITY]])
    moves = geometry(operations, torch.tensor([[amount], [1.0]]), 1.0, size=(16, 32))
    found = moves[0] @ torch.tensor([*place, 1.0])
    torch.testing.assert_close(found, torch.tensor([*expected, 1.0]))


def test_random_erasing_makes_noise_of_a_rectangle_in_its_share_of_the_images():
    grey = torch.full((400, 32, 32, 3), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    change = Augmenter(
        Augmentation(crop="none", flip=False, random_erasing=0.25), (32, 32), 3, label_smoothing=0.0
    )
    pixels, targets = change(grey, torch.zeros(400, dtype=torch.int64))
    erased = ((pixels - 100).abs() > 0.01).any(dim=3)
    count = int(erased.any(dim=(1, 2)).sum())
    assert 70 <= count <= 130
    areas = erased[erased.any(dim=(1, 2))].float().mean(dim=(1, 2))
    assert 0.01 < areas.min() < 0.06 and 0.25 < areas.max() < 0.36
    for image in erased[erased.any(dim=(1, 2))][:20]:
        rows, columns = image.any(dim=1), image.any(dim=0)
        assert image.sum() == rows.sum() * columns.sum()
    noise = pixels[erased]
    assert noise.min() < 5 and noise.max() > 250 and 110 < noise.mean() < 145
    assert (targets[:, 0] == 1).all()


def test_padded_crop_shifts_by_no_more_than_an_eighth():
    # A picture of 16 pixels in a frame of 2: the window starts anywhere from 0 to 4.
    framed = torch.nn.functional.pad(batch()[0].float(), (0, 0, 2, 2, 2, 2))
    seen = set()
    for seed in range(8):
        pixels, _ = augment(Augmentation(crop="padded", flip=False), seed=seed)
        for image, frame in zip(pixels, framed, strict=True):
            (place,) = [
                (y, x)
                for y in range(5)
                for x in range(5)
                if torch.allclose(image, frame[y : y + 16, x : x + 16], atol=1e-2)
            ]
            seen.add(place)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_resized_crop_keeps_its_share_of_the_area(share):
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    pixels = torch.stack([y, x, x], dim=-1).to(torch.uint8).expand(8, 16, 16, 3)
    change = Augmenter(
        Augmentation(crop="resized", min_scale=share, flip=False), (16, 16), 3, label_smoothing=0.0
    )
    areas = []
    for seed in range(20):
        torch.manual_seed(seed)
        changed = change(pixels, torch.zeros(8, dtype=torch.int64))[0]
        height, width = (changed.amax(dim=(1, 2)) - changed.amin(dim=(1, 2)))[:, :2].unbind(dim=1)
        areas += ((height / 15) * (width / 15)).tolist()
    assert share - 0.15 < min(areas) < share + 0.1
    assert max(areas) > 0.9


def test_resized_crop_makes_the_size_that_is_asked_for():
    assert augment(Augmentation(crop="resized"), size=12)[0].shape == (8, 12, 12, 3)


def test_mixup_blends_pixels_and_targets_alike():
    pixels, targets = augment(Augmentation(crop="none", flip=False, mixup=1.0))
    before, labels = batch()
    before = before.float()
    matched = 0
    for image, soft, own, label in zip(pixels, targets, before, labels, strict=True):
        for other, second in zip(before, labels, strict=True):
            share = (image - own).flatten() @ (other - own).flatten()
            share = share / ((other - own).square().sum() + 1e-9)
            blend = own + share * (other - own)
            if label != second and 0.01 < share < 1 and torch.allclose(image, blend, atol=0.1):
                assert soft[second] == pytest.approx(share.item(), abs=1e-3)
                assert soft[label] == pytest.approx(1 - share.item(), abs=1e-3)
                matched += 1
    assert matched


def test_cutmix_pastes_a_share_of_pixels_and_targets_alike():
    pixels, targets = augment(Augmentation(crop="none", flip=False, cutmix=1.0))
    before, labels = batch()
    pasted = 0
    for image, soft, own, label in zip(pixels, targets, before.float(), labels, strict=True):
        kept = ((image - own).abs() < 0.01).all(dim=2)
        others = [
            second
            for other, second in zip(before.float(), labels, strict=True)
            if ((image - other).abs() < 0.01).all(dim=2)[~kept].all()
        ]
        assert others
        if not kept.all() and label not in others:
            assert soft[label].item() == pytest.approx(kept.float().mean().item(), abs=1e-3)
            assert soft[others[0]].item() == pytest.approx(1 - soft[label].item(), abs=1e-3)
            pasted += 1
    assert pasted


def test_shares_of_the_images_are_mixed():
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(256, (1000, 8, 8, 3), generator=generator, dtype=torch.uint8)
    change = Augmenter(
        Augmentation(crop="none", flip=False, mixup=0.2, cutmix=0.5), (8, 8), 3, label_smoothing=0.0
    )
    torch.manual_seed(0)
    pixels, _ = change(before, torch.zeros(1000, dtype=torch.int64))
    kept = ((pixels - before.float()).abs() < 0.01).all(dim=3).float().mean(dim=(1, 2))
    whole = (pixels - pixels.round()).abs().amax(dim=(1, 2, 3)) < 0.01
    kinds = {"left": kept == 1, "pasted": (kept < 1) & whole, "blended": ~whole}
    counts = {kind: int(chosen.sum()) for kind, chosen in kinds.items()}
    # A rectangle may have no pixel, a blend hardly another's share.
    assert 150 <= counts["blended"] <= 250, counts
    assert 420 <= counts["pasted"] <= 550, counts
    assert 250 <= counts["left"] <= 380, counts
