"""A training, from its data to the folder of its checkpoint."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cvt_cli.checkpoint.save import save_checkpoint
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.system.files import write_atomically
from cvt_cli.training.card import head_card, model_card
from cvt_cli.training.data import Images
from cvt_cli.training.dataset import Dataset, Sample
from cvt_cli.training.head import HeadFit
from cvt_cli.training.loop import EpochProgress, Trainer
from cvt_cli.training.settings import Settings
from cvt_cli.training.start import Start, for_training
from cvt_cli.training.state import METRICS, STATE, load_state, save_state, write_metrics
from cvt_cli.training.temperature import TemperatureFit, with_temperature

# Share of the time that may be spent on saving the state for a resumption.
SAVING_SHARE = 0.05


class Training:
    """A `Trainer`, and the folder for its state and its result.

    Args:
        output: the folder of the checkpoint; its state is in it until the training is complete.
        command: the words of the command line, for the model card.
        readers: processes that read the images; None for threads.

    Attributes:
        trainer: does the epochs.
    """

    def __init__(
        self,
        output: Path,
        dataset: Dataset,
        start: Start,
        *,
        settings: Settings,
        device: torch.device,
        command: Sequence[str],
        readers: ReaderPool | None = None,
    ) -> None:
        self._output, self._dataset, self._start = output, dataset, start
        self._command = command
        self._errors: dict[str, str] = {}
        self._named = 0
        self._save_after = 0.0
        rule = for_training(start.preprocessing, settings.augmentation.crop)

        def images(samples: Sequence[Sample], preprocessing: Preprocessing) -> Images:
            return Images(
                samples,
                preprocessing,
                self._errors,
                device=device,
                readers=readers,
                background=settings.background,
                accept_truncated=settings.accept_truncated,
            )

        self.trainer = Trainer(
            start.model,
            images(dataset.train, rule),
            images(dataset.val, start.preprocessing),
            errors=self._errors,
            preprocessing=start.preprocessing,
            settings=settings,
            device=device,
        )

    def open(self, overwrite: bool) -> None:
        """Make the folder, and continue from a state in it.

        Args:
            overwrite: forget that state instead.

        Raises:
            UsageError: if the state is that of other settings or data.
            CvtError: if it is corrupt.
            OSError: if the folder can't be made.
        """
        self._output.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in (STATE, METRICS):
                (self._output / name).unlink(missing_ok=True)
        state = load_state(self._output)
        if state is not None:
            self.trainer.restore(state)
            self._named = len(self._errors)  # the interrupted run has reported them

    def epoch(
        self, on_batch: Callable[[EpochProgress], None], interrupted: Callable[[], bool]
    ) -> dict[str, Any]:
        """Train an epoch, and save the state and the result, unless saving would take more than a
        small part of the time. Arguments and result are those of `Trainer.epoch`.

        Raises:
            KeyboardInterrupt: if it was interrupted; the state is on the disk.
            OSError: if a file can't be written.
        """
        try:
            metrics = self.trainer.epoch(on_batch, interrupted)
        except KeyboardInterrupt:
            self._save()
            raise
        if time.monotonic() >= self._save_after:
            self._save()
        return metrics

    def _save(self) -> None:
        start = time.monotonic()
        save_state(self._output, self.trainer)
        if self.trainer.history:
            self._save_result()
        end = time.monotonic()
        self._save_after = end + (end - start) / SAVING_SHARE

    def new_errors(self) -> list[tuple[str, str]]:
        """Return path and reason of the images that could not be read since the last call."""
        errors = list(self._errors.items())[self._named :]
        self._named += len(errors)
        return errors

    def finish(self, fit: TemperatureFit | None = None) -> None:
        """Write the final result, and delete the state.

        Args:
            fit: the temperature that its logits are divided by.
        """
        write_metrics(self._output, self.trainer, fit)
        self._save_result(fit)
        (self._output / STATE).unlink(missing_ok=True)

    def _save_result(self, fit: TemperatureFit | None = None) -> None:
        trainer, start = self.trainer, self._start
        weights = trainer.average.state
        if fit is not None:
            weights = with_temperature(weights, fit.temperature)
        config = start.model.config
        card = model_card(
            self._command,
            start,
            self._dataset,
            settings=trainer.settings,
            history=trainer.history,
            fit=fit,
        )
        save_checkpoint(
            self._output,
            config,
            self._dataset.labels,
            preprocessing=start.preprocessing,
            weights=weights,
            model_card=card,
        )


@dataclass(frozen=True, kw_only=True)
class HeadRun:
    """Facts about a training of the last layer alone.

    Attributes:
        command: the words of the command line, for the model card.
        unreadable: images that could not be read.
        seconds: that all of it took.
    """

    command: Sequence[str]
    unreadable: int
    seconds: float


def save_head(
    output: Path,
    dataset: Dataset,
    start: Start,
    *,
    fit: HeadFit,
    run: HeadRun,
    calibration: TemperatureFit | None = None,
) -> None:
    """Write the checkpoint, with the new last layer in the network that training started from.

    Args:
        output: its folder; what an interrupted training left there is forgotten.
        calibration: the temperature that the logits are divided by.

    Raises:
        OSError: if a file can't be written.
    """
    weights = start.model.state_dict() | {"head.weight": fit.weight, "head.bias": fit.bias}
    if calibration is not None:
        weights = with_temperature(weights, calibration.temperature)
    best = fit.best
    judged = {} if math.isnan(best.accuracy) else {"loss": best.loss, "accuracy": best.accuracy}
    kind = "cross_val" if fit.folds else "val"
    metrics = {
        "head_only": True,
        "penalty": best.penalty,
        "train_loss": fit.train_loss,
        "train_accuracy": fit.train_accuracy,
        **{f"{kind}_{name}": value for name, value in judged.items()},
        **(calibration.metrics() if calibration is not None else {}),
        "images": len(dataset.train),
        "unreadable": run.unreadable,
        "seconds": round(run.seconds, 3),
        "tried": [asdict(trial) for trial in fit.trials] if judged else [],
    }
    line = json.dumps(metrics) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / STATE).unlink(missing_ok=True)
    save_checkpoint(
        output,
        start.model.config,
        dataset.labels,
        preprocessing=start.preprocessing,
        weights=weights,
        model_card=head_card(
            run.command,
            start,
            dataset,
            head=fit,
            unreadable=run.unreadable,
            calibration=calibration,
        ),
    )
    write_atomically(output / METRICS, lambda file: file.write(line.encode()))
