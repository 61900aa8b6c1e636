"""The connection to a Ray cluster."""

import logging
import os
import signal
import socket
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cvt_cli import __version__
from cvt_cli.distributed.layout import ClusterLayout, Workers, lay_out
from cvt_cli.distributed.model_worker import RETRIES, WORKER_CPUS, settled
from cvt_cli.distributed.ray_job import RayJob, Shipped
from cvt_cli.errors import CvtError, ModelError, UsageError
from cvt_cli.images.source import one_line
from cvt_cli.inference.tuning import NEVER, Request
from cvt_cli.system.cores import cores
from cvt_cli.system.extras import install_hint
from cvt_cli.system.stderr import open_stderr

CONNECT_SECONDS = 5.0
# Seconds after which a slow start is reported.
PATIENCE_SECONDS = 30.0


class Cluster:
    """A connection to Ray; leaving the `with` block ends it, and all our work there.

    Args:
        address: host:port of a cluster's head, "auto" for the one that this machine is part of;
            None starts one here, for as long as this lasts.
        debug: let Ray say what it likes.

    Attributes:
        ray: Ray itself, for those who have work for it.
        model: a reference to the model, as `settle` puts it there: a `ray_job.Shipped`.

    Raises:
        UsageError: if Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str | None, debug: bool) -> None:
        if address is not None:
            _check_address(address)
            # Ray would ask anything else that listens there, such as its dashboard, 20 times for a
            # minute each.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        # Ray would retry forever what is killed for lack of memory; the driver counts retries.
        os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
        self.ray = _import_ray(debug)
        before = signal.getsignal(signal.SIGTERM)
        if address is None:
            # Ray's workers run at a low priority by default, but here they do the user's work.
            os.environ.setdefault("RAY_worker_niceness", "0")
            # They work in threads other than the main one, whose arenas in glibc keep no large
            # blocks.
            os.environ.setdefault("MALLOC_ARENA_MAX", "1")
        own: dict[str, Any] = {
            "num_cpus": cores(),
            "include_dashboard": False,
        }
        try:
            self.ray.init(
                address=address or "local",
                log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.CRITICAL,
                **(own if address is None else {}),
            )
        except Exception as error:
            where = f"no Ray cluster at {address}" if address else "Ray does not start here"
            hint = "run `ray status` on one of its nodes" if address else ""
            raise UsageError(f"{where}: {one_line(error)[:300].rstrip('.')}", hint=hint) from error
        signal.signal(signal.SIGTERM, before)  # Ray has installed its own

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def settle(
        self, job: RayJob, workers: Workers, wanted: Request = NEVER
    ) -> tuple[RayJob, ClusterLayout]:
        """Decide what the job leaves open, by the machines that will run it.

        Args:
            wanted: how the form of the network is chosen, on the first node that is asked.

        Returns:
            The job with device, dtype, batch size and form; the layout.

        Raises:
            UsageError: if the cluster has no such device, or a node another version of us.
            ModelError: if the model can't be loaded there.
        """
        self._check_versions()
        nodes = [node["Resources"] for node in self._nodes()]
        layout = lay_out(nodes, job.device, workers)
        named = "cpu" if job.device == "auto" else job.device
        job = replace(job, device="cuda" if layout.gpus else named)
        self.model = self.ray.put(Shipped.of(job.checkpoint.files, job.offline))
        # Not in a worker of the pool, which restarts as often as it dies.
        probe = self.ray.remote(num_cpus=WORKER_CPUS, num_gpus=layout.gpus, max_retries=RETRIES)(
            settled
        )
        try:
            # In a tuple, because Ray replaces a bare reference by the model itself.
            facts = self._answer(probe.remote(job, (self.model,), layout, wanted=wanted))
        except self.ray.exceptions.RayTaskError as error:
            raise unwrapped(error) from None
        except self.ray.exceptions.RayError as error:
            raise ModelError(
                f"a worker dies each time it loads the model ({type(error).__name__})",
                hint="does its node have the memory? --debug shows what Ray says",
            ) from None
        for message in facts["warnings"]:
            warnings.warn(f"on a worker: {message}", stacklevel=2)
        found = {name: facts[name] for name in ("dtype", "batch_size", "form")}
        return replace(job, **found), layout

    def _check_versions(self) -> None:
        def version() -> str | None:
            try:
                from cvt_cli import __version__
            except ImportError:
                return None
            return __version__

        # A nested function is sent as code: a node may not have cvt installed.
        task = self.ray.remote(num_cpus=0, max_retries=RETRIES)(version)
        strategy = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = [node for node in self._nodes() if node["Resources"].get("CPU")]
        asked = [
            task.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
            for node in nodes
        ]
        for node, question in zip(nodes, asked, strict=True):
            try:
                found = self._answer(question)
            except self.ray.exceptions.RayError:  # the actor is gone
                continue
            if found != __version__:
                has = f"cvt {found}" if found else "no cvt"
                raise UsageError(
                    f"the cluster's node {node['NodeManagerAddress']} has {has}, this is "
                    f"{__version__}",
                    hint="install the same version on every node",
                )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _answer(self, asked: Any) -> Any:
        """Wait for a task's result, and say so if that takes long. Raises: RayError."""
        if not self.ray.wait([asked], timeout=PATIENCE_SECONDS)[0]:
            warnings.warn(
                "still waiting for a worker: `ray status` shows whether the cluster is full",
                stacklevel=2,
            )
        return self.ray.get(asked)


def _check_address(address: str) -> None:
    """Check that something listens at an address: Ray itself would try for minutes.

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
        raise UsageError(f"{address}: not the address of a cluster", hint="auto, or host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(
            f"no Ray cluster at {address}: {reason.lower()}",
            hint="`ray start --head` prints the address of one",
        ) from None


def _import_ray(debug: bool) -> Any:
    """Import Ray, and keep it quiet. Raises: UsageError, if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data  # noqa: F401
    except ImportError:
        raise UsageError(
            "--engine ray needs Ray, which is not installed", hint=install_hint("ray")
        ) from None
    if not debug:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", module=r"ray\.")
        for name in ("ray", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # There is no option for the nodes' reports of dead workers.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        # Nor for the output of its C++ part, which keeps the descriptor; our messages use a copy.
        open_stderr(os.fdopen(os.dup(2), "w", encoding="utf-8"))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        os.close(silent)
    return ray


def unwrapped(error: BaseException) -> CvtError:
    """Return our own error behind an error of Ray's, or else a CvtError with its last line."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's error has the class of its cause, too, but its text is a traceback.
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
