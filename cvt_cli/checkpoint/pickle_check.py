"""A look at pickles before they are read: what would end the process or take any memory.

It follows the pickle's stack without making anything.
"""

import io
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

# To hash a tuple, as a dict's key, recurses in C without a bound.
_MAX_NESTED = 100
_NOTES = ("PUT", "BINPUT", "LONG_BINPUT")
_OLD_NOTES = ("GET", "BINGET", "LONG_BINGET")
_NESTING = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
# A file of torch's before 1.6 begins with this number, which four more pickles follow.
_MAGIC = 0x1950A86A20F9469CFC6C
_MORE = 4
_ZIP = b"PK"
_MARK = -1


def is_zip(path: Path) -> bool:
    """Tell whether a file is a zip archive, as torch writes since 1.6."""
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def check_pickles(path: Path) -> None:
    """Check the pickles of a file of torch's, or a bare one.

    Raises:
        UnpicklingError: if one asks for too much; with `GLOBAL` if it calls what does.
            Other errors where a file is broken.
    """
    if is_zip(path):
        import torch

        # By the reader that is to read it: others find other members in a crafted archive.
        reader = torch._C.PyTorchFileReader(str(path))
        check_pickle(io.BytesIO(reader.get_record("data.pkl")))
        return
    with path.open("rb") as file:
        if check_pickle(file):
            for _ in range(_MORE):
                check_pickle(file)


def check_pickle(file: BinaryIO) -> bool:
    """Check one pickle, up to its end.

    Returns:
        Whether the number is in it with which older files of torch begin.

    Raises:
        UnpicklingError, or others: as `check_pickles`.
    """
    # How deep tuples are nested in each thing on the stack; and in what is noted for later.
    stack: list[int] = []
    notes: dict[int, int] = {}
    has_magic = False
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        name = operation.name
        has_magic |= argument == _MAGIC
        if name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise pickle.UnpicklingError("GLOBAL builtins.bytearray")  # of any size
        if name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _NOTES:
            # A reader makes room for as many notes as the highest number says.
            if int(argument or 0) > number:
                raise pickle.UnpicklingError("it numbers its notes otherwise than pickle does")
            notes[int(argument or 0)] = stack[-1]
        elif name == "MEMOIZE":
            notes[len(notes)] = stack[-1]
        elif name in _OLD_NOTES:
            stack.append(notes[int(argument or 0)])
        else:
            depth = _taken(stack, operation.stack_before) + (name in _NESTING)
            if depth > _MAX_NESTED:
                raise pickle.UnpicklingError("it nests tuples too deep")
            stack += [depth] * len(operation.stack_after)
    return has_magic


def _taken(stack: list[int], before: Sequence[object]) -> int:
    """Take from the stack what an operation does; returns how deep the deepest of it is."""
    deepest = 0
    if pickletools.markobject in before:
        while (each := stack.pop()) != _MARK:
            deepest = max(deepest, each)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        deepest = max(deepest, stack.pop())
    return deepest
