"""The files of records that `cvt merge` reads, and whether they belong together."""

import os
import re
import warnings
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from cvt_cli.distributed.folders import LocalFolder, RemoteFolder, open_folder
from cvt_cli.distributed.part_folder import RUN, SUCCESS
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.images.shard import Shard
from cvt_cli.output import ROW_FORMATS, RowWriter, format_of_file, writer_class
from cvt_cli.output.run_file import difference, is_run_record, kept_of
from cvt_cli.records import THUMBNAIL, Record, RecordShape, ScoreKind
from cvt_cli.system.json_text import parse_json
from cvt_cli.system.text import counted, what_differs

# Missing shards that an error names, at most.
NAMED = 5


class _Part:
    """A file of records to merge.

    Args:
        beside: the names in its folder; None to list them when they matter.
    """

    def __init__(
        self,
        folder: LocalFolder | RemoteFolder,
        where: str,
        name: str,
        *,
        beside: Container[str] | None = None,
    ) -> None:
        self._folder = folder
        self._file = name
        self._beside = beside
        self.name = f"{where.rstrip('/')}/{name}" if where else name
        self.format = format_of_file(Path(name))
        self._writer = writer_class(self.format)

    @property
    def place(self) -> str:
        """Return the real path or the address, which is the same for two names of one file."""
        if isinstance(self._folder, LocalFolder):
            return os.path.realpath(self._folder.path(self._file))
        return self.name

    def is_file(self, path: Path) -> bool:
        return isinstance(self._folder, LocalFolder) and path.samefile(
            self._folder.path(self._file)
        )

    def run(self) -> Mapping[str, Any]:
        """Return what the records were made with; empty if the file does not tell."""
        if self.format == "parquet":
            from cvt_cli.output.parquet import run_of

            with self._open() as file:
                if run := run_of(file):
                    return run
        return self._folder_run()

    def _folder_run(self) -> Mapping[str, Any]:
        kept = kept_of(Path(self._file)).name
        if kept not in (self._folder.names() if self._beside is None else self._beside):
            return {}
        with self._folder.open(kept) as file:
            try:
                run = parse_json(file.read())["run"]
            except (ValueError, TypeError, KeyError):
                return {}
        return run if isinstance(run, dict) else {}

    def shape(self) -> RecordShape:
        assert issubclass(self._writer, RowWriter)
        with self._open() as file:
            try:
                return self._writer.shape(file)
            except (ValueError, OSError) as error:
                raise self._broken(error) from None

    def records(self, facts: tuple[str, ...]) -> Iterator[Record]:
        assert issubclass(self._writer, RowWriter)
        with self._open() as file:
            try:
                own = [name for name in facts if name != THUMBNAIL or self.format == "xlsx"]
                yield from self._writer.documents(file, own)
            # pyarrow raises OSError for pages that can't be unpacked.
            except (ValueError, OSError) as error:
                raise self._broken(error) from None

    def _open(self) -> BinaryIO:
        return self._folder.open(self._file)

    def _broken(self, error: ValueError | OSError) -> CvtError:
        return CvtError(f"{self.name}: no records of cvt classify: {error}")


def without_repeats(parts: Iterable[_Part]) -> list[_Part]:
    """Return each part once, in order; warns of those that were named again."""
    taken: dict[str, _Part] = {}
    for part in parts:
        if taken.setdefault(part.place, part) is not part:
            warnings.warn(f"{part.name} is named twice and merged once", stacklevel=2)
    return [*taken.values()]


def check_set(parts: Collection[_Part]) -> None:
    """Check that shards belong to the same run and that none is missing.

    Raises:
        UsageError: if it is not.
    """
    hint = "--partial merges what is there"
    runs = [(part, part.run()) for part in parts]
    shards = [(part, run, Shard.of_run(run.get("shard"))) for part, run in runs]
    known = [(part, run, shard) for part, run, shard in shards if shard is not None]
    if not known:
        return
    (first, first_run, first_shard), *_ = known
    there: dict[int, _Part] = {}
    for part, run, shard in shards:
        if shard is None:
            raise UsageError(f"{first.name} is a shard, {part.name} is not", hint=hint)
        other = difference(_without_place(first_run), _without_place(run), later=True)
        if shard.of != first_shard.of:
            other = "number of shards", what_differs(first_shard.of, shard.of)
        if other is not None:
            raise UsageError(
                f"{part.name} is from a run with another {other[0]} than {first.name}", hint=hint
            )
        if shard.number in there:
            raise UsageError(
                f"{part.name} and {there[shard.number].name} are the same shard, "
                f"{shard.number} of {shard.of}",
                hint=hint,
            )
        there[shard.number] = part
    missing = [str(n) for n in range(1, first_shard.of + 1) if n not in there]
    if missing:
        which = ", ".join(missing[:NAMED]) + (" …" if len(missing) > NAMED else "")
        raise UsageError(
            f"{len(missing)} of {counted(first_shard.of, 'shard')} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {which}",
            hint=f"run {'that job' if len(missing) == 1 else 'those jobs'}, or {hint}",
        )


