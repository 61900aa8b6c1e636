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

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from cvt_cli.distributed.collection import Collector
from cvt_cli.distributed.connection import Cluster, unwrapped
from cvt_cli.distributed.layout import ClusterLayout
from cvt_cli.distributed.model_worker import RETRIES, WORKER_CPUS, Loads, ModelWorker
from cvt_cli.distributed.parts import Part
from cvt_cli.distributed.ray_job import RayJob
from cvt_cli.distributed.reading_task import DECODE_CPUS, decode_batches, member_names
from cvt_cli.distributed.task_tables import Row, inputs_per_task, tables
from cvt_cli.images.source import Search
from cvt_cli.records import Record

# Lost inputs up to which each is retried by itself; more are first retried in groups, since each
# reads its archive from the start.
LOST_INPUTS = 100


def fill_parts(
    cluster: Cluster,
    parts: Sequence[Part],
    job: RayJob,
    *,
    layout: ClusterLayout,
    on_record: Callable[[Record], None],
    on_part: Callable[[Part], None],
) -> None:
    """Fill the parts with records.

    Args:
        job, layout: as `Cluster.settle` returns them.
        on_record: is called for each record that is new, in any order.
        on_part: is called for each part when it is complete.

    Raises:
        CvtError: if the workers can't work at all; says why.
        ModelError: if none can load the model any more.
    """
    collector = Collector(parts, job.names, on_record, on_part=on_part)

    def pass_over(rows: Sequence[Row], per_task: int, retries: int = RETRIES) -> None:
        if rows:
            collector.forget()
            for table in _stream(
                cluster, rows, job, layout=layout, per_task=per_task, retries=retries
            ):
                collector.take(table)

    assert job.batch_size is not None
    rows = collector.rows()
    pass_over(rows, inputs_per_task(len(rows), job.batch_size, layout.cores))
    # An input that kills its worker takes others with it, so the last attempt is one by one.
    _list_members(cluster, collector.unlisted(), job.search)
    collector.give_up(collector.unlisted())
    rows = collector.rows()
    if len(rows) > LOST_INPUTS:
        # Lost inputs are retried below anyway.
        pass_over(rows, math.isqrt(len(rows)), retries=0)
    pass_over(collector.rows(), 1)
    collector.check()
    collector.give_up(collector.unfinished())


def _list_members(cluster: Cluster, parts: Sequence[Part], search: Search) -> None:
    """List the members of archives that were not read to their end."""
    task = cluster.ray.remote(num_cpus=DECODE_CPUS, max_retries=RETRIES)(member_names)
    folder = str(Path.cwd())
    asked = [task.remote(part.paths[0], search, folder) for part in parts]
    for part, answer in zip(parts, asked, strict=True):
        # An archive that kills even this gets one record for all: see `lost_records`.
        with suppress(cluster.ray.exceptions.RayError):
            part.list_members(cluster.ray.get(answer))


def _stream(
    cluster: Cluster,
    rows: Sequence[Row],
    job: RayJob,
    *,
    layout: ClusterLayout,
    per_task: int,
    retries: int,
) -> Iterator[pa.Table]:
    import ray.data
    from ray.data import ActorPoolStrategy

    assert job.batch_size is not None
    batch_size = min(job.batch_size, per_task)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Lost inputs are retried: see `fill_parts`.
    context.max_errored_blocks = -1
    height, width = job.checkpoint.preprocessing.image_size or (224, 224)
    context.target_max_block_size = 1 if batch_size == 1 else batch_size * height * width * 3
    loads = cluster.ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Loads)
    inputs: ray.data.Dataset = ray.data.from_arrow(list(tables(rows, per_task)))
    images = inputs.map_batches(
        decode_batches,
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
        ModelWorker,
        batch_size=batch_size,  # Ray requires it for actors with a GPU
        batch_format="pyarrow",
        zero_copy_batch=True,
        fn_constructor_kwargs={
            "job": job,
            "model": cluster.model,
            "threads": layout.threads,
            "loads": loads.remote(layout.fewest, RETRIES),
        },
        compute=ActorPoolStrategy(
            min_size=layout.fewest,
            max_size=layout.most,
            # Tasks that wait at a worker that dies count as tried, too.
            max_tasks_in_flight_per_actor=1 if per_task == 1 else None,
        ),
        num_cpus=WORKER_CPUS,
        num_gpus=layout.gpus or None,
        # A worker restarts as often as it dies, see `Loads`; the task that killed it does not.
        ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": retries},
    )
    try:
        yield from records.iter_batches(batch_size=None, batch_format="pyarrow")
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise unwrapped(error) from error
