"""Files of weights: they become tensors under our names, whatever they are wrapped in.

Reading never runs code from a file: safetensors, `torch.load(weights_only=True)`, or numpy's arrays
without their pickled code (`numpy_arrays`). Public training code wraps a state dict in other dicts
(`model`, `state_dict`, `model_ema`, …) and prefixes its names (`module.`, `_orig_mod.`, …). A
network is found by the name of its first convolution, so that no list of wrappings is needed.
"""

import argparse
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.checkpoint.checkpoint_files import ResolvedFiles, check_for_pointer
from cvt_cli.checkpoint.foreign import foreign_tensors
from cvt_cli.checkpoint.layouts import LAYOUTS, Layout
from cvt_cli.checkpoint.numpy_arrays import (
    MAX_RATIO,
    NUMPY_NAMES,
    as_tensors,
    read_npz,
    read_pickled_arrays,
)
from cvt_cli.checkpoint.parametrized import Budget, is_plain, without_parts
from cvt_cli.checkpoint.pickle_check import check_pickles, is_zip
from cvt_cli.errors import ModelError
from cvt_cli.system.signals import interruptible
from cvt_cli.system.text import MAX_QUOTED, counted, reason_of, visible

if TYPE_CHECKING:
    import torch

MAX_NAMED_KEYS = 3
MAX_NAMED_NETWORKS = 20
# Of a file: forty times as many as the largest published network has.
MAX_TENSORS = 2**16
MAX_DEPTH = 4  # levels of nested dicts
ROOT = "."  # the key of a network without wrapping

# What torch says of a file that it could not open, with the system's reason.
_NOT_OPENED = re.compile(r"^unable to (?:open|mmap) .*: ([^:]*) \(\d+\)$", re.DOTALL)
_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
# Modules that wrap others anywhere in a network: of torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Buffers that a profiler (thop) leaves in every module.
_PROFILED = re.compile(r"(?:.*\.)?total_(?:ops|params)")


