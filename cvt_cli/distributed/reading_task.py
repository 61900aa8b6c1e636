"""The task that reads: paths to pixels, on any node."""

import atexit
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from cvt_cli.distributed.ray_job import check_version
from cvt_cli.distributed.task_tables import IMAGE_SCHEMA, NO_PATH
from cvt_cli.errors import CvtError
from cvt_cli.images.find import Lister, find_named
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.skipped import Skipped
from cvt_cli.images.source import Search, Source, failing, one_line
from cvt_cli.images.supervisor import BUDGET
from cvt_cli.records import as_written
from cvt_cli.system.cores import cores

# CPUs that Ray reserves for a task: less than one, as workers need a little of each; see
# `model_worker.WORKER_CPUS`.
DECODE_CPUS = 0.9

# Of this process, by the seconds that an image may take: tasks are many and short.
_pools: dict[float, ReaderPool] = {}


def _readers(image_timeout: float) -> ReaderPool:
    """Return the process that reads for this worker's tasks, one after the other: a task can't be
    stopped at an image, and what it dies of takes its other images with it. The first task starts
    it; it ends with the worker."""
    if image_timeout not in _pools:
        _pools[image_timeout] = ReaderPool(1, image_timeout, budget=BUDGET // cores())
    return _pools[image_timeout]


@atexit.register
def _end_readers() -> None:
    """End the reading processes; the next task starts others."""
    while _pools:
        _pools.popitem()[1].close()


def decode_batches(
    table: pa.Table,
    *,
    reader: ImageReader,
    search: Search,
    batch_size: int,
    columns: tuple[str, ...],
    folder: str,
    version: str,
) -> Iterator[pa.Table]:
    """Turn paths into pixels, a table a batch: the task."""
    # Relative paths start from the driver's folder. A node without it has no such files either.
    with suppress(OSError):
        os.chdir(folder)
    rows = table.to_pylist()
    places: list[tuple[int, int]] = []
    done = 0
    try:
        check_version(version)
        readers = _readers(search.image_timeout)
        skipped = Skipped()
        sources = _sources(rows, search, places, list_members=readers.members, skipped=skipped)
        for batch in readers.batches(reader, sources, batch_size, columns=columns):
            yield pa.Table.from_pylist(
                [_image_row(*places[done + i], image) for i, image in enumerate(batch)],
                IMAGE_SCHEMA,
            )
            done += len(batch)
        if rows[0]["position"] is None:
            size = {"part": rows[0]["part"], "path": NO_PATH, "members": done}
            end = {**size, "columns": skipped.to_json()}
            yield pa.Table.from_pylist([end], IMAGE_SCHEMA)
    # Decoding handles errors of images; other errors are the machine's, or ours.
    except Exception as error:
        if isinstance(error, CvtError):  # it may be theirs
            _end_readers()
        fault = f"{type(error).__name__}: {one_line(error)}"
        came = set(places[:done])
        left = [row for row in rows if (row["part"], row["position"]) not in came]
        yield pa.Table.from_pylist([{**row, "fault": fault} for row in left], IMAGE_SCHEMA)


def _sources(
    rows: Sequence[dict[str, Any]],
    search: Search,
    places: list[tuple[int, int]],
    *,
    list_members: Lister,
    skipped: Skipped,
) -> Iterator[Source]:
    """Yield the sources that a task reads. Appends part and position of each to `places`, and
    counts what an archive has besides."""
    if not rows[0]["archive"]:
        for row in rows:
            path = os.fsdecode(row["path"])
            places.append((row["part"], row["position"]))
            yield next(find_named(path, search), failing(path, "no such file"))
        return
    part, path = rows[0]["part"], os.fsdecode(rows[0]["path"])
    wanted = {row["position"] for row in rows if row["position"] is not None}
    end = max(wanted) + 1 if wanted else None
    found = find_named(path, search, list_members=list_members, skipped=skipped)
    for position, source in enumerate(islice(found, end)):
        if not wanted or position in wanted:
            places.append((part, position))
            yield source


def member_names(path: str, search: Search, folder: str) -> list[str]:
    """List the names of the images in an archive, without decoding any."""
    with suppress(OSError):
        os.chdir(folder)
    list_members = _readers(search.image_timeout).members
    return [source.path for source in find_named(path, search, list_members=list_members)]


def _image_row(part: int, position: int, image: DecodedImage) -> dict[str, Any]:
    row: dict[str, Any] = {
        "part": part,
        "position": position,
        "path": os.fsencode(image.path),
        "error": as_written(image.error) if image.error is not None else None,
        "columns": json.dumps(image.columns),
    }
    if image.pixels is not None:
        row["height"], row["width"], _ = image.pixels.shape
        row["pixels"] = np.ascontiguousarray(image.pixels).data
    return row
