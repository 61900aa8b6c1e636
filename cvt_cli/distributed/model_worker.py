"""The actor that holds the network: pixels to records, on the nodes chosen for it."""

import json
import platform
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cvt_cli.distributed.layout import ClusterLayout
from cvt_cli.distributed.ray_job import RayJob, Shipped, check_version
from cvt_cli.distributed.task_tables import RECORD_SCHEMA
from cvt_cli.errors import ModelError
from cvt_cli.images.reading import DecodedImage
from cvt_cli.images.source import one_line
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
KILLS = "each dies of it, out of memory or by a fault in a library"


def settled(
    job: RayJob, model: tuple[Any], layout: ClusterLayout, *, wanted: "Request"
) -> dict[str, Any]:
    """Decide, on a machine that will run a worker, what the job leaves open. Loads the model
    once.

    Args:
        wanted: how the form of the network is chosen.
    """
    from cvt_cli.inference.batch_size import auto_batch_size
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


def _classifier(job: RayJob, model: Any, threads: int) -> "Classifier":
    with _loaded(job, model, threads) as classifier:
        return classifier


@contextmanager
def _loaded(job: RayJob, model: Any, threads: int) -> "Iterator[Classifier]":
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


def _possible(job: RayJob) -> "Form | None":
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
        retries: how often each may try again.
    """

    def __init__(self, fewest: int, retries: int = RETRIES) -> None:
        self._fewest = fewest
        self._retries = retries
        self._tries: Counter[str] = Counter()
        self._had_it: set[str] = set()
        self._stuck: set[str] = set()

    def begin(self, worker: str) -> bool:
        """Tell whether a worker may try to load the model: no task waits for a worker that never
        had it, so it may as long as others can work."""
        self._tries[worker] += 1
        if self._tries[worker] <= 1 + self._retries:
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


class ModelWorker:
    """The actor that holds the network."""

    def __init__(self, job: RayJob, model: Any, threads: int, *, loads: Any) -> None:
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
        from cvt_cli.inference.network_runner import BATCHES_BEFORE

        try:
            check_version(job.version)
            records = list(
                self._classifier.records(
                    images,
                    job.top_k,
                    job.threshold,
                    columns=job.columns,
                    # Batches come in any order: none is computed as the first of a run.
                    number=BATCHES_BEFORE,
                )
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
