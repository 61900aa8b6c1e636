"""Code for `first` of `run_cvt.start`: what the command does to itself at a point of its work.

A signal from outside comes too early or too late where the machine is slow or busy.
"""

import signal
from textwrap import indent

_AT_CALL = """
import importlib
import os
import signal
import time

owner = importlib.import_module({module!r})
*owners, name = {name!r}.split(".")
for each in owners:
    owner = getattr(owner, each)
call, calls = getattr(owner, name), 0


def counting(*given, **named):
    global calls
    result = call(*given, **named)
    calls += 1
    if calls == {count}:
{then}
    return result


setattr(owner, name, counting)
"""


def at_call(place: str, count: int, then: int | str = signal.SIGKILL) -> str:
    """Code that does something when a function was called so many times.

    Args:
        place: the function, as `package.module:Class.method`.
        count: after which call.
        then: code, or the number of the signal that the process sends itself.
    """
    module, _, name = place.partition(":")
    if not isinstance(then, str):
        then = f"os.kill(os.getpid(), {int(then)})"
    return _AT_CALL.format(module=module, name=name, count=count, then=indent(then, " " * 8))
