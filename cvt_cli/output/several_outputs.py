"""Several output files of one run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvt_cli.output import NO_SUMMARY
from cvt_cli.output.journal import Journal
from cvt_cli.output.run_file import Stamp
from cvt_cli.records import Record, as_written


class SeveralOutputs:
    """Several journals with the methods of one.

    A run may have been cut between the journals, and one may have been added since: what is done
    is what the shortest has, and the others leave out what they have already.
    """

    is_seen = False

    def __init__(self, journals: Sequence[Journal]) -> None:
        self.paths = tuple(journal.path for journal in journals)
        shortest = min(journals, key=lambda journal: len(journal.done))
        self.done = shortest.done
        self.errors = shortest.errors
        self.failed = shortest.failed
        self._journals = journals
        self._ahead = [set(journal.done[len(self.done) :]) for journal in journals]

    def write(self, records: Iterable[Record]) -> None:
        """Append records to each file; see `Journal.write`."""
        records = tuple(records)
        for journal, ahead in zip(self._journals, self._ahead, strict=True):
            new = []
            for record in records:
                path = as_written(record.path) if ahead else ""
                if path in ahead:
                    ahead.remove(path)
                else:
                    new.append(record)
            journal.write(new)

    def note(self, path: str, stamp: Stamp | None) -> None:
        """Record a file's size and time; see `Journal.note`."""
        for journal in self._journals:
            journal.note(path, stamp)

    def abandon(self) -> None:
        """Abandon each journal; see `Journal.abandon`."""
        for journal in self._journals:
            journal.abandon()

    def finish(self, summary: Mapping[str, Any] = NO_SUMMARY) -> None:
        """Give the files their final names, converted formats first."""
        for journal in sorted(self._journals, key=lambda journal: not journal.is_converted):
            journal.finish(summary)
