"""Collection of records: they arrive in any order, until each part is complete."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cvt_cli.distributed.folders import KEPT
from cvt_cli.distributed.parts import Part
from cvt_cli.distributed.task_tables import Row
from cvt_cli.errors import CvtError, ModelError, NoTemporaryFiles
from cvt_cli.images.skipped import Skipped
from cvt_cli.output.csv_tsv import score_text
from cvt_cli.records import Prediction, Record

# Failures of whole batches before the first success, at most.
FAULTS = 20
DIED = "its worker died each time it was tried: out of memory, or a fault in a library"
CHANGED = "the archive differs each time it is read"


class Collector:
    """Collects records, which arrive in any order, and maybe twice."""

    def __init__(
        self,
        parts: Sequence[Part],
        labels: Sequence[str],
        on_record: Callable[[Record], None],
        *,
        on_part: Callable[[Part], None],
    ) -> None:
        self._labels = labels
        self._on_record = on_record
        self._on_part = on_part
        self._unfinished = {part.index: part for part in parts}
        # Errors by part and position; their number; and whether any image was ever classified.
        self._faults: dict[tuple[int, int | None], str] = {}
        self._faulty = 0
        self._came = False
        for part in parts:
            for record in part.in_order():
                on_record(record)
            if part.is_complete:
                self._finish(part)

    def rows(self) -> list[Row]:
        """List the inputs that are still to do."""
        return [row for part in self._unfinished.values() for row in rows_of(part)]

    def unfinished(self) -> list[Part]:
        """List the parts that lack records."""
        return list(self._unfinished.values())

    def unlisted(self) -> list[Part]:
        """List the parts of archives whose members are unknown."""
        return [part for part in self.unfinished() if part.is_archive and part.members is None]

    def forget(self) -> None:
        """Forget the failures, before another attempt."""
        self._faults.clear()

    def take(self, table: pa.Table) -> None:
        """Take the records that a worker made.

        Args:
            table: of the schema `RECORD_SCHEMA`.

        Raises:
            CvtError: if batches failed again and again, and none ever succeeded.
            ModelError: if no worker has the model any more.
        """
        rows = table.to_pylist()
        for row in rows:
            if row["final"]:
                raise ModelError(row["fault"], hint=KEPT)
            self._take(row)
        self._faulty += any(row["fault"] is not None for row in rows)
        if self._faulty >= FAULTS:
            self.check()

    def _take(self, row: dict[str, Any]) -> None:
        part = self._unfinished.get(row["part"])
        if part is None or row["position"] in part.records:
            return
        if row["members"] is not None:
            part.size = row["members"]
            part.skipped = Skipped.from_json(row["columns"])
        elif row["fault"] is not None:
            self._faults[row["part"], row["position"]] = row["fault"]
        else:
            self._came |= row["error"] is None
            self._add(part, row["position"], record_of(row, self._labels))
        if part.is_complete:
            self._finish(part)

    def check(self) -> None:
        """Raise the CvtError behind the failures, if nothing has succeeded."""
        if self._faults and not self._came:
            reason = min(self._faults.values())
            raise CvtError(f"the workers could classify nothing: {reason}")

    def give_up(self, parts: Iterable[Part]) -> None:
        """Make error records for inputs that failed each time, or killed every worker.

        Raises:
            NoTemporaryFiles: if that was the failure: no input is to blame for a full disk.
        """
        for part in parts:
            for position, record in lost_records(part):
                reason = self._faults.get((part.index, position))
                if reason is not None and reason.startswith(f"{NoTemporaryFiles.__name__}: "):
                    raise NoTemporaryFiles(reason.partition(": ")[2], hint=KEPT)
                self._add(part, position, replace(record, error=reason) if reason else record)
            self._finish(part)

    def _add(self, part: Part, position: int, record: Record) -> None:
        part.records[position] = record
        self._on_record(record)

    def _finish(self, part: Part) -> None:
        self._on_part(self._unfinished.pop(part.index))
        part.records.clear()


def rows_of(part: Part) -> Iterator[Row]:
    """List the inputs of a part that are still to do."""
    if part.size is None:
        yield part.index, None, part.paths[0], True
    for position in part.missing():
        path = part.paths[0 if part.is_archive else position]
        yield part.index, position, path, part.is_archive


def record_of(row: dict[str, Any], labels: Sequence[str]) -> Record:
    """Make a record from a row of the schema `RECORD_SCHEMA`."""
    best = zip(row["indexes"] or (), row["scores"] or (), strict=True)
    columns = json.loads(row["columns"] or "{}")
    return Record(
        os.fsdecode(row["path"]),
        tuple(
            Prediction(labels[index], float(score_text(score, columns)), index)
            for index, score in best
        ),
        row["error"],
        columns=columns,
    )


def lost_records(part: Part) -> list[tuple[int, Record]]:
    """Make error records for inputs that killed every worker. If the names of an archive's missing
    images are unknown, the archive gets one for all."""
    if part.is_archive and part.members is None:
        return [(part.following, Record(part.paths[0], error=DIED))]
    if part.size is not None and part.size < part.following:
        return [(part.following, Record(part.paths[0], error=CHANGED))]
    return [(i, Record(part.name(i), error=DIED)) for i in part.missing()]
