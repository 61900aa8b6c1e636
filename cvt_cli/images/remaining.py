"""The inputs that are left to do after an interruption."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from cvt_cli.images.source import Source
from cvt_cli.records import as_written


def remaining(
    search: Callable[[], Iterator[Source]], done: Sequence[str], batch_size: int
) -> tuple[Iterator[Source], int]:
    """Find the sources that are left to do after an interruption.

    Args:
        search: starts the search for the same inputs anew; called once.
        done: the paths that have a record, in its order, as output files write them.
        batch_size: the sources that went through the network together.

    Returns:
        The sources from the first one of the batch that was cut, so that batches are the same
        as in an uninterrupted run; and how many of them have a record already.
    """
    stream = search()
    whole_batches = len(done) // batch_size * batch_size
    again = []
    for index, path in enumerate(done):
        source = next(stream, None)
        if source is None or as_written(source.path) != path:
            warnings.warn(
                "the inputs have changed since: reading those without a record", stacklevel=2
            )
            known = set(done)
            # Earlier sources have a record. The search goes on from here: standard input can't be
            # searched again.
            rest = stream if source is None else chain([source], stream)
            return (each for each in rest if as_written(each.path) not in known), 0
        if index >= whole_batches:
            again.append(source)
    return chain(again, stream), len(again)
