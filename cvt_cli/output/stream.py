"""Output to an open stream, for readers that want each record at once."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cvt_cli.output import NO_SUMMARY, WriterClass
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.text import for_reading


class StreamOutput:
    """An open stream, such as standard output, with the methods of a `Journal`."""

    paths: Sequence[Path] = ()
    done: Sequence[str] = ()
    errors = 0
    failed: Sequence[tuple[str, str]] = ()

    def __init__(self, stream: TextIO, writer_class: WriterClass, shape: RecordShape) -> None:
        self._stream = stream
        self.is_seen = stream.isatty()
        # A table has colours of its own, and makes its texts visible.
        own = getattr(writer_class, "is_for_terminals", False)
        self._writer = writer_class(stream if own else for_reading(stream), shape)

    def write(self, records: Iterable[Record]) -> None:
        """Append records, at once."""
        self._writer.write(records)
        self._stream.flush()

    def note(self, path: str, stamp: object) -> None:
        """Do nothing: a stream keeps no sizes and times. See `Journal.note`."""

    def abandon(self) -> None:
        """Do nothing: nothing was written. See `Journal.abandon`."""

    def finish(self, summary: Mapping[str, Any] = NO_SUMMARY) -> None:
        """Write the end of the document."""
        self._writer.close()
        self._stream.flush()
