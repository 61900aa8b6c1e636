"""The tables that go from stage to stage, and how inputs are spread over them."""

import math
import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import pyarrow as pa

# Inputs that one decoding task reads, at most; and how many such tasks each core has to do, at
# least.
TASK_INPUTS = 500
TASKS_PER_CORE = 4
NO_PATH = b""

INPUT_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("position", pa.int64()),  # in the part; null for all of an archive
        ("path", pa.binary()),  # of the archive, if it is in one; bytes, not always UTF-8
        ("archive", pa.bool_()),
    ]
)
# What is to be done: a row of `INPUT_SCHEMA`.
Row = tuple[int, int | None, str, bool]
# One row says how many members an archive has: its `members` is not null.
IMAGE_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("position", pa.int64()),
        ("path", pa.binary()),
        ("members", pa.int64()),
        ("error", pa.string()),
        ("columns", pa.string()),
        # What went wrong with all that was read or computed together; it is tried again.
        ("fault", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
    ]
)
RECORD_SCHEMA = pa.schema(
    [
        *[IMAGE_SCHEMA.field(i) for i in range(7)],
        # No worker has the model any more: that is the fault, and the end of the run.
        ("final", pa.bool_()),
        ("indexes", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ]
)


def inputs_per_task(count: int, batch_size: int, cores: int) -> int:
    """Count the inputs of a task: few enough that every core has something to do until the end, and
    whole batches."""
    each = min(TASK_INPUTS, math.ceil(count / (cores * TASKS_PER_CORE)))
    return max(1, math.ceil(each / batch_size)) * batch_size


def tables(rows: Iterable[Row], size: int) -> Iterator[pa.Table]:
    """Yield inputs for one task each, so many at most. None has those of an archive and others."""
    for _, same in groupby(rows, key=lambda row: row[2] if row[3] else None):
        while group := list(islice(same, size)):
            yield pa.Table.from_pylist(
                [
                    {
                        "part": part,
                        "position": position,
                        "path": os.fsencode(path),
                        "archive": is_archive,
                    }
                    for part, position, path, is_archive in group
                ],
                INPUT_SCHEMA,
            )
