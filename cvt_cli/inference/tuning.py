"""The form of the network that is fastest on this processor, by measurement.

A choice is timed by itself, on the shapes of the run, and kept in a small file beside the Hub's
cache, for later runs of the same kind.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cvt_cli import __version__
from cvt_cli.errors import Remark
from cvt_cli.inference.batch_size import usual_size
from cvt_cli.inference.classifier import Classifier
from cvt_cli.model.config import CvtConfig
from cvt_cli.model.cvt import Cvt
from cvt_cli.model.form import CHOICES, Form, StageForm
from cvt_cli.model.fused import FusedStage
from cvt_cli.model.processor import has_packed_linear
from cvt_cli.system.cores import cores, processor
from cvt_cli.system.files import write_atomically
from cvt_cli.system.locks import lock
from cvt_cli.system.text import reason_of

# An alternative has to be so many times faster: less is noise, and reruns are to agree.
WINS_BY = 1.05
ROUNDS = 5
# Seconds that one turn takes at least, by repeats, and after which nothing more is tried.
TURN = 0.002
BUDGET = 30.0
# To measure takes as long as some ten batches, and may gain a tenth.
LONG_RUN = 100
# How long to wait for another process that measures the same.
PATIENCE = 120.0


class Tune(StrEnum):
    """The times to measure: never, for a long run, or before any run."""

    NEVER = "never"
    AUTO = "auto"
    NOW = "now"


class Origin(StrEnum):
    """The source of a chosen form."""

    USUAL = "usual"  # for the kind of processor
    RECORDED = "recorded"  # by the run that is taken up
    CACHE = "cache"  # by a measurement before
    MEASURED = "measured"


@dataclass(frozen=True)
class Kind:
    """The kind of a run: what the fastest form depends on, beside the processor.

    Attributes:
        image_size: (height, width) in pixels.
        batch_size: images through the network at once.
    """

    config: CvtConfig
    image_size: tuple[int, int]
    batch_size: int
    dtype: torch.dtype

    @property
    def usual(self) -> Form:
        """The form where nothing is measured."""
        return Form.usual(self.config.num_stages, torch.device("cpu"), self.dtype)

    def key(self) -> dict[str, Any]:
        """Return all that a measurement depends on, as JSON has it."""
        return {
            "processor": processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cvt": __version__,
            "architecture": json.loads(json.dumps(asdict(self.config))),
            "image_size": list(self.image_size),
            "batch_size": self.batch_size,
            "dtype": str(self.dtype).removeprefix("torch."),
        }


@dataclass(frozen=True)
class Request:
    """The options and facts of a run that decide its form.

    Attributes:
        tune: `AUTO` measures for a run that is long enough to repay it.
        count: counts the images of the run, up to so many; None if nobody knows.
        recorded: the form of the run that is taken up, which this one keeps to; None without any.
    """

    tune: Tune
    count: Callable[[int], int | None] = lambda most: most
    recorded: Mapping[str, Any] | None = None


NEVER = Request(Tune.NEVER)


def choose(kind: Kind, model: Callable[[], Cvt], wanted: Request) -> tuple[Form, Origin]:
    """Return the form for a run on the CPU.

    Args:
        kind: of the run.
        model: builds the network on the CPU, in its dtype.
        wanted: whether it is to be measured.
    """
    if wanted.recorded is not None:
        return _recorded(kind, wanted.recorded)
    tune, long = wanted.tune, LONG_RUN * kind.batch_size
    if tune is Tune.NEVER:
        return kind.usual, Origin.USUAL
    key = kind.key()
    if tune is Tune.AUTO and (known := read(key, kind)) is not None:
        return known, Origin.CACHE
    # Only now: it walks the folders once more.
    images = wanted.count(long) if tune is Tune.AUTO else long
    if images is None or images < long:
        return kind.usual, Origin.USUAL
    with _alone(key):
        # Another process, as of another shard, may have measured meanwhile.
        if tune is Tune.AUTO and (known := read(key, kind)) is not None:
            return known, Origin.CACHE
        batch = torch.randn(kind.batch_size, kind.config.num_channels, *kind.image_size)
        batch = batch.to(kind.dtype, memory_format=torch.channels_last)
        form = fastest(model(), batch)
        keep(key, form)
    return form, Origin.MEASURED


def settle(classifier: Classifier, wanted: Request) -> Origin:
    """Give a classifier the form for its run."""
    if classifier.device.type != "cpu":
        if wanted.tune is Tune.NOW:
            warnings.warn(
                f"there is nothing to tune on {classifier.device}: --tune is for CPUs",
                stacklevel=2,
            )
        return Origin.USUAL
    checkpoint = classifier.checkpoint
    size = usual_size(checkpoint)
    kind = Kind(checkpoint.config, size, batch_size=classifier.batch_size, dtype=classifier.dtype)
    form, origin = choose(kind, lambda: checkpoint.model().to(kind.dtype), wanted)
    classifier.use_form(form)
    return origin


def _recorded(kind: Kind, recorded: Mapping[str, Any]) -> tuple[Form, Origin]:
    try:
        form = Form.from_dict(recorded)
        reason = form.why_not(kind.config.num_stages, kind.dtype, cores())
    except ValueError as error:
        reason = str(error)
    if reason is None:
        return form, Origin.RECORDED
    warnings.warn(
        f"the run before computed in a form that this machine can't ({reason}): scores of "
        "the same image may differ in their last digits",
        stacklevel=2,
    )
    return kind.usual, Origin.USUAL


def fastest(model: Cvt, images: Tensor, *, budget: float = BUDGET) -> Form:
    """Time each choice of each stage by itself, then the number of threads.

    Args:
        model: in its dtype, on the CPU.
        images: (B, C, H, W) of a batch as the run has it, in the same dtype.
        budget: seconds, after which what is not yet tried stays as usual.
    """
    end = time.perf_counter() + budget
    usual = Form.usual(model.config.num_stages, images.device, images.dtype)
    stages: list[StageForm] = []
    chain: list[FusedStage] = []
    x = images
    with torch.inference_mode():
        for stage, stage_form in zip(model.stages, usual.stages, strict=True):
            form = stage_form
            build = partial(FusedStage, stage, False, depth=1)  # type: ignore[arg-type]
            for name, parts in _PARTS.items():
                forms = [form, *_alternatives(form, name, images.dtype)]
                runs = [parts(build(form=each), x) for each in forms]
                if time.perf_counter() < end and all(runs):
                    form = forms[pick_fastest([run for run in runs if run is not None])]
            stages.append(form)
            chain.append(build(form=form))
            x = _image(chain[-1], x)
        threads = _fastest_threads(chain, images) if time.perf_counter() < end else None
    return Form(tuple(stages), threads)


def pick_fastest(runs: Sequence[Callable[[], object]], wins_by: float = WINS_BY) -> int:
    """Return the index of the fastest, by the medians of rounds in which all take turns. The first
    stays unless another wins clearly.

    Args:
        runs: the first is the usual one.
        wins_by: how many times faster an alternative has to be.
    """
    if len(runs) == 1:
        return 0
    repeats = []
    for run in runs:
        run()  # what is made at the first call is not counted
        before = time.perf_counter()
        run()
        repeats.append(max(1, round(TURN / max(1e-9, time.perf_counter() - before))))
    repeat = min(repeats)
    taken: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    for _ in range(ROUNDS):
        for index in order:
            before = time.perf_counter()
            for _ in range(repeat):
                runs[index]()
            taken[index].append(max(1e-9, time.perf_counter() - before))
        order.reverse()
    # A round's turns follow each other at once: what slows the machine down slows them all.
    gains = [
        median(first / own for first, own in zip(taken[0], times, strict=True)) for times in taken
    ]
    best = max(range(len(runs)), key=lambda index: gains[index])
    return best if gains[best] >= wins_by else 0


def _alternatives(form: StageForm, name: str, dtype: torch.dtype) -> Iterator[StageForm]:
    """Yield the form with the other choices of that name that make a difference here."""
    for value in CHOICES[name]:
        other = replace(form, **{name: value})
        if other.linear == "plain":  # nothing of oneDNN's without its weights
            other = replace(other, attention="sdpa", activation="apart")
        packs = "packed" in (other.linear, form.linear)
        if other != form and (has_packed_linear(dtype) or not packs):
            yield other


def _convolutions(stage: FusedStage, x: Tensor) -> Callable[[], object] | None:
    """Return what computes the token embedding, and the projections of a block."""
    tokens, height, width = stage.embed(x)
    if not stage.blocks:
        return partial(stage.embed, x)
    attn = stage.blocks[0].attn

    def run() -> None:
        stage.embed(x)
        attn.project(tokens, height, width, False)

    return run


def _mlp(stage: FusedStage, x: Tensor) -> Callable[[], object] | None:
    """Return what computes the linear layers behind the attention; None without a block."""
    if not stage.blocks:
        return None
    tokens, _, _ = stage.embed(x)
    block = stage.blocks[0]

    def run() -> None:
        block.fc2(block.fc1(block.attn.proj(tokens, tokens)), tokens)

    return run


def _attention(stage: FusedStage, x: Tensor) -> Callable[[], object] | None:
    if not stage.blocks:
        return None
    attn = stage.blocks[0].attn
    return partial(attn.attend, *attn.project(*stage.embed(x), False))


# Each choice, with what it is timed by. The order is that in which they depend on each other.
_PARTS: dict[str, Callable[[FusedStage, Tensor], Callable[[], object] | None]] = {
    "convolution": _convolutions,
    "linear": _mlp,
    "activation": _mlp,
    "attention": _attention,
}


def _image(stage: FusedStage, x: Tensor) -> Tensor:
    """Compute the input of the stage behind."""
    tokens, height, width = stage(x)
    tokens = tokens[:, tokens.shape[1] - height * width :]
    image: Tensor = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return image


def _fastest_threads(chain: Sequence[FusedStage], images: Tensor) -> int:
    """Return how many threads are the fastest: as torch has them, one for each core of the system,
    which are twice as many where two share their arithmetic, or half of them."""
    usual = torch.get_num_threads()
    counts = list(dict.fromkeys((usual, max(1, usual // 2))))
    if usual > 1:  # else somebody has said so
        counts = list(dict.fromkeys((*counts, cores())))

    def run(threads: int) -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        x = images
        for stage in chain:
            x = _image(stage, x)

    try:
        return counts[pick_fastest([partial(run, each) for each in counts])]
    finally:
        torch.set_num_threads(usual)


def cache_folder() -> Path:
    """Return the folder of what was measured, beside the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "cvt" / "forms"


