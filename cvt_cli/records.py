"""Records: the result for each input."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from sys import float_info


class ScoreKind(StrEnum):
    """Ways to turn a logit into a score."""

    SOFTMAX = "softmax"  # of all labels one is right: the scores' sum is 1
    SIGMOID = "sigmoid"  # each label is right or not, whatever the others are
    RAW = "raw"  # the logit itself, as of a regression

    @property
    def is_share(self) -> bool:
        """Whether a score is from 0 to 1, and can be shown as a percentage or a bar."""
        return self is not ScoreKind.RAW

    @property
    def in_words(self) -> str:
        """Describe the kind in a few words."""
        return {
            ScoreKind.SOFTMAX: "softmax: one label of all",
            ScoreKind.SIGMOID: "sigmoid: each label for itself",
            ScoreKind.RAW: "raw: the network's own numbers, without bounds",
        }[self]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and its score.

    Attributes:
        label: the class's name.
        score: 0 to 1, how likely the model takes it to be; of a regression any number. What it is
            made by is the model's: see `ScoreKind`.
        index: its class index.
    """

    label: str
    score: float
    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """The result for one input: predictions, best first, or an embedding, or an error.

    Attributes:
        path: the input as it was given.
        predictions: at most top-k of them, by falling score; empty if there is an error.
        error: why there are none, in one line; None if all went well.
        columns: the optional facts that were asked for, by name; see `COLUMNS`.
        embedding: the float32 numbers of the vector behind the label, if that was asked for.
        thumbnail: a small upright JPEG of the image, if that was asked for.
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    columns: Mapping[str, int | float | str | None] = field(default_factory=dict)
    embedding: tuple[float, ...] | None = None
    thumbnail: bytes | None = None


# Facts about an image that a record can carry, and the type of each.
COLUMNS: Mapping[str, type] = {
    "width": int,  # pixels, upright
    "height": int,
    "bytes": int,  # the encoded file
    "sha256": str,  # of the encoded file, hexadecimal
    "seconds": float,  # from opening the file to its pixels
    "index": int,  # class index of the best label
    "truncated": int,  # 1 where the end of a JPEG was missing, else 0
    "taken": str,  # EXIF's date of the exposure, ISO 8601, with the offset where there is one
    "latitude": float,  # degrees, north and east positive
    "longitude": float,
    "altitude": float,  # metres above sea level
    "camera": str,  # make and model
    "lens": str,
    "orientation": int,  # EXIF's, 1 to 8; the picture is turned by it
    "scores": str,  # a `ScoreKind`: what made the scores
}


# The column of pictures, which spreadsheets have room for.
THUMBNAIL = "thumbnail"


@dataclass(frozen=True, slots=True)
class RecordShape:
    """The fields that every record of a run has room for.

    Attributes:
        top_k: predictions, at most.
        columns: names out of `COLUMNS`, in order.
        embedding_dim: numbers in an embedding; 0 if there is none.
        thumbnails: whether documents that have room for pictures show them.
        shown: those of the columns that tables and plain lines for people show.
        is_brief: whether a table may show the best label alone where many images come.
    """

    top_k: int
    columns: tuple[str, ...] = ()
    embedding_dim: int = 0
    thumbnails: bool = False
    shown: tuple[str, ...] = field(default=(), compare=False)
    is_brief: bool = field(default=False, compare=False)

    def for_labels(self, count: int) -> "RecordShape":
        """Return a shape with no more predictions than there are labels to choose from."""
        return replace(self, top_k=min(self.top_k, count))


def check_types(record: Record) -> None:
    """See that a record that was read back holds what it should, before anything is done with it.

    Raises:
        ValueError: if it doesn't.
    """
    texts = [record.path, *(each.label for each in record.predictions)]
    texts += [] if record.error is None else [record.error]
    numbers = [each.score for each in record.predictions]
    whole = [each.index for each in record.predictions]
    for name, value in record.columns.items():
        if value is not None:
            kind = COLUMNS[name]
            {str: texts, float: numbers, int: whole}[kind].append(value)  # type: ignore[attr-defined]
    if not (
        all(isinstance(each, str) for each in texts)
        and all(type(each) in (int, float) and abs(each) <= float_info.max for each in numbers)
        and all(type(each) is int and abs(each) < _LARGEST for each in whole)
    ):
        raise ValueError("it holds something other than records of `cvt classify`")
    for each in record.predictions:
        if not is_text(each.label):
            raise ValueError("a label is not Unicode text")


_LARGEST = 2**63


def is_text(text: str) -> bool:
    """Tell whether text can be written: half a surrogate pair can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_MASK = "***"
# User and password of an address. Of some stores what stands there is the name of a container.
_USER = re.compile(
    r"\b((?:https?|ftps?)://)[^/?#\s]*@|\b([a-z][a-z0-9+.-]*://)[^/?#\s]*:[^/?#\s]*@", re.I
)
_VALUE = r""")=)[^&#\s"'<>]*?(?=::|[:,;]?(?:[\s"'<>]|$)|[&#])"""
# Parts of a query that let anybody in who knows them.
_SECRET = re.compile(
    r"([?&;#](?:x-(?:amz|goog)-[\w-]+|(?:[\w-]+[-_])?(?:token|signature|secret|password)|sig|auth"
    r"|authorization|api[-_]?key|access[-_]?key(?:[-_]?id)?|awsaccesskeyid|googleaccessid|passwd"
    r"|pwd|jwt|hmac" + _VALUE,
    re.I,
)
# Parts that are made anew with each signature.
_SIGNED = re.compile(r"[?&;](?:sig|signature)=", re.I)
_WITH_IT = re.compile(
    r"([?&;](?:expires|policy|key-pair-id|se|st|ske|skt|sks|skv|skoid|sktid" + _VALUE, re.I
)


def masked(text: str) -> str:
    """Return text without the passwords and signatures of the addresses in it, so that it can be
    shown to others. Addresses that differ in those alone become the same."""
    if "://" not in text:
        return text
    text = _USER.sub(lambda found: f"{found[1] or found[2]}{_MASK}@", text)
    is_signed = _SIGNED.search(text) is not None
    text = _SECRET.sub(rf"\1{_MASK}", text)
    return _WITH_IT.sub(rf"\1{_MASK}", text) if is_signed else text


# From so many characters on a label with commas is a list of synonyms, as ImageNet's are.
LONG_LABEL = 25


def short_label(label: str) -> str:
    """Return the first of a label's synonyms, "lesser panda" of "lesser panda, red panda, panda,
    bear cat", for tables and folders. A short label is returned whole."""
    first = label.partition(",")[0].strip()
    return first if first and len(label) >= LONG_LABEL else label


def as_written(path: str) -> str:
    """Return a path as it is written to output files: as UTF-8 that is valid, and `masked`."""
    text = path if path.isascii() else path.encode("utf-8", "backslashreplace").decode("utf-8")
    return masked(text)
