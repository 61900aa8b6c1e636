"""Updates of a finished output: the records of unchanged files stay, and the others are made anew.

What is new goes to a journal first, as that of any run, which a killed update goes on from. At the
end both become one document, in the order of a run over all; until then the old one is there.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cvt_cli.errors import UsageError
from cvt_cli.images.source import Source
from cvt_cli.output import (
    NO_SUMMARY,
    ConvertedWriter,
    EmbeddingWriter,
    RowWriter,
    WriterClass,
)
from cvt_cli.output.journal import Journal
from cvt_cli.output.run_file import Kept, Stamp, check_same, read_stamps, stamp_of, stamps_of
from cvt_cli.records import THUMBNAIL, Record, RecordShape, as_written
from cvt_cli.system.files import check_name, check_regular, write_atomically
from cvt_cli.system.locks import lock


def check_update(path: Path, writer_class: WriterClass) -> None:
    """Check, before anything is started, that an output can be brought up to date.

    Raises:
        UsageError: if what is there can't be brought up to date.
    """
    check_name(path)
    if not issubclass(writer_class, RowWriter | EmbeddingWriter):
        raise UsageError(f"{path}: a report can't be updated", hint="leave it out with --update")
    check_regular(path)
    if os.path.lexists(path) and Kept.read(path) is None:
        raise UsageError(
            f"{path} can't be updated: {path.name}.run.json, which says what it was made of, is "
            "missing or corrupt",
            hint="--overwrite starts over",
        )


def can_update(outputs: Sequence[tuple[Path, WriterClass]]) -> bool:
    """Tell whether --update would take these outputs, each with its format."""
    try:
        for path, writer in outputs:
            check_update(path, writer)
    except UsageError:
        return False
    return True


class UpdatedJournal(Journal):
    """A journal of the records that a finished output lacks.

    Args:
        path: the output, finished or not yet there.
        writer_class: the format, a `RowWriter` or an `EmbeddingWriter`.
        shape: what a record has room for.
        run: what the records are made with.

    Raises:
        UsageError: as `Journal`; if the output is of a run that differs, or is not such a document.
    """

    _updates = True

    def __init__(
        self, path: Path, writer_class: WriterClass, shape: RecordShape, *, run: Mapping[str, Any]
    ) -> None:
        check_update(path, writer_class)
        self._final_shape = shape
        # Paths with a record in the output, and whether it has a label.
        self.old: dict[str, bool] = {}
        self._old_stamps: Mapping[str, Stamp] = {}
        self._order: Sequence[str] = ()
        kept = Kept.read(path) if os.path.lexists(path) else None
        if kept is not None:
            check_same(kept.run, run, path)
        super().__init__(path, writer_class, shape, run=run, resume=True)
        if kept is not None:
            self._old_stamps = kept.stamps
            try:
                self.old = {
                    as_written(each.path): each.error is None for each in self._finished(())
                }
            except (OSError, ValueError) as error:
                self.abandon()
                raise UsageError(
                    f"{path} can't be updated: {error}", hint="--overwrite starts over"
                ) from None
        # In the journal the last record of a path counts.
        self._last: dict[str, int] = {}
        self._good: dict[str, Stamp | None] = {}
        stamps = dict(read_stamps(stamps_of(path)))
        for index, record in enumerate(self._records() if self.done else ()):
            name = as_written(record.path)
            self._last[name] = index
            if record.error is None:
                self._good[name] = stamps.get(name)
            else:
                self._good.pop(name, None)
        self._count = len(self.done)

    def _take(self, resume: bool, overwrite: bool) -> tuple[BinaryIO, bool]:
        if self.part.exists():
            held = lock(self.part, 0)
            return held, self._is_void()
        return lock(self.part, os.O_CREAT | os.O_EXCL), True

    def _check_run(self, run: Mapping[str, Any]) -> None:
        super()._check_run(run)
        self._write_run(True)  # marks the journal of an earlier run without --update

    def is_current(self, path: str, stamp: Stamp | None) -> bool:
        """Tell whether the output has a label for the file as it is now."""
        return (
            stamp is not None and bool(self.old.get(path)) and self._old_stamps.get(path) == stamp
        )

    def is_done(self, path: str, stamp: Stamp | None) -> bool:
        """Tell whether the journal has a label for the file as it is now."""
        return stamp is not None and self._good.get(path) == stamp

    def write(self, records: Iterable[Record]) -> None:
        """Append records; see `Journal.write`."""
        records = tuple(records)
        noted = {name: self._noted.get(name) for each in records if (name := as_written(each.path))}
        super().write(records)
        for record in records:
            name = as_written(record.path)
            self._last[name], self._count = self._count, self._count + 1
            if record.error is None:
                self._good[name] = noted[name]
            else:
                self._good.pop(name, None)

    def gone(self, found: Iterable[str]) -> list[str]:
        """Return the paths that have a label, in the output or the journal, but are not among
        these."""
        known = set(found)
        labelled = [path for path, good in self.old.items() if good and path not in self._last]
        return [path for path in (*labelled, *self._good) if path not in known]

    def settle(self, order: Sequence[str]) -> None:
        """Set the paths of the document, in order, before `finish`."""
        self._order = order

    @property
    def is_unchanged(self) -> bool:
        """Whether the document is the same as before."""
        return not self._last and list(self.old) == list(self._order)

    def _publish(self, summary: Mapping[str, Any]) -> None:
        if self.is_unchanged:
            return
        if issubclass(self._writer_class, ConvertedWriter):
            self._writer_class.convert(
                self._document(), self.path, self._final_shape, run=self._run, summary=summary
            )
            return
        write_atomically(self.path, self._write_document)

    def _write_document(self, file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        writer = self._writer_class(text, self._final_shape)
        writer.write(self._document())
        writer.close()
        text.flush()
        text.detach()

    def _document(self) -> Iterator[Record]:
        new = _InOrder(
            (as_written(record.path), record)
            for index, record in enumerate(self._records())
            if self._last[as_written(record.path)] == index
        )
        facts = self._final_shape.columns
        facts += (THUMBNAIL,) if self._final_shape.thumbnails else ()
        old = _InOrder((as_written(record.path), record) for record in self._finished(facts))
        for path in self._order:
            yield new.take(path) if path in self._last else old.take(path)

    def _finished(self, facts: Sequence[str]) -> Iterator[Record]:
        if issubclass(self._writer_class, EmbeddingWriter):
            yield from self._writer_class.embeddings(self.path)
            return
        assert issubclass(self._writer_class, RowWriter)
        with self.path.open("rb") as file:
            yield from self._writer_class.documents(file, facts)

    def _stamps_of_records(self) -> dict[str, Stamp]:
        stamps = {}
        for path in self._order:
            if path in self._last:
                stamp = self._good.get(path)
            else:
                stamp = self._old_stamps.get(path) if self.old.get(path) else None
            if stamp is not None:
                stamps[path] = stamp
        return stamps


class _InOrder:
    """Looks up records by path in nearly the order in which they come; early ones wait in memory.

    Args:
        records: each with its path; no path comes twice.
    """

    def __init__(self, records: Iterator[tuple[str, Record]]) -> None:
        self._records = records
        self._waiting: dict[str, Record] = {}

    def take(self, path: str) -> Record:
        """Return the record of a path."""
        while path not in self._waiting:
            name, record = next(self._records)
            self._waiting[name] = record
        return self._waiting.pop(path)


class Update:
    """The finished outputs of one run, brought up to date together.

    Args:
        journals: of those outputs.
        may_drop: whether the record of a file that is no longer found may go.

    Attributes:
        counts: how many inputs are kept, new, changed, or had failed before; and how many are gone,
            of which some are dropped.
    """

    done: Sequence[str] = ()
    errors = 0
    failed: Sequence[tuple[str, str]] = ()
    is_seen = False

    def __init__(
        self, journals: Sequence[UpdatedJournal], may_drop: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._journals = journals
        self._may_drop = may_drop
        self.paths = tuple(journal.path for journal in journals)
        self.counts: Counter[str] = Counter()
        # A dict keeps the order, and no path twice.
        self._order: dict[str, None] = {}

    def left(
        self, sources: Iterable[Source], on_kept: Callable[[], None] = lambda: None
    ) -> Iterator[Source]:
        """Yield the sources that need a record. Calls `on_kept` for each of the others."""
        for source in sources:
            path = as_written(source.path)
            stamp = stamp_of(source.path)
            before = [journal.old.get(path) for journal in self._journals]
            if all(before) and (source.error is not None or (stamp is None and is_gone(source))):
                continue  # a file that can't be read any more keeps its record
            self._order[path] = None
            if all(journal.is_current(path, stamp) for journal in self._journals):
                self.counts["kept"] += 1
                on_kept()
                continue
            had_labels = "changed" if all(before) else "failed"
            self.counts["new" if None in before else had_labels] += 1
            if all(
                journal.is_done(path, stamp) or journal.is_current(path, stamp)
                for journal in self._journals
            ):
                self.counts["done"] += 1
                on_kept()
                continue
            for journal in self._journals:
                journal.note(path, stamp)
            yield source

    @property
    def kept(self) -> int:
        """Number of inputs whose record was there before this run."""
        return self.counts["kept"] + self.counts["done"]

    def note(self, path: str, stamp: object) -> None:
        """Do nothing: `left` has recorded it."""

    def write(self, records: Iterable[Record]) -> None:
        """Append records; see `Journal.write`."""
        records = tuple(records)
        for journal in self._journals:
            journal.write(records)

    def abandon(self) -> None:
        """Abandon each journal; see `Journal.abandon`."""
        for journal in self._journals:
            journal.abandon()

    def finish(self, summary: Mapping[str, Any] = NO_SUMMARY) -> None:
        """Complete each output.

        Raises:
            CvtError: as `Journal.finish`.
        """
        gone = [journal.gone(self._order) for journal in self._journals]
        drops = [set(filter(self._may_drop, each)) for each in gone]
        if any(drops) and not (self.kept or self.counts["changed"]):
            warnings.warn(
                "none of the files that had a label is there any more: no row is dropped",
                stacklevel=2,
            )
            drops = [set() for _ in gone]
        self.counts["gone"] = len(gone[0])
        self.counts["dropped"] = len(drops[0])
        for journal, paths, dropped in zip(self._journals, gone, drops, strict=True):
            journal.settle([*self._order, *(path for path in paths if path not in dropped)])
        for journal in sorted(self._journals, key=lambda journal: not journal.is_converted):
            journal.finish(summary)

    def in_words(self) -> str:
        """Format the counts: `40 kept, 8 new, 2 changed, 1 failed before; 3 gone, 1 of them
        dropped`."""
        counts = self.counts
        text = f"{counts['kept']} kept, {counts['new']} new, {counts['changed']} changed"
        text += f", {counts['failed']} failed before"
        if counts["gone"]:
            kept = counts["gone"] - counts["dropped"]
            text += f"; {counts['gone']} gone: {counts['dropped']} dropped, {kept} kept"
        return text


def is_gone(source: Source) -> bool:
    """Tell whether a file does not exist."""
    path = source.path.partition("::")[0]
    return "://" not in path and not os.path.lexists(path)


class Pruning:
    """Decides which records may go: those of files that no longer exist, below folders that were
    listed completely.

    Args:
        inputs: what was typed.
        recursive: whether folders in folders are searched.
    """

    def __init__(self, inputs: Sequence[str], recursive: bool) -> None:
        self._folders = [os.path.join(path, "") for path in inputs if os.path.isdir(path)]
        self._recursive = recursive
        self._failed: set[str] = set()
        self._found_any = False

    def watch(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Pass on the sources, and note which folders could not be listed."""
        for source in sources:
            if source.error is not None:
                self._failed.add(as_written(source.path).rstrip(os.sep))
            else:
                self._found_any = True
            yield source

    def may_drop(self, path: str) -> bool:
        """Tell whether the record of a file may go."""
        if not self._found_any:
            return False
        for folder in self._folders:
            start = as_written(folder)
            below = path.removeprefix(start)
            if not path.startswith(start) or (not self._recursive and os.sep in below):
                continue
            above = [start.rstrip(os.sep)]
            for part in below.split(os.sep)[:-1]:
                above.append(f"{above[-1]}{os.sep}{part}")
            if self._failed.isdisjoint(above) and not os.path.lexists(path):
                return True
        return False
