"""Schedules of a training: what is trained, parameter groups, learning rate, moving average."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cvt_cli.errors import UsageError
from cvt_cli.model.cvt import Block, Cvt, Stage


def freeze(model: Cvt, train_blocks: int) -> list[nn.Module]:
    """Let gradients reach the last blocks only, the last norm and the head.

    Args:
        train_blocks: how many blocks, 1 to all of them. A stage all of whose blocks are trained is
            trained with its token embedding and class token.

    Returns:
        The modules that stay as they are.

    Raises:
        UsageError: if the network has fewer blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not 1 <= train_blocks <= len(blocks):
        raise UsageError(
            f"--train-blocks {train_blocks}: the network has {len(blocks)} blocks",
            hint="without the option all of it is trained",
        )
    first = len(blocks) - train_blocks
    frozen: list[nn.Module] = list(blocks[:first])
    model.requires_grad_(requires_grad=True)
    for stage in model.stages:
        assert isinstance(stage, Stage)
        if any(block in frozen for block in stage.blocks):
            frozen.append(stage.embed)
            if stage.cls_token is not None:
                stage.cls_token.requires_grad = False
    for module in frozen:
        module.requires_grad_(requires_grad=False)
    return frozen


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Sort parameters into two groups for an optimizer: weight decay for matrices and kernels, none
    for norms, biases and class tokens; what is frozen is in neither."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
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
