"""The journal of embeddings: JSON Lines, the numbers as the bytes that they are."""

import json
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from typing import BinaryIO, TextIO

from cvt_cli.records import Record, RecordShape


class EmbeddingJournal:
    """A record a line: its path, its embedding as base64 of float32, its error."""

    def __init__(self, stream: TextIO, shape: RecordShape, started: bool = False) -> None:
        self._stream = stream

    def write(self, records: Iterable[Record]) -> None:
        """Append a line for each record."""
        for record in records:
            line = {
                "path": record.path,
                "embedding": None
                if record.embedding is None
                else b64encode(array("f", record.embedding).tobytes()).decode(),
                "error": record.error,
            }
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Nothing ends JSON Lines."""

    @staticmethod
    def read(file: BinaryIO) -> Iterator[tuple[Record, int]]:
        """The whole lines.

        Raises:
            ValueError: if one is not a record.
        """
        end = 0
        for line in file:
            end += len(line)
            if line.endswith(b"\n"):
                yield _from_json(line), end


def _from_json(line: bytes) -> Record:
    try:
        values = json.loads(line)
        encoded = values["embedding"]
        embedding = None if encoded is None else tuple(array("f", b64decode(encoded)))
        return Record(values["path"], error=values["error"], embedding=embedding)
    except (KeyError, TypeError):
        raise ValueError("it holds what is not a record of `cvt embed`") from None
