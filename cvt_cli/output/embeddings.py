"""The journal of embeddings: JSON Lines, the numbers as the bytes that they are."""

from array import array
from base64 import b64decode, b64encode
from typing import Any

from cvt_cli.output.jsons import JsonLinesJournal
from cvt_cli.records import Record


class EmbeddingJournal(JsonLinesJournal):
    """A record a line: its path, its embedding as base64 of float32, its error."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return what a line holds of a record."""
        return {
            "path": record.path,
            "embedding": None
            if record.embedding is None
            else b64encode(array("f", record.embedding).tobytes()).decode(),
            "error": record.error,
        }

    @staticmethod
    def record(values: Any) -> Record:
        """Make a record of a line's values. Raises: ValueError."""
        try:
            encoded = values["embedding"]
            embedding = None if encoded is None else tuple(array("f", b64decode(encoded)))
            return Record(values["path"], error=values["error"], embedding=embedding)
        except (KeyError, TypeError):
            raise ValueError("it holds what is not a record of `cvt embed`") from None
