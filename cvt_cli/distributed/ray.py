"""The local engine's stages on Ray: paths, through decoding tasks, through a pool of actors that
hold the network, to records.

    driver          paths, in tables of some hundreds
    tasks           `ImageReader.batches`: pixels, a table a batch
    actors          `Classifier.records`: records, a table a batch
    driver          parts of the output, each written when its last record is there

What a worker that dies takes with it, Ray does again, a few times. What is still missing at the
end is done once more, at last an image at a time, also of an archive, and what then kills its
worker again is an error record. A record that comes twice is taken once.
"""

import json
import logging
import math
import os
import platform
import signal
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cvt_cli import __version__
from cvt_cli.checkpoint.catalog import bundled_names
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.checkpoint.resolve import ResolvedFiles, resolve
from cvt_cli.distributed.parts import KEPT, Part
from cvt_cli.errors import CvtError, ModelError, UsageError
from cvt_cli.images.find import Search, find_named
from cvt_cli.images.reading import DecodedImage, ImageReader
from cvt_cli.images.source import Source, failing, one_line
from cvt_cli.output.delimited import score_text
from cvt_cli.records import Prediction, Record, as_written
from cvt_cli.system.cores import cores, share_cores
from cvt_cli.system.extras import install_hint
from cvt_cli.system.stderr import open_stderr

if TYPE_CHECKING:
    from cvt_cli.inference.classifier import Classifier

CONNECT_SECONDS = 5.0
# What takes longer than this to begin is said.
PATIENCE_SECONDS = 30.0
# How often Ray does again what a dying worker or node takes with it.
RETRIES = 3
# Inputs that one decoding task reads, at most; and how many such tasks each core has to do, at
# least.
TASK_INPUTS = 500
TASKS_PER_CORE = 4
# So often something may go wrong with what is done together before anything goes well.
FAULTS = 20
# More inputs than these that were lost are first done again in groups: each reads its archive from
# the start.
LOST_INPUTS = 100
# What Ray books. However many workers come to be on a node, also when others are lost, they must
# leave room for a decoding task: each waits for the other's work.
WORKER_CPUS = 0.01
DECODE_CPUS = 0.9
# Threads of a decoding task: more than one for images that come over a network.
DECODE_TASK_THREADS = 4
# Cores to one worker without a GPU, where nobody says how many workers there are to be.
CORES_PER_WORKER = 4
DIED = "its worker died each time it was tried: out of memory, or a fault in a library"
CHANGED = "the archive is another one each time it is read"
KILLS = "each dies of it, out of memory or by a fault in a library"
_NO_PATH = b""

