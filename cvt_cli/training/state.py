"""The state of a training on the disk, and its metrics."""

import json
from pathlib import Path
from typing import Any, BinaryIO

import torch

from cvt_cli.errors import CvtError
from cvt_cli.system.files import write_atomically
from cvt_cli.system.signals import interruptible
from cvt_cli.training.loop import Trainer
from cvt_cli.training.temperature import TemperatureFit

STATE = "training.pt"
METRICS = "metrics.jsonl"


def save_state(folder: Path, trainer: Trainer) -> None:
    """Write `training.pt` and `metrics.jsonl`, each whole or not at all.

    Raises:
        OSError: if a file can't be written.
    """
    write_atomically(folder / STATE, lambda file: _save(trainer.state(), file))
    write_metrics(folder, trainer)


def _save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # torch replaces what the file raises, as of a full disk, by an error of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def write_metrics(folder: Path, trainer: Trainer, fit: TemperatureFit | None = None) -> None:
    """Write `metrics.jsonl`, whole or not at all.

    Args:
        fit: becomes its last line.

    Raises:
        OSError: if it can't be written.
    """
    calibration = [] if fit is None else [{"epoch": trainer.epochs_done, **fit.metrics()}]
    lines = "".join(json.dumps(metrics) + "\n" for metrics in [*trainer.history, *calibration])
    write_atomically(folder / METRICS, lambda file: file.write(lines.encode()))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote; None if it wrote nothing yet.

    Raises:
        CvtError: if the file is corrupt.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        with interruptible():
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"settings", "history"} <= state.keys():
            raise KeyError("settings")
    # A foreign file makes torch raise nearly anything.
    except Exception as error:
        raise CvtError(
            f"{path}: not the state of a training ({type(error).__name__})",
            hint="--overwrite starts over",
        ) from error
    return state
