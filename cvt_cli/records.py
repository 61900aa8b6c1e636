"""What comes out for each input."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how likely the model takes it to be.

    Attributes:
        label: the class's name.
        score: its softmax probability, 0 to 1.
        index: its class index.
    """

    label: str
    score: float
    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """The one result of one input: predictions, best first, or an error.

    Attributes:
        path: the input as it was given.
        predictions: at most top-k of them, by falling score; empty if there is an error.
        error: why there are none, in one line; None if all went well.
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None


def as_written(path: str) -> str:
    """A path as it reads in an output file."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