_INPUT = pa.schema(
    [
        ("part", pa.int64()),
        ("position", pa.int64()),  # in the part; null for all of an archive
        ("path", pa.binary()),  # of the archive, if it is in one; bytes, not always UTF-8
        ("archive", pa.bool_()),
    ]
)
# What is to be done: a row of `_INPUT`.
_Row = tuple[int, int | None, str, bool]
# One row says how many members an archive has: its `members` is not null.
_IMAGE = pa.schema(
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
_RECORD = pa.schema(
    [
        *[_IMAGE.field(i) for i in range(7)],
        # No worker has the model any more: that is the fault, and the end of the run.
        ("final", pa.bool_()),
        ("indexes", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Workers:
    """The pool of actors.

    Attributes:
        fewest, most: how many; None for what suits the cluster.
        gpus: of each, maybe a part of one; None for one where the cluster has any.
    """

    fewest: int | None = None
    most: int | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Attributes:
        checkpoint: as the driver has it; its weights are not sent along.
        device, dtype: "auto" for what the workers' machines are fast at.
        batch_size: images through the network at once; None for what suits.
        reader: decodes for it.
        only: labels to choose from; empty for all.
        search: how archives are read, and downloads bounded.
        offline: ask the Hub for nothing.
        version: of cvt, which nodes that join later are to have too.
    """

    checkpoint: Checkpoint
    device: str
    dtype: str
    batch_size: int | None
    reader: ImageReader
    only: tuple[str, ...]
    top_k: int
    threshold: float | None
    columns: tuple[str, ...]
    search: Search
    offline: bool
    version: str = __version__


@dataclass(frozen=True)
class _Layout:
    """What the job is on this cluster."""

    fewest: int
    most: int
    gpus: float
    threads: int
    cores: int

    def facts(self) -> dict[str, int | float]:
        """For a record of the run."""
        return {
            "workers": self.most,
            "fewest_workers": self.fewest,
            "gpus_per_worker": self.gpus,
            "threads_per_worker": self.threads,
            "cores": self.cores,
        }


class Cluster:
    """A connection to Ray; `with` ends it, and with it all that runs there for us.

    Args:
        address: host:port of a cluster's head, "auto" for the one that this machine is part of;
            None starts one here, for as long as this lasts.
        debug: let Ray say what it likes.

    Raises:
        UsageError: if Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str | None, debug: bool) -> None:
        if address is not None:
            _check_address(address)
            # Whatever else listens there, like Ray's dashboard, it would ask 20 times, a minute
            # each.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        # Ray itself would do again for ever what is killed for its memory; the driver counts.
        os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
        self._ray = _import_ray(debug)
        before = signal.getsignal(signal.SIGTERM)
        if address is None:
            # Ray's workers make way for whatever else runs; here they are what was asked for.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # Their work is not on their main thread, and glibc's arenas of others keep no large
            # blocks.
            os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        own: dict[str, Any] = {
            "num_cpus": cores(),
            "include_dashboard": False,
        }
        try:
            self._ray.init(
                address=address or "local",
                log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.CRITICAL,
                **(own if address is None else {}),
            )
        except Exception as error:
            where = f"no Ray cluster at {address}" if address else "Ray does not start here"
            hint = "`ray status` on a node of it tells how it is" if address else ""
            raise UsageError(f"{where}: {one_line(error)[:300].rstrip('.')}", hint=hint) from error
        signal.signal(signal.SIGTERM, before)  # Ray puts its own

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def settle(self, job: Job, workers: Workers) -> tuple[Job, _Layout]:
        """What is left open, decided by the machines that are to do it.

        Returns:
            The job with device, dtype and batch size; the layout.

        Raises:
            UsageError: if the cluster has no such device, or a node another version of us.
            ModelError: if the model can't be loaded there.
        """
        self._check_versions()
        layout = self._layout(job, workers)
        device = "cuda" if layout.gpus else ("cpu" if job.device == "auto" else job.device)
        job = replace(job, device=device)
        self._model = self._ray.put(_Shipped.of(job.checkpoint.files, job.offline))
        # Not in a worker of the pool, which comes back as often as it dies.
        probe = self._ray.remote(num_cpus=WORKER_CPUS, num_gpus=layout.gpus, max_retries=RETRIES)(
            _settled
        )
        try:
            # In a tuple: in its place alone Ray would pass the model itself.
            facts = self._answer(probe.remote(job, (self._model,), layout))
        except self._ray.exceptions.RayTaskError as error:
            raise _unwrapped(error) from None
        except self._ray.exceptions.RayError as error:
            raise ModelError(
                f"a worker dies each time it loads the model ({type(error).__name__})",
                hint="does its node have the memory? --debug shows what Ray says",
            ) from None
        for message in facts["warnings"]:
            warnings.warn(f"on a worker: {message}", stacklevel=2)
        return replace(job, dtype=facts["dtype"], batch_size=facts["batch_size"]), layout

    def _check_versions(self) -> None:
        def version() -> str | None:
            try:
                from cvt_cli import __version__
            except ImportError:
                return None
            return __version__

        # A function in a function travels as code: a node may not have us.
        task = self._ray.remote(num_cpus=0, max_retries=RETRIES)(version)
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = [node for node in self._nodes() if node["Resources"].get("CPU")]
        asked = [
            task.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
            for node in nodes
        ]
        for node, question in zip(nodes, asked, strict=True):
            try:
                found = self._answer(question)
            except self._ray.exceptions.RayError:  # it is gone
                continue
            if found != __version__:
                has = f"cvt {found}" if found else "no cvt"
                raise UsageError(
                    f"the cluster's node {node['NodeManagerAddress']} has {has}, this is "
                    f"{__version__}",
                    hint="install the same version on every node",
                )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _answer(self, asked: Any) -> Any:
        """What a task returns. Says so if it takes long. Raises: RayError."""
        if not self._ray.wait([asked], timeout=PATIENCE_SECONDS)[0]:
            warnings.warn(
                "still waiting for a worker: `ray status` shows whether the cluster is full",
                stacklevel=2,
            )
        return self._ray.get(asked)

    def _layout(self, job: Job, workers: Workers) -> _Layout:
        nodes = [node["Resources"] for node in self._nodes()]
        core_count = int(sum(node.get("CPU", 0) for node in nodes))
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        wants_gpu = job.device.startswith("cuda") or (job.device == "auto" and gpus > 0)
        each = workers.gpus if workers.gpus is not None else float(wants_gpu)
        if each > 0 and gpus == 0:
            raise UsageError("this cluster has no GPU", hint="--device cpu does without")
        if each > max(node.get("GPU", 0) for node in nodes):
            raise UsageError(
                f"no node of this cluster has {each:g} GPUs", hint="--gpus-per-worker asks for less"
            )
        if core_count == 0:
            raise UsageError("this cluster has no CPU to work with")
        suits = int(gpus / each) if each else max(1, core_count // CORES_PER_WORKER)
        most = workers.most or suits
        threads = max(1, min(core_count // most, int(max(node.get("CPU", 0) for node in nodes))))
        return _Layout(workers.fewest or most, most, each, threads, core_count)

    def run(
        self,
        parts: Sequence[Part],
        job: Job,
        layout: _Layout,
        on_record: Callable[[Record], None],
        on_part: Callable[[Part], None],
    ) -> None:
        """Fill the parts with records.

        Args:
            job, layout: as `settle` returns them.
            on_record: is called for each record that is new, in any order.
            on_part: is called for each part when it is complete.

        Raises:
            CvtError: if the workers can't work at all; says why.
            ModelError: if none can load the model any more.
        """
        collector = _Collector(parts, job.checkpoint.labels, on_record, on_part)

        def pass_over(rows: Sequence[_Row], per_task: int, retries: int = RETRIES) -> None:
            if rows:
                collector.forget()
                for table in self._stream(rows, job, layout, per_task, retries):
                    collector.take(table)

        assert job.batch_size is not None
        rows = collector.rows()
        pass_over(rows, _inputs_per_task(len(rows), job.batch_size, layout.cores))
        # What a worker dies of takes with it what is beside it: at last one by one.
        self._list_members(collector.unlisted(), job.search)
        collector.give_up(collector.unlisted())
        rows = collector.rows()
        if len(rows) > LOST_INPUTS:
            # What is lost of these is done once more anyway.
            pass_over(rows, math.isqrt(len(rows)), retries=0)
        pass_over(collector.rows(), 1)
        collector.check()
        collector.give_up(collector.unfinished())

    def _list_members(self, parts: Sequence[Part], search: Search) -> None:
        """Ask what is in archives that were not read to their end."""
        task = self._ray.remote(num_cpus=DECODE_CPUS, max_retries=RETRIES)(_members)
        folder = str(Path.cwd())
        asked = [task.remote(part.paths[0], search, folder) for part in parts]
        for part, answer in zip(parts, asked, strict=True):
            # What kills even that has one record for all: see `_lost`.
            with suppress(self._ray.exceptions.RayError):
                part.list_members(self._ray.get(answer))

    def _stream(
        self,
        rows: Sequence[_Row],
        job: Job,
        layout: _Layout,
        per_task: int,
        retries: int,
    ) -> Iterator[pa.Table]:
        import ray.data
        from ray.data import ActorPoolStrategy

        assert job.batch_size is not None
        batch_size = min(job.batch_size, per_task)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # What is lost is not lost to us: see `run`.
        context.max_errored_blocks = -1
        height, width = job.checkpoint.preprocessing.image_size or (224, 224)
        context.target_max_block_size = 1 if batch_size == 1 else batch_size * height * width * 3
        loads = self._ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Loads)
        inputs: ray.data.Dataset = ray.data.from_arrow(list(_tables(rows, per_task)))
        images = inputs.map_batches(
            _decode,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={
                "reader": job.reader,
                "search": job.search,
                "batch_size": batch_size,
                "columns": job.columns,
                "folder": str(Path.cwd()),
                "version": job.version,
            },
            num_cpus=DECODE_CPUS,
            ray_remote_args_fn=lambda: {"max_retries": retries},
        )
        records = images.map_batches(
            _Worker,
            batch_size=batch_size,  # Ray takes no actors with a GPU without one
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_constructor_kwargs={
                "job": job,
                "model": self._model,
                "threads": layout.threads,
                "loads": loads.remote(layout.fewest),
            },
            compute=ActorPoolStrategy(
                min_size=layout.fewest,
                max_size=layout.most,
                # What waits at a worker that dies counts as tried, too.
                max_tasks_in_flight_per_actor=1 if per_task == 1 else None,
            ),
            num_cpus=WORKER_CPUS,
            num_gpus=layout.gpus or None,
            # The worker comes back as often as it dies, see `_Loads`; what it died of does not.
            ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": retries},
        )
        try:
            yield from records.iter_batches(batch_size=None, batch_format="pyarrow")
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise _unwrapped(error) from error


class _Collector:
    """Where records come together, in any order, and maybe twice."""

    def __init__(
        self,
        parts: Sequence[Part],
        labels: Sequence[str],
        on_record: Callable[[Record], None],
        on_part: Callable[[Part], None],
    ) -> None:
        self._labels = labels
        self._on_record = on_record
        self._on_part = on_part
        self._unfinished = {part.index: part for part in parts}
        # What went wrong, by part and position; how often; whether an image was ever classified.
        self._faults: dict[tuple[int, int | None], str] = {}
        self._faulty = 0
        self._came = False
        for part in parts:
            for record in part.in_order():
                on_record(record)
            if part.is_complete:
                self._finish(part)

    def rows(self) -> list[_Row]:
        """What is still to do."""
        return [row for part in self._unfinished.values() for row in _rows(part)]

    def unfinished(self) -> list[Part]:
        """The parts that lack records."""
        return list(self._unfinished.values())

    def unlisted(self) -> list[Part]:
        """Those of archives of which nobody knows what is in them."""
        return [part for part in self.unfinished() if part.is_archive and part.members is None]

    def forget(self) -> None:
        """What went wrong is tried again."""
        self._faults.clear()

    def take(self, table: pa.Table) -> None:
        """What a worker made of some inputs.

        Args:
            table: of the schema `_RECORD`.

        Raises:
            CvtError: if again and again something went wrong and never all well.
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
        elif row["fault"] is not None:
            self._faults[row["part"], row["position"]] = row["fault"]
        else:
            self._came |= row["error"] is None
            self._add(part, row["position"], _record(row, self._labels))
        if part.is_complete:
            self._finish(part)

    def check(self) -> None:
        """Raises: CvtError, if something went wrong and nothing all well."""
        if self._faults and not self._came:
            reason = min(self._faults.values())
            raise CvtError(f"the workers could classify nothing: {reason}")

    def give_up(self, parts: Iterable[Part]) -> None:
        """Error records for what went wrong each time, or what no worker survived."""
        for part in parts:
            for position, record in _lost(part):
                reason = self._faults.get((part.index, position))
                self._add(part, position, replace(record, error=reason) if reason else record)
            self._finish(part)

    def _add(self, part: Part, position: int, record: Record) -> None:
        part.records[position] = record
        self._on_record(record)

    def _finish(self, part: Part) -> None:
        self._on_part(self._unfinished.pop(part.index))
        part.records.clear()


@dataclass(frozen=True)
class _Shipped:
    """A model on its way: by name and commit, which each node's cache knows or the Hub, or the
    bytes of its files."""

    name: str
    commit: str | None
    offline: bool
    weights: tuple[tuple[str, np.ndarray], ...] = ()

    @classmethod
    def of(cls, files: ResolvedFiles, offline: bool) -> "_Shipped":
        """What to send."""
        if files.commit is not None or files.name in bundled_names():
            return cls(files.name, files.commit, offline)

        weights = tuple((path.name, np.fromfile(path, np.uint8)) for path in files.weights)
        return cls(files.name, None, offline, weights)

    def checkpoint(self, like: Checkpoint, folder: Path) -> Checkpoint:
        """The same model here.

        Args:
            like: the driver's.
            folder: where files that were sent are put.

        Raises:
            ModelError: if it can't be had.
        """
        if not self.weights:
            return replace(like, files=resolve(self.name, self.commit, offline=self.offline))

        def put(name: str, content: np.ndarray) -> Path:
            content.tofile(folder / name)
            return folder / name

        weights = tuple(put(name, content) for name, content in self.weights)
        return replace(like, files=ResolvedFiles(self.name, None, None, weights))


def _settled(job: Job, model: tuple[Any], layout: _Layout) -> dict[str, Any]:
    """Runs where a worker will run: what it will be like there. Loads the model, once."""
    from cvt_cli.inference.classifier import auto_batch_size
    from cvt_cli.inference.devices import pick_device, pick_dtype

    with warnings.catch_warnings(record=True) as said:
        device = pick_device(job.device)
        dtype = str(pick_dtype(job.dtype, device)).removeprefix("torch.")
    # Others may have the rest of the GPU.
    share = min(1.0, layout.gpus) or 1.0
    batch_size = job.batch_size or auto_batch_size(job.checkpoint, device, share)
    _classifier(replace(job, dtype=dtype, batch_size=batch_size), *model, layout.threads)
    return {
        "dtype": dtype,
        "batch_size": batch_size,
        "warnings": [str(each.message) for each in said],
    }


def _classifier(job: Job, model: Any, threads: int) -> "Classifier":
    share_cores()
    import ray
    import torch

    from cvt_cli.inference.classifier import Classifier

    if job.device == "cpu":
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        shipped: _Shipped = ray.get(model)
        return Classifier(
            shipped.checkpoint(job.checkpoint, Path(folder)),
            device=job.device,
            dtype=job.dtype,
            batch_size=job.batch_size,
            only=job.only,
        )


class _Loads:
    """An actor that knows how often each worker tried to load the model. Ray starts one that dies
    again for ever, and keeps what waits for it.

    Args:
        fewest: workers that the pool has at least.
    """

    def __init__(self, fewest: int) -> None:
        self._fewest = fewest
        self._tries: Counter[str] = Counter()
        self._had_it: set[str] = set()
        self._stuck: set[str] = set()

    def begin(self, worker: str) -> bool:
        """Whether it may try: if it never had the model nothing waits for it, and it may as long
        as others can work."""
        self._tries[worker] += 1
        if self._tries[worker] <= 1 + RETRIES:
            return True
        return worker not in self._had_it and not self.give_up(worker)

    def end(self, worker: str) -> None:
        """It has the model."""
        self._had_it.add(worker)
        self._stuck.discard(worker)
        del self._tries[worker]

    def give_up(self, worker: str) -> bool:
        """Whether none is left that can work."""
        self._stuck.add(worker)
        return len(self._stuck) >= self._fewest


class _Worker:
    """The actor that holds the network."""

    def __init__(self, job: Job, model: Any, threads: int, loads: Any) -> None:
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
            raise error  # the others go on without it
        self._fault = f"no worker can load the model any more: {one_line(error)}"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Pixels to records."""
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
            return pa.Table.from_pylist(ended, _RECORD)
        job = self._job
        try:
            _check_version(job.version)
            records = list(self._classifier.records(images, job.top_k, job.threshold, job.columns))
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
        return pa.Table.from_pylist(results, _RECORD)


def _decode(
    table: pa.Table,
    reader: ImageReader,
    search: Search,
    batch_size: int,
    columns: tuple[str, ...],
    folder: str,
    version: str,
) -> Iterator[pa.Table]:
    """The task: paths to pixels, a table a batch."""
    # Relative paths are the driver's. A node without that folder can't have the files either.
    with suppress(OSError):
        os.chdir(folder)
    rows = table.to_pylist()
    places: list[tuple[int, int]] = []
    done = 0
    try:
        _check_version(version)
        sources = _sources(rows, search, places)
        for batch in reader.batches(sources, batch_size, columns, threads=DECODE_TASK_THREADS):
            yield pa.Table.from_pylist(
                [_image_row(*places[done + i], image) for i, image in enumerate(batch)],
                _IMAGE,
            )
            done += len(batch)
        if rows[0]["position"] is None:
            size = {"part": rows[0]["part"], "path": _NO_PATH, "members": done}
            yield pa.Table.from_pylist([size], _IMAGE)
    # Of an image decoding takes care. What is left is the machine's own, or a fault of ours.
    except Exception as error:
        fault = f"{type(error).__name__}: {one_line(error)}"
        came = set(places[:done])
        left = [row for row in rows if (row["part"], row["position"]) not in came]
        yield pa.Table.from_pylist([{**row, "fault": fault} for row in left], _IMAGE)


def _check_version(version: str) -> None:
    """Raises: CvtError, on a node that joined the cluster later with another one."""
    if version != __version__:
        raise CvtError(f"the node {platform.node()} has cvt {__version__}, the run is {version}'s")


def _sources(
    rows: Sequence[dict[str, Any]], search: Search, places: list[tuple[int, int]]
) -> Iterator[Source]:
    """What a task reads. Puts part and position of each into `places`."""
    if not rows[0]["archive"]:
        for row in rows:
            path = os.fsdecode(row["path"])
            places.append((row["part"], row["position"]))
            yield next(find_named(path, search), failing(path, "no such file"))
        return
    part, path = rows[0]["part"], os.fsdecode(rows[0]["path"])
    wanted = {row["position"] for row in rows if row["position"] is not None}
    end = max(wanted) + 1 if wanted else None
    for position, source in enumerate(islice(find_named(path, search), end)):
        if not wanted or position in wanted:
            places.append((part, position))
            yield source


def _members(path: str, search: Search, folder: str) -> list[str]:
    """The names of the images in an archive. Decodes none."""
    with suppress(OSError):
        os.chdir(folder)
    return [source.path for source in find_named(path, search)]


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


def _rows(part: Part) -> Iterator[_Row]:
    """What is still to do of a part."""
    if part.size is None:
        yield part.index, None, part.paths[0], True
    for position in part.missing():
        path = part.paths[0 if part.is_archive else position]
        yield part.index, position, path, part.is_archive


def _inputs_per_task(count: int, batch_size: int, cores: int) -> int:
    """Few enough that every core has something to do until the end; whole batches."""
    each = min(TASK_INPUTS, math.ceil(count / (cores * TASKS_PER_CORE)))
    return max(1, math.ceil(each / batch_size)) * batch_size


def _tables(rows: Iterable[_Row], size: int) -> Iterator[pa.Table]:
    """Inputs for one task each, so many at most. None has those of an archive and others."""
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
                _INPUT,
            )


def _record(row: dict[str, Any], labels: Sequence[str]) -> Record:
    best = zip(row["indexes"] or (), row["scores"] or (), strict=True)
    columns = json.loads(row["columns"] or "{}")
    return Record(
        os.fsdecode(row["path"]),
        tuple(
            Prediction(labels[index], float(score_text(score, columns)), index)
            for index, score in best
        ),
        row["error"],
        columns,
    )


def _lost(part: Part) -> list[tuple[int, Record]]:
    """Error records for what no worker survived. Where nobody knows the names of the images that
    are missing, their archive has one for all."""
    if part.is_archive and part.members is None:
        return [(part.following, Record(part.paths[0], error=DIED))]
    if part.size is not None and part.size < part.following:
        return [(part.following, Record(part.paths[0], error=CHANGED))]
    return [(i, Record(part.name(i), error=DIED)) for i in part.missing()]


def _check_address(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        UsageError: if nothing listens there.
    """
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"{address}: Ray Client can't run this",
            hint="start cvt on a node of the cluster (ray job submit) with --ray-address auto",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{address}: no address of a cluster", hint="auto, or host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(
            f"no Ray cluster at {address}: {reason.lower()}",
            hint="`ray start --head` prints the address of one",
        ) from None


def _import_ray(debug: bool) -> Any:
    """Raises: UsageError, if Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray, which is not installed", hint=install_hint("ray")
        ) from None
    if not debug:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"ray\.")
        for name in ("ray", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # There is no switch for what the nodes report of workers that died.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        # Nor for what its C++ part writes: that has the descriptor, what we say has a copy of it.
        open_stderr(os.fdopen(os.dup(2), "w", encoding="utf-8"))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        os.close(silent)
    return ray


def _unwrapped(error: BaseException) -> CvtError:
    """Our own error where one is behind it, else its last line."""
    cause: BaseException | None = error
    while cause is not None:
        # What Ray raises is of the class of its cause too, but its text is a traceback.
        behind = getattr(cause, "cause", None)
        if behind is None and isinstance(cause, CvtError):
            return cause
        cause = behind or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        name, _, message = line.partition(": ")
        if name.rsplit(".", 1)[-1] in ("ModelError", "UsageError", "CvtError"):
            kind = ModelError if name.endswith("ModelError") else CvtError
            return kind(f"on a worker: {message}")
    return CvtError(
        f"Ray gave up: {lines[-1] if lines else type(error).__name__}",
        hint="--debug shows what the workers said",
    )
