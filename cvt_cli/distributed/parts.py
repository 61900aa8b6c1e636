"""The output of a run on many machines: a folder of parts, each whole or absent.

`part-000007.csv` has the records of some consecutive inputs, in order. `_run.json` says what was
run, and `_SUCCESS`, which comes last, that nothing is missing.
"""

import io
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cvt_cli.errors import CvtError, Finished, UsageError
from cvt_cli.images.names import local_path
from cvt_cli.images.source import Bytes, Source, failing, one_line
from cvt_cli.output import ConvertedWriter, RowWriter, WriterClass
from cvt_cli.records import Record, RecordShape, as_written
from cvt_cli.system.files import take, write_atomically
from cvt_cli.system.text import reason_of, what_differs

T = TypeVar("T")

SUCCESS = "_SUCCESS"
RUN = "_run.json"
KEPT = "parts that are whole are kept: mend that, then the same command with --resume"
# Not part-7.csv, as the shards of a run without Ray may be called.
_PART = re.compile(r"part-(\d{6,})\.([a-z]+)")


class Part:
    """Consecutive inputs, and the records of those that are done.

    Args:
        index: the number of its file.
        paths: the inputs; or one archive.
        is_archive: the records are those of the images in it, however many there are.
    """

    def __init__(self, index: int, paths: list[str], is_archive: bool = False) -> None:
        self.index = index
        self.paths = paths
        self.is_archive = is_archive
        self.records: dict[int, Record] = {}
        # The names of the images in an archive, where someone had to ask for them.
        self.members: list[str] | None = None
        # How many records there will be; nobody knows that of an archive before it was read.
        self.size = None if is_archive else len(paths)

    @property
    def is_complete(self) -> bool:
        """Whether no record is missing."""
        return self.size == len(self.records)

    @property
    def following(self) -> int:
        """The position behind the last record."""
        return max(self.records, default=-1) + 1

    def missing(self) -> list[int]:
        """The positions without a record, of those that are known."""
        return [i for i in range(self.size or 0) if i not in self.records]

    def name(self, position: int) -> str:
        """What the input there is called; in an archive, if its members were listed."""
        return (self.paths if self.members is None else self.members)[position]

    def has_records_of(self, paths: Sequence[str]) -> bool:
        """Whether records of these paths, as output files write them, are all of it."""
        if not self.is_archive:
            return list(map(as_written, self.paths)) == paths
        path = as_written(self.paths[0])
        return all(each == path or each.startswith(f"{path}::") for each in paths)

    def list_members(self, names: list[str]) -> None:
        """What is in the archive, in its order."""
        self.members, self.size = names, len(names)

    def in_order(self) -> Iterator[Record]:
        """The records, in the order of the inputs."""
        return (self.records[position] for position in sorted(self.records))


