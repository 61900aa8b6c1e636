"""Running a training: its epochs, with progress on stderr."""

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from cvt_cli.cli.head_only import name_errors, tell_calibration
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import LOG_SECONDS, Shown, how_shown, in_rate, in_time
from cvt_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from tqdm import tqdm

    from cvt_cli.training.loop import EpochProgress, Trainer
    from cvt_cli.training.temperature import TemperatureFit
    from cvt_cli.training.time_limit import TimeLimit
    from cvt_cli.training.training_run import Training

IN_SECONDS = 90  # up to here the time left is told in seconds, then in minutes


def compile_network(trainer: "Trainer", quiet: bool) -> None:
    """Compile the network, or say why that is impossible."""
    start = time.monotonic()
    try:
        trainer.compile()
    except UsageError as error:
        # --compile asks for speed alone: the result is the same without.
        say(f"{error}; training continues without")
        return
    if not quiet:
        say(f"compiled in {time.monotonic() - start:.0f} s")


def run_epochs(training: "Training", limit: "TimeLimit | None", quiet: bool) -> None:
    """Train every epoch that is left, with a bar on a terminal and a line for each."""
    from tqdm import tqdm

    from cvt_cli.system.signals import deferred_interrupts

    trainer = training.trainer
    with deferred_interrupts() as interrupted:
        while not trainer.is_done:
            number, epochs = trainer.epochs_done + 1, trainer.settings.epochs
            bar = tqdm(
                total=trainer.images_per_epoch,
                desc=f"epoch {number}/{epochs}",
                unit="img",
                disable=quiet or not sys.stderr.isatty(),
                dynamic_ncols=True,
                leave=False,  # a line follows
                file=sys.stderr,
            )
            log = _Log(f"epoch {number}/{epochs}", trainer.images_per_epoch, quiet)
            try:
                with bar:
                    metrics = training.epoch(partial(_show, bar, log), interrupted.is_set)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted in epoch {number} of {epochs}; "
                    "run the same command with --resume to continue"
                ) from None
            if limit is not None:
                limit.epoch_done()
            if not quiet:
                _tell(metrics, trainer.settings.epochs)
                name_errors(training.new_errors())


def calibrate(trainer: "Trainer", quiet: bool) -> "TemperatureFit":
    """Find the temperature, and print its effect."""
    fit = trainer.fit_temperature()
    if not quiet:
        tell_calibration(fit)
    return fit


class _Log:
    """Prints a line every minute where there is no terminal for a bar.

    Args:
        what: the name of what is done.
        total: number of images.
        quiet: print nothing.
    """

    def __init__(self, what: str, total: int, quiet: bool) -> None:
        self._what = what
        self._total = total
        self._shown = how_shown(quiet, None) is Shown.LINES
        self._start = self._last = time.monotonic()

    def tell(self, images: int, facts: str) -> None:
        """Print the progress, if a minute has passed."""
        now = time.monotonic()
        if not self._shown or now - self._last < LOG_SECONDS:
            return
        self._last = now
        rate = images / (now - self._start)
        left = f", {in_time((self._total - images) / rate)} left" if rate else ""
        say(f"{self._what}: {images:,} of {self._total:,}, {in_rate(rate)} images/s{left}, {facts}")


def _show(bar: "tqdm[Any]", log: _Log, progress: "EpochProgress") -> None:
    text = f"loss {progress.loss:.3f}, accuracy {progress.accuracy:.1%}"
    bar.set_postfix_str(text, refresh=False)
    bar.update(progress.images - bar.n)
    log.tell(progress.images, text)


def _tell(metrics: dict[str, Any], epochs: int) -> None:
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    in_words = f"{left:.0f} s" if left < IN_SECONDS else f"{left / 60:.0f} min"
    validation = f", validation {metrics['val_accuracy']:.1%}" if "val_accuracy" in metrics else ""
    say(
        f"epoch {metrics['epoch']}/{epochs}: loss {metrics['train_loss']:.3f}, "
        f"accuracy {metrics['train_accuracy']:.1%}{validation}, "
        f"{metrics['images_per_second']:.0f} images/s{f', {in_words} left' * (left > 0)}"
    )
