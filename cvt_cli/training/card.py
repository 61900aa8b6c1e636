"""The model card of a trained checkpoint: what it was made from, how, and how good it is."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from cvt_cli import __version__
from cvt_cli.training.dataset import Dataset
from cvt_cli.training.head import FOLDS, HeadFit
from cvt_cli.training.settings import Settings
from cvt_cli.training.start import Start
from cvt_cli.training.temperature import TemperatureFit

NAMED_LABELS = 20


def model_card(
    command: Sequence[str],
    start: Start,
    dataset: Dataset,
    *,
    settings: Settings,
    history: Sequence[dict[str, Any]],
    fit: TemperatureFit | None = None,
) -> str:
    """Write Markdown with the front matter that the Hub reads.

    Args:
        command: the words of the command line.
        start: what training began with.
        history: the metrics of each epoch; the last one's are given. Without one, `fit` is.
        fit: the temperature that the logits were divided by.
    """
    last = history[-1] if history else {}
    accuracy = last.get("val_accuracy") if fit is None else fit.accuracy
    rows = []
    if history:
        minutes = sum(metrics["seconds"] for metrics in history) / 60
        rows += [
            (
                "training images",
                f"{len(dataset.train)}, of which {last['unreadable']} could not be read",
            ),
            ("epochs", f"{len(history)} of {settings.epochs}, {minutes:.0f} minutes of training"),
        ]
    rows += [
        ("seed", str(settings.seed)),
        (
            "top-1 accuracy",
            "not measured: there was no validation set"
            if accuracy is None
            else f"{accuracy:.2%} of {len(dataset.val)} validation images",
        ),
    ]
    rows += _calibration(fit)
    made = (
        "The weights are the moving average of those of all steps, the last ones counting most."
        if history
        else "The weights are those it started from, but for the last layer, which was calibrated."
    )
    return _card(command, start, dataset, rows=rows, made=made)


def head_card(
    command: Sequence[str],
    start: Start,
    dataset: Dataset,
    *,
    head: HeadFit,
    unreadable: int,
    calibration: TemperatureFit | None = None,
) -> str:
    """Write the same for a model of which only the last layer was trained.

    Args:
        head: that layer.
        unreadable: images that could not be read, of training and validation.
        calibration: the temperature that the logits were divided by.
    """
    judged = (
        f"of the training images, by cross-validation in {FOLDS} parts"
        if head.folds
        else f"of {len(dataset.val)} validation images, by which the penalty was chosen"
    )
    accuracy = head.best.accuracy
    rows = [
        ("training images", str(len(dataset.train))),
        ("could not be read", str(unreadable)),
        ("last layer", f"logistic regression, penalty {head.best.penalty:.2g}"),
        (
            "top-1 accuracy",
            f"{accuracy:.2%} {judged}" if math.isfinite(accuracy) else "not measured",
        ),
        *_calibration(calibration),
    ]
    made = "The weights are those it started from, but for the last layer, which is new."
    return _card(command, start, dataset, rows=rows, made=made)


def _calibration(fit: TemperatureFit | None) -> list[tuple[str, str]]:
    if fit is None:
        return []
    return [
        (
            "calibration",
            f"logits divided by {fit.temperature:.4f}, the temperature that suits the best "
            "scores of the validation images",
        ),
        (
            "expected calibration error",
            f"{fit.ece_after:.4f} on these, {fit.ece_before:.4f} before",
        ),
    ]


def _card(
    command: Sequence[str],
    start: Start,
    dataset: Dataset,
    *,
    rows: Sequence[tuple[str, str]],
    made: str,
) -> str:
    config, image_size = start.model.config, start.preprocessing.image_size or (0, 0)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    shown = ", ".join(f"`{label}`" for label in dataset.labels[:NAMED_LABELS])
    left = len(dataset.labels) - NAMED_LABELS
    more = f" and {left} more" if left > 0 else ""
    return f"""\
---
library_name: transformers
pipeline_tag: image-classification
tags: [cvt, image-classification]
---

# A CvT for {len(dataset.labels)} labels

{shown}{more}.

| | |
| --- | --- |
| started from | {start.origin} |
| stages | widths {_list(config.embed_dim)}, depths {_list(config.depth)} |
| input | {image_size[0]}x{image_size[1]} pixels |
{table}

{made} Made by cvt {__version__}:

    {shlex.join(command)}

Every training image was one of these labels: whatever an image shows, one of them is the answer.

    cvt classify image.jpg --model <this folder>
    cvt evaluate <folder of labelled images> --model <this folder>
"""


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
