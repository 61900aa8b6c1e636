"""Random changes of batches."""

import builtins

import pytest
import torch

from cvt_cli.errors import UsageError
from cvt_cli.training.augment import Augmentation, Augmenter, _rand_augment, require_kornia

NOTHING = Augmentation(crop="none", flip=False)


def batch(count=8, size=16):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(count) % 3


def augment(augmentation, size=16, smoothing=0.0, seed=0):
    torch.manual_seed(seed)
    return Augmenter(augmentation, (size, size), 3, smoothing)(*batch())


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
            Augmentation(crop="none", flip=False, rand_augment=magnitude), (16, 16), 3, 0.0
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


def test_each_operation_of_rand_augment_begins_with_hardly_any_change():
    ramp = torch.linspace(0.1, 0.9, 16)[:, None].expand(16, 16)
    pixels = torch.stack([ramp, ramp.T, ramp.flip(0)]).expand(16, 3, 16, 16)
    changes = {}
    for strength in (1 / 30, 29 / 30):
        for number, change in enumerate(_rand_augment(require_kornia(), strength).children()):
            torch.manual_seed(number)
            name = type(change).__name__
            changes[number, name, strength] = change(pixels) - pixels
    little = {key: each.abs().mean().item() for key, each in changes.items() if key[2] < 0.1}
    assert len(little) == 13
    for (_, name, _), each in little.items():
        # Do all or nothing.
        assert each < 0.04 or name in ("RandomAutoContrast", "RandomEqualize"), (name, each)
    (brighter,) = (
        each for key, each in changes.items() if key[1:] == ("RandomBrightness", 29 / 30)
    )
    means = brighter.mean(dim=(1, 2, 3))
    assert means.min() < -0.1 and means.max() > 0.1


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
    change = Augmenter(Augmentation(crop="resized", min_scale=share, flip=False), (16, 16), 3, 0.0)
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


def test_shares_of_the_batches_are_mixed():
    change = Augmenter(
        Augmentation(crop="none", flip=False, mixup=0.2, cutmix=0.5), (16, 16), 3, 0.0
    )
    before, labels = batch()
    kinds = {"blended": 0, "pasted": 0, "left": 0}
    for seed in range(200):
        torch.manual_seed(seed)
        pixels, _ = change(before, labels)
        kept = ((pixels - before.float()).abs() < 0.01).all(dim=3).float().mean().item()
        # What is blended keeps an image only where it is blended with itself.
        found = (
            "left"
            if kept == 1
            else "pasted"
            if (pixels - pixels.round()).abs().max() < 0.01
            else "blended"
        )
        kinds[found] += 1
    assert 20 <= kinds["blended"] <= 60
    assert 75 <= kinds["pasted"] <= 125
    assert 35 <= kinds["left"] <= 85


def test_without_kornia_the_error_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError) as error:
        augment(NOTHING)
    assert error.value.hint == 'pip install "cvt-cli[train]"'
