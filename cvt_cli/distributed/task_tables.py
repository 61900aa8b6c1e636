"""Tables that pass between the stages, and how inputs are spread over them."""

import math
import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import pyarrow as pa

# Inputs that a decoding task reads, at most; and tasks per core, at least.
TASK_INPUTS = 500
TASKS_PER_CORE = 4
NO_PATH = b""

INPUT_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("position", pa.int64()),  # in the part; null for a whole archive
        ("path", pa.binary()),  # of the archive, if it is in one; bytes, not always UTF-8
        ("archive", pa.bool_()),
    ]
)
# An input to do: a row of `INPUT_SCHEMA`.
Row = tuple[int, int | None, str, bool]
# One row says how many members an archive has: its `members` is not null, and its `columns` counts
# the files that are no images; see `Skipped`.
IMAGE_SCHEMA = pa.schema(
    [
        ("part", pa.int64()),
        ("position", pa.int64()),
        ("path", pa.binary()),
        ("members", pa.int64()),
        ("error", pa.string()),
        ("columns", pa.string()),
        # The error of a whole batch, which is tried again.
        ("fault", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
    ]
)
RECORD_SCHEMA = pa.schema(
    [
        *[IMAGE_SCHEMA.field(i) for i in range(7)],
        # The error that left no worker with the model, which ends the run.
        ("final", pa.bool_()),
        ("indexes", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ]
)


def inputs_per_task(count: int, batch_size: int, cores: int) -> int:
    """Choose the inputs per task: few enough to keep every core busy to the end, and whole
    batches."""
    each = min(TASK_INPUTS, math.ceil(count / (cores * TASKS_PER_CORE)))
    return max(1, math.ceil(each / batch_size)) * batch_size


def tables(rows: Iterable[Row], size: int) -> Iterator[pa.Table]:
    """Yield tables of inputs, one for each task, with at most this many. None mixes those of an
    archive with others."""
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
