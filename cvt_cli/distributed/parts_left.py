"""The parts that an interrupted run on a cluster has left to do."""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

from cvt_cli.distributed.part_folder import PartFolder
from cvt_cli.distributed.parts import Part, parts_of
from cvt_cli.images.source import Bytes, Source, failing
from cvt_cli.records import as_written


def left_of(
    parts: Sequence[Part], folder: PartFolder, size: int
) -> tuple[Sequence[Part], int, int]:
    """Find the parts that an interrupted run still has to do. Warns if the inputs have changed
    since: new ones are then put in parts after the others.

    Args:
        parts: of all inputs.
        size: inputs in a part, at most.

    Returns:
        The parts to do; how many records there are; how many of them are errors.

    Raises:
        UsageError: if a file in the folder is not a part.
    """
    left = {part.index: part for part in parts}
    count = errors = 0
    for index, records in folder.finished():
        there = list(records)
        part = left.get(index)
        if part is None or not part.has_records_of([as_written(each.path) for each in there]):
            warnings.warn(
                "the inputs have changed since: reading those without a record, in parts that come "
                "last",
                stacklevel=2,
            )
            known, count, errors, following = known_inputs(folder)
            return list(parts_of(_inputs(parts), size, known, first=following)), count, errors
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
            else:  # it is never opened
                yield Source(path, Bytes(b""), is_archive=part.is_archive)


def known_inputs(folder: PartFolder) -> tuple[set[str], int, int, int]:
    """List the inputs in finished parts.

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
            # A part has all images of an archive, or none.
            known.update(path[: end.end()] for end in re.finditer("::", path))
    return known, count, errors, following