def read(key: Mapping[str, Any], kind: Kind) -> Form | None:
    """Return what was measured for that key; None without any, and where the file is corrupt."""
    try:
        values = json.loads(_file_of(key).read_text("utf-8"))
        if values["key"] != key:
            return None
        form = Form.from_dict(values["form"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return form if form.why_not(kind.config.num_stages, kind.dtype, cores()) is None else None


def keep(key: Mapping[str, Any], form: Form) -> None:
    """Keep what was measured. Where that can't be, later runs measure again: a `Remark`."""
    path = _file_of(key)
    text = json.dumps({"key": key, "form": form.to_dict()}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        warnings.warn(
            f"the measurement can't be kept for later runs in {path.parent}: {reason_of(error)}; "
            "--tune never does not measure",
            Remark,
            stacklevel=2,
        )


def _file_of(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest[:16]}.json"


@contextmanager
def _alone(key: Mapping[str, Any]) -> Iterator[None]:
    """Wait for another process that measures the same, as the shards of a job do; not for ever, and
    not where there can be no lock."""
    path = _file_of(key).with_suffix(".lock")
    held = None
    end = time.monotonic() + PATIENCE
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while held is None and time.monotonic() < end:
            try:
                held = lock(path)
            except BlockingIOError:
                time.sleep(0.2)
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                path.unlink()
            held.close()
