"""CUDA graphs of the network: its kernels are recorded once, then launched together.

A CvT-13 is some 300 kernels. Launched one by one from Python they take longer than a small batch
is computed in.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from cvt_cli.model.memory import is_out_of_memory

MAX_GRAPHS = 16
TOLERANCE = 0.01  # of the largest value: what other algorithms of the same product may differ by

Network = Callable[[Tensor], Tensor]

# While one thread records, no other may wait for the whole device, as each recording begins with,
# nor can it have memory back from torch's cache, nor set up the libraries that it needs. Who holds
# it may record.
recording = threading.RLock()


class Graphed:
    """A network through CUDA graphs, one for each shape of input.

    The first batch of a shape runs as it is, the second is recorded: a single image would not gain
    what that costs. A smaller batch, like the last of a run, is padded to one that is recorded and
    no more than twice as large. What can't be recorded runs as it is, and so does a shape whose
    recording does not give what the network gave.

    A recording's last digits differ from those of the network as it is. Where they must not depend
    on what this process computed before, `planned` says which of the two it is.

    One thread at a time: a graph reads its input from one place. Runs on the current stream.

    Args:
        network: images (B, C, H, W) to a tensor with a row for each, which depends on that image
            alone; without waiting for the device.
        faster: the same function, to be recorded in place of the network where it gives what the
            network gave: its kernels are compiled first, which a single image would not repay.
    """

    def __init__(self, network: Network, faster: Network | None = None) -> None:
        self._network = network
        self._faster = faster
        self._seen: set[torch.Size] = set()
        self._graphs: dict[torch.Size, _Graph | None] = {}
        self._recorder: _Recorder | None = _Recorder()
        self._planned: int | None = None

    def stop(self) -> bool:
        """Drop all graphs, which frees their memory, and record no more; False if there are
        none."""
        if not any(self._graphs.values()):
            return False
        self._graphs.clear()
        self._recorder = None
        return True

    @contextmanager
    def planned(self, size: int | None) -> Iterator[None]:
        """Compute in one way within the context, whatever came before.

        Args:
            size: through the graph of so many images, to which a batch is padded, and which is
                recorded at once if need be; 0 for none, as the network is; None for as usual.
        """
        before, self._planned = self._planned, size
        try:
            yield
        finally:
            self._planned = before

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute what the network makes of the images."""
        shape = images.shape
        is_new = shape not in self._seen
        if self._planned is not None:
            graph = self._graph_of(images, self._planned) if self._planned else None
        else:
            graph = self._larger(shape)
            if graph is None and not is_new:
                graph = self._graph_of(images, len(images))
        if graph is not None:
            result = graph(images)
        else:
            # Libraries initialise themselves at the first run.
            with recording if is_new else nullcontext():
                result = self._network(images)
        self._seen.add(shape)
        return result

    def _graph_of(self, images: Tensor, size: int) -> "_Graph | None":
        """Return the graph for so many images of this size; records it, if there is none yet."""
        shape = torch.Size((size, *images.shape[1:]))
        if shape not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            rows = torch.arange(size, device=images.device) % len(images)
            self._graphs[shape] = self._record(images if size == len(images) else images[rows])
        return self._graphs.get(shape)

    def _larger(self, shape: torch.Size) -> "_Graph | None":
        # To record it too takes as long as a hundred batches: a benchmark's second pass of a
        # thousand files, the last batch of which is short, took four times as long for it.
        fitting = {
            known[0]: graph
            for known, graph in self._graphs.items()
            if graph is not None and known[1:] == shape[1:] and shape[0] <= known[0] <= 2 * shape[0]
        }
        return fitting[min(fitting)] if fitting else None

    def _record(self, images: Tensor) -> "_Graph | None":
        if self._recorder is None:
            return None
        faster = self._faster
        try:
            if faster is not None:
                self._faster = faster = _if_equal(faster, self._network, images)
            with recording:
                graph = self._recorder(faster or self._network, images)
                # Maybe for the first time on this stream.
                expected, found = (self._network(images), graph(images))
        except RuntimeError as error:
            failed, is_full = True, is_out_of_memory(error)
            reason = "out of memory" if is_full else str(error).partition("\n")[0]
        else:
            if _are_close(found, expected):
                return graph
            failed, is_full, reason = False, False, "they give other results"
        if failed:
            # Not above, where the error holds on to what was recorded. To drop one recording takes
            # the workspaces of its stream from the others: all go, and those of other shapes are
            # recorded again. Not where it was no lack of memory, but a kernel that can't be
            # recorded, say: torch may take the recording for one that still goes on.
            for shape in [known for known, each in self._graphs.items() if each is not None]:
                del self._graphs[shape]
            self._recorder = _Recorder() if is_full else None
        warnings.warn(f"continuing without CUDA graphs, slower: {reason}", stacklevel=4)
        return None


def _if_equal(faster: Network, network: Network, images: Tensor) -> Network | None:
    """Return the faster function if it computes what the network computes; compiles its kernels."""
    reason = "they give other results"
    try:
        with recording:
            if _are_close(faster(images), network(images)):
                return faster
    except Exception as error:  # compilers of other versions may raise nearly anything
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
    warnings.warn(f"continuing without Triton's kernels, slower: {reason}", stacklevel=5)
    return None


def _are_close(found: Tensor, expected: Tensor) -> bool:
    # NaN in one image says nothing about the others.
    found, expected = (y.float().nan_to_num(0.0, 0.0, 0.0) for y in (found, expected))
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


class _Recorder:
    """Records graphs one after the other, on one stream and into one pool of memory, which grows as
    large as the largest graph needs: no two run at once, and each result is copied before the next.

    It keeps what it recorded, for to drop a graph by itself takes the workspaces of its stream from
    the others: they go together, with the recorder.
    """

    def __init__(self) -> None:
        self._recorded: list[torch.cuda.CUDAGraph] = []
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, network: Network, images: Tensor) -> "_Graph":
        with torch.cuda.device(images.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
                self._pool = torch.cuda.graph_pool_handle()
            source = images.clone()
            # Neither the warm-up, in which libraries set themselves up, nor the recording may use
            # the default stream.
            self._stream.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            self._recorded.append(graph)
            with torch.cuda.stream(self._stream):
                network(source)
                # Only this thread is restricted while it records: others copy and compute.
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    result = network(source)
        return _Graph(graph, source, result)


class _Graph:
    """The recorded kernels for one shape of input, and the tensors that they read and write."""

    def __init__(self, graph: torch.cuda.CUDAGraph, source: Tensor, result: Tensor) -> None:
        self._graph, self._source, self._result = graph, source, result

    def __call__(self, images: Tensor) -> Tensor:
        # The remaining rows are from an earlier batch, and are cut off again.
        self._source[: len(images)].copy_(images)
        self._graph.replay()
        return self._result[: len(images)].clone()
