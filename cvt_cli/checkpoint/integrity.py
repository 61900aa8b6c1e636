"""Integrity of files in the Hub's cache.

The cache names each file by a digest, the Hub's ETag: SHA-256 for large files, Git's SHA-1 for the
others. Where links can't be made it does not, and nothing can be told.
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path

from cvt_cli.errors import ModelError

_SMALL = 2**20  # bytes of a file whose digest is computed in any case
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
# Digests of files that were read, by what a change of them changes: where a run's record names the
# weights, they are compared first and named later.
_known: dict[tuple[int, ...], str] = {}


def is_damaged(path: Path, thoroughly: bool = False) -> bool:
    """Tell whether a file in the cache differs from the Hub's.

    Args:
        thoroughly: compute the digest even of large files, and not only where the length is wrong.
    """
    try:
        large = path.stat().st_size > _SMALL
        if large and not thoroughly and _has_its_length(path):
            return False
        named = path.resolve().name
        if _SHA256.fullmatch(named):
            return sha256_of(path) != named
        if _GIT_SHA1.fullmatch(named):
            start = b"blob %d\0" % path.stat().st_size
            return _digest(path, hashlib.sha1(start, usedforsecurity=False)) != named
        return not _has_its_length(path)
    except OSError:
        return False  # reading it reports the error


def check_digest(name: str, path: Path, sha256: str) -> None:
    """Check the digest of a file in the cache against the name that the Hub gave it.

    Args:
        name: the checkpoint, for the message.

    Raises:
        ModelError: if it is another one.
    """
    named = path.resolve().name
    if _SHA256.fullmatch(named) and named != sha256:
        raise damaged(name, path)


def damaged(name: str, path: Path) -> ModelError:
    """Make the error for a damaged file in the cache."""
    return ModelError(
        f"{name}: {path} is damaged: it is not what the Hub sent",
        hint="--refresh fetches it again, when online",
    )


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal; once for as long as it stays as it is.

    Raises:
        OSError: if it can't be read.
    """
    status = path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if stamp not in _known:
        _known[stamp] = _digest(path, hashlib.sha256())
    return _known[stamp]


def _digest(path: Path, digest: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _has_its_length(path: Path) -> bool:
    """Tell whether a file is as long as its own table of contents says; True for formats without
    one."""
    with path.open("rb") as file:
        start = file.read(8)
        if path.name.endswith(".safetensors"):
            try:
                header = file.read(min(int.from_bytes(start, "little"), 10**8))
                entries = json.loads(header)
                ends = [entry["data_offsets"][1] for entry in entries.values() if "dtype" in entry]
                return path.stat().st_size == 8 + len(header) + max(ends, default=0)
            # A damaged header may be anything, JSON or not.
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                return False
    return not start.startswith(b"PK") or zipfile.is_zipfile(path)
