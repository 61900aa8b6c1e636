"""Statistics of batch norm, computed anew for the result."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cvt_cli.training import precise_batch_norm
from cvt_cli.training.data import Images
from cvt_cli.training.dataset import find_dataset
from cvt_cli.training.precise_batch_norm import chosen_samples, compute_statistics
from tests.labelled import save_split
from tests.training.test_loop import RULE, run, trainer_for


def test_they_are_those_of_all_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    batches = [torch.randn(8, 3, 5, 5) * 3 + 2 for _ in range(4)]
    assert compute_statistics(model, [*batches, torch.zeros(1, 3, 5, 5)]) == 32
    together = torch.cat(batches)
    mean, variance = together.mean((0, 2, 3)), together.var((0, 2, 3))
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, variance, rtol=0.02, atol=0)
    assert not model[0].training and model[0].momentum == model[2].momentum == 0.1


@pytest.mark.parametrize(("count", "chosen"), [(3, []), (4, [0, 1, 2, 3]), (12, [0, 2, 4, 7, 9])])
def test_the_images_are_chosen_evenly(
    count: int, chosen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precise_batch_norm, "LEAST_IMAGES", 4)
    monkeypatch.setattr(precise_batch_norm, "MOST_IMAGES", 5)
    assert list(chosen_samples(range(count))) == chosen  # type: ignore[arg-type,comparison-overlap]


@pytest.mark.parametrize("is_better", [True, False])
def test_the_result_has_them_if_the_validation_loss_falls(is_better: bool, tmp_path: Path) -> None:
    dataset = find_dataset(save_split(tmp_path), None, seed=0)
    trainer = trainer_for(dataset, epochs=8, ema_decay=0.5)
    run(trainer)
    state = trainer.average.state
    (norm, *_) = [name for name in state if name.endswith("bn.running_var")]
    if is_better:
        for name in state:
            if name.endswith("bn.running_var"):
                state[name].mul_(100)
    # The images that judge give the least loss, others do not.
    samples = dataset.val if is_better else dataset.train[:2]
    before = {name: value.clone() for name, value in state.items()}
    fit = trainer.refine_statistics(Images(samples, RULE, {}))
    assert fit is not None and fit.is_better == is_better and fit.images == len(samples)
    assert torch.equal(state[norm], before[norm]) != is_better
    assert torch.equal(state["head.weight"], before["head.weight"])
    trainer._averaged.load_state_dict(state)
    loss, accuracy = trainer._measure()
    assert loss == pytest.approx(fit.loss_after if is_better else fit.loss_before)
    assert accuracy == (fit.accuracy_after if is_better else fit.accuracy_before)


def test_without_images_nothing_is_computed(tmp_path: Path) -> None:
    dataset = find_dataset(save_split(tmp_path), None, seed=0)
    trainer = trainer_for(dataset, epochs=1)
    run(trainer)
    assert trainer.refine_statistics(Images((), RULE, {})) is None
