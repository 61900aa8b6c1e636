"""Files of a checkpoint: their names, and where they are on this machine."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

from cvt_cli.checkpoint.integrity import check_digest, sha256_of
from cvt_cli.errors import ModelError
from cvt_cli.system.text import MAX_QUOTED, reason_of

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Newer, and not about images only: its object of this name takes precedence.
PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "image_processor"
MODEL_CARD = "README.md"
# In order of preference; the index files list the shards of a split file.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


# Of a file of JSON. A million labels have half of it.
MAX_JSON_BYTES = 2**26
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class ResolvedFiles:
    """The files of a checkpoint on this machine.

    Attributes:
        name: the checkpoint as it was named, without the revision.
        config, preprocessor: None where the checkpoint has none. The latter is
            `processor_config.json` where that one describes the preprocessing.
        weights: one file, or the shards; empty if they were not asked for.
        commit: the Hub's commit hash; None for what is not from the Hub.
        card: the model card; looked for only where there is no preprocessor.
        authors_yaml: the authors' YAML beside a file that has no configuration.
        weights_key: which network to take where a file holds several.
    """

    name: str
    config: Path | None
    preprocessor: Path | None
    weights: tuple[Path, ...]
    commit: str | None = None
    card: Path | None = None
    authors_yaml: Path | None = None
    weights_key: str | None = None

    def weights_digest(self) -> str:
        """Return the SHA-256 of all files of weights, one after the other, in hexadecimal.

        Raises:
            ModelError: if a file of the Hub's cache has not the digest by which the Hub names it.
        """
        if len(self.weights) == 1:
            (path,) = self.weights
            found = sha256_of(path)
            if self.commit is not None:
                check_digest(self.name, path, found)
            return found
        digest = hashlib.sha256()
        for path in self.weights:
            if self.commit is not None:
                check_digest(self.name, path, sha256_of(path))
            with path.open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        return digest.hexdigest()


def find_preprocessor(locate: Callable[[str], Path | None]) -> Path | None:
    """Find the file that describes the preprocessing."""
    newer = locate(PROCESSOR)
    return newer if newer and _describes_images(newer) else locate(PREPROCESSOR)


def _describes_images(path: Path) -> bool:
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return True  # reading it reports the error
    return isinstance(values, dict) and values.get(IMAGE_PROCESSOR) is not None


def with_shards(name: str, file: Path, locate: Callable[[str], Path | None]) -> tuple[Path, ...]:
    """Return the file itself, or the shards that it lists."""
    if file.suffix != ".json":
        return (file,)
    try:
        shards = json.loads(file.read_text("utf-8"))["weight_map"].values()
        names = sorted({os.fspath(shard) for shard in shards})
    # A hostile list may be nested deeper than Python's stack.
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        names = []
    if not names:
        raise ModelError(f"{name}: {file.name} is corrupt: it lists no shards")
    paths = []
    for shard in names:
        # The list comes with the checkpoint, and must not lead out of its folder.
        if shard != os.path.basename(shard) or shard in ("", os.curdir, os.pardir):
            raise ModelError(
                f"{name}: {file.name} lists {repr_of(shard)}, which is no file beside it"
            )
        path = locate(shard)
        if path is None or not os.path.isfile(path):
            raise ModelError(f"{name}: {shard[:MAX_QUOTED]}, listed in {file.name}, is missing")
        paths.append(path)
    return tuple(paths)


def no_cvt(name: str, model_type: object) -> ModelError:
    """Make the error for a model of another architecture."""
    return ModelError(f"{name} is not a CvT: its model_type is {repr_of(model_type)}")


def read_json(name: str, path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        ModelError: if it can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise ModelError(f"{name}: {path} has more than {MAX_JSON_BYTES} bytes")
        values = json.loads(text)
    except OSError as error:
        raise ModelError(f"{name}: {path}: {reason_of(error)}") from None
    except RecursionError:
        raise ModelError(f"{name}: {path} is corrupt: nested too deep") from None
    except ValueError as error:
        check_for_pointer(name, path)
        raise ModelError(f"{name}: {path} is corrupt: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{name}: {path} is corrupt: not a JSON object")
    return values


def check_for_pointer(name: str, path: Path) -> None:
    """Check that a file is not a pointer of Git LFS, left in place of a file that was not fetched.

    Raises:
        ModelError: if it is one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError:
        return  # reading it reports the error
    if start == _LFS:
        raise ModelError(
            f"{name}: {path} is a Git LFS pointer, not the file itself",
            hint="run `git lfs pull` in its folder",
        )
