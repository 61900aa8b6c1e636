"""The journal: an output file that appears whole or not at all, and that an interrupted run
continues.

While a run goes on, its records are in `labels.csv.part`, in the final format, and what they were
made with is in `labels.csv.part.json`. To finish is to rename the first and delete the second. A
format that nothing can be appended to has a journal in another format, which is converted. What a
later run wants to know of a finished one stays in `labels.csv.run.json`; see `run_file`.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cvt_cli.errors import CvtError, UsageError
from cvt_cli.output import NO_SUMMARY, ConvertedWriter, WriterClass, open_text
from cvt_cli.output.csv_tsv import DelimitedWriter
from cvt_cli.output.run_file import (
    Kept,
    Stamp,
    difference,
    kept_of,
    last_digits,
    read_stamps,
    stamp_line,
    stamps_of,
)
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import (
    check_file,
    make_parent,
    rename_new,
    replace,
    sweep,
    sync,
    sync_folder,
    write_atomically,
)
from cvt_cli.system.json_text import parse_json
from cvt_cli.system.locks import is_locked, lock, open_itself
from cvt_cli.system.text import FULL, reason_of

FSYNC_SECONDS = 5.0
# Key in the description of a run: whether a file with the output's name is to be replaced.
_REPLACES = "replaces"
# Key: whether the journal holds only what a finished output lacks.
_UPDATES = "updates"


class Journal:
    """An output file under construction.

    Args:
        path: the final name.
        writer_class: the format.
        shape: what a record has room for.
        run: what the records are made with. A journal of another run is not taken up.
        resume: take up the journal of an interrupted run, if there is one.
        overwrite: replace what is there, a journal too.

    Attributes:
        paths: the final name, as one of several.
        done: paths with a record already, in the order of the records, as output files write them.
        errors: how many of those records are errors.
        failed: path and error of each of those.
        is_seen: whether who runs it sees the records at once, as on a terminal.

    Raises:
        UsageError: if nothing can be written there, another process is writing it, the journal is
            of a run that differs, or something has come there that must not be replaced.
        CvtError: if the disk is full.
    """

    is_seen = False
    _updates = False

    def __init__(
        self,
        path: Path,
        writer_class: WriterClass,
        shape: RecordShape,
        *,
        run: Mapping[str, Any],
        resume: bool,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.paths = (path,)
        self.part = part_of(path)
        self._run_file = run_file_of(path)
        self._synced = time.monotonic()
        self._writer_class = writer_class
        self.is_converted = issubclass(writer_class, ConvertedWriter)
        self._shape = shape
        self._run = run
        self.done: list[str] = []
        self.errors = 0
        self.failed: list[tuple[str, str]] = []
        self._noted: dict[str, Stamp] = {}
        self._made_folder = self._is_new = False
        try:
            self._made_folder = make_parent(path)
            self._lock, self._is_new = self._take(resume, overwrite)
            sweep(path.parent)
            if self._is_new:
                # A file that comes there later belongs to somebody else.
                self._replaces = os.path.lexists(path)
                self._write_run(self._replaces)
            else:
                self._check_run(run)
                self._recover()
            mode = os.O_TRUNC if self._is_new else 0
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | mode
            self._stamps = os.fdopen(open_itself(stamps_of(path), flags), "ab")
            self._start = self.part.stat().st_size
            self._stream = open_text(self.part, "a", open_itself)
        except BlockingIOError:
            raise _busy(self.part) from None
        except OSError as error:
            if self._is_new:
                with contextlib.suppress(OSError):
                    self._remove()
            kind = CvtError if error.errno in FULL else UsageError
            raise kind(f"{path} can't be written: {reason_of(error)}") from None
        self._writer = writer_class(self._stream, self._shape, started=bool(self.done))

    def note(self, path: str, stamp: Stamp | None) -> None:
        """Record the size and the time of a file, before it is read.

        Args:
            path: as output files write it.
        """
        if stamp is not None:
            self._noted[path] = stamp

    def write(self, records: Iterable[Record]) -> None:
        """Append records. They survive the end of this process at once, and a power cut within
        seconds.

        Raises:
            CvtError: if the disk is full or gone; what was written before is kept.
        """
        records = tuple(records)
        stamps = [
            stamp_line(path, stamp)
            for record in records
            if (stamp := self._noted.pop(path := as_written(record.path), None)) is not None
            and record.error is None
        ]
        try:
            if stamps:  # first, as a stamp without its record does no harm
                self._stamps.write(b"".join(stamps))
                self._stamps.flush()
            self._writer.write(records)
            self._stream.flush()
            if time.monotonic() - self._synced > FSYNC_SECONDS:
                sync(self._stream.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise self._lost(error, self.part) from None

    def finish(self, summary: Mapping[str, Any] = NO_SUMMARY) -> None:
        """Give the file its final name.

        Args:
            summary: how the run went; see `ConvertedWriter.convert`.

        Raises:
            CvtError: as `write`; or if a file of that name has come since the run began.
        """
        written = self.part
        try:
            self._writer.close()
            self._stream.flush()
            sync(self._stream.fileno())
            self._stream.close()
            self._stamps.close()
            written = self.path
            if not self._replaces:
                if os.path.lexists(self.path):
                    raise FileExistsError
                self._write_run(True)  # a file that is there from now on is ours
            with self._keeping():
                self._publish(summary)
            self._remove()
        except FileExistsError:
            self._lock.close()
            raise CvtError(
                f"{self.path} was created during the run and is kept",
                hint=f"{self.part} keeps the records: move the other file away, then run the same "
                "command with --resume",
            ) from None
        except OSError as error:  # on Windows, if another program has the file open
            raise self._lost(error, written) from None

    def _publish(self, summary: Mapping[str, Any]) -> None:
        """Turn the journal into the document, under its final name."""
        if issubclass(self._writer_class, ConvertedWriter):
            self._writer_class.convert(
                self._records(), self.path, self._shape, run=self._run, summary=summary
            )
        elif self._replaces:
            replace(self.part, self.path)
        else:
            rename_new(self.part, self.path)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Wrap `_publish` so that the file kept beside the output is never that of another run,
        whenever this one ends."""
        kept = Kept(self._run, self._stamps_of_records())
        if not os.path.lexists(self.path):
            kept.write(self.path)
            yield
        else:
            before = Kept.read(self.path)
            if before is None or difference(before.run, self._run, later=True):
                kept_of(self.path).unlink(missing_ok=True)
            try:
                yield
            except OSError:
                if before is not None:
                    before.write(self.path)
                raise
            kept.write(self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Undo the start of a run that ends before it began, or that came to nothing: leave what
        was there before, and delete a journal without any prediction."""
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._stamps.close()
        if self._is_new or (self.done and self.errors == len(self.done)):
            self._remove()
        else:
            os.truncate(self.part, self._start)
            self._lock.close()

    def _remove(self) -> None:
        """Delete the journal and its companions."""
        for path in (self.part, self._run_file, stamps_of(self.path)):
            path.unlink(missing_ok=True)
        self._lock.close()
        if self._made_folder:
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                self.path.parent.rmdir()

    def _stamps_of_records(self) -> dict[str, Stamp]:
        """Return the stamps of the files whose record is not an error."""
        return dict(read_stamps(stamps_of(self.path)))

    def _take(self, resume: bool, overwrite: bool) -> tuple[BinaryIO, bool]:
        """Lock the journal, and tell whether it is new. A new one is a new file: another link to
        the old one is not written to."""
        if resume:
            with contextlib.suppress(FileNotFoundError):
                held = lock(self.part, 0)
                if not self._is_void():
                    return held, False
                self.part.unlink()
                held.close()
        elif overwrite and os.path.lexists(self.part):
            held = lock(self.part, 0)
            self.part.unlink()
            held.close()
        try:
            held = lock(self.part, os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # it has been created since the check
            if resume or overwrite or is_locked(self.part):
                raise _busy(self.part) from None
            raise _interrupted(self.part) from None
        if os.path.lexists(self.path) and not overwrite:
            self.part.unlink()
            held.close()
            raise _taken(self.path, resume)
        return held, True

    def _is_void(self) -> bool:
        """Tell whether a journal, which is locked, is of a run that ended as it created it."""
        return not self._run_file.exists() and not self.part.stat().st_size

    def _lost(self, error: OSError, written: Path) -> CvtError:
        # The rest of the buffer can't be written either, and must not be tried again at exit.
        for stream in (self._stream, self._stamps):
            with contextlib.suppress(OSError):
                stream.close()
        if not self.part.exists():
            return CvtError(
                f"{self.part} has been deleted meanwhile", hint="run the same command again"
            )
        return CvtError(
            f"{written} can't be written: {reason_of(error)}",
            hint="what was written is kept: fix that, then run the same command with --resume",
        )

    def _write_run(self, replaces: bool) -> None:
        values = {**self._run, _REPLACES: replaces}
        if self._updates:
            values[_UPDATES] = True
        text = json.dumps(values, indent=2) + "\n"
        write_atomically(self._run_file, lambda file: file.write(text.encode()))

    def _check_run(self, run: Mapping[str, Any]) -> None:
        try:
            before = parse_json(self._run_file.read_text("utf-8"))
            if not isinstance(before, dict):
                raise ValueError
        except (OSError, ValueError):
            raise UsageError(
                f"{self.part} can't be resumed: {self._run_file.name} is missing or corrupt",
                hint="--overwrite starts over",
            ) from None
        self._replaces = bool(before.pop(_REPLACES, True))
        if before.pop(_UPDATES, False) and not self._updates:
            raise UsageError(
                f"{self.part} has only what {self.path.name} lacks",
                hint="--update continues it, --overwrite starts over",
            )
        if not self._updates and not self._replaces and os.path.lexists(self.path):
            raise UsageError(
                f"{self.path} was created during the run",
                hint=f"move it away, then --resume continues with {self.part.name}",
            )
        if found := difference(before, run):
            raise UsageError(
                f"{self.part} is from a run with another {found[0]}: {found[1]}",
                hint="use the same options, or start over with --overwrite",
            )
        if said := last_digits(before, run):
            warnings.warn(f"{self.part} is from a run with {said}", stacklevel=2)

    def _recover(self) -> None:
        with self.part.open("r+b") as file:
            whole = 0
            try:
                for record, end in self._writer_class.read(file):
                    self.done.append(as_written(record.path))
                    if record.error is not None:
                        self.errors += 1
                        self.failed.append((record.path, record.error))
                    whole = end
            except ValueError as error:
                raise UsageError(
                    f"{self.part} can't be resumed: {error}", hint="--overwrite starts over"
                ) from None
            # The rest is a record that was cut short.
            file.truncate(whole)
            if issubclass(self._writer_class, DelimitedWriter) and self.done:
                # Its rows keep the width of its header, even if new ones would differ.
                file.seek(0)
                self._shape = self._writer_class.shape(file)

    def _records(self) -> Iterator[Record]:
        with self.part.open("rb") as file:
            for record, _ in self._writer_class.read(file):
                yield record


def part_of(path: Path) -> Path:
    """Return the path of an output's journal."""
    return path.with_name(path.name + ".part")


def run_file_of(path: Path) -> Path:
    """Return the path of the description of the run beside an output's journal."""
    return path.with_name(path.name + ".part.json")


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the path of an output, and those of all that is beside it during a run or after."""
    return path, part_of(path), run_file_of(path), stamps_of(path), kept_of(path)


def check_output(
    path: Path,
    resume: bool,
    overwrite: bool,
    *,
    can_update: Callable[[], bool] = lambda: False,
) -> None:
    """Check that an output can be written.

    Args:
        can_update: tells whether --update would do for a finished one.

    Raises:
        UsageError: if it can't be, or an output or a journal is there that would be replaced
            without --overwrite.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    check_file(path, with_folder=True)
    check_file(part_of(path), with_folder=True)
    if os.path.islink(part_of(path)):
        raise UsageError(
            f"{part_of(path)} is a link, through which nothing is written",
            hint="delete it, or name another --output",
        )
    if overwrite:
        return
    if os.path.lexists(path) and not (resume and part_of(path).exists()):
        raise _taken(path, resume, can_update())
    if part_of(path).exists() and not resume:
        with contextlib.suppress(OSError):  # this user may not look, but the file is there
            if is_locked(part_of(path)):
                raise _busy(part_of(path))
        raise _interrupted(part_of(path))


def _taken(path: Path, resume: bool, can_update: bool = False) -> UsageError:
    is_there = "is finished" if resume else "exists"
    update = "--update adds what is new, " if can_update else ""
    return UsageError(f"{path} {is_there}", hint=f"{update}--overwrite replaces it")


def _interrupted(part: Path) -> UsageError:
    return UsageError(
        f"{part} is left from an interrupted run",
        hint="--resume continues it, --overwrite starts over",
    )


def _busy(part: Path) -> UsageError:
    return UsageError(
        f"{part} is being written by another run",
        hint="wait for it to finish, or name another --output",
    )