class PartFolder:
    """Where the parts are.

    Args:
        where: a folder on this machine, or an address that fsspec takes (`s3://bucket/labels`).
        format_: the name of the parts' format, and their suffix.
        writer: of that format.
        shape: what a record has room for.

    Raises:
        UsageError: if the address makes no sense, or needs a package that is not installed.
    """

    def __init__(self, where: str, format_: str, writer: WriterClass, shape: RecordShape) -> None:
        self.where = where.rstrip("/") or "/"
        self._format = format_
        self._writer = writer
        self._shape = shape
        self._files = open_folder(self.where)
        # Records and errors, by the number of the part.
        self._written: dict[int, tuple[int, int]] = {}

    def check_free(self, resume: bool, overwrite: bool) -> None:
        """Before anything is started.

        Raises:
            Finished: if nothing is left to resume.
            UsageError: if the folder holds what nobody said to replace.
            CvtError: if it can't be had.
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
                hint="--resume takes it up, --overwrite starts anew",
            )
        if RUN not in names and any(map(_PART.fullmatch, names)) and not overwrite:
            raise UsageError(
                f"{self.where} holds parts, and no {RUN} that says of which run",
                hint="--overwrite replaces them",
            )
        if names and not any(map(_is_ours, names)):
            raise UsageError(f"{self.where} is not empty", hint="name a folder of its own")

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other run on this machine may write here meanwhile.

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
        """Take the folder into use: what a run left that is not taken up goes.

        Args:
            run: what records depend on.

        Raises:
            UsageError: if the run that is to be taken up was another; as `check_free`.
            CvtError: if nothing can be written there.
        """
        self.check_free(resume, overwrite)  # others may have been here since
        names = self._files.names()
        if resume and RUN in names:
            self._check_run(run)
        elif overwrite:
            # What says that it is whole goes first, and last what says of which run it is.
            order = {SUCCESS: 0, RUN: 2}
            for name in sorted(filter(_is_ours, names), key=lambda name: order.get(name, 1)):
                self._files.delete(name)
        self.write_run(run)

    def _check_run(self, run: Mapping[str, Any]) -> None:
        try:
            with self._files.open(RUN) as file:
                before = json.load(file)
            if not isinstance(before, dict):
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{self.where} can't be resumed: {RUN} is corrupt", hint="--overwrite starts anew"
            ) from None
        for key in sorted(run):
            if run[key] != before.get(key):
                raise UsageError(
                    f"{self.where} is from a run with another {key.replace('_', '-')}: "
                    f"{what_differs(before.get(key), run[key])}",
                    hint="repeat the options of then, or start anew with --overwrite",
                )

    def clear(self) -> None:
        """Delete what is ours. Raises: CvtError."""
        for name in sorted(filter(_is_ours, self._files.names()), key=lambda name: name == RUN):
            self._files.delete(name)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Say what is run. Raises: CvtError."""
        self._files.write(RUN, (json.dumps(run, indent=2) + "\n").encode())

    def finished(self) -> Iterator[tuple[int, Iterator[Record]]]:
        """The parts that are there: number and records of each.

        Raises:
            UsageError: if one is no such part.
        """
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
        # OSError: what pyarrow makes of pages that can't be unpacked.
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{self.where}/{name} can't be resumed: {one_line(error)}",
                hint="delete it, and its inputs are done again",
            ) from None

    def write(self, part: Part, run: Mapping[str, Any]) -> None:
        """Write a part, whole or not at all. Raises: CvtError."""
        errors = sum(record.error is not None for record in part.records.values())
        # Before: an interruption may come between the two.
        self._written[part.index] = len(part.records), errors
        name = f"part-{part.index:06d}.{self._format}"
        self._files.write(name, self._document(part.in_order(), run))

    def written(self) -> tuple[int, int]:
        """How many records are in parts written by this process, and how many of them are errors.

        Raises:
            CvtError: if the folder can't be read.
        """
        there = [self._written.get(index, (0, 0)) for index, _ in self._parts()]
        return sum(count for count, _ in there), sum(errors for _, errors in there)

    def _document(self, records: Iterable[Record], run: Mapping[str, Any]) -> bytes:
        if issubclass(self._writer, ConvertedWriter):
            with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
                path = Path(folder) / "part"
                self._writer.convert(records, path, self._shape, run)
                return path.read_bytes()
        text = io.StringIO(newline="")
        writer = self._writer(text, self._shape)
        writer.write(records)
        writer.close()
        return text.getvalue().encode("utf-8", "backslashreplace")

    def finish(self, run: Mapping[str, Any]) -> None:
        """Say that nothing is missing. Raises: CvtError."""
        self.write_run(run)
        self._files.write(SUCCESS, b"")


def left_of(
    parts: Sequence[Part], folder: PartFolder, size: int
) -> tuple[Sequence[Part], int, int]:
    """What a run that is taken up has to do. Warns where the inputs have changed since: then those
    without a record are in parts behind the others.

    Args:
        parts: of all inputs.
        size: inputs in a part, at most.

    Returns:
        The parts to do; how many records there are; how many of them are errors.

    Raises:
        UsageError: if a file of the folder is no part.
    """
    left = {part.index: part for part in parts}
    count = errors = 0
    for index, records in folder.finished():
        there = list(records)
        part = left.get(index)
        if part is None or not part.has_records_of([as_written(each.path) for each in there]):
            warnings.warn(
                "the inputs have changed since: doing those without a record, in parts that come "
                "last",
                stacklevel=2,
            )
            known, count, errors, following = known_inputs(folder)
            return list(parts_of(_inputs(parts), size, known, following)), count, errors
        del left[index]
        count += len(there)
        errors += sum(each.error is not None for each in there)
    return list(left.values()), count, errors


def _inputs(parts: Iterable[Part]) -> Iterator[Source]:
    for part in parts:
        for position, path in enumerate(part.paths):
            known = part.records.get(position)
            if known is not None and known.error is not None:
                yield failing(path, known.error)
            else:  # nobody opens it
                yield Source(path, Bytes(b""), is_archive=part.is_archive)


def known_inputs(folder: PartFolder) -> tuple[set[str], int, int, int]:
    """What finished parts have.

    Returns:
        The inputs with a record, as output files write them, and `archive::` for its members; how
        many records; how many of them are errors; the number of the next part.
    """
    known: set[str] = set()
    count = errors = following = 0
    for index, records in folder.finished():
        following = max(following, index + 1)
        for record in records:
            count += 1
            errors += record.error is not None
            path = as_written(record.path)
            known.add(path)
            # Of an archive there are all images in a part, or none.
            known.update(path[: end.end()] for end in re.finditer("::", path))
    return known, count, errors, following


