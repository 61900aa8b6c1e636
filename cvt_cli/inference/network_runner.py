"""Batches through a network: copied, in as many pieces as the device's memory takes, on a stream of
their own."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.cuda import with_kernels
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.graphs import Graphed, recording
from cvt_cli.model.memory import is_out_of_memory

# Batches at the start of a run that go through the network as it is: to record a graph, and to
# compile its kernels, takes seconds.
BATCHES_BEFORE = 2


class NetworkRunner:
    """A network on a device, which takes images of any sizes and number.

    Args:
        network: on a GPU, others may run it too.
        preprocessing: normalises its input.
        batch_size: images through it at once.
        usual_size: (height, width) in pixels of those.

    Attributes:
        batch_size: halved for good if the device's memory does not hold so many.
        model, features: the network and its `forward_features`; on a GPU CUDA graphs of them.
        thread: waits for the network while records are written.
    """

    def __init__(
        self,
        network: FusedCvt,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        usual_size: tuple[int, int],
    ) -> None:
        self.network = network
        self.batch_size = batch_size
        self._preprocessing = preprocessing
        self._device, self._dtype = device, dtype
        self._usual_pixels = math.prod(usual_size)
        self.model: Callable[[Tensor], Tensor] = network
        self.features: Callable[[Tensor], Tensor] = network.forward_features
        self._graphs: tuple[Graphed, ...] = ()
        self._lock = threading.Lock()  # one thread at a time may use a graph and its stream
        # The same one for all runs: cuDNN's plans for a shape belong to a thread, and take some
        # 0.1 s to make.
        self.thread = _thread_for(device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            faster = with_kernels(network)
            self._graphs = (
                Graphed(network, faster),
                Graphed(network.forward_features, faster and faster.forward_features),
            )
            self.model, self.features = self._graphs
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # for the weights

    def run(
        self,
        images: Sequence[np.ndarray],
        width: int,
        forward: Callable[[Tensor], Tensor],
        *,
        number: int | None = None,
    ) -> Tensor:
        """Compute a row for each image.

        Args:
            images: (H, W, 3) uint8 each.
            forward: takes batches (B, H, W, 3) uint8 of one size, on the CPU, and returns (B,
                width) float32 there.
            number: of the batch in its run, from 0: with it the rows depend on the images and
                the number alone, to their last digits, as long as the memory suffices; None for
                whatever this process is ready for.

        Returns:
            (len(images), width) float32.

        Raises:
            RuntimeError: as `forward`; if the memory does not suffice, only for a single image.
        """
        result = torch.empty(len(images), width)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        for size, indexes in by_size.items():
            start, alone = 0, False
            while start < len(indexes):
                # A large image counts as several.
                room = max(1, self.batch_size * self._usual_pixels // (size[0] * size[1]))
                chunk = indexes[start : start + min(room, self.batch_size)]
                # Pinned memory is copied to a GPU while Python goes on.
                batch = torch.empty(
                    (len(chunk), *size),
                    dtype=torch.uint8,
                    pin_memory=self._device.type == "cuda",
                )
                np.stack([images[index] for index in chunk], out=batch.numpy())
                plan = None if number is None else self._graph_size(number, len(chunk), size)
                try:
                    with self._on_stream(plan), recording if alone else nullcontext():
                        result[chunk] = forward(batch)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    # The error's frames keep what the network had computed.
                    problem = error.with_traceback(None)
                else:
                    start, alone = start + len(chunk), False
                    continue
                # The same once more, if it was graphs that took the room, or might be that
                # another recorded: until that is done, torch gives no memory of its cache back.
                if self.free_memory() or (self._graphs and not alone):
                    alone = True
                    continue
                alone = False
                if len(chunk) == 1:
                    raise problem
                self._halve_batch()
        return result

    def normalized(self, batch: Tensor) -> Tensor:
        """Turn pixels (B, H, W, 3) uint8 into the network's input, on its device in its dtype."""
        pixels = batch.to(self._device, non_blocking=True)
        return self._preprocessing.normalize(pixels).to(self._dtype)

    def _graph_size(self, number: int, count: int, size: tuple[int, ...]) -> int:
        """Return how many images the graph has that a batch goes through; 0 for none.

        It must not depend on what this process computed before, as a resumed run is another one.
        Where images keep their own sizes there would be too many graphs to record each at once.
        """
        is_usual = self._preprocessing.image_size == size[:2]
        is_most = 2 * count > self.batch_size  # to fill up less would cost more than it saves
        return self.batch_size if number >= BATCHES_BEFORE and is_usual and is_most else 0

    @contextmanager
    def _on_stream(self, plan: int | None) -> Iterator[None]:
        with ExitStack() as stack:
            if self._graphs:
                stack.enter_context(self._lock)
            for graphs in self._graphs:
                stack.enter_context(graphs.planned(plan))
            if self._stream is not None:
                # First the device: to leave a stream by itself opens a context on the first GPU.
                stack.enter_context(torch.cuda.device(self._device))
                stack.enter_context(torch.cuda.stream(self._stream))
            yield

    def _halve_batch(self) -> None:
        self.batch_size //= 2
        # Always the same text, which Python shows only once.
        warnings.warn(
            "out of memory: continuing with smaller batches (a smaller --batch-size avoids this)",
            stacklevel=2,
        )

    def free_memory(self) -> bool:
        """Free memory that can be spared, and tell whether CUDA graphs were dropped."""
        with self._lock, recording:
            stopped = [graphs.stop() for graphs in self._graphs]
            if self._device.type == "cuda":
                with torch.cuda.device(self._device):
                    torch.cuda.empty_cache()
        return any(stopped)


def _thread_for(device: torch.device) -> ThreadPoolExecutor:
    """Make the thread that waits for a device. On a GPU it does by itself what little there is to
    do on the CPU, as to find the best scores: helpers would wait for a core, which readers have."""
    if device.type == "cpu":
        return ThreadPoolExecutor(1, "network")
    torch.get_num_threads()  # fixes that of this thread: else it would be the last that was set
    return ThreadPoolExecutor(1, "network", initializer=torch.set_num_threads, initargs=(1,))
