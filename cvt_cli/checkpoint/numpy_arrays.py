"""Weights as numpy's arrays, in `.npz` files and in pickles; no code of a file runs.

A pickle calls functions by their names. Here each name stands for one of ours, which only notes
what an array is made of; numpy's own are never called.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

# Bytes that arrays may unpack to, per byte of the file.
MAX_RATIO = 100
_MAX_DEPTH = 8
# Entries of dicts that were met before: one may hold itself, many times.
_MAX_AGAIN = 2**16
_MAX_AXES = 64  # of numpy
_MAX_NUMBERS = 2**63
# Parts of an array's state.
_STATE = 5
_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class ArrayType:
    """Stands for `numpy.dtype` in a pickle."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name if isinstance(name, str) else ""
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


class Array:
    """Stands for `numpy.ndarray` in a pickle: what it is made of."""

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: object) -> None:
        # Its version, shape, dtype, order of axes, and bytes.
        if isinstance(state, tuple) and len(state) == _STATE:
            self.parts = state[1:]

    def tensor(self) -> "torch.Tensor | None":
        """Return the numbers; None for an array of other things.

        Raises:
            ValueError: if there are not as many bytes as its shape needs.
        """
        import numpy as np
        import torch

        if not self.parts:
            return None
        shape, kind, by_columns, content = self.parts
        if not isinstance(kind, ArrayType) or kind.name not in _NUMBERS:
            return None
        if not isinstance(content, bytes | bytearray) or not _is_shape(shape):
            return None
        dtype = np.dtype(kind.order + kind.name)
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError("an array has not as many bytes as its shape needs")
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")
        # A copy, in the machine's own order of bytes, that may be written to.
        return torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, tuple) or len(shape) > _MAX_AXES:
        return False
    return all(isinstance(n, int) and 0 <= n < _MAX_NUMBERS for n in shape)


def make_array(*_: object) -> Array:
    """Stand for numpy's `_reconstruct`, whose array gets its contents afterwards."""
    return Array()


def array_of_bytes(*parts: object) -> Array:
    """Stand for numpy's `_frombuffer`, as in pickles of protocol 5."""
    content, kind, shape, order = (*parts, *[None] * 4)[:4]
    made = Array()
    if isinstance(content, pickle.PickleBuffer):
        content = bytes(content)
    made.parts = (shape, kind, order == "F", content)
    return made


NUMPY_NAMES: dict[str, Any] = {
    "numpy.ndarray": Array,
    "numpy.dtype": ArrayType,
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", make_array),
            ("numeric._frombuffer", array_of_bytes),
        )
    },
}


def as_tensors(content: Any, most_bytes: int) -> Any:
    """Return dicts with tensors in place of the arrays in them, some levels deep.

    Args:
        most_bytes: of all arrays together: many may name the same bytes.

    Raises:
        ValueError: if there are more, or dicts that hold each other without end.
    """
    import torch

    again, size = 0, 0
    seen: set[int] = set()
    made: dict[int, torch.Tensor | None] = {}  # weights that are tied are one array

    def converted(value: Any, depth: int) -> Any:
        nonlocal again, size
        if isinstance(value, Array):
            if id(value) not in made:
                tensor = made[id(value)] = value.tensor()
                size += 0 if tensor is None else tensor.nbytes
                if size > most_bytes:
                    raise ValueError("its arrays unpack to far more than it has")
            return made[id(value)]
        if isinstance(value, torch.Tensor):
            # A file may give a tensor attributes, also in place of its methods.
            vars(value).clear()
            return value
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            again += len(value) if id(value) in seen else 0
            if again > _MAX_AGAIN:
                raise ValueError("its dicts hold each other without end")
            seen.add(id(value))
            return {key: converted(each, depth + 1) for key, each in value.items()}
        return value

    return converted(content, 0)


class _Unpickler(pickle.Unpickler):
    """Reads dicts of arrays; every name that it does not know is an error."""

    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return found if isinstance(found, type) else _Function(found)


class _Function:
    """One of our functions, of which a pickle can set nothing."""

    __slots__ = ("_stand_in",)

    def __init__(self, stand_in: Callable[..., Any]) -> None:
        self._stand_in = stand_in

    def __call__(self, *parts: object) -> Any:
        return self._stand_in(*parts)

    def __setstate__(self, _: object) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Stand for `_codecs.encode`, by which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


_NAMES = {**NUMPY_NAMES, "_codecs.encode": _encoded, "collections.OrderedDict": OrderedDict}


def read_pickled_arrays(file: BinaryIO) -> Any:
    """Read a bare pickle of arrays.

    Raises:
        UnpicklingError: with `GLOBAL` and the name, if it calls anything else; or if it is broken.
            Other errors where it is.
    """
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(0)
    return as_tensors(_Unpickler(file).load(), size)


def read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of an `.npz` file.

    Raises:
        ValueError: if an array holds objects, or unpacks to far more than the file has.
            Other errors where it is broken.
    """
    import zipfile

    import numpy as np
    import torch

    with zipfile.ZipFile(path) as archive:
        if sum(each.file_size for each in archive.infolist()) > MAX_RATIO * path.stat().st_size:
            raise ValueError("it unpacks to far more than it has")
        read: dict[str, Any] = {}
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            # Read whole first: a header alone would make room for any size.
            content = io.BytesIO(archive.read(entry))
            if not _fits(content):
                raise ValueError(f"{entry.filename} has not as many bytes as its shape needs")
            array = np.lib.format.read_array(content, allow_pickle=False)
            kind = array.dtype.newbyteorder("=")
            if kind.str[1:] in _NUMBERS:
                read[entry.filename[:-4]] = torch.from_numpy(array.astype(kind, order="C"))
    return read


def _fits(content: io.BytesIO) -> bool:
    """Tell whether an array has as many bytes as its header says."""
    import numpy as np

    first = np.lib.format.read_magic(content) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    fits = math.prod(shape) * dtype.itemsize <= len(content.getbuffer()) - content.tell()
    content.seek(0)
    return fits or dtype.hasobject
