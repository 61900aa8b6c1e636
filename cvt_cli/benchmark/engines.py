"""Engines: the same network with the same weights, run by cvt and by the peers it is compared with.

The peers' packages are optional.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt_cli.benchmark.apart import Apart
from cvt_cli.benchmark.baselines import import_baseline
from cvt_cli.checkpoint.layouts import TRANSFORMERS
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import UsageError
from cvt_cli.export.exported import run_onnx, to_onnx
from cvt_cli.inference.devices import DTYPES, use_exact_float32
from cvt_cli.model.cuda import with_kernels
from cvt_cli.model.form import Form
from cvt_cli.model.fused import FusedCvt
from cvt_cli.model.graphs import Graphed
from cvt_cli.model.memory import is_out_of_memory

OUT_OF_MEMORY = "out of memory"


class Engine(ABC):
    """A network on its device, in its dtype."""

    @abstractmethod
    def feed(self, images: Tensor) -> None:
        """Set the next input: normalised images, (B, 3, H, W) float32 on the CPU."""

    @abstractmethod
    def run(self) -> None:
        """Compute the logits of the input, and wait for them."""

    @abstractmethod
    def logits(self) -> Tensor:
        """Return the logits of the last run, (B, num_labels) float32 on the CPU."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Release what the engine holds; no other call follows."""


class TorchEngine(Engine):
    """A network run by torch.

    Args:
        network: (B, 3, H, W) to logits (B, num_labels), both in `dtype` on `device`.
        threads: that it computes with on a CPU; None for as many as torch likes.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        threads: int | None = None,
    ) -> None:
        self._network, self._device, self._dtype = network, device, dtype
        self._threads = threads

    def feed(self, images: Tensor) -> None:  # noqa: D102
        self._images = images.to(self._device, self._dtype)

    @torch.inference_mode()
    def run(self) -> None:  # noqa: D102
        usual = torch.get_num_threads()
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            self._logits = self._network(self._images)
        finally:
            torch.set_num_threads(usual)
        synchronize(self._device)

    def logits(self) -> Tensor:  # noqa: D102
        return self._logits.float().cpu()


class ApartEngine(Engine):
    """A peer on the CPU, in a process of its own with as many threads."""

    def __init__(self, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._peer = Apart(_peer_apart, name, checkpoint, dtype, threads=torch.get_num_threads())

    def feed(self, images: Tensor) -> None:  # noqa: D102
        self._peer.call("feed", images.numpy())

    def run(self) -> None:  # noqa: D102
        self._peer.call("run")

    def logits(self) -> Tensor:  # noqa: D102
        return torch.from_numpy(self._peer.call("logits"))

    def close(self) -> None:  # noqa: D102
        self._peer.close()


class ExportedEngine(Engine):
    """Our plain network, exported as ONNX for the shape of each input, in another runtime on the
    CPU, with as many threads as torch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._images = np.empty(0, np.float32)

    def feed(self, images: Tensor) -> None:  # noqa: D102
        if images.shape != self._images.shape:
            self._load(to_onnx(self._checkpoint, images, dynamic_batch=False))
        self._images = images.numpy()

    def logits(self) -> Tensor:  # noqa: D102
        return torch.from_numpy(self._logits).float()

    def run(self) -> None:  # noqa: D102
        self._logits = self._compute(self._images)

    @abstractmethod
    def _load(self, content: bytes) -> None: ...

    @abstractmethod
    def _compute(self, images: np.ndarray) -> np.ndarray: ...


