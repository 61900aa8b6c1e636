"""Class names for weights without labels: from a file, or those of ImageNet-1k."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvt_cli.checkpoint.imagenet import SYNSETS, class_names
from cvt_cli.errors import UsageError
from cvt_cli.system.files import read_text
from cvt_cli.system.text import reason_of

MAX_LABELS = 2**20
MAX_BYTES = 2**26


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the names in a file, by class index.

    Args:
        path: JSON, or text with a name a line. JSON may be a list of names; a map from class index
            to name, as `id2label` is, alone or in a `config.json`; or either with pairs of a
            WordNet id and a name, as in ImageNet's class index. Where all are WordNet ids of
            ImageNet-1k, their names are taken.

    Raises:
        UsageError: if it can't be read, or holds something else.
    """
    try:
        text = read_text(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"--class-names: {path}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--class-names: {path}: not UTF-8") from None
    if text.lstrip()[:1] in ("[", "{"):
        names = _from_json(path, text)
    else:
        names = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
    if not names or not all(names):
        raise UsageError(
            f"--class-names: {path}: a class has no name",
            hint="one name per line, in the order of the class indexes, or JSON like id2label",
        )
    known = dict(zip(SYNSETS, class_names(), strict=True))
    if all(name in known for name in names):
        names = [known[name] for name in names]
    return tuple(names)


def _from_json(path: Path, text: str) -> list[str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--class-names: {path} is corrupt: {error}") from None
    if isinstance(values, Mapping) and isinstance(values.get("id2label"), Mapping):
        values = values["id2label"]
    try:
        if isinstance(values, Mapping):
            indexed = {int(index): _name(value) for index, value in values.items()}
            if sorted(indexed) != list(range(len(values))):
                raise ValueError("class indexes must run from 0 without gaps")
            return [indexed[index] for index in range(len(indexed))]
        return [_name(value) for value in values]
    except (TypeError, ValueError):
        raise UsageError(
            f"--class-names: {path}: neither a list of names nor a map from class index to name"
        ) from None


def _name(value: Any) -> str:
    match value:
        case [_, name]:  # ImageNet's class index: ["n01440764", "tench"]
            value = name
    if not isinstance(value, str):
        raise TypeError("not a name")
    return value.strip()
