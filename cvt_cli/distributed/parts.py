"""Parts: consecutive inputs whose records are one file."""

from collections.abc import Container, Iterable, Iterator, Sequence

from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Source
from cvt_cli.records import Record, as_written


class Part:
    """Consecutive inputs, and the records that exist so far.

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
        # Names of the images in an archive, if they had to be listed.
        self.members: list[str] | None = None
        # Other files in an archive, once it was read.
        self.skipped = Skipped()
        # Number of records; unknown for an archive until it was read.
        self.size = None if is_archive else len(paths)

    @property
    def is_complete(self) -> bool:
        """Whether no record is missing."""
        return self.size == len(self.records)

    @property
    def following(self) -> int:
        """The position after the last record."""
        return max(self.records, default=-1) + 1

    def missing(self) -> list[int]:
        """List the known positions without a record."""
        return [i for i in range(self.size or 0) if i not in self.records]

    def name(self, position: int) -> str:
        """Return the name of the input at a position; in an archive, if its members were listed."""
        return (self.paths if self.members is None else self.members)[position]

    def has_records_of(self, paths: Sequence[str]) -> bool:
        """Tell whether the part consists of records for these paths, as output files write them."""
        if not self.is_archive:
            return list(map(as_written, self.paths)) == paths
        path = as_written(self.paths[0])
        return all(each == path or each.startswith(f"{path}::") for each in paths)

    def list_members(self, names: list[str]) -> None:
        """Set the members of the archive, in order."""
        self.members, self.size = names, len(names)

    def in_order(self) -> Iterator[Record]:
        """Yield the records in the order of the inputs."""
        return (self.records[position] for position in sorted(self.records))


def parts_of(
    sources: Iterable[Source], size: int, known: Container[str] = (), *, first: int = 0
) -> Iterator[Part]:
    """Divide inputs into parts.

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
