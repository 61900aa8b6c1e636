"""Stages that run on workers: paths to pixels, pixels to records."""

import atexit
import json
import os
import platform
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cvt_cli import __version__
from cvt_cli.checkpoint.catalog import bundled_names
from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.group_table import GroupedLabel
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.distributed.layout import Layout
from cvt_cli.distributed.task_tables import IMAGE_SCHEMA, NO_PATH, RECORD_SCHEMA
from cvt_cli.errors import CvtError, ModelError
from cvt_cli.images.find import Lister, Search, find_named
from cvt_cli.images.pool import ReaderPool
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Source, failing, one_line
from cvt_cli.images.supervisor import BUDGET
from cvt_cli.records import as_written
from cvt_cli.system.cores import cores, share_cores

if TYPE_CHECKING:
    from cvt_cli.inference.classifier import Classifier
    from cvt_cli.inference.tuning import Request
    from cvt_cli.model.form import Form

# Ray's retries of tasks that a dying worker or node takes with it.
RETRIES = 3
# CPUs that Ray reserves. However many workers a node gets, even after others were lost, there must
# be room left for a decoding task, as workers and tasks wait for each other.
WORKER_CPUS = 0.01
DECODE_CPUS = 0.9
KILLS = "each dies of it, out of memory or by a fault in a library"


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings that every worker gets.

    Attributes:
        checkpoint: as the driver has it; its weights are not sent along.
        device, dtype: "auto" for what the workers' machines are fast at.
        batch_size: images through the network at once; None for what suits.
        reader: decodes for it.
        only: class indexes of the labels to choose from; empty for all.
        groups: labels that are one answer, as `Classifier` takes them; None for none.
        search: how archives are read, and downloads bounded.
        offline: ask the Hub for nothing.
        form: of the network on a CPU; None for the usual one.
        version: of cvt, which nodes that join later are to have too.
    """

    checkpoint: Checkpoint
    device: str
    dtype: str
    batch_size: int | None
    reader: ImageReader
    only: tuple[int, ...]
    top_k: int
    threshold: float | None
    columns: tuple[str, ...]
    search: Search
    offline: bool
    groups: Sequence[GroupedLabel] | None = None
    form: "Form | None" = None
    version: str = __version__

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class index: the label, or its group."""
        from cvt_cli.inference.classifier import groups_of

        groups = groups_of(self.groups, self.checkpoint)
        return self.checkpoint.labels if groups is None else groups.names


@dataclass(frozen=True)
class Shipped:
    """A model to send: by name and commit, if nodes can get it from their cache or the Hub, or as
    the bytes of its files."""

    name: str
    commit: str | None
    offline: bool
    weights: tuple[tuple[str, np.ndarray], ...] = ()

    @classmethod
    def of(cls, files: ResolvedFiles, offline: bool) -> "Shipped":
        """Return what to send for a model."""
        if files.commit is not None or files.name in bundled_names():
            return cls(files.name, files.commit, offline)

        weights = tuple((path.name, np.fromfile(path, np.uint8)) for path in files.weights)
        return cls(files.name, None, offline, weights=weights)

    def checkpoint(self, like: Checkpoint, folder: Path) -> Checkpoint:
        """Load the same model on this node.

        Args:
            like: the driver's.
            folder: where files that were sent are put.

        Raises:
            ModelError: if it can't be found or loaded.
        """
        if not self.weights:
            key = like.files.weights_key
            files = resolve(self.name, self.commit, offline=self.offline, weights_key=key)
            return replace(like, files=files)

        def put(name: str, content: np.ndarray) -> Path:
            content.tofile(folder / name)
            return folder / name

        weights = tuple(put(name, content) for name, content in self.weights)
        return replace(like, files=replace(like.files, weights=weights))