def _without_place(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a run's description that all of its shards share."""
    own = ("shard", "format", "thumbnails")
    return {key: value for key, value in run.items() if key not in own}


@dataclass(frozen=True)
class _Survey:
    """Findings of one pass over the records of all parts.

    Attributes:
        repaired: the inputs with a failed record and one with labels.
        kinds: the kinds of scores, each with the first part that has it.
    """

    repaired: Collection[str]
    kinds: Mapping[str, _Part]

    def check_scores(self) -> None:
        """Check that all scores are of one kind.

        Raises:
            UsageError: if a sigmoid's would stand below a softmax's.
        """
        if len(self.kinds) > 1:
            (one, first), (other, second), *_ = self.kinds.items()
            raise UsageError(
                f"the scores in {second.name} are {other}, those in {first.name} {one}: they can't "
                "be compared",
                hint="--partial merges them; the column scores tells them apart",
            )


def survey_of(parts: Sequence[_Part]) -> _Survey:
    """Read all records, to know which failed ones were repaired, and the kinds of scores."""
    failed: set[str] = set()
    kinds: dict[str, _Part] = {}
    for part in parts:
        for record in part.records(("scores",)):
            if record.error is not None:
                failed.add(record.path)
            elif record.predictions:
                kinds.setdefault(_kind_of(record), part)
    repaired = failed
    if failed:
        good = (record.path for part in parts for record in part.records(()) if not record.error)
        repaired = failed.intersection(good)
    return _Survey(repaired, kinds)


def _kind_of(record: Record) -> str:
    """Tell the kind of a record's scores: the usual one where it names none."""
    return str(record.columns.get("scores") or ScoreKind.SOFTMAX)


def _with_kind(record: Record) -> Record:
    return replace(record, columns={**record.columns, "scores": _kind_of(record)})


def all_records(parts: Sequence[_Part], facts: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of all parts, in order; warn of a part that seems to be there twice."""
    # An earlier merge among its own parts begins like one of them, and so does a copy.
    begun: dict[str, _Part] = {}
    for part in parts:
        for index, record in enumerate(part.records(facts)):
            if index == 0:
                other = begun.setdefault(record.path, part)
                if other.place != part.place:
                    warnings.warn(
                        f"{part.name} starts with the same image as {other.name}: "
                        "are its records there twice?",
                        stacklevel=1,
                    )
            yield _with_kind(record) if "scores" in facts and record.predictions else record


def list_parts(where: str) -> list[_Part]:
    """List the files of records behind an argument.

    Raises:
        UsageError: if there are none, or a run is not finished.
    """
    if os.path.exists(where) and not (os.path.isfile(where) or os.path.isdir(where)):
        raise UsageError(
            f"{where} is neither a file nor a folder",
            hint="a pipe can be read only once: write it to a file first",
        )
    folder = open_folder(where)
    if folder.is_file():
        parent, slash, name = where.rstrip("/").rpartition("/")
        parent_folder = open_folder(parent + slash or ".")
        if _is_run_record(parent_folder, name):  # as in labels/*
            return []
        return [_Part(parent_folder, parent + slash, name)]
    names = folder.names()
    if RUN in names and SUCCESS not in names:
        raise UsageError(
            f"{where} is not finished", hint="run the command that wrote it again with --resume"
        )
    for name in names:
        if name.endswith(".part"):
            raise UsageError(
                f"{where}/{name} belongs to an unfinished run",
                hint="run the command that wrote it again with --resume",
            )
    suffixes = tuple(f".{name}" for name in ROW_FORMATS)
    found = [
        name
        for name in names
        if name.endswith(suffixes) and name != RUN and not _is_run_record(folder, name)
    ]
    if not found:
        raise UsageError(f"{where}: no files of records", hint=f"they end in {', '.join(suffixes)}")
    beside = frozenset(names)  # listed once, and not again for each part
    return [_Part(folder, where, name, beside=beside) for name in sorted(found, key=_by_number)]


def _is_run_record(folder: LocalFolder | RemoteFolder, name: str) -> bool:
    """Tell whether a file describes a run and holds no records."""
    if name.endswith(".run.json"):
        return True
    if not name.endswith(".json"):
        return False
    try:
        with folder.open(name) as file:
            return is_run_record(file)
    except CvtError:  # reading its records will report it
        return False


def _by_number(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts part-2 before part-10."""
    return [
        (int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split("([0-9]+)", name)
    ]
