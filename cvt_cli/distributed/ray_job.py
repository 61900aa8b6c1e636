"""The settings and the model that every worker gets."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cvt_cli import __version__
from cvt_cli.checkpoint.catalog import bundled_names
from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.group_table import GroupedLabel
from cvt_cli.checkpoint.load import Checkpoint
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import CvtError
from cvt_cli.images.reading import ImageReader
from cvt_cli.images.source import Search

if TYPE_CHECKING:
    from cvt_cli.model.form import Form


@dataclass(frozen=True, kw_only=True)
class RayJob:
    """The settings that every worker gets.

    Attributes:
        checkpoint: as the driver has it; its weights are not sent along.
        device, dtype: "auto" for what the workers' machines are fast at.
        batch_size: images through the network at once; None for what suits.
        reader: decodes for it.
        only: class indexes of the labels to choose from; empty for all.
        groups: labels that are one answer, as `Classifier` takes them; None for none.
        search: how archives are read, and downloads bounded.
        offline: ask the Hub for nothing.
        form: of the network on a CPU; None for the usual one.
        version: of cvt, which nodes that join later are to have too.
    """

    checkpoint: Checkpoint
    device: str
    dtype: str
    batch_size: int | None
    reader: ImageReader
    only: tuple[int, ...]
    top_k: int
    threshold: float | None
    columns: tuple[str, ...]
    search: Search
    offline: bool
    groups: Sequence[GroupedLabel] | None = None
    form: "Form | None" = None
    version: str = __version__

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class index: the label, or its group."""
        from cvt_cli.inference.label_groups import groups_of

        groups = groups_of(self.groups, self.checkpoint)
        return self.checkpoint.labels if groups is None else groups.names


@dataclass(frozen=True)
class Shipped:
    """A model to send: by name and commit, if nodes can get it from their cache or the Hub, or as
    the bytes of its files."""

    name: str
    commit: str | None
    offline: bool
    weights: tuple[tuple[str, np.ndarray], ...] = ()

    @classmethod
    def of(cls, files: ResolvedFiles, offline: bool) -> "Shipped":
        """Return what to send for a model."""
        if files.commit is not None or files.name in bundled_names():
            return cls(files.name, files.commit, offline)

        weights = tuple((path.name, np.fromfile(path, np.uint8)) for path in files.weights)
        return cls(files.name, None, offline, weights=weights)

    def checkpoint(self, like: Checkpoint, folder: Path) -> Checkpoint:
        """Load the same model on this node.

        Args:
            like: the driver's.
            folder: where files that were sent are put.

        Raises:
            ModelError: if it can't be found or loaded.
        """
        if not self.weights:
            key = like.files.weights_key
            files = resolve(self.name, self.commit, offline=self.offline, weights_key=key)
            return replace(like, files=files)

        def put(name: str, content: np.ndarray) -> Path:
            content.tofile(folder / name)
            return folder / name

        weights = tuple(put(name, content) for name, content in self.weights)
        return replace(like, files=replace(like.files, weights=weights))


def check_version(version: str) -> None:
    """Check the version of a node that joined the cluster later. Raises CvtError if it differs."""
    if version != __version__:
        raise CvtError(f"the node {platform.node()} has cvt {__version__}, the run is {version}'s")
