"""Schedules of a training: parameter groups, learning rate, moving average."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Sort parameters into two groups for an optimizer: weight decay for matrices and kernels, none
    for norms, biases and class tokens."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith("cls_token")
        (others if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def learning_rate(step: int, steps: int, warmup: int, *, peak: float) -> float:
    """Return the learning rate of a step: it rises linearly from near 0 to `peak` over the first
    `warmup` of `steps` steps, then follows a cosine to near 0 at the last."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class MovingAverage:
    """An exponential moving average of a network's weights and statistics.

    Args:
        model: is updated in place; not moved to another device afterwards.
        decay: weight of the past at each step, 0 to below 1. The first steps, when the past is
            little more than the initialisation, use a smaller one: (1 + n) / (10 + n) after n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        present = model.state_dict()
        self.state = {name: value.clone() for name, value in present.items()}
        averaged = [name for name, value in present.items() if value.is_floating_point()]
        counted = [name for name in present if name not in averaged]
        self._averaged = [self.state[name] for name in averaged], [present[n] for n in averaged]
        self._counted = [self.state[name] for name in counted], [present[n] for n in counted]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's present state."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(*self._averaged, 1 - decay)
        if self._counted[0]:
            torch._foreach_copy_(*self._counted)

    def restore(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a `state` after so many `updates`."""
        self.updates = updates
        for name, value in self.state.items():
            value.copy_(state[name])
