"""The model card of a trained checkpoint: what it was made from, how, and how good it was then."""

import shlex
from collections.abc import Sequence
from typing import Any

from cvt_cli import __version__
from cvt_cli.training.dataset import Dataset
from cvt_cli.training.loop import Settings
from cvt_cli.training.start import Start
from cvt_cli.training.temperature import TemperatureFit


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
    config, image_size = start.model.config, start.preprocessing.image_size or (0, 0)
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
    if fit is not None:
        rows += [
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
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    made = (
        "The weights are the moving average of those of all steps, the last ones counting most."
        if history
        else "The weights are those it started from, but for the last layer, which was calibrated."
    )
    shown = ", ".join(f"`{label}`" for label in dataset.labels[:20])
    more = f" and {len(dataset.labels) - 20} more" if len(dataset.labels) > 20 else ""
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
