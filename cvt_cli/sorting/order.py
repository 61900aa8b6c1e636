"""The order in which pictures are worth looking at: what a correction teaches most comes first.

By the scores, the pictures between two labels (Settles, "Active Learning Literature Survey", 3.1:
margin sampling); by the embeddings, those most unlike all before them (Sener and Savarese, "Active
Learning for Convolutional Neural Networks: A Core-Set Approach", algorithm 1: greedy k-center).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cvt_cli.records import Record, ScoreKind, as_written

# The score of one of several labels at once that says nothing either way.
DOUBTFUL_SCORE = 0.5


def margin(record: Record) -> float:
    """Return how far a record is from having another label: its best score less its second one,
    if it has one; of several labels at once, the least distance of a score from 0.5. Without a
    label it is below all others: -1.

    Raises:
        ValueError: if the scores are those of a regression.
    """
    kind = record.columns.get("scores", ScoreKind.SOFTMAX)
    scores = [prediction.score for prediction in record.predictions]
    if kind == ScoreKind.RAW:
        raise ValueError("the values of a regression have no order of doubt")
    if not scores:
        return -1
    if kind == ScoreKind.SIGMOID:
        return min(abs(score - DOUBTFUL_SCORE) for score in scores)
    return scores[0] - (scores[1] if len(scores) > 1 else 0)


def uncertain(records: Iterable[Record], known: Collection[str] = ()) -> Iterator[str]:
    """Yield the paths of records by `margin`, the least first, in their order where it is equal.
    Errors are left out.

    Args:
        known: paths that are labelled already, as records have them: not yielded.

    Raises:
        ValueError: as `margin`.
    """
    left = [each for each in records if each.error is None and as_written(each.path) not in known]
    for index in np.argsort([margin(record) for record in left], kind="stable"):
        yield left[index].path


def diverse(records: Iterable[Record], known: Collection[str] = ()) -> Iterator[str]:
    """Yield the paths of records of embeddings, each the one most unlike all before it. Errors are
    left out.

    Args:
        known: paths that are labelled already, as records have them: not yielded, and what is
            like them comes late.

    Raises:
        ValueError: if the embeddings differ in size.
    """
    paths: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    for record in records:
        if record.embedding is not None:
            paths.append(record.path)
            vectors.append(np.array(record.embedding, np.float32))
    if not vectors:
        return
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError("the embeddings differ in size")
    seeds = [index for index, path in enumerate(paths) if as_written(path) in known]
    for index in farthest_first(np.stack(vectors), seeds):
        yield paths[index]


def farthest_first(vectors: NDArray[np.float32], seeds: Sequence[int] = ()) -> Iterator[int]:
    """Yield the index of each vector but the seeds, each the farthest from all that came before
    it; the first of those that are equally far.

    Args:
        vectors: (N, D) float32, N > 0.
        seeds: came before. Without any the vector nearest to the mean comes first.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    # The squared distance to the nearest that came before; -1 for those themselves.
    nearest = np.full(len(vectors), np.inf, np.float32)

    def take(index: int) -> None:
        distances = squares - 2 * (vectors @ vectors[index]) + squares[index]
        np.minimum(nearest, np.maximum(distances, 0), out=nearest)
        nearest[index] = -1

    for seed in seeds:
        take(seed)
    left = len(vectors) - len(set(seeds))
    if not seeds:
        mean = vectors.mean(0)
        first = int(np.argmin(squares - 2 * (vectors @ mean)))
        take(first)
        yield first
        left -= 1
    for _ in range(left):
        index = int(np.argmax(nearest))
        take(index)
        yield index
