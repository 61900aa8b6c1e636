"""The run record: a JSON file with what was run, on what, and how it went."""

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cvt_cli import __version__
from cvt_cli.cli.sinks import check_not_an_input
from cvt_cli.errors import UsageError
from cvt_cli.output.journal import files_of
from cvt_cli.records import masked
from cvt_cli.system.files import check_file, write_atomically
from cvt_cli.system.text import reason_of

# More bytes than a run record has.
_MAX_BYTES = 2**24


class RunRecord:
    """The run record, for whoever asks later where the labels came from.

    Args:
        path: the JSON file.
        run: what the records depend on.

    Raises:
        UsageError: if nothing can be written there.
    """

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        self.start = datetime.now(UTC)
        self._start = time.monotonic()  # the system's clock may be set back meanwhile
        self.run = run
        self._write({"outcome": "running"})

    @staticmethod
    def is_at(path: Path) -> bool:
        """Tell whether a file is a run record."""
        try:
            with path.open("rb") as file:
                values = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(values, dict) and {"command", "outcome"} <= values.keys()

    def write(self, outcome: str, counts: Mapping[str, int], rate: float) -> None:
        """Write the whole record in place of the first one; `rate` is in images/s."""
        seconds = time.monotonic() - self._start
        end = self.start + timedelta(seconds=seconds)
        self._write(
            {
                "outcome": outcome,
                "end": end.isoformat(),
                "seconds": round(seconds, 3),
                "counts": dict(counts),
                "images_per_second": round(rate, 3),
            }
        )

    def _write(self, facts: Mapping[str, Any]) -> None:
        values = {
            "command": command(),
            "versions": versions(),
            "machine": platform.platform(),
            "start": self.start.isoformat(),
            **self.run,
            **facts,
        }
        try:
            text = masked(json.dumps(values, indent=2)) + "\n"
            write_atomically(self.path, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UsageError(f"{self.path} can't be written: {reason_of(error)}") from None


def check_run_record(
    path: Path | None, outputs: Sequence[Path], inputs: list[str], *, overwrite: bool
) -> None:
    """Check, before anything is started, that the run record can be written.

    Args:
        path: the run record, if there is to be one.
        outputs: the other files that the run writes.

    Raises:
        UsageError: if it can't be, or would replace an input, an output, or another file
            without --overwrite.
    """
    if path is None:
        return
    check_file(path)
    check_not_an_input(path, inputs)
    written = {os.path.realpath(each) for output in outputs for each in files_of(output)}
    if os.path.realpath(path) in written:
        raise UsageError(
            f"{path} is one of the outputs, or a file beside one", hint="name another --run-record"
        )
    if os.path.lexists(path) and not (overwrite or RunRecord.is_at(path)):
        raise UsageError(f"{path} exists and is no run record", hint="--overwrite replaces it")


def command() -> str:
    """Return the command line, without passwords and signatures."""
    return shlex.join(["cvt", *map(masked, sys.argv[1:])])


def versions() -> dict[str, str]:
    """Return the versions that records depend on."""
    names = ("torch", "pillow", "numpy", "huggingface_hub", "safetensors")
    ours = {"cvt": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in names}
