"""The output of a run on many machines: a folder of parts, each whole or absent.

`part-000007.csv` has the records of some consecutive inputs, in order. `_run.json` says what was
run, and `_SUCCESS`, which comes last, that nothing is missing.
"""

import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvt_cli.distributed.folders import LocalFolder, open_folder
from cvt_cli.distributed.parts import Part
from cvt_cli.errors import Finished, UsageError
from cvt_cli.images.source import one_line
from cvt_cli.output import ConvertedWriter, RowWriter, WriterClass
from cvt_cli.records import Record, RecordShape
from cvt_cli.system.json_text import parse_json
from cvt_cli.system.text import what_differs

SUCCESS = "_SUCCESS"
RUN = "_run.json"
# Does not match part-7.csv, a likely name for a shard of a run without Ray.
_PART = re.compile(r"part-(\d{6,})\.([a-z]+)")


class PartFolder:
    """The folder of parts, on this machine or at an address.

    Args:
        where: a folder on this machine, or an address that fsspec takes (`s3://bucket/labels`).
        format_: the name of the parts' format, and their suffix.
        writer: of that format.
        shape: what a record has room for.

    Raises:
        UsageError: if the address makes no sense, or needs a package that is not installed.
    """

    def __init__(
        self, where: str, format_: str, writer: WriterClass, *, shape: RecordShape
    ) -> None:
        self.where = where.rstrip("/") or "/"
        self._format = format_
        self._writer = writer
        self._shape = shape
        self._files = open_folder(self.where)
        # Records and errors, by the number of the part.
        self._written: dict[int, tuple[int, int]] = {}
        # With --overwrite the files of an earlier run stay until this one has read an input. Until
        # then its parts, which are errors alone, wait here.
        self._is_replaced_later = False
        self._waiting: list[tuple[int, list[Record]]] = []

    def check_free(self, resume: bool, overwrite: bool) -> None:
        """Check, before anything is started, that the run may write here.

        Raises:
            Finished: if nothing is left to resume.
            UsageError: if the folder holds files that must not be replaced.
            CvtError: if it can't be read.
        """
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        names = self._files.names()
        if SUCCESS in names and not overwrite:
            if resume:
                raise Finished(self.where)
            raise UsageError(
                f"{self.where} holds the labels of a run", hint="--overwrite replaces it"
            )
        if RUN in names and not resume and not overwrite:
            raise UsageError(
                f"{self.where} holds a run that was interrupted",
                hint="--resume continues it, --overwrite starts over",
            )
        if RUN not in names and any(map(_PART.fullmatch, names)) and not overwrite:
            raise UsageError(
                f"{self.where} holds parts but no {RUN}, which says of which run",
                hint="--overwrite replaces them",
            )
        if names and not any(map(_is_ours, names)):
            raise UsageError(f"{self.where} is not empty", hint="name a folder of its own")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs on this machine from writing here during the context.

        Raises:
            UsageError: if one does.
            CvtError: if nothing can be written there.
        """
        if not isinstance(self._files, LocalFolder):
            yield
            return
        with self._files.lock() as ours:
            if not ours:
                raise UsageError(
                    f"another run writes to {self.where}", hint="name a folder of its own"
                )
            yield

    def begin(self, run: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        """Prepare the folder. What an earlier run left is deleted, unless it is resumed, as soon as
        there is a part with predictions.

        Args:
            run: what records depend on.

        Raises:
            UsageError: if the run that is to be taken up was another; as `check_free`.
            CvtError: if nothing can be written there.
        """
        self.check_free(resume, overwrite)  # checked again, as other runs may have been here since
        names = self._files.names()
        if resume and RUN in names:
            self._check_run(run)
        elif overwrite and any(map(_is_ours, names)):
            self._is_replaced_later = True
            return
        self.write_run(run)

    def recorded(self) -> Mapping[str, Any]:
        """Return what the interrupted run there wrote of itself; empty without any.

        Raises:
            UsageError: if it is corrupt.
            CvtError: if the folder can't be read.
        """
        if RUN not in self._files.names():
            return {}
        try:
            with self._files.open(RUN) as file:
                before = parse_json(file.read())
            if not isinstance(before, dict):
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{self.where} can't be resumed: {RUN} is corrupt", hint="--overwrite starts over"
            ) from None
        return before

    def _check_run(self, run: Mapping[str, Any]) -> None:
        before = self.recorded()
        for key in sorted(run.keys() - {"form"}):
            if run[key] != before.get(key):
                raise UsageError(
                    f"{self.where} is from a run with another {key.replace('_', '-')}: "
                    f"{what_differs(before.get(key), run[key])}",
                    hint="use the same options, or start over with --overwrite",
                )

    def give_up(self) -> str:
        """Leave the folder as a run found it that could read no input, and return what became of
        it, in words.

        Raises:
            CvtError: if the folder can't be changed.
        """
        if self._is_replaced_later:
            return f"{self.where} stays as it is"
        self._clear()
        return f"no part is kept in {self.where}"

    def kept(self, count: int) -> str:
        """Return what an interruption leaves, in words.

        Args:
            count: records in finished parts.
        """
        if self._is_replaced_later:
            return f"{self.where} stays as it is"
        return f"{self.where} keeps the {count} in finished parts: --resume continues"

    def _clear(self) -> None:
        # The mark of completeness goes first, and the description of the run last.
        order = {SUCCESS: 0, RUN: 2}
        ours = filter(_is_ours, self._files.names())
        for name in sorted(ours, key=lambda name: order.get(name, 1)):
            self._files.delete(name)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write the description of the run, unless the folder still holds an earlier run.

        Raises:
            CvtError: if it can't be written.
        """
        if self._is_replaced_later:
            return
        self._files.write(RUN, (json.dumps(run, indent=2) + "\n").encode())

    def failed(self) -> list[tuple[str, str]]:
        """Return path and error of the inputs that could not be read, in the order of the parts.

        Raises:
            UsageError: as `finished`.
        """
        parts: Iterable[tuple[int, Iterable[Record]]] = self._waiting
        if not self._is_replaced_later:
            parts = self.finished()
        return [
            (record.path, record.error)
            for _, records in parts
            for record in records
            if record.error is not None
        ]

    def finished(self) -> Iterator[tuple[int, Iterator[Record]]]:
        """Read the existing parts of this run, or of the one it resumes: number and records of
        each.

        Raises:
            UsageError: if one of them is not a part.
        """
        if self._is_replaced_later:
            return
        for index, name in self._parts():
            yield index, self._records(name)

    def _parts(self) -> Iterator[tuple[int, str]]:
        for name in sorted(self._files.names()):
            found = _PART.fullmatch(name)
            if found and found[2] == self._format:
                yield int(found[1]), name

    def _records(self, name: str) -> Iterator[Record]:
        assert issubclass(self._writer, RowWriter)
        try:
            with self._files.open(name) as file:
                yield from self._writer.documents(file)
        # pyarrow raises OSError for pages that can't be unpacked.
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{self.where}/{name} can't be resumed: {one_line(error)}",
                hint="delete it, and its inputs are done again",
            ) from None

    def write(self, part: Part, run: Mapping[str, Any]) -> None:
        """Write a part, whole or not at all. Raises: CvtError."""
        self._waiting.append((part.index, list(part.in_order())))
        if self._is_replaced_later:
            if all(record.error is not None for record in part.records.values()):
                return
            self._clear()
            self._is_replaced_later = False
            self.write_run(run)
        while self._waiting:
            self._write(*self._waiting.pop(0), run)

    def _write(self, index: int, records: list[Record], run: Mapping[str, Any]) -> None:
        errors = sum(record.error is not None for record in records)
        # First, as an interruption may come between the two.
        self._written[index] = len(records), errors
        self._files.write(f"part-{index:06d}.{self._format}", self._document(records, run))

    def written(self) -> tuple[int, int]:
        """Count the records in parts written by this process, and the errors among them.

        Raises:
            CvtError: if the folder can't be read.
        """
        there = [self._written.get(index, (0, 0)) for index, _ in self._parts()]
        return sum(count for count, _ in there), sum(errors for _, errors in there)

    def _document(self, records: Iterable[Record], run: Mapping[str, Any]) -> bytes:
        if issubclass(self._writer, ConvertedWriter):
            with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
                path = Path(folder) / "part"
                self._writer.convert(records, path, self._shape, run=run)
                return path.read_bytes()
        text = io.StringIO(newline="")
        writer = self._writer(text, self._shape)
        writer.write(records)
        writer.close()
        return text.getvalue().encode("utf-8", "backslashreplace")

    def finish(self, run: Mapping[str, Any]) -> None:
        """Mark the folder as complete. Raises: CvtError."""
        self.write_run(run)
        self._files.write(SUCCESS, b"")


def _is_ours(name: str) -> bool:
    return name in (SUCCESS, RUN) or _PART.fullmatch(name) is not None
