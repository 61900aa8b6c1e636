"""The features that a head is trained on: each image through the network once."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.errors import InputsError
from cvt_cli.images.pool import ReaderPool
from cvt_cli.inference.classifier import Classifier
from cvt_cli.model.cvt import Cvt
from cvt_cli.training.dataset import Sample
from cvt_cli.training.start import Start


@dataclass(frozen=True)
class Embedded:
    """Images as the last layer sees them: embeddings and classes.

    Attributes:
        features: (N, D) float32 on the CPU.
        targets: (N,) int64, their classes.
    """

    features: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, chosen: Tensor) -> "Embedded":
        """Return the images of a mask or of indexes."""
        return Embedded(self.features[chosen], self.targets[chosen])


def feature_extractor(
    checkpoint: Checkpoint,
    start: Start,
    *,
    device: str,
    dtype: str,
    batch_size: int | None,
    readers: ReaderPool | None,
) -> Classifier:
    """Return a classifier that embeds images as `cvt embed` does, with the network that training
    starts from.

    Args:
        checkpoint: where that network is from.
        device, dtype, batch_size, readers: as `Classifier` takes them.

    Raises:
        UsageError: if this machine has no such device or dtype.
    """
    started = _Started(
        checkpoint.files,
        start.model.config,
        tuple(map(str, range(start.model.config.num_labels))),
        preprocessing=start.preprocessing,
        network=start.model.eval(),
    )
    return Classifier(started, device=device, dtype=dtype, batch_size=batch_size, readers=readers)


@dataclass(frozen=True, kw_only=True)
class _Started(Checkpoint):
    """A checkpoint with its network already built."""

    network: Cvt

    def model(self) -> Cvt:
        # A copy, because it is moved to a device and a dtype in place.
        return copy.deepcopy(self.network)


def embed_samples(
    classifier: Classifier,
    samples: Sequence[Sample],
    *,
    errors: dict[str, str],
    on_image: Callable[[bool], None],
) -> Embedded:
    """Compute the embedding of each image that can be read.

    Args:
        errors: gets the path and the reason of each that can't.
        on_image: is called after each image, with whether it failed.
    """
    features = torch.empty(len(samples), classifier.embedding_dim)
    targets = torch.empty(len(samples), dtype=torch.int64)
    count = 0
    records = classifier.embed(sample.source for sample in samples)
    for sample, record in zip(samples, records, strict=True):
        if record.embedding is None:
            errors[record.path] = record.error or ""
        else:
            features[count] = torch.tensor(record.embedding)
            targets[count] = sample.target
            count += 1
        on_image(record.embedding is None)
    return Embedded(features[:count].clone(), targets[:count].clone())


def check_classes(train: Embedded, labels: Sequence[str]) -> None:
    """Check that every class has images to learn from.

    Raises:
        InputsError: if no image of one could be read.
    """
    counts = train.targets.bincount(minlength=len(labels))
    for label, count in zip(labels, counts.tolist(), strict=True):
        if not count:
            raise InputsError(f"{label}: no training image of this class could be read")
