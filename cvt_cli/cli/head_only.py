"""`cvt train --head-only`: the last layer alone, on embeddings that are computed once."""

import math
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cvt_cli.cli import options
from cvt_cli.cli.messages import say
from cvt_cli.cli.progress import Progress, how_shown, in_time
from cvt_cli.errors import InputsError, UsageError
from cvt_cli.records import masked
from cvt_cli.system.text import counted

if TYPE_CHECKING:
    from cvt_cli.cli.model_options import CheckpointFiles
    from cvt_cli.cli.train import TrainCompute
    from cvt_cli.cli.train_options import RunOptions, StartOptions
    from cvt_cli.training.dataset import Dataset
    from cvt_cli.training.head import HeadFit
    from cvt_cli.training.temperature import TemperatureFit

NAMED_ERRORS = 10
CLASS_WEIGHTS = ("balanced", "none")
# Ratio of images between two labels from which on a line says so.
UNEVEN = 1.5
# Options that matter if only the last layer is trained; the others are refused.
_OPTIONS = {
    *("data", "output", "model", "arch", "image_size", "val_fraction"),
    *("revision", "refresh", "offline", "weights_key"),
    *("head_only", "class_weights", "overwrite", "batch_size", "seed", "calibrate"),
    *("device", "dtype", "image_timeout", "readers"),
}


def check_head_only(context: typer.Context, head_only: bool, class_weights: str) -> None:
    """Check that all options on the command line go together.

    Raises:
        UsageError: if one of them says nothing to --head-only, or only to it.
    """
    typed = options.typed_options(context)
    if class_weights not in CLASS_WEIGHTS:
        raise UsageError(
            f"--class-weights {class_weights}: no such choice",
            hint=f"one of {', '.join(CLASS_WEIGHTS)}",
        )
    if not head_only:
        if "class_weights" in typed:
            raise UsageError("--class-weights needs --head-only")
        return
    if "arch" in typed:
        raise UsageError(
            "--head-only needs a trained network, not --arch", hint="--model names one"
        )
    if "resume" in typed:
        raise UsageError(
            "--head-only has nothing to resume: it writes nothing until it is done, in about the "
            "time of `cvt embed`",
            hint="run it again without --resume",
        )
    refused = [option for name, option in typed.items() if name not in _OPTIONS]
    if refused:
        raise UsageError(
            f"--head-only can't be combined with {', '.join(refused)}",
            hint="it trains the last layer alone, without epochs or augmentation",
        )


def train_head(
    context: typer.Context,
    dataset: "Dataset",
    output: Path,
    *,
    start: "StartOptions",
    files: "CheckpointFiles",
    run: "RunOptions",
    compute: "TrainCompute",
    alone: AbstractContextManager[None],
) -> None:
    """Train the last layer of a checkpoint, and write the result.

    Args:
        alone: keeps other runs out of the folder while it is written, and tells its errors.

    Raises:
        CvtError: if the result can't be written.
        InputsError: if no image of a label can be read.
        ModelError: if the checkpoint can't be found or loaded.
        UsageError: if another run is writing there, or has filled the folder meanwhile.
    """
    begin = time.monotonic()
    quiet = context.obj.quiet
    readers = compute.start(context)
    from cvt_cli.checkpoint.load import load
    from cvt_cli.checkpoint.resolve import resolve
    from cvt_cli.inference.devices import pick_device
    from cvt_cli.training.features import check_classes, embed_samples, feature_extractor
    from cvt_cli.training.head import fit_head
    from cvt_cli.training.start import from_checkpoint
    from cvt_cli.training.temperature import fit_temperature
    from cvt_cli.training.training_run import HeadRun, save_head

    device = pick_device(compute.device)
    checkpoint = load(
        resolve(
            start.model or "",
            files.revision,
            files.refresh,
            offline=files.offline,
            weights_key=files.weights_key,
            verify=True,
        )
    )
    network = from_checkpoint(checkpoint, dataset.labels, start.image_size, seed=run.seed)
    classifier = feature_extractor(
        checkpoint,
        network,
        device=str(device),
        dtype="float32" if compute.dtype == "auto" else compute.dtype,
        batch_size=run.batch_size if options.is_typed(context, "batch_size") else None,
        readers=readers,
    )
    balanced = run.class_weights == "balanced"
    if not quiet:
        _tell_data(dataset, network.origin, balanced)
    errors: dict[str, str] = {}
    total = len(dataset.train) + len(dataset.val)
    progress = Progress(how_shown(quiet, None), lambda: total)
    try:
        train, val = (
            embed_samples(classifier, samples, errors=errors, on_image=progress.add)
            for samples in (dataset.train, dataset.val)
        )
    finally:
        progress.close()
    if not quiet:
        name_errors(list(errors.items()))
    check_classes(train, dataset.labels)
    if dataset.val and not len(val):
        raise InputsError("no validation image could be read")
    fit = fit_head(
        train,
        val if dataset.val else None,
        len(dataset.labels),
        balanced=balanced,
        seed=run.seed,
        device=device,
    )
    calibration = None
    if run.calibrate:
        calibration = fit_temperature(fit.logits(val.features), val.targets)
    seconds = time.monotonic() - begin
    if not quiet:
        _tell(fit, calibration, seconds)
    with alone:
        save_head(
            output,
            dataset,
            network,
            fit=fit,
            run=HeadRun(
                command=["cvt", *map(masked, sys.argv[1:])],
                unreadable=len(errors),
                seconds=seconds,
            ),
            calibration=calibration,
        )


def tell_calibration(fit: "TemperatureFit") -> None:
    """Print the temperature, and its effect on the scores."""
    say(
        f"calibrated on {fit.images} images: temperature {fit.temperature:.4f}, expected "
        f"calibration error {fit.ece_after:.4f}, {fit.ece_before:.4f} before"
    )


def name_errors(errors: list[tuple[str, str]]) -> None:
    """Print the images that were left out: the first ones by path and reason, and their number."""
    for path, reason in errors[:NAMED_ERRORS]:
        say(f"left out: {path}: {reason}")
    if errors:
        more = len(errors) - NAMED_ERRORS
        say(
            f"{counted(len(errors), 'image')} could not be read{f', {more} not named' * (more > 0)}"
        )


def _tell_data(dataset: "Dataset", origin: str, balanced: bool) -> None:
    held_out = (
        f"{len(dataset.val)} to validate on" if dataset.val else "validated by cross-validation"
    )
    say(
        f"{len(dataset.train)} images to train on, {held_out}, {len(dataset.labels)} labels; "
        f"from {origin}, the last layer alone"
    )
    counts = Counter(sample.target for sample in dataset.train)
    least, most = min(counts.values()), max(counts.values())
    if balanced and most > UNEVEN * least:
        say(
            f"labels have {least} to {most} images but count equally; "
            "--class-weights none counts every image equally"
        )


def _tell(fit: "HeadFit", calibration: "TemperatureFit | None", seconds: float) -> None:
    best = fit.best
    if math.isnan(best.accuracy):
        judged = "not compared: one image per label"
    else:
        judged = f"{'cross-validation' if fit.folds else 'validation'} {best.accuracy:.2%}"
    say(
        f"last layer: penalty {best.penalty:.2g} of {len(fit.trials)} tried, {judged}, "
        f"training {fit.train_accuracy:.2%}; {in_time(seconds)}"
    )
    if calibration is not None:
        tell_calibration(calibration)
