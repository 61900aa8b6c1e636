"""Saving: a network becomes a folder in the Transformers layout, which `load` and `transformers`
read."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from cvt_cli.checkpoint.checkpoint_files import CONFIG, MODEL_CARD, PREPROCESSOR, WEIGHTS
from cvt_cli.checkpoint.layouts import TRANSFORMERS
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.config import CvtConfig
from cvt_cli.system.files import write_atomically


def save_checkpoint(
    folder: Path,
    config: CvtConfig,
    labels: Sequence[str],
    *,
    preprocessing: Preprocessing,
    weights: Mapping[str, Tensor],
    model_card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json`, `preprocessor_config.json`, `model.safetensors` and `README.md`, each
    whole or not at all.

    Args:
        folder: is made if it is missing; files of these names in it are replaced.
        labels: one for each class index.
        weights: under our names, on any device.
        dtype: what floating-point weights are stored in.

    Raises:
        OSError: if a file can't be written.
        ValueError: if labels and configuration disagree on the number of classes.
    """
    if len(labels) != config.num_labels:
        raise ValueError(f"{len(labels)} labels for {config.num_labels} classes")
    folder.mkdir(parents=True, exist_ok=True)
    values = config.to_dict() | {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification" if len(labels) > 1 else None,
        # The dtype that `transformers` computes in, whatever the weights are stored in.
        "dtype": "float32",
    }
    stored = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in TRANSFORMERS.to_theirs(weights).items()
    }
    # `transformers` expects this metadata in a file of weights.
    files = {
        PREPROCESSOR: _json(preprocessing.to_dict()),
        WEIGHTS[0]: save(stored, metadata={"format": "pt"}),
        MODEL_CARD: model_card.encode(),
        CONFIG: _json(values),
    }
    for name, content in files.items():
        write_atomically(folder / name, partial(_write, content))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
