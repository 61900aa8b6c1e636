"""Temperatures: found where they are known, and divided into the last layer."""

import pytest
import torch
from torch.nn import functional as F

from cvt_cli.training.temperature import fit_temperature, with_temperature


@pytest.mark.parametrize("wanted", [0.25, 1.0, 3.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(wanted):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    targets = logits.softmax(1).multinomial(1, generator=generator)[:, 0]
    fit = fit_temperature(logits * wanted, targets)
    assert fit.temperature == pytest.approx(wanted, rel=0.05)
    assert fit.ece_after < 0.015
    scores, best = logits.softmax(1).max(1)
    loss = F.binary_cross_entropy(scores, (best == targets).float()).item()
    assert fit.loss_after == pytest.approx(loss, abs=1e-3)
    assert fit.accuracy == (logits.argmax(1) == targets).double().mean()
    if wanted != 1:
        assert fit.ece_before > 0.05 and fit.loss_before > fit.loss_after


def test_labels_that_are_all_right_or_unrelated_have_a_temperature_too():
    logits = torch.eye(3).repeat(4, 1)
    assert 0 < fit_temperature(logits, logits.argmax(1)).temperature <= 0.07
    assert fit_temperature(logits, (logits.argmax(1) + 1) % 3).temperature >= 15


def test_a_temperature_is_divided_into_the_last_layer_alone():
    weights = {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2), "x": torch.ones(1)}
    divided = with_temperature(weights, 4.0)
    assert divided["head.weight"].unique().tolist() == divided["head.bias"].unique().tolist()
    assert divided["head.bias"][0] == 0.25 and divided["x"] == weights["head.bias"][0] == 1
