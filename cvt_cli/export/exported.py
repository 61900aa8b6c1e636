"""The network as ONNX or as a torch.export program, checked against itself before it is used.

Both take `pixel_values`, (B, 3, H, W) float32, normalised, and give `logits`, (B, labels) float32:
the names that `transformers` has for them.
"""

import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt_cli import __version__
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.inference.scores import kind_of
from cvt_cli.model.cvt import Cvt

INPUT, OUTPUT = "pixel_values", "logits"
# The opset, which every runtime of recent years reads, in browsers too.
OPSET = 18
# The name of the metadata's file in a .pt2.
METADATA_FILE = "metadata.json"
# Bytes of a Protocol Buffers message, at most.
MOST_ONNX_BYTES = 2**31 - 2**20
# Largest difference from our logits, absolute and as a share of the largest logit.
TOLERANCE = 1e-4
CHECKED_BATCH_SIZES = (1, 3)


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the facts that a reader of the file needs: texts, some of them JSON, by name."""
    preprocessing = checkpoint.preprocessing
    return {
        "labels": json.dumps(checkpoint.labels, ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing.to_dict()),
        "preprocessing_in_words": preprocessing.in_words(),
        "scores": str(kind_of(checkpoint)),
        "activation": checkpoint.config.hidden_act,
        "model": checkpoint.name,
        "commit": checkpoint.files.commit or "",
        "weights_sha256": checkpoint.files.weights_digest() or "",
        "producer": f"cvt {__version__}",
    }


def program_of(model: Cvt, images: Tensor, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """Trace a network.

    Args:
        images: (B, 3, H, W) float32; the program takes this height and width alone.
        dynamic_batch: whether it takes any number of images, or this one.
    """
    if dynamic_batch and len(images) == 1:  # torch would take a batch of one for a constant
        images = images.expand(2, -1, -1, -1).clone()
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    with _in_silence():
        return torch.export.export(model, (images,), dynamic_shapes=shapes)


def to_onnx(checkpoint: Checkpoint, images: Tensor, *, dynamic_batch: bool = True) -> bytes:
    """Return the network as an ONNX file of one piece.

    Args:
        images, dynamic_batch: as `program_of` takes them.

    Raises:
        UsageError: if its weights are more than such a file holds.
    """
    model = checkpoint.model().float()
    size = sum(value.numel() for value in model.state_dict().values()) * 4
    if size > MOST_ONNX_BYTES:
        raise UsageError(
            f"{checkpoint.name} has {size / 2**30:.1f} GiB of weights, and an ONNX file holds "
            "2 at most",
            hint="-o model.pt2 has no such limit",
        )
    program = program_of(model, images, dynamic_batch=dynamic_batch)
    with _in_silence():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    proto: Any = exported.model_proto
    if dynamic_batch:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    for name, text in metadata_of(checkpoint).items():
        proto.metadata_props.add(key=name, value=text)
    proto.producer_name, proto.producer_version = "cvt", __version__
    content: bytes = proto.SerializeToString()
    return content


def to_program(checkpoint: Checkpoint, images: Tensor) -> bytes:
    """Return the network as a .pt2 file for any number of images.

    Args:
        images: as `program_of` takes them.
    """
    program = program_of(checkpoint.model().float(), images, dynamic_batch=True)
    file = io.BytesIO()
    metadata = json.dumps(metadata_of(checkpoint), ensure_ascii=False, indent=2)
    with _in_silence():
        torch.export.save(program, file, extra_files={METADATA_FILE: metadata})
    return file.getvalue()


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that computes an ONNX file's logits by ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        result: np.ndarray = session.run([OUTPUT], {INPUT: images.numpy()})[0]
        return torch.from_numpy(result)

    return logits


def run_program(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function that computes a .pt2 file's logits by torch, on the CPU."""
    with _in_silence():
        module = torch.export.load(io.BytesIO(content)).module()

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        result: Tensor = module(images)
        return result

    return logits


@torch.inference_mode()
def check(
    checkpoint: Checkpoint, logits: Callable[[Tensor], Tensor], image_size: tuple[int, int]
) -> float:
    """Compare exported logits with ours, for random images in batches of two sizes.

    Args:
        logits: what the file makes of (B, 3, H, W).
        image_size: H and W.

    Returns:
        The largest difference.

    Raises:
        CvtError: if they differ by more than `TOLERANCE`.
    """
    model = checkpoint.model().float()
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in CHECKED_BATCH_SIZES:
        images = torch.randn(count, 3, *image_size, generator=generator)
        ours, theirs = model(images), logits(images)
        same_shape = theirs.shape == ours.shape
        difference = (ours - theirs).abs().max().item() if same_shape else math.inf
        allowed = TOLERANCE * max(1.0, ours.abs().max().item())
        # Not "greater", because NaN is no agreement.
        if not difference <= allowed:
            raise CvtError(
                f"the exported network gives other logits than {checkpoint.name}: off by "
                f"{difference:.3g} in a batch of {count}; nothing was written",
                hint="other versions of torch and onnxscript may export it correctly",
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _in_silence() -> Iterator[None]:
    """Silence torch's exporters, whose messages are of no use to the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
