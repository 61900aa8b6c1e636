"""The preprocessing of a checkpoint: from its files, or else from its name and its model card."""

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from cvt_cli.checkpoint.checkpoint_files import IMAGE_PROCESSOR, PROCESSOR, ResolvedFiles, read_json
from cvt_cli.checkpoint.processors import read_processor
from cvt_cli.errors import ModelError
from cvt_cli.images.preprocess import Preprocessing

DEFAULT_IMAGE_SIZE = 224
MIN_IMAGE_SIZE = 32
MAX_IMAGE_SIZE = 2048
# Sizes to look for in a name, where other numbers count layers, classes or epochs.
_IMAGE_SIZES = frozenset({"224", "256", "288", "320", "384", "448", "512"})


def preprocessing_of(files: ResolvedFiles, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of a checkpoint that has a configuration. Warns if no file describes
    it.

    Args:
        config: the contents of its `config.json`.

    Raises:
        ModelError: if the file is corrupt, or its type is not supported.
    """
    path = files.preprocessor
    if path is None:
        size, source = _image_size_of(files)
        warnings.warn(
            f"{files.name} has no preprocessor_config.json: assuming {size} × {size} pixels "
            f"({source}), preprocessed as for the published models",
            stacklevel=2,
        )
        return Preprocessing.convnext(size)
    values = read_json(files.name, path)
    if path.name == PROCESSOR:
        values = values[IMAGE_PROCESSOR]
        if not isinstance(values, dict):
            raise ModelError(f"{files.name}: {path.name}: its {IMAGE_PROCESSOR} is no object")
    try:
        return read_processor(values, config)
    except ValueError as error:
        raise ModelError(f"{files.name}: {path.name}: {error}") from None


def _image_size_of(files: ResolvedFiles) -> tuple[int, str]:
    """Return the side of the input in pixels from the name or the model card, and which of them has
    it."""
    size = image_size_in_name(files.name)
    if size is not None:
        return size, "as its name says"
    try:
        card = files.card.read_text("utf-8", "replace") if files.card is not None else ""
    except OSError:
        card = ""
    found = re.search(r"\b(\d{2,4}) ?[x×] ?\1\b", card)
    if found and MIN_IMAGE_SIZE <= int(found[1]) <= MAX_IMAGE_SIZE:
        return int(found[1]), "as its model card says"
    return DEFAULT_IMAGE_SIZE, "the usual size"


def image_size_in_name(name: str) -> int | None:
    """Return the side of the input in pixels from a name, as in `CvT-13-384x384-IN-1k.pth` or
    `org/cvt-13-384`; None if it has none."""
    base = os.path.basename(name)
    square = re.search(r"(?<!\d)(\d{2,4})x\1(?!\d)", base)
    if square:
        return int(square[1])
    named = re.search(r"cvt.*?[-_](\d{3})(?![^-_.])", base, re.IGNORECASE)
    counted = named and re.search(r"(epoch|step|checkpoint)s?[-_]\d+$", base[: named.end()], re.I)
    return int(named[1]) if named and named[1] in _IMAGE_SIZES and not counted else None
