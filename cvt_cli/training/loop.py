"""The training loop.

On a CPU, what a run computes is a function of its data and settings alone: every epoch draws its
order and its augmentation from (seed, epoch), so that a resumed run equals an uninterrupted one.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cvt_cli.errors import CvtError, InputsError, UsageError
from cvt_cli.images.preprocess import Preprocessing
from cvt_cli.model.cvt import Cvt
from cvt_cli.training.augment import Augmenter
from cvt_cli.training.data import Images
from cvt_cli.training.recorded_step import RecordedStep
from cvt_cli.training.schedule import MovingAverage, freeze, learning_rate, parameter_groups
from cvt_cli.training.settings import Settings
from cvt_cli.training.temperature import TemperatureFit, fit_temperature

# Tokens in the first stage up to which all their attention scores fit into memory.
FEW_TOKENS = 1024
# Seconds between two looks at the loss, for which a GPU has to be waited for.
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class EpochProgress:
    """Progress of an epoch: means over its images so far.

    Attributes:
        images: how many were trained on.
        accuracy: share of them, as augmented, whose label was the most likely one; for mixed
            images the larger part's.
    """

    images: int
    loss: float
    accuracy: float


class Trainer:
    """Trains a network; `epoch` does one epoch.

    Args:
        model: is trained in place; moved to the device.
        train, val: images as `Images` yields them; `val` may be empty.
        errors: where both put what they could not read.
        preprocessing: the network's; its `normalize` is applied after augmentation.
        device: where it computes.

    Attributes:
        history: the metrics of each epoch that is done.
        average: of the weights; the result.
    """

    def __init__(
        self,
        model: Cvt,
        train: Images,
        val: Images,
        *,
        errors: dict[str, str],
        preprocessing: Preprocessing,
        settings: Settings,
        device: torch.device,
    ) -> None:
        if preprocessing.image_size is None:
            raise ValueError("the preprocessing makes images of differing sizes")
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: Callable[[Tensor], Tensor] = self.model
        self.settings = settings
        self.history: list[dict[str, Any]] = []
        self.average = MovingAverage(self.model, settings.ema_decay)
        # The network with the averaged weights.
        self._averaged = copy.deepcopy(self.model).eval()
        self._train, self._val, self._errors = train, val, errors
        self._preprocessing, self._device = preprocessing, device
        rows, columns = model.config.tokens(*preprocessing.image_size)[0]
        self._few_tokens = rows * columns <= FEW_TOKENS
        self._augment = Augmenter(
            settings.augmentation,
            preprocessing.image_size,
            model.config.num_labels,
            label_smoothing=settings.label_smoothing,
        )
        self._frozen = [] if settings.train_blocks is None else freeze(model, settings.train_blocks)
        self._parameters = [each for each in self.model.parameters() if each.requires_grad]
        groups = parameter_groups(self.model, settings.weight_decay)
        # A recorded step reads its learning rate from one place on the device.
        on_cuda = device.type == "cuda"
        self._rate = torch.zeros((), device=device) if on_cuda else None
        self._optimizer = torch.optim.AdamW(
            groups, lr=0.0 if self._rate is None else self._rate, fused=True, capturable=on_cuda
        )
        self._update = RecordedStep(self._update_weights, device)
        # Incomplete batches are dropped, unless there is no other.
        self.batches_per_epoch = max(1, len(train.samples) // settings.batch_size)
        # Within an epoch: batches done, images in them, and on the device the sums of their losses
        # and of their right images.
        self._batch = 0
        self._images = 0
        self._sums = torch.zeros(2, device=device)
        self._seconds = 0.0
        self._progress = EpochProgress(0, 0.0, 0.0)
        self._looked_at = 0.0

    @property
    def epochs_done(self) -> int:
        """Number of complete epochs."""
        return len(self.history)

    @property
    def is_done(self) -> bool:
        """Whether no epoch is left."""
        return self.epochs_done >= self.settings.epochs

    @property
    def images_per_epoch(self) -> int:
        """Number of images an epoch trains on, if all can be read."""
        return min(len(self._train.samples), self.batches_per_epoch * self.settings.batch_size)

    def epoch(
        self, on_batch: Callable[[EpochProgress], None], interrupted: Callable[[], bool]
    ) -> dict[str, Any]:
        """Train on every image once, or on the rest of an epoch that was interrupted, and
        validate with the averaged weights.

        Args:
            on_batch: is called after every batch; loss and accuracy are those of a little before
                on a GPU.
            interrupted: is asked after every batch; true ends the epoch there.

        Returns:
            The epoch's metrics, which `history` then has too.

        Raises:
            KeyboardInterrupt: after the batch, if `interrupted` said so. `state` then holds what
                is needed to go on with the next one.
            CvtError: if the loss is NaN.
            InputsError: if no image could be read.
        """
        epoch, settings = self.epochs_done, self.settings
        order = self._order(epoch)
        if self._batch == 0:
            torch.manual_seed(settings.seed * 1_000_003 + epoch)
        self._train_mode()
        start = time.monotonic()
        for pixels, targets in self._train.batches(order[self._batch :]):
            # Batch norm has no statistics for a single image.
            if len(targets) > 1:
                with self._update.stream():
                    self._step(pixels, targets)
            self._batch += 1
            on_batch(self._look())
            if interrupted():
                self._look(at_once=True)
                self._seconds += time.monotonic() - start
                raise KeyboardInterrupt
        progress = self._look(at_once=True)
        self._seconds += time.monotonic() - start
        if progress.images == 0:
            named = (f", for example {path}: {why}" for path, why in self._errors.items())
            raise InputsError("no training image could be read" + next(named, ""))
        metrics = {
            "epoch": epoch + 1,
            "train_loss": progress.loss,
            "train_accuracy": progress.accuracy,
            **self._validate(),
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "images": progress.images,
            "unreadable": len(self._errors),
            "seconds": round(self._seconds, 3),
            "images_per_second": round(progress.images / max(self._seconds, 1e-9), 1),
        }
        self.history.append(metrics)
        self._batch, self._images, self._seconds = 0, 0, 0.0
        self._sums.zero_()
        return metrics

    def compile(self) -> None:
        """Compute from now on with kernels that `torch.compile` makes for this network. Takes a
        minute; results are the same up to rounding.

        Raises:
            UsageError: if it can't be compiled here; the trainer then goes on without.
        """
        size = self._preprocessing.image_size or (0, 0)
        count = min(self.settings.batch_size, max(2, len(self._train.samples)))
        pixels = torch.zeros(count, *size, 3, dtype=torch.uint8)
        targets = torch.zeros(count, dtype=torch.int64)
        statistics = {name: value.clone() for name, value in self.model.named_buffers()}
        cuda = [self._device] if self._device.type == "cuda" else []
        self._network = torch.compile(self.model, dynamic=False)
        self._train_mode()
        try:
            with torch.random.fork_rng(devices=cuda), self._update.stream():
                self._backward(*self._augmented(pixels, targets))
        # Its backends and their compilers raise nearly anything.
        except Exception as error:
            self._network = self.model
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"torch.compile can't compile this network here: {reason}") from error
        finally:
            self._optimizer.zero_grad()
            for name, value in self.model.named_buffers():
                value.copy_(statistics[name])

    def _train_mode(self) -> None:
        self.model.train()
        # Neither their statistics nor what they compute may change.
        for module in self._frozen:
            module.eval()

    def _order(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._train.samples), generator=generator)
        return list(order.split(self.settings.batch_size))[: self.batches_per_epoch]

    def _step(self, pixels: Tensor, targets: Tensor) -> None:
        settings = self.settings
        steps = settings.epochs * self.batches_per_epoch
        step = self.epochs_done * self.batches_per_epoch + self._batch
        warmup = round(settings.warmup_epochs * self.batches_per_epoch)
        rate = learning_rate(step, steps, warmup, peak=settings.learning_rate)
        self._set_rate(rate)
        self._update(*self._augmented(pixels, targets))
        self.average.update()
        self._images += len(targets)

    def _set_rate(self, rate: float) -> None:
        if self._rate is not None:
            self._rate.fill_(rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate if self._rate is None else self._rate

    def _augmented(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Make the network's input and soft targets of a batch, on the device."""
        # In float32, as less would displace pixels.
        x, soft_targets = self._augment(
            pixels.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)
        )
        return self._preprocessing.normalize(x), soft_targets

    def _update_weights(self, x: Tensor, soft_targets: Tensor) -> None:
        loss, right = self._backward(x, soft_targets)
        nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm)
        self._optimizer.step()
        self._sums += torch.stack([loss * len(x), right])

    def _backward(self, x: Tensor, soft_targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a batch. Returns its mean loss and the number of right images,
        both on the device."""
        with _precision(self.settings.dtype, self._device, self._few_tokens):
            logits = self._network(x).float()
            loss = F.cross_entropy(logits, soft_targets)
            self._optimizer.zero_grad()
            loss.backward()
        return loss.detach(), (logits.argmax(1) == soft_targets.argmax(1)).sum()

    def _look(self, at_once: bool = False) -> EpochProgress:
        """Return the progress of the epoch, maybe a little old: a GPU is waited for now and then
        only, or if `at_once`.

        Raises:
            CvtError: if the loss is NaN.
        """
        now = time.monotonic()
        on_cpu = self._device.type == "cpu"
        if at_once or on_cpu or now - self._looked_at > SECONDS_BETWEEN_LOOKS:
            self._looked_at = now
            loss, right = self._sums.tolist()
            if not math.isfinite(loss):
                raise CvtError(
                    f"the loss is {loss} in epoch {self.epochs_done + 1}",
                    hint="a lower --lr may help; --resume continues from the last epoch",
                )
            images = max(1, self._images)
            self._progress = EpochProgress(self._images, loss / images, right / images)
        return dataclasses.replace(self._progress, images=self._images)

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Measure loss and accuracy of the averaged weights; empty without a validation set."""
        images, loss, right = 0, 0.0, 0
        for logits, targets in self._validation():
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            right += int((logits.argmax(1) == targets).sum())
            images += len(targets)
        return {"val_loss": loss / images, "val_accuracy": right / images} if images else {}

    @torch.inference_mode()
    def fit_temperature(self) -> TemperatureFit:
        """Find the temperature to divide the averaged weights' logits by, on the validation images.

        Raises:
            InputsError: if none of these could be read.
        """
        batches = list(self._validation())
        if not batches:
            raise InputsError("no validation image could be read")
        logits, targets = zip(*batches, strict=True)
        return fit_temperature(torch.cat(logits), torch.cat(targets))

    def _validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute logits (B, C) float32 and targets (B,) of the validation images, on the CPU, with
        the averaged weights."""
        self._averaged.load_state_dict(self.average.state)
        indexes = torch.arange(len(self._val.samples)).split(2 * self.settings.batch_size)
        for pixels, targets in self._val.batches(indexes):
            if len(targets):
                logits = self._averaged(self._preprocessing.normalize(pixels.to(self._device)))
                yield logits.cpu(), targets.cpu()

    def state(self) -> dict[str, Any]:
        """Return everything that is needed to continue from here."""
        cuda = self._device.type == "cuda"
        return {
            "settings": dataclasses.asdict(self.settings),
            "samples": len(self._train.samples),
            "history": self.history,
            "model": self.model.state_dict(),
            "average": self.average.state,
            "average_updates": self.average.updates,
            "optimizer": self._optimizer.state_dict(),
            "batch": self._batch,
            "images": self._images,
            "sums": self._sums,
            "seconds": self._seconds,
            "errors": self._errors,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self._device) if cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. The number of epochs may be another one than before: the learning
        rate then follows the new schedule from here on.

        Raises:
            UsageError: if it belongs to other settings or other data; names what differs.
        """
        before, now = state["settings"], dataclasses.asdict(self.settings)
        # An older state lacks what is new since.
        before = {"background": None, "accept_truncated": False, "train_blocks": None} | before
        differing = [k for k in now if k != "epochs" and before.get(k) != now[k]]
        if differing:
            name = differing[0]
            raise UsageError(
                f"the interrupted run had {name} = {before.get(name)}, not {now[name]}",
                hint="use the same options, or start over with --overwrite",
            )
        if state["samples"] != len(self._train.samples):
            raise UsageError(
                f"the interrupted run had {state['samples']} training images, "
                f"now there are {len(self._train.samples)}",
                hint="--overwrite starts over",
            )
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:
            raise UsageError(
                "the interrupted run trained another architecture",
                hint="use the same options, or start over with --overwrite",
            ) from None
        self.average.restore(state["average"], state["average_updates"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:  # another device's, maybe
            group["capturable"] = self._device.type == "cuda"
        self._update.forget()
        self.history = list(state["history"])
        self._batch, self._images = state["batch"], state["images"]
        self._sums.copy_(state["sums"])
        self._seconds = state["seconds"]
        self._errors.update(state["errors"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)


@contextmanager
def _precision(dtype: str, device: torch.device, few_tokens: bool) -> Iterator[None]:
    """Apply a `Settings.dtype` on a device, as a context manager."""
    if dtype == "bfloat16" and device.type == "cpu":
        # Activations stay float32: at these widths casting them costs more than it saves.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        # The blockwise attention is slow at this precision, the plain one needs the memory.
        backend = SDPBackend.MATH if few_tokens else SDPBackend.FLASH_ATTENTION
        try:
            with sdpa_kernel([backend, SDPBackend.MATH]):
                yield
        finally:
            torch.set_float32_matmul_precision(before)
    else:
        # All batches have one size, for which cuDNN looks for the fastest convolutions once.
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