class _Nothing:
    """Stands for an object that training code saves beside the weights. Whatever it is made of is
    dropped."""

    def __new__(cls, *_: object) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dict(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


# Options, dates and measured numbers beside the weights. Their classes are neither imported nor
# called: what stands in for them holds nothing.
_BESIDE_WEIGHTS: tuple[Any, ...] = (
    (_dict, "collections.defaultdict"),
    (OrderedDict, "yacs.config.CfgNode"),
    *((stand_in, name) for name, stand_in in NUMPY_NAMES.items()),
    *(
        (_Nothing, name)
        for name in (
            *(f"builtins.{each}" for each in ("list", "dict", "int", "float", "str", "bool")),
            *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
            *(
                f"{module}.{kind}Path"
                for module in ("pathlib", "pathlib._local")
                for kind in ("", "Posix", "Windows", "Pure", "PurePosix", "PureWindows")
            ),
            *(f"datetime.{each}" for each in ("datetime", "date", "time", "timedelta", "timezone")),
            # Hyperparameters of Lightning: how an optimiser is to be made, and Hydra's options.
            "functools.partial",
            *(
                f"torch.optim.{each}"
                for each in ("adam.Adam", "adamw.AdamW", "sgd.SGD", "rmsprop.RMSprop")
            ),
            *(
                f"torch.optim.lr_scheduler.{each}"
                for each in (
                    "CosineAnnealingLR",
                    "CosineAnnealingWarmRestarts",
                    "ExponentialLR",
                    "LambdaLR",
                    "MultiStepLR",
                    "OneCycleLR",
                    "ReduceLROnPlateau",
                    "StepLR",
                )
            ),
            "typing.Any",
            *(
                f"omegaconf.{each}"
                for each in (
                    "base.ContainerMetadata",
                    "base.Metadata",
                    "dictconfig.DictConfig",
                    "listconfig.ListConfig",
                    "nodes.AnyNode",
                )
            ),
        )
    ),
)


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
        tensors: under our names, on the CPU.
        layout: whose names the file has.
        left_out: other tensors beside them, a profiler's or a loss's.
    """

    tensors: "dict[str, torch.Tensor]"
    layout: Layout
    left_out: "dict[str, torch.Tensor]"


@dataclass(frozen=True)
class _Network:
    """A network in a file: where it is, and the layout of its names.

    Attributes:
        container: the dict of tensors that it is in, and `path`, that dict's keys.
        prefix: what its names begin with.
    """

    path: tuple[str, ...]
    prefix: str
    container: Mapping[str, Any]
    layout: Layout

    @property
    def key(self) -> str:
        return ".".join((*self.path, *self.prefix.split("."))).strip(".") or ROOT


def read_weights(files: ResolvedFiles) -> Weights:
    """Read the weights of a checkpoint, memory-mapped where the format allows.

    Raises:
        ModelError: naming the file, if one is corrupt, truncated, or holds code; or if there are
            several networks and `files.weights_key` names none.
    """
    content = _content(files)
    left_out: dict[str, torch.Tensor] = {}
    network = _choose(files, list(_networks(content)))
    if network is None:
        tensors = _tensors(content)
        layout = next((each for each in LAYOUTS if each.matches(tensors)), LAYOUTS[-1])
        tensors = layout.to_ours(tensors)
    else:
        layout = network.layout
        tensors, left_out = _split(network, list(_networks(content)))
    foreign = foreign_tensors(tensors)
    if foreign is not None:
        raise ModelError(f"{files.name} holds {foreign.what}", hint=foreign.hint)
    if network is None and not any(map(LAYOUTS[-1].owns, tensors)):
        names = f" ({first_of(list(content))})" if content else ""
        raise ModelError(f"{files.name}: its weights are not those of a CvT{names}")
    if tensors and not any(value.numel() for value in tensors.values() if value.ndim):
        raise ModelError(
            f"{files.name} holds a network whose weights are empty, as DeepSpeed's ZeRO-3 leaves "
            "them",
            hint="run zero_to_fp32.py in the checkpoint's folder, which writes the weights",
        )
    for key, value in tensors.items():
        if not is_plain(value):
            raise ModelError(f"{files.name}: {first_of([key])} is not a plain tensor of numbers")
    return Weights(tensors, layout, left_out)


def layout_of(files: ResolvedFiles) -> Layout | None:
    """Find the layout of a checkpoint's weights without reading them; None if that is impossible,
    which reading them will explain."""
    try:
        if all(path.suffix.lower() == ".safetensors" for path in files.weights):
            content: Mapping[str, Any] = {
                name: None
                for path in files.weights
                for name in _names_in_safetensors(files.name, path)
            }
            content = _wholes(files.name, _unwrapped(content))
        else:
            content = _content(files, mmap=True)
        network = _choose(files, list(_networks(content)))
    except Exception:  # a file can be broken in many ways
        return None
    return None if network is None else network.layout


def _names_in_safetensors(name: str, path: Path) -> list[str]:
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:  # "pt" would import torch
        names = list(file.keys())
    if len(names) > MAX_TENSORS:
        raise ModelError(
            f"{name}: {path} holds {len(names)} tensors, more than the limit of {MAX_TENSORS}"
        )
    return names


def state_dict(files: ResolvedFiles) -> "dict[str, torch.Tensor]":
    """Return the tensors of `read_weights`. Warns of those that are left out."""
    weights = read_weights(files)
    if weights.left_out:
        warnings.warn(
            f"{files.name}: ignoring {counted(len(weights.left_out), 'tensor')} "
            f"outside the network ({first_of(list(weights.left_out))})",
            stacklevel=2,
        )
    return weights.tensors


def _content(files: ResolvedFiles, mmap: bool = False) -> Mapping[str, Any]:
    """Read the contents of the file, or of all shards together.

    Args:
        mmap: leave the numbers in the file, if its format allows that.
    """
    content: dict[str, Any] = {}
    for path in files.weights:
        content |= _read_file(files.name, path, mmap)
    return _wholes(files.name, _unwrapped(content))


def _wholes(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict of weights, or of such dicts, with weights in place of their parts."""
    budget = Budget.of(content, MAX_DEPTH)

    def converted(content: Mapping[str, Any], depth: int) -> dict[str, Any]:
        whole = without_parts(name, content, budget)
        if depth < MAX_DEPTH:
            for key, value in whole.items():
                if isinstance(value, Mapping):
                    whole[key] = converted(value, depth + 1)
        return whole

    return converted(content, 0)


def _unwrapped(content: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return a dict of weights, or of such dicts, without the names of modules that wrap others."""
    if depth < MAX_DEPTH:
        content = {
            name: _unwrapped(_keyed(value), depth + 1) if isinstance(value, Mapping) else value
            for name, value in content.items()
        }
    plain = {_WRAPPERS.sub("", name): value for name, value in content.items()}
    return plain if len(plain) == len(content) else dict(content)


def _networks(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[_Network]:
    """Yield every network in a dict and in the dicts in it."""
    for name, value in content.items():
        if isinstance(value, Mapping) and len(path) < MAX_DEPTH:
            yield from _networks(value, (*path, name))
        for layout in LAYOUTS:
            first = layout.first
            if name.endswith(first) and name[: -len(first)][-1:] in ("", "."):
                yield _Network(path, name.removesuffix(first), container=content, layout=layout)
                break


def _choose(files: ResolvedFiles, networks: list[_Network]) -> _Network | None:
    """Choose the only network, or the requested one; None if there is none at all."""
    key = files.weights_key and _WRAPPERS.sub("", f"{files.weights_key}.").removesuffix(".")
    chosen = networks
    if key is not None:
        exact = [each for each in networks if each.key == key]
        chosen = exact or [each for each in networks if each.key.startswith(f"{key}.")]
    keys = sorted(each.key for each in (chosen or networks))
    if key is not None and not chosen:
        raise ModelError(
            f"{files.name} has no CvT under {key!r}",
            hint=f"--weights-key takes one of {', '.join(keys)}" if keys else "",
        )
    if len(chosen) > 1:
        raise ModelError(
            f"{files.name} holds {len(chosen)} networks: {first_of(keys, MAX_NAMED_NETWORKS)}",
            hint=f"pick one: --weights-key {keys[0]}",
        )
    return chosen[0] if chosen else None


def _split(
    network: _Network, all_networks: list[_Network]
) -> "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]":
    """Split the network's tensors, under our names, from foreign ones in the same dict."""
    prefixes = [each.prefix for each in all_networks if each.path == network.path]
    own: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for key, value in _tensors(network.container).items():
        # One network may lie below the prefix of another: the longest prefix that fits decides.
        prefix = max((each for each in prefixes if key.startswith(each)), key=len, default=None)
        if prefix is None:
            left_out[key] = value
        elif prefix == network.prefix:
            name = key.removeprefix(prefix)
            inside = network.layout.owns(name) and not _PROFILED.fullmatch(name)
            (own if inside else left_out)[name] = value
    return network.layout.to_ours(own), left_out


def _tensors(content: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
    return {key: value for key, value in content.items() if _is_tensor(value)}


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _read_file(name: str, path: Path, mmap: bool) -> dict[str, Any]:
    check_for_pointer(name, path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(name, path)
    if path.suffix.lower() == ".npz":
        return _read_npz(name, path)
    return _read_pickle(name, path, mmap and is_zip(path))


def _read_safetensors(name: str, path: Path) -> "dict[str, torch.Tensor]":
    import safetensors.torch

    try:
        with interruptible():
            _names_in_safetensors(name, path)
            return safetensors.torch.load_file(path)
    except ModelError:
        raise
    # safetensors' own error; or OSError, KeyError and others for claims in the header.
    except Exception as error:
        raise _corrupt(name, path, error) from error


def _read_npz(name: str, path: Path) -> "dict[str, torch.Tensor]":
    try:
        with interruptible():
            return read_npz(path)
    except Exception as error:  # a broken archive makes the reader raise nearly anything
        raise _corrupt(name, path, error) from error


def _read_pickle(name: str, path: Path, mmap: bool) -> dict[str, Any]:
    try:
        content = _loaded(path, mmap)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or _calls_something(path):
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({found[1][:MAX_QUOTED]})" if found else ""
            raise ModelError(
                f"{name}: {path} holds more than weights: a pickle that could run code{what}; "
                "refused",
                hint="ask its author for a .safetensors file, or the weights alone: "
                "torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        raise _corrupt(name, path, error) from error
    # A broken archive or pickle makes the reader raise nearly anything.
    except Exception as error:
        raise _corrupt(name, path, error) from error
    if not isinstance(content, dict):
        raise ModelError(f"{name}: {path} contains no state dict")
    return _keyed(content)


def _keyed(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a dict whose keys are text."""
    return {_text(key): value for key, value in content.items()}


def _text(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and abs(key) < 2**63:  # states of optimisers are numbered
        return str(key)
    return f"<{type(key).__name__}>"  # others may be such that they can't be written


def _loaded(path: Path, mmap: bool) -> Any:
    """Load a file of torch's, or a bare pickle of numpy's arrays."""
    import torch

    with interruptible():
        check_pickles(path)
    try:
        # Training code saves its options as argparse's Namespace, a mere bag of attributes: making
        # one runs no code.
        with (
            warnings.catch_warnings(),
            interruptible(),
            torch.serialization.safe_globals([argparse.Namespace, *_BESIDE_WEIGHTS]),
        ):
            # They are about the age of the format, and how to open it anyhow.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        return as_tensors(content, MAX_RATIO * path.stat().st_size)
    except Exception as error:
        if isinstance(error, OSError) or is_zip(path) or "GLOBAL" in str(error):
            raise
        with path.open("rb") as file, interruptible():
            found = read_pickled_arrays(file)
        if isinstance(found, int):  # with which a file of torch's begins
            raise
        return found


def _corrupt(name: str, path: Path, error: Exception) -> ModelError:
    if isinstance(error, PermissionError | IsADirectoryError):
        return ModelError(f"{name}: {path}: {reason_of(error)}")
    if (found := _NOT_OPENED.search(str(error))) is not None:
        return ModelError(f"{name}: {path} can't be read: {found[1].lower()}")
    if "TorchScript" in str(error):
        return ModelError(
            f"{name}: {path} is a TorchScript program, not a file of weights: refused",
            hint="save the weights: torch.save(model.state_dict(), 'weights.pth')",
        )
    return ModelError(
        f"{name}: {path} is corrupt or truncated ({_reason(error)})",
        hint="fetch or copy it again; --refresh does so for a file from the Hub",
    )


def _calls_something(path: Path) -> bool:
    """Tell whether a bare pickle names a function or class. It is read, not run. If it is newer
    than torch's reader knows, that one stops before it gets there."""
    try:
        if is_zip(path):
            return False
        with path.open("rb") as file:
            return any(operation.name in _CALLS for operation, _, _ in pickletools.genops(file))
    except Exception:  # bytes other than a pickle raise all kinds of errors
        return False


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights_only" in text:  # torch advises to open the file without the safeguard
        return "not a pickle of weights"
    return text[:150] or type(error).__name__


def first_of(keys: list[str], count: int = MAX_NAMED_KEYS) -> str:
    """Join the first few of many names, as much of each as can be read."""
    return ", ".join(visible(key[:MAX_QUOTED]) for key in keys[:count]) + (
        ", …" if len(keys) > count else ""
    )