def settled(job: Job, model: tuple[Any], layout: Layout, *, wanted: "Request") -> dict[str, Any]:
    """Decide, on a machine that will run a worker, what the job leaves open. Loads the model
    once.

    Args:
        wanted: how the form of the network is chosen.
    """
    from cvt_cli.inference.classifier import auto_batch_size
    from cvt_cli.inference.devices import pick_device, pick_dtype
    from cvt_cli.inference.tuning import settle

    with warnings.catch_warnings(record=True) as said:
        device = pick_device(job.device)
        dtype = str(pick_dtype(job.dtype, device)).removeprefix("torch.")
    # Other workers may use the rest of the GPU.
    share = min(1.0, layout.gpus) or 1.0
    batch_size = job.batch_size or auto_batch_size(job.checkpoint, device, share)
    job = replace(job, dtype=dtype, batch_size=batch_size)
    with (
        _loaded(job, *model, layout.threads) as classifier,
        warnings.catch_warnings(record=True) as said_of_form,
    ):
        settle(classifier, wanted)
    return {
        "dtype": dtype,
        "batch_size": batch_size,
        "form": classifier.form if device.type == "cpu" else None,
        "warnings": [str(each.message) for each in (*said, *said_of_form)],
    }


def _classifier(job: Job, model: Any, threads: int) -> "Classifier":
    with _loaded(job, model, threads) as classifier:
        return classifier


@contextmanager
def _loaded(job: Job, model: Any, threads: int) -> "Iterator[Classifier]":
    """Load the model, whose files are here until the end of the context."""
    share_cores()
    import ray
    import torch

    from cvt_cli.inference.classifier import Classifier

    if job.device == "cpu":
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        shipped: Shipped = ray.get(model)
        yield Classifier(
            shipped.checkpoint(job.checkpoint, Path(folder)),
            device=job.device,
            dtype=job.dtype,
            batch_size=job.batch_size,
            only=job.only,
            groups=job.groups,
            form=_possible(job),
        )


def _possible(job: Job) -> "Form | None":
    """Return the form of the job, or None for the usual one where this node can't compute it."""
    from cvt_cli.inference.devices import DTYPES

    if job.form is None or job.device != "cpu":
        return None
    reason = job.form.why_not(job.checkpoint.config.num_stages, DTYPES[job.dtype], cores())
    if reason is not None:
        warnings.warn(
            f"{platform.node()} computes in its usual form, as it can't in the run's ({reason}): "
            "scores may differ in their last digits",
            stacklevel=2,
        )
        return None
    return job.form


class Loads:
    """An actor that counts how often each worker tried to load the model. Ray restarts a dying
    worker forever, and keeps the tasks that wait for it.

    Args:
        fewest: workers that the pool has at least.
    """

    def __init__(self, fewest: int) -> None:
        self._fewest = fewest
        self._tries: Counter[str] = Counter()
        self._had_it: set[str] = set()
        self._stuck: set[str] = set()

    def begin(self, worker: str) -> bool:
        """Tell whether a worker may try to load the model: no task waits for a worker that never
        had it, so it may as long as others can work."""
        self._tries[worker] += 1
        if self._tries[worker] <= 1 + RETRIES:
            return True
        return worker not in self._had_it and not self.give_up(worker)

    def end(self, worker: str) -> None:
        """Record that a worker has loaded the model."""
        self._had_it.add(worker)
        self._stuck.discard(worker)
        del self._tries[worker]

    def give_up(self, worker: str) -> bool:
        """Give a worker up, and tell whether no worker is left."""
        self._stuck.add(worker)
        return len(self._stuck) >= self._fewest


