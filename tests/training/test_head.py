"""The last layer alone: a minimum, by a penalty that is chosen on other images."""

import pytest
import torch
from torch.nn import functional as F

from cvt_cli.training.features import Embedded
from cvt_cli.training.head import Trial, class_weights, fit_head, pick_trial


def clouds(counts, spread=1.0, seed=0, width=8):
    """Points around a centre for each class, not centred themselves, and of no usual scale."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(7))
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    noise = torch.randn(len(targets), width, generator=generator)
    return Embedded(30 * (centres[targets] + spread * noise) + 5, targets)


@pytest.mark.parametrize("balanced", [True, False])
def test_the_result_is_the_minimum(balanced):
    train, val = clouds((60, 20, 7)), clouds((20, 20, 20), seed=1)
    fit = fit_head(train, val, 3, balanced=balanced)
    # The same problem in the given features, whose penalty is that of the scaled ones.
    scale = (train.features - train.features.mean(0)).square().mean().sqrt().double()
    weight = fit.weight.double().requires_grad_()
    bias = fit.bias.double().requires_grad_()
    each = F.cross_entropy(
        F.linear(train.features.double(), weight, bias), train.targets, reduction="none"
    )
    share = torch.tensor([87 / 3 / count for count in (60, 20, 7)]).double()
    loss = (each * share[train.targets] if balanced else each).mean()
    penalty = fit.best.penalty / 2 * (weight * scale).square().sum()
    (loss + penalty).backward()
    assert (weight.grad / scale).abs().max() < 2e-5 and bias.grad.abs().max() < 2e-5
    assert fit.train_loss == pytest.approx(each.mean().item(), rel=1e-4)
    right = (fit.logits(val.features).argmax(1) == val.targets).float().mean().item()
    assert fit.best.accuracy == pytest.approx(right, abs=0.02) and right > 0.7


def test_the_penalty_is_the_one_that_labels_other_images_best():
    # So few points in so many dimensions are learnt by heart: others need a strong penalty.
    train, val = clouds((6, 6), spread=3, width=64), clouds((400, 400), 3, seed=1, width=64)
    fit = fit_head(train, val, 2)
    assert fit.train_accuracy == 1 and fit.folds == 0
    assert fit.best == pick_trial(fit.trials)
    assert [t.penalty for t in fit.trials] == sorted((t.penalty for t in fit.trials), reverse=True)
    weakest = fit.trials[-1]
    assert fit.best.penalty > weakest.penalty and fit.best.loss < weakest.loss


def test_without_validation_images_parts_of_training_are_held_out():
    train = clouds((5, 5, 5), spread=0.3)
    fit = fit_head(train, None, 3)
    assert fit.folds == 5 and fit.best.accuracy > 0.9
    # A label that says nothing can't be told from images that were held out.
    train.targets[:] = train.targets[torch.randperm(15, generator=torch.Generator().manual_seed(1))]
    assert fit_head(train, None, 3).best.accuracy < 0.7


def test_one_image_a_class_is_enough_to_learn_from():
    fit = fit_head(clouds((1, 1, 1)), None, 3)
    assert fit.train_accuracy == 1 and fit.folds == 0 and fit.best.accuracy != fit.best.accuracy
    some = fit_head(clouds((1, 8, 8), spread=0.2), None, 3)
    assert some.train_accuracy == 1 and some.best.accuracy > 0.9


def test_classes_count_alike():
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 3)
    assert weights.tolist() == pytest.approx([2 / 3, 0, 2])
    # Where classes overlap, the rare one is found only if it counts as much.
    train, val = clouds((500, 10), spread=3), clouds((200, 200), 3, seed=1)
    found = [
        (fit_head(train, val, 2, balanced=b).logits(val.features).argmax(1) == 1).sum().item()
        for b in (True, False)
    ]
    assert found[0] > 3 * found[1]


def test_of_equally_accurate_penalties_the_one_whose_scores_suit_best():
    trials = [Trial(10.0, 1.0, 0.80, 100), Trial(0.1, 0.5, 0.78, 100), Trial(0.001, 0.4, 0.7, 100)]
    assert pick_trial(trials).penalty == 0.1
    # Of many images two points are no chance.
    many = [Trial(each.penalty, each.loss, each.accuracy, 10_000) for each in trials]
    assert pick_trial(many).penalty == 10
