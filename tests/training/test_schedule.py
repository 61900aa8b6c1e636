"""Learning rate, weight decay and moving average."""

import pytest
import torch

from cvt_cli.errors import UsageError
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.training.schedule import MovingAverage, freeze, learning_rate, parameter_groups

SMALL = CvtConfig(embed_dim=(8, 8, 8), num_heads=(1, 1, 1), depth=(1, 1, 1), num_labels=2)


def test_rate_rises_to_its_peak_and_falls_to_nearly_nothing():
    rates = [learning_rate(step, 100, 10, peak=0.5) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] == pytest.approx(0.5 / 11)
    assert max(rates) == rates[10] == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.25)
    assert 0 < rates[99] < 0.001


def test_norms_biases_and_class_tokens_do_not_decay():
    model = Cvt(SMALL)
    decayed, others = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = {names[id(parameter)] for parameter in others["params"]}
    assert {"stages.2.cls_token", "norm.weight", "head.bias"} <= plain
    assert "stages.0.blocks.0.attn.conv_proj_q.bn.weight" in plain
    decaying = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"head.weight", "stages.0.blocks.0.attn.conv_proj_q.conv.weight"} <= decaying
    assert plain | decaying == set(names.values()) and not plain & decaying


@pytest.mark.parametrize(
    ("blocks", "trained"),
    [
        (1, {"stages.2.blocks.1", "norm", "head"}),
        (2, {"stages.2", "norm", "head"}),
        (3, {"stages.1.blocks.1", "stages.2", "norm", "head"}),
        (6, {"stages", "norm", "head"}),
    ],
)
def test_the_last_blocks_and_what_follows_them_are_trained(blocks, trained):
    model = Cvt(CvtConfig(embed_dim=(8, 8, 8), num_heads=(1, 1, 1), depth=(2, 2, 2), num_labels=2))
    frozen = freeze(model, blocks)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == any(name.startswith(f"{each}.") for each in trained), name
    still = {id(parameter) for module in frozen for parameter in module.parameters()}
    groups = parameter_groups(model, 0.1)
    assert not still & {id(each) for group in groups for each in group["params"]}


@pytest.mark.parametrize("blocks", [0, 4])
def test_a_network_has_only_so_many_blocks_to_train(blocks):
    with pytest.raises(UsageError, match=f"--train-blocks {blocks}: the network has 3 blocks"):
        freeze(Cvt(SMALL), blocks)


def test_average_follows_weights_and_statistics_but_copies_counters():
    model = Cvt(SMALL)
    average = MovingAverage(model, 0.9)
    before = average.state["head.weight"].clone()
    counter = "stages.0.blocks.0.attn.conv_proj_q.bn.num_batches_tracked"
    with torch.no_grad():
        model.head.weight += 1
        model.get_buffer(counter).fill_(7)
    average.update()
    # The first update weighs the past by 1 / 10, not by 0.9.
    torch.testing.assert_close(average.state["head.weight"], before + 0.9)
    assert average.state[counter] == 7
    for _ in range(200):
        average.update()
    last = average.state["head.weight"].clone()
    with torch.no_grad():
        model.head.weight += 1
    average.update()
    torch.testing.assert_close(average.state["head.weight"], last + 0.1, atol=1e-4, rtol=0)
