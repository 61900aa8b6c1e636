"""Names and packages of the baselines. Imports no torch."""

import logging
from importlib import import_module

from cvt_cli.errors import UsageError

# The module that each baseline imports, and the package's name for pip.
BASELINES = {
    "transformers": ("transformers",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}


def import_baseline(name: str) -> None:
    """Import the packages of a baseline.

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
        # Its messages about itself do not belong on stderr.
        logging.getLogger("transformers").setLevel(logging.ERROR)
