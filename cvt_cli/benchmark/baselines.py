"""The peers by name, without torch."""

import logging
from importlib import import_module

from cvt_cli.errors import UsageError

# What each baseline imports, and what pip calls it.
BASELINES = {
    "transformers": ("transformers",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
}


def import_baseline(name: str) -> None:
    """Import its packages.

    Raises:
        UsageError: if there is no such baseline, or a package is missing.
    """
    if name not in BASELINES:
        raise UsageError(f"{name}: no such baseline", hint=f"one of {', '.join(BASELINES)}")
    for package in BASELINES[name]:
        try:
            import_module(package)
        except ImportError:
            raise UsageError(
                f"--baseline {name} needs {package}, which is not installed",
                hint=f"pip install {' '.join(BASELINES[name])}",
            ) from None
    if name == "transformers":
        # What it says about itself is no progress of ours.
        logging.getLogger("transformers").setLevel(logging.ERROR)
