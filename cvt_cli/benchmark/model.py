"""The model that is measured: a checkpoint on this machine, or random weights in its place."""

from dataclasses import dataclass, replace

import torch

from cvt_cli.checkpoint.catalog import PUBLISHED, CatalogEntry
from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles
from cvt_cli.checkpoint.load import Checkpoint, load
from cvt_cli.checkpoint.resolve import resolve
from cvt_cli.errors import ModelError
from cvt_cli.inference.devices import pick_dtype
from cvt_cli.model.cvt import Cvt

SEED = 0


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A published architecture whose weights are not on this machine. Its labels are numbers."""

    def model(self) -> Cvt:
        """Build the network with random weights, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return Cvt(self.config).eval()


def find_model(
    name: str,
    revision: str | None = None,
    hidden_act: str | None = None,
    *,
    weights_key: str | None = None,
) -> Checkpoint:
    """Load a checkpoint that is on this machine, or else only the architecture of a published one.
    Makes no request.

    Raises:
        ModelError: if it is neither.
    """
    try:
        files = resolve(name, revision, offline=True, weights_key=weights_key)
    except ModelError:
        entry = None if revision else next((e for e in PUBLISHED if e.name == name), None)
        if entry is None:
            raise
        return _random(entry, hidden_act)
    return load(files, hidden_act)


def _random(entry: CatalogEntry, hidden_act: str | None) -> RandomCheckpoint:
    config = entry.config
    if hidden_act is not None:
        config = replace(config, hidden_act=hidden_act)
    labels = tuple(f"LABEL_{index}" for index in range(config.num_labels))
    files = ResolvedFiles(entry.name, None, None, weights=())
    return RandomCheckpoint(files, config, labels, preprocessing=entry.preprocessing)


def pick_dtypes(names: str, device: torch.device) -> tuple[str, ...]:
    """Parse comma-separated dtypes as `pick_dtype` takes them, without repetitions; "auto" becomes
    the dtype that it stands for.

    Raises:
        UsageError: if a name is unknown.
    """
    picked = (pick_dtype(name.strip(), device) for name in names.split(","))
    return tuple(dict.fromkeys(str(each).removeprefix("torch.") for each in picked))
