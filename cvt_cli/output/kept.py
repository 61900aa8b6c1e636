"""What an output file keeps beside it, in `labels.csv.run.json`: what it was made with, and of each
file whose label is in it the size and the time, by which a later run tells what has changed.

While the run goes on, the sizes and times are in `labels.csv.part.files`, a line each.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cvt_cli.errors import UsageError
from cvt_cli.images.names import local_path
from cvt_cli.system.files import write_atomically
from cvt_cli.system.text import what_differs

# Bytes, and nanoseconds since 1970.
Stamp = tuple[int, int]

# Nobody gets other labels for these: limits, and where and how many at once they are computed.
_MAY_DIFFER = ("max_pixels", "batch_size", "device")
# And those of a file that has the labels of several runs, which search as they like.
_MAY_DIFFER_LATER = (*_MAY_DIFFER, "version", "default_excludes")
# More than a run record has, whatever was typed.
_MAX_BYTES = 2**24
# Of the same weights, whatever they are called.
_NAMES = ("model", "commit")


def kept_of(path: Path) -> Path:
    """The file beside an output."""
    return path.with_name(path.name + ".run.json")


def stamps_of(path: Path) -> Path:
    """The file of sizes and times beside the journal of an output."""
    return path.with_name(path.name + ".part.files")


def stamp_of(path: str) -> Stamp | None:
    """Size and time of a file, or of the archive that it lies in; None for what has none, as an
    address, and where there is none."""
    if path.lower().startswith("file://"):
        path = local_path(path)
    for name in dict.fromkeys((path, path.partition("::")[0])):
        try:
            found = os.stat(name)
        except (OSError, ValueError):
            continue
        return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
    return None


@dataclass(frozen=True)
class Kept:
    """The contents of the file.

    Attributes:
        run: what the output was made with.
        stamps: of the files that have a label, by path as output files write it.
    """

    run: Mapping[str, Any]
    stamps: Mapping[str, Stamp]

    @classmethod
    def read(cls, output: Path) -> "Kept | None":
        """That of an output; None if it has none, or it is corrupt."""
        try:
            values = json.loads(kept_of(output).read_text("utf-8"))
            stamps = {
                path: (int(size), int(time)) for path, (size, time) in values["files"].items()
            }
            return cls(dict(values["run"]), stamps)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self, output: Path) -> None:
        """Write it beside an output, whole or not at all. Raises: OSError."""

        def write(file: BinaryIO) -> None:
            file.write(f'{{\n"run": {json.dumps(self.run, indent=2)},\n"files": {{'.encode())
            before = "\n"
            for path, stamp in self.stamps.items():
                file.write(f"{before}{json.dumps(path)}: {json.dumps(stamp)}".encode())
                before = ",\n"
            file.write(b"\n}\n}\n")

        write_atomically(kept_of(output), write)


def read_stamps(path: Path) -> Iterator[tuple[str, Stamp]]:
    """The whole lines of a file of sizes and times, in order. What is torn is passed over."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    name, size, time = json.loads(line)
                    yield str(name), (int(size), int(time))
                except (ValueError, TypeError):
                    continue
    except FileNotFoundError:
        return


def is_run_record(file: BinaryIO) -> bool:
    """Whether a file is the JSON of a run: what --run-record writes, or what an output keeps."""
    start = file.read(_MAX_BYTES)
    if not start.lstrip().startswith(b"{"):  # records are an array
        return False
    try:
        values = json.loads(start)
    except (ValueError, RecursionError):
        return False
    names = set(values)
    return {"command", "outcome"} <= names or {"run", "files"} <= names


def stamp_line(path: str, stamp: Stamp) -> bytes:
    """The line of a file there."""
    return json.dumps([path, *stamp]).encode() + b"\n"


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], later: bool = False
) -> tuple[str, str] | None:
    """In what two runs differ so that their records don't belong together: the name of it, and
    what it was and is; None if they do.

    Args:
        later: the records of the first are a finished output.
    """
    ignored = set(_MAY_DIFFER_LATER if later else _MAY_DIFFER)
    digest = now.get("weights_sha256")
    if later and digest is not None and digest == before.get("weights_sha256"):
        ignored.update(_NAMES)
    for key in sorted((now.keys() | before.keys()) - ignored):
        if now.get(key) != before.get(key):
            return key.replace("_", "-"), what_differs(before.get(key), now.get(key))
    return None


def last_digits(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What to say where records of a GPU are in batches of another size, or of another device."""
    if before.get("device") == now.get("device") == "cpu":
        return None
    for key in ("device", "batch_size"):
        if key in before and before[key] != now.get(key):
            return (
                f"another {key.replace('_', '-')} ({what_differs(before[key], now.get(key))}): "
                "scores of the same image may differ in their last digits"
            )
    return None


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Raises `UsageError` if the labels of a finished output were made otherwise."""
    if found := difference(before, now, later=True):
        raise UsageError(
            f"{output} is from a run with another {found[0]}: {found[1]}",
            hint="repeat the options of then, or --overwrite does all anew",
        )
