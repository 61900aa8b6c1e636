"""A time limit for a training."""

import dataclasses
import time
from collections import deque
from statistics import median

from cvt_cli.training.loop import Trainer

# Epochs by which the time of further ones is judged.
RECENT_EPOCHS = 5


class TimeLimit:
    """Limits a training to as many epochs as there is time for.

    Args:
        seconds: for all epochs, those before an interruption included; from now on, what comes
            between them counts too.
        most: epochs that are enough; None for no such number.
    """

    def __init__(self, trainer: Trainer, seconds: float, most: int | None) -> None:
        self._trainer, self._most = trainer, most
        # Epochs only, without what came before them, such as compiling.
        took = [metrics["seconds"] for metrics in trainer.history]
        self._took = deque(took, RECENT_EPOCHS)
        self._last: float | None = None
        self._end = time.monotonic() + seconds - sum(took)
        if took:
            self._apply()

    def epoch_done(self) -> None:
        """Set the number of epochs, after one more is done."""
        now, last = time.monotonic(), self._last
        self._took.append(self._trainer.history[-1]["seconds"] if last is None else now - last)
        self._last = now
        self._apply()

    def _apply(self) -> None:
        trainer = self._trainer
        left = max(0.0, self._end - time.monotonic())
        epochs = trainer.epochs_done + int(left / max(1e-3, median(self._took)))
        if self._most is not None:
            epochs = min(epochs, max(self._most, trainer.epochs_done))
        trainer.settings = dataclasses.replace(trainer.settings, epochs=epochs)
