"""The model card of a trained checkpoint: what it was made from, how, and how good it was then."""

import shlex
from collections.abc import Sequence
from typing import Any

from cvt_cli import __version__
from cvt_cli.model.config import CvtConfig
from cvt_cli.training.dataset import Dataset
from cvt_cli.training.loop import Settings


def model_card(
    command: Sequence[str],
    start_from: str,
    config: CvtConfig,
    image_size: tuple[int, int],
    dataset: Dataset,
    settings: Settings,
    history: Sequence[dict[str, Any]],
) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        command: the words of the command line.
        start_from: the checkpoint or the architecture that training began with.
        image_size: height and width of the input in pixels.
        history: the metrics of each epoch; the last one's are given.
    """
    last = history[-1]
    minutes = sum(metrics["seconds"] for metrics in history) / 60
    validation = (
        f"{last['val_accuracy']:.2%} of {len(dataset.val)} validation images"
        if "val_accuracy" in last
        else "not measured: there was no validation set"
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
| started from | {start_from} |
| stages | widths {_list(config.embed_dim)}, depths {_list(config.depth)} |
| input | {image_size[0]}x{image_size[1]} pixels |
| training images | {len(dataset.train)}, of which {last["unreadable"]} could not be read |
| epochs | {len(history)} of {settings.epochs}, {minutes:.0f} minutes of training |
| seed | {settings.seed} |
| top-1 accuracy | {validation} |

The weights are the moving average of those of all steps, the last ones counting most. Made by
cvt {__version__}:

    {shlex.join(command)}

Every training image was one of these labels: whatever an image shows, one of them is the answer.

    cvt classify image.jpg --model <this folder>
    cvt evaluate <folder of labelled images> --model <this folder>
"""


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