class Worker:
    """The actor that holds the network."""

    def __init__(self, job: Job, model: Any, threads: int, *, loads: Any) -> None:
        import ray

        self._job = job
        self._fault: str | None = None
        me = ray.get_runtime_context().get_actor_id()
        error: Exception = ModelError(KILLS)
        if ray.get(loads.begin.remote(me)):
            try:
                self._classifier = _classifier(job, model, threads)
            except Exception as failure:
                error = failure
            else:
                ray.get(loads.end.remote(me))
                return
        if not ray.get(loads.give_up.remote(me)):
            raise error  # other workers go on without it
        self._fault = f"no worker can load the model any more: {one_line(error)}"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Turn pixels into records."""
        rows = table.drop_columns("pixels").to_pylist()
        pixels = table.column("pixels").combine_chunks() if rows else []
        images, places = [], []
        results = []
        for index, row in enumerate(rows):
            if row["members"] is not None or row["fault"] is not None:
                results.append(row)
                continue
            image = DecodedImage("", error=row["error"], columns=json.loads(row["columns"] or "{}"))
            if row["error"] is None:
                flat = np.frombuffer(pixels[index].as_buffer(), np.uint8)
                image.pixels = flat.reshape(row["height"], row["width"], 3)
            images.append(image)
            places.append(row)
        if self._fault is not None:
            ended = [{**row, "fault": self._fault, "final": True} for row in rows]
            return pa.Table.from_pylist(ended, RECORD_SCHEMA)
        job = self._job
        try:
            _check_version(job.version)
            records = list(
                self._classifier.records(images, job.top_k, job.threshold, columns=job.columns)
            )
        except Exception as error:
            fault = f"{type(error).__name__}: {one_line(error)}"
            results += [{**row, "fault": fault} for row in places]
        else:
            results += [
                {
                    **row,
                    "error": record.error,
                    "columns": json.dumps(dict(record.columns)),
                    "indexes": [each.index for each in record.predictions],
                    "scores": [each.score for each in record.predictions],
                }
                for row, record in zip(places, records, strict=True)
            ]
        return pa.Table.from_pylist(results, RECORD_SCHEMA)


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


def decode(
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
        _check_version(version)
        readers = _readers(search.image_timeout)
        sources = _sources(rows, search, places, list_members=readers.members)
        for batch in readers.batches(reader, sources, batch_size, columns=columns):
            yield pa.Table.from_pylist(
                [_image_row(*places[done + i], image) for i, image in enumerate(batch)],
                IMAGE_SCHEMA,
            )
            done += len(batch)
        if rows[0]["position"] is None:
            size = {"part": rows[0]["part"], "path": NO_PATH, "members": done}
            yield pa.Table.from_pylist([size], IMAGE_SCHEMA)
    # Decoding handles errors of images; other errors are the machine's, or ours.
    except Exception as error:
        if isinstance(error, CvtError):  # it may be theirs
            _end_readers()
        fault = f"{type(error).__name__}: {one_line(error)}"
        came = set(places[:done])
        left = [row for row in rows if (row["part"], row["position"]) not in came]
        yield pa.Table.from_pylist([{**row, "fault": fault} for row in left], IMAGE_SCHEMA)


def _check_version(version: str) -> None:
    """Check the version of a node that joined the cluster later. Raises CvtError if it differs."""
    if version != __version__:
        raise CvtError(f"the node {platform.node()} has cvt {__version__}, the run is {version}'s")


def _sources(
    rows: Sequence[dict[str, Any]],
    search: Search,
    places: list[tuple[int, int]],
    *,
    list_members: Lister,
) -> Iterator[Source]:
    """Yield the sources that a task reads. Appends part and position of each to `places`."""
    if not rows[0]["archive"]:
        for row in rows:
            path = os.fsdecode(row["path"])
            places.append((row["part"], row["position"]))
            yield next(find_named(path, search), failing(path, "no such file"))
        return
    part, path = rows[0]["part"], os.fsdecode(rows[0]["path"])
    wanted = {row["position"] for row in rows if row["position"] is not None}
    end = max(wanted) + 1 if wanted else None
    found = find_named(path, search, list_members=list_members)
    for position, source in enumerate(islice(found, end)):
        if not wanted or position in wanted:
            places.append((part, position))
            yield source


def members(path: str, search: Search, folder: str) -> list[str]:
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
