"""Layout of the work on the machines of a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cvt_cli.errors import UsageError

# Cores per worker without a GPU, if --workers is not given.
CORES_PER_WORKER = 4


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
class ClusterLayout:
    """The layout of a job on a cluster: how many workers, and the resources of each."""

    fewest: int
    most: int
    gpus: float
    threads: int
    cores: int

    def facts(self) -> dict[str, int | float]:
        """Return the layout for a run record."""
        return {
            "workers": self.most,
            "fewest_workers": self.fewest,
            "gpus_per_worker": self.gpus,
            "threads_per_worker": self.threads,
            "cores": self.cores,
        }


def lay_out(nodes: Sequence[Mapping[str, float]], device: str, workers: Workers) -> ClusterLayout:
    """Spread the work over a cluster.

    Args:
        nodes: the resources of each, as Ray counts them; what a node has none of is not named.
        device: "auto", or what the network is to run on.
        workers: what was asked for.

    Raises:
        UsageError: if the cluster has not got it.
    """
    core_count = int(sum(node.get("CPU", 0) for node in nodes))
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    wants_gpu = device.startswith("cuda") or (device == "auto" and gpus > 0)
    each = workers.gpus if workers.gpus is not None else float(wants_gpu)
    if each > 0 and gpus == 0:
        raise UsageError("this cluster has no GPU", hint="--device cpu needs none")
    if each > max(node.get("GPU", 0) for node in nodes):
        raise UsageError(
            f"no node of this cluster has {each:g} GPUs", hint="--gpus-per-worker asks for less"
        )
    if core_count == 0:
        raise UsageError("this cluster has no CPU to work with")
    suits = int(gpus / each) if each else max(1, core_count // CORES_PER_WORKER)
    most = workers.most or suits
    threads = max(1, min(core_count // most, int(max(node.get("CPU", 0) for node in nodes))))
    return ClusterLayout(
        fewest=workers.fewest or most, most=most, gpus=each, threads=threads, cores=core_count
    )
