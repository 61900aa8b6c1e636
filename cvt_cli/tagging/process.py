"""A process that writes into pictures. They are untrusted, and exiv2 may crash or hang on one: that
costs the picture, not the run.

It reads a line of JSON for each picture, and answers with one.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from cvt_cli.system.signals import FROM_TERMINAL
from cvt_cli.tagging.keywords import Keyword
from cvt_cli.tagging.xmp import TagError

# Seconds for a picture. Files of a hundred megabytes take one.
TIMEOUT = 60.0


class Unwritable(TagError):
    """exiv2 can't write into a picture of this kind; it is unchanged."""


class PictureWriter:
    """Writes keywords into pictures in a process of its own.

    Args:
        keep_dates: leave a picture's dates as they are.
        dry_run: change nothing.
        timeout: seconds for a picture.
    """

    def __init__(
        self, *, keep_dates: bool = False, dry_run: bool = False, timeout: float = TIMEOUT
    ) -> None:
        self._options = {"keep_dates": keep_dates, "dry_run": dry_run}
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def tag(self, path: Path, keywords: Sequence[Keyword], model: str) -> bool:
        """Put keywords into a picture; see `embedding.tag_picture`.

        Raises:
            Unwritable: if exiv2 writes into no such pictures.
            TagError: if this one can't be written; it is as it was.
            OSError: if the disk is full or read-only.
        """
        told = [[each.levels, each.label, each.score] for each in keywords]
        asked = {"path": str(path), "keywords": told, "model": model, **self._options}
        answer = self._ask(json.dumps(asked).encode() + b"\n")
        if answer is None:
            raise TagError("exiv2 crashed, or took too long: it stays as it is")
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"])
        if "error" in answer:
            raise (Unwritable if answer["unwritable"] else TagError)(answer["error"])
        return bool(answer["changed"])

    def _ask(self, line: bytes) -> dict[str, Any] | None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                answer = self._process.stdout.readline() if selector.select(self._timeout) else b""
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self._end()
            return None
        values: dict[str, Any] = json.loads(answer)
        return values

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):
                process.communicate()


def _serve() -> None:
    """Answer requests until the parent is gone."""
    for number in FROM_TERMINAL:  # the parent decides
        signal.signal(number, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)  # keeps a library's output out of the answers
    from cvt_cli.tagging.embedding import NotWritable, tag_picture

    for line in sys.stdin.buffer:
        asked = json.loads(line)
        keywords = [
            Keyword(tuple(levels), label, score) for levels, label, score in asked.pop("keywords")
        ]
        answer: dict[str, Any]
        try:
            changed = tag_picture(
                Path(asked["path"]),
                keywords,
                asked["model"],
                keep_dates=asked["keep_dates"],
                dry_run=asked["dry_run"],
            )
            answer = {"changed": changed}
        except TagError as error:
            answer = {"error": str(error), "unwritable": isinstance(error, NotWritable)}
        except OSError as error:
            answer = {"error": error.strerror or str(error), "errno": error.errno or 0}
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _serve()
