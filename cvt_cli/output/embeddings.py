"""The journal of embeddings: JSON Lines with base64 of the numbers."""

from array import array
from base64 import b64decode, b64encode
from typing import Any

from cvt_cli.output.jsons import JsonLinesJournal
from cvt_cli.records import Record, as_written


class EmbeddingJournal(JsonLinesJournal):
    """Writes one line per record: its path, its embedding as base64 of float32, its error."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return the values in a record's line."""
        return {
            "path": as_written(record.path),
            "embedding": None
            if record.embedding is None
            else b64encode(array("f", record.embedding).tobytes()).decode(),
            "error": record.error,
        }

    @staticmethod
    def record(values: Any) -> Record:
        """Make the record from the values in its line. Raises: ValueError."""
        try:
            encoded = values["embedding"]
            embedding = None if encoded is None else tuple(array("f", b64decode(encoded)))
            return Record(values["path"], error=values["error"], embedding=embedding)
        except (KeyError, TypeError):
            raise ValueError("it holds something other than records of `cvt embed`") from None
