"""The network on a CUDA device as CUDA graphs: its kernels recorded once, then launched together.

A CvT-13 is some 300 kernels. Launched one by one from Python they take longer than a small batch
is computed in.
"""

import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

MAX_GRAPHS = 16
TOLERANCE = 0.01  # of the largest value: what other algorithms of the same product may differ by

Network = Callable[[Tensor], Tensor]

# While one thread records, no other may wait for the whole device, as each recording begins with.
_recording = threading.Lock()


class Graphed:
    """A network through CUDA graphs, one for each shape of input.

    The first batch of a shape runs as it is, the second is recorded: a single image would not gain
    what that costs. A smaller batch, like the last of a run, is padded to one that is recorded and
    no more than twice as large. What can't be recorded runs as it is, and so does a shape whose
    recording does not give what the network gave.

    One thread at a time: a graph reads its input from one place. Runs on the current stream.

    Args:
        network: images (B, C, H, W) to a tensor with a row for each, which depends on that image
            alone; without waiting for the device.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self.clear()

    def clear(self) -> None:
        """Forget all graphs; their memory is free again."""
        self._seen: set[torch.Size] = set()
        self._graphs: dict[torch.Size, _Graph | None] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """What the network makes of the images."""
        shape = images.shape
        if shape in self._seen and shape not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            self._graphs[shape] = self._record(images)
        self._seen.add(shape)
        graph = self._graphs[shape] if shape in self._graphs else self._larger(shape)
        return self._network(images) if graph is None else graph(images)

    def _larger(self, shape: torch.Size) -> "_Graph | None":
        fitting = {
            known[0]: graph
            for known, graph in self._graphs.items()
            if graph is not None and known[1:] == shape[1:] and shape[0] < known[0] <= 2 * shape[0]
        }
        return fitting[min(fitting)] if fitting else None

    def _record(self, images: Tensor) -> "_Graph | None":
        try:
            with _recording:
                graph = _Graph(self._network, images)
            expected, found = self._network(images).float(), graph(images).float()
        except RuntimeError as error:  # out of memory, or a kernel that can't be recorded
            reason = str(error).partition("\n")[0]
        else:
            tolerance = TOLERANCE * float(expected.abs().max())
            if torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
                return graph
            reason = "they give other results"
        warnings.warn(f"going on without CUDA graphs, slower: {reason}", stacklevel=4)
        return None


class _Graph:
    """The kernels for one shape of input, and the tensors that they read and write."""

    def __init__(self, network: Network, images: Tensor) -> None:
        self._input = images.clone()
        # Neither the warm-up, in which libraries set themselves up, nor the recording may use the
        # default stream.
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            network(self._input)
            # Only this thread is held to what a recording allows: others copy and compute.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._output = network(self._input)

    def __call__(self, images: Tensor) -> Tensor:
        # The rows behind are of an earlier batch, and are left out again.
        self._input[: len(images)].copy_(images)
        self._graph.replay()
        return self._output[: len(images)].clone()
