"""The file `labels.csv.run.json` beside an output: what the output was made with, and the size and
the time of each file whose label is in it, by which a later run finds changed files.

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
from cvt_cli.system.json_text import parse_json
from cvt_cli.system.text import what_differs

# Size in bytes, and time in nanoseconds since 1970.
Stamp = tuple[int, int]

# Keys that change no label: limits, and where, in what batches and in which form of the network the
# labels are computed.
_MAY_DIFFER = ("max_pixels", "batch_size", "device", "form")
# Keys that may differ, too, in a file with the labels of several runs, each with its own search.
_MAY_DIFFER_LATER = (*_MAY_DIFFER, "version", "default_excludes")
# More bytes than a run record has.
_MAX_BYTES = 2**24
# Keys that identify the weights, whatever the model's name.
_NAMES = ("model", "commit")


def kept_of(path: Path) -> Path:
    """Return the path of the file beside an output."""
    return path.with_name(path.name + ".run.json")


def stamps_of(path: Path) -> Path:
    """Return the path of the sizes and times beside an output's journal."""
    return path.with_name(path.name + ".part.files")


def stamp_of(path: str) -> Stamp | None:
    """Return size and time of a file, or of the archive that it lies in; None if there are none, as
    for an address or a missing file."""
    if path[:7].lower() == "file://":
        path = local_path(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        archive, member, _ = path.partition("::")
        return stamp_of(archive) if member else None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


@dataclass(frozen=True)
class Kept:
    """The contents of the file beside an output.

    Attributes:
        run: what the output was made with.
        stamps: of the files that have a label, by path as output files write it.
    """

    run: Mapping[str, Any]
    stamps: Mapping[str, Stamp]

    @classmethod
    def read(cls, output: Path) -> "Kept | None":
        """Read the file beside an output; None if there is none, or it is corrupt."""
        try:
            values = parse_json(kept_of(output).read_text("utf-8"))
            stamps = {
                path: (int(size), int(time)) for path, (size, time) in values["files"].items()
            }
            return cls(dict(values["run"]), stamps)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def write(self, output: Path) -> None:
        """Write the file beside an output, whole or not at all. Raises: OSError."""

        def write(file: BinaryIO) -> None:
            file.write(f'{{\n"run": {json.dumps(self.run, indent=2)},\n"files": {{'.encode())
            before = "\n"
            for path, stamp in self.stamps.items():
                file.write(f"{before}{json.dumps(path)}: {json.dumps(stamp)}".encode())
                before = ",\n"
            file.write(b"\n}\n}\n")

        write_atomically(kept_of(output), write)


def read_stamps(path: Path) -> Iterator[tuple[str, Stamp]]:
    """Yield the complete lines of a file of sizes and times, in order. Torn lines are skipped."""
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    name, size, time = parse_json(line)
                    yield str(name), (int(size), int(time))
                except (ValueError, TypeError, OverflowError):  # an infinite size
                    continue
    except FileNotFoundError:
        return


def is_run_record(file: BinaryIO) -> bool:
    """Tell whether a file describes a run: one from --run-record, or one beside an output."""
    start = file.read(_MAX_BYTES)
    if not start.lstrip().startswith(b"{"):  # an array holds records
        return False
    try:
        values = parse_json(start)
    except (ValueError, RecursionError):
        return False
    names = set(values)
    return {"command", "outcome"} <= names or {"run", "files"} <= names


def stamp_line(path: str, stamp: Stamp) -> bytes:
    """Format the line of a file."""
    return json.dumps([path, *stamp]).encode() + b"\n"


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], later: bool = False
) -> tuple[str, str] | None:
    """Find a difference between two runs that keeps their records from belonging together: its
    name, and the old and the new value; None if there is none.

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
    """Warn where records were computed on a GPU in batches of another size, or on another
    device."""
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
    """Check that the labels of a finished output were made in the same way. Raises `UsageError` if
    not."""
    if found := difference(before, now, later=True):
        raise UsageError(
            f"{output} is from a run with another {found[0]}: {found[1]}",
            hint="use the same options, or --overwrite starts over",
        )