class OnnxRuntimeEngine(ExportedEngine):
    """ONNX Runtime, in float32."""

    def _load(self, content: bytes) -> None:
        self._network = run_onnx(content)

    def _compute(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._network(torch.from_numpy(images)).numpy()
        return logits


class OpenVinoEngine(ExportedEngine):
    """OpenVINO, computing in `dtype`."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        super().__init__(checkpoint)
        self._precision = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype, "f32")

    def _load(self, content: bytes) -> None:
        import openvino

        core = openvino.Core()
        self._network = core.compile_model(
            core.read_model(content, b""),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self._precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )

    def _compute(self, images: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._network([images])[0]
        return logits


def ours(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    compiled: bool = False,
    form: Form | None = None,
) -> Engine:
    """Make the engine of the network as `cvt classify` runs it, or as torch.compile makes it.

    Args:
        compiled: through torch.compile, for each shape of input: our inference form on a GPU, in
            CUDA graphs too. On a CPU that has matrix products which torch.compile does not take:
            there it is the plain network.
        form: of the inference form on a CPU; None for the usual one.
    """
    use_exact_float32(device, dtype)
    model = checkpoint.model().to(device, dtype)
    network: Callable[[Tensor], Tensor]
    if compiled and device.type == "cpu":
        network = torch.compile(model, dynamic=False)
    elif compiled:  # no graph breaks: compiled as a whole or not at all
        network = torch.compile(FusedCvt(model).__call__, dynamic=False, fullgraph=True)
    else:
        network = FusedCvt(model, form)
    if device.type == "cuda":
        faster = with_kernels(network) if isinstance(network, FusedCvt) else None
        network = Graphed(network, faster)
    return TorchEngine(network, device, dtype, threads=form.threads if form is not None else None)


def baseline(
    name: str, checkpoint: Checkpoint, device: torch.device, *, dtype: torch.dtype
) -> Engine:
    """Make the engine of a peer, with the same weights.

    Args:
        name: one of `BASELINES`, for which `check_baseline` found nothing against it.
    """
    if device.type == "cpu":
        return ApartEngine(name, checkpoint, dtype)
    return _peer(name, checkpoint, device, dtype=dtype)


class _Peer:
    """The object in the peer's process. It takes and returns NumPy arrays, because tensors would
    travel as files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.run = engine.run

    def feed(self, images: np.ndarray) -> None:
        self._engine.feed(torch.from_numpy(images))

    def logits(self) -> np.ndarray:
        logits: np.ndarray = self._engine.logits().numpy()
        return logits


def _peer_apart(name: str, checkpoint: Checkpoint, dtype: torch.dtype, *, threads: int) -> _Peer:
    torch.set_num_threads(threads)
    import_baseline(name)
    return _Peer(_peer(name, checkpoint, torch.device("cpu"), dtype=dtype))


def _peer(name: str, checkpoint: Checkpoint, device: torch.device, *, dtype: torch.dtype) -> Engine:
    if name == "onnxruntime":
        return OnnxRuntimeEngine(checkpoint)
    if name == "openvino":
        return OpenVinoEngine(checkpoint, dtype)
    model = transformers_model(checkpoint).to(device, dtype)
    return TorchEngine(lambda images: model(pixel_values=images).logits, device, dtype)


def transformers_model(checkpoint: Checkpoint) -> Any:
    """Build a `CvtForImageClassification` with these weights and labels, on the CPU, in evaluation
    mode."""
    import transformers

    values = checkpoint.config.to_dict()
    config = transformers.CvtConfig.from_dict(
        values
        | {
            "id2label": dict(enumerate(checkpoint.labels)),
            "label2id": {label: index for index, label in enumerate(checkpoint.labels)},
        }
    )
    model: Any = transformers.CvtForImageClassification(config)
    model.load_state_dict(TRANSFORMERS.to_theirs(checkpoint.model().state_dict()))
    return model.eval()


def check_baseline(
    name: str, checkpoint: Checkpoint, device: torch.device, *, dtypes: Sequence[str]
) -> None:
    """Check that the peer can run this network.

    Args:
        name: one of `BASELINES`.
        dtypes: names out of `DTYPES`.

    Raises:
        UsageError: if it can't, or only in another dtype or on another device.
    """
    config = checkpoint.config
    if name == "transformers":
        if set(config.qkv_projection_method) != {"dw_bn"}:
            raise UsageError(
                "transformers supports dw_bn projections only: it can't be the baseline here"
            )
        if config.hidden_act != "gelu":
            raise UsageError(
                f"transformers has no {config.hidden_act}: it can't be the baseline here",
                hint="--activation gelu makes both the same network",
            )
        if any(depth <= stage for stage, depth in enumerate(config.depth)):
            raise UsageError(
                "transformers builds a different network here: it can't be the baseline"
            )
        return
    if device.type != "cpu":
        raise UsageError(
            f"--baseline {name} compares on the CPU, not on {device}", hint="--device cpu"
        )
    known = {"onnxruntime": ["float32"], "openvino": list(DTYPES)}[name]
    for dtype in dtypes:
        if dtype not in known:
            raise UsageError(
                f"--baseline {name} does not support {dtype}", hint=f"--dtype {','.join(known)}"
            )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(device: torch.device) -> None:
    """Free memory that is no longer referenced."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def limit_of(error: Exception) -> str:
    """Describe the limit of the machine that an engine ran into; raises any other error again."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and is_out_of_memory(error)
    ):
        return OUT_OF_MEMORY
    if isinstance(error, NotImplementedError):
        return "not supported on this device"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return "torch.compile: " + " ".join(str(error).split())[:150]
    raise error
