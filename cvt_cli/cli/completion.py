"""Values for completion in the shell: models, formats, columns, dtypes, devices.

The completion runs at each press of Tab, so nothing heavy is imported here.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cvt_cli.checkpoint.catalog import known_names
from cvt_cli.output import FORMATS
from cvt_cli.records import COLUMNS, THUMBNAIL

Complete = Callable[[str], list[str]]


def one_of(*values: str) -> Complete:
    """Return a function that completes one of some values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def list_of(*values: str) -> Complete:
    """Return a function that completes values between commas, each of which comes once."""

    def complete(incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        named = head.split(",")
        return [
            head + comma + value
            for value in values
            if value.startswith(last) and value not in named
        ]

    return complete


def complete_models(incomplete: str) -> list[str]:
    """Complete the name of a model: those that ship, the published ones, and the CvTs in the Hub's
    cache. The shell completes files."""
    names = dict.fromkeys([*known_names(), *cached_models()])
    return [name for name in names if name.startswith(incomplete)]


def cached_models() -> list[str]:
    """List the CvTs in the Hub's cache, by the layout of its folder: importing `huggingface_hub`
    would take longer than a shell may wait."""
    try:
        folders = sorted(_hub_cache().glob("models--*"))
    except OSError:
        return []
    return [
        folder.name.removeprefix("models--").replace("--", "/")
        for folder in folders
        if any(map(_is_cvt, folder.glob("snapshots/*/config.json")))
    ]


def _hub_cache() -> Path:
    """Return the folder of the cache, from the variables that `huggingface_hub` reads."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(folder or os.path.join(home, "hub"))).expanduser()


def _is_cvt(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes()).get("model_type") == "cvt")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BY_OPTION: dict[str, Complete] = {
    "--model": complete_models,
    "--download": complete_models,
    "--format": one_of(*FORMATS),
    "--columns": list_of(*COLUMNS, THUMBNAIL),
    "--dtype": list_of(*_DTYPES),
    "--device": list_of("auto", "cpu", "cuda", "mps"),
    "--groups": one_of("imagenet"),
    "--baseline": one_of("transformers", "onnxruntime", "openvino"),
}


def of_option(names: Sequence[str]) -> Complete | None:
    """Return the completion for an option of these names; None for the shell's own."""
    return _BY_OPTION.get(names[0])
