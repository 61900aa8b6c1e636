"""A training step as a CUDA graph: its kernels are recorded once, then launched together.

A step of a small network is some 1,700 kernels. Launched one by one from Python they take several
times as long as a GPU needs to compute them.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Steps that run as they are, in which libraries initialise themselves and choose their kernels.
STEPS_BEFORE = 3


class RecordedStep:
    """A function of a batch that changes weights, through a CUDA graph.

    The first batches run as they are, then one shape of batch is recorded; batches of other shapes,
    such as those in which an image could not be read, run as they are. What can't be recorded runs
    as it is, after a warning. On a CPU everything does.

    Args:
        step: images (B, ...) and targets (B, ...), on the device; must not wait for the device,
            and must find gradients anew in each call.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], None], device: torch.device) -> None:
        self._step = step
        # Not the default stream, on which nothing can be recorded: what autograd keeps of the first
        # steps has to be of the stream that records.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._records = self._stream is not None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._seen = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Let all that is called inside run on the stream of the steps."""
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def forget(self) -> None:
        """Record anew: what the step reads or writes lies elsewhere now."""
        self._graph = self._inputs = None
        self._seen = 0

    def __call__(self, images: Tensor, targets: Tensor) -> None:
        """Do a step, inside `stream`."""
        if self._inputs is not None and self._inputs[0].shape == images.shape:
            for place, value in zip(self._inputs, (images, targets), strict=True):
                place.copy_(value)
        elif not self._records or self._graph is not None or self._seen < STEPS_BEFORE:
            self._seen += 1
            self._step(images, targets)
            return
        else:
            self._record(images, targets)
        if self._graph is None:
            self._step(images, targets)
        else:
            self._graph.replay()

    def _record(self, images: Tensor, targets: Tensor) -> None:
        self._inputs = (images.clone(), targets.clone())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step(*self._inputs)
        except RuntimeError as error:
            self._records, self._inputs = False, None
            reason = str(error).partition("\n")[0]
            warnings.warn(f"training without CUDA graphs, slower: {reason}", stacklevel=4)
        else:
            self._graph = graph
