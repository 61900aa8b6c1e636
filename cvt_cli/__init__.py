"""Classify image files with CvT, the convolutional vision transformer (arXiv 2103.15808).

from cvt_cli import Classifier

record = Classifier("microsoft/cvt-13")("cat.jpg", top_k=3)
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Classifier", "__version__"]

if TYPE_CHECKING:
    from cvt_cli.inference.classifier import Classifier


def __getattr__(name: str) -> object:
    # Imported when first used: the command line must answer --help without torch.
    if name == "Classifier":
        from cvt_cli.inference.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