def parts_of(
    sources: Iterable[Source], size: int, known: Container[str] = (), first: int = 0
) -> Iterator[Part]:
    """Inputs in parts.

    Args:
        sources: the inputs, archives whole.
        size: inputs in a part, at most. An archive has a part of its own.
        known: inputs to leave out, as `known_inputs` returns them.
        first: the number of the first part.
    """
    paths: list[str] = []
    errors: dict[int, str] = {}

    def part() -> Part:
        nonlocal paths, errors, first
        result = Part(first, paths)
        for position, error in errors.items():
            result.records[position] = Record(paths[position], error=error)
        paths, errors, first = [], {}, first + 1
        return result

    for source in sources:
        path = as_written(source.path)
        if path in known or (source.is_archive and f"{path}::" in known):
            continue
        if (source.is_archive or len(paths) == size) and paths:
            yield part()
        if source.is_archive:
            yield Part(first, [source.path], is_archive=True)
            first += 1
            continue
        if source.error is not None:
            errors[len(paths)] = source.error
        paths.append(source.path)
    if paths:
        yield part()


def _is_ours(name: str) -> bool:
    return name in (SUCCESS, RUN) or _PART.fullmatch(name) is not None


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, where: str) -> None:
        self._path = Path(where)

    def path(self, name: str) -> Path:
        """Where a file of that name is."""
        return self._path / name

    def is_file(self) -> bool:
        """Whether it is no folder at all."""
        return self._path.is_file()

    def names(self) -> Sequence[str]:
        """What is in it; nothing if it is not there."""
        return self._try(
            lambda: [each.name for each in self._path.iterdir()] if self._path.exists() else []
        )

    def open(self, name: str) -> BinaryIO:
        """A file, to read."""
        return self._try(lambda: self.path(name).open("rb"), name)

    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""

        def write() -> None:
            self._path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(name), lambda file: file.write(data))

        self._try(write, name, KEPT)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Make the folder and lock it, until the end of this process at most: whether it was not
        locked. Where the system has no such locks it never is."""
        self._try(lambda: self._path.mkdir(parents=True, exist_ok=True), hint=KEPT)
        with ExitStack() as stack:
            try:
                handle = os.open(self._path, os.O_RDONLY)
                stack.callback(os.close, handle)
                take(handle)
            except BlockingIOError:
                yield False
                return
            except OSError:  # Windows opens no folder
                pass
            yield True

    def delete(self, name: str) -> None:
        """Take a file away."""
        self._try(self.path(name).unlink, name)

    def _try(self, work: Callable[[], T], name: str = "", hint: str = "") -> T:
        try:
            return work()
        except OSError as error:
            raise CvtError(f"{self.path(name)}: {reason_of(error)}", hint=hint) from None


class RemoteFolder:
    """The same where fsspec leads. Stores take an object whole or not at all; where files can be
    renamed they may be cut, and are written under another name."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._path = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url}: {one_line(error)}") from None
        self._url = url
        renames = type(self._fs).mv is not fsspec.AbstractFileSystem.mv
        self._is_store = self._fs.async_impl or not renames

    def is_file(self) -> bool:
        """As `LocalFolder` has it."""
        return self._try(lambda: bool(self._fs.isfile(self._path)))

    def names(self) -> Sequence[str]:
        """As `LocalFolder` has it."""

        def names() -> list[str]:
            self._fs.invalidate_cache()
            try:
                entries: list[str] = self._fs.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
            return [name for each in entries if (name := each.rstrip("/").rsplit("/", 1)[-1])]

        return self._try(names)

    def open(self, name: str) -> BinaryIO:
        """As `LocalFolder` has it."""
        return self._try(lambda: io.BytesIO(self._fs.cat_file(f"{self._path}/{name}")), name)

    def write(self, name: str, data: bytes) -> None:
        """As `LocalFolder` has it."""
        path = f"{self._path}/{name}"

        def write() -> None:
            if self._is_store:
                self._fs.pipe_file(path, data)
                return
            beside = f"{self._path}/.{name}.tmp"
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(beside, data)
            if self._fs.exists(path):  # not all rename to a name that is taken
                self._fs.rm_file(path)
            self._fs.mv(beside, path)

        self._try(write, name, KEPT)

    def delete(self, name: str) -> None:
        """As `LocalFolder` has it."""
        self._try(lambda: self._fs.rm_file(f"{self._path}/{name}"), name)

    def _try(self, work: Callable[[], T], name: str = "", hint: str = "") -> T:
        try:
            return work()
        # The clients of the stores raise what they like.
        except Exception as error:
            where = f"{self._url}/{name}" if name else self._url
            raise CvtError(f"{where}: {one_line(error)}", hint=hint) from None


def open_folder(where: str) -> LocalFolder | RemoteFolder:
    """The folder of that name or address, there or not."""
    if where.lower().startswith("file://"):
        return LocalFolder(local_path(where))
    return RemoteFolder(where) if "://" in where else LocalFolder(where)
