"""How a checkpoint's images are prepared: as its files say, or else as its name and card do."""

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
MAX_IMAGE_SIZE = 2048
# In a name, other numbers are those of layers, classes or epochs.
_IMAGE_SIZES = frozenset({"224", "256", "288", "320", "384", "448", "512"})


def preprocessing_of(files: ResolvedFiles, config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a checkpoint that has a configuration. Warns if no file describes it.

    Args:
        config: the contents of its `config.json`.

    Raises:
        ModelError: if the file is corrupt, or its type is not supported.
    """
    path = files.preprocessor
    if path is None:
        size, source = _image_size_of(files)
        warnings.warn(
            f"{files.name} has no preprocessor_config.json: assumed are {size} × {size} pixels "
            f"({source}), prepared as for the published models",
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
    """The side of the input in pixels that the name or the model card tells, and which it was."""
    size = image_size_in_name(files.name)
    if size is not None:
        return size, "as its name says"
    try:
        card = files.card.read_text("utf-8", "replace") if files.card is not None else ""
    except OSError:
        card = ""
    found = re.search(r"\b(\d{2,4}) ?[x×] ?\1\b", card)
    if found and 32 <= int(found[1]) <= MAX_IMAGE_SIZE:
        return int(found[1]), "as its model card says"
    return DEFAULT_IMAGE_SIZE, "the usual size"


def image_size_in_name(name: str) -> int | None:
    """The side of the input in pixels that a name tells, `CvT-13-384x384-IN-1k.pth` or
    `org/cvt-13-384`; None where it doesn't."""
    base = os.path.basename(name)
    square = re.search(r"(?<!\d)(\d{2,4})x\1(?!\d)", base)
    if square:
        return int(square[1])
    named = re.search(r"cvt.*?[-_](\d{3})(?![^-_.])", base, re.IGNORECASE)
    counted = named and re.search(r"(epoch|step|checkpoint)s?[-_]\d+$", base[: named.end()], re.I)
    return int(named[1]) if named and named[1] in _IMAGE_SIZES and not counted else None
