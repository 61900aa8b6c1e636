"""Which pictures to look at first, by their scores and by their embeddings."""

import numpy as np
import pytest

from cvt_cli.records import Prediction, Record
from cvt_cli.sorting.order import diverse, farthest_first, margin, uncertain


def labelled(path: str, *scores: float, kind: str = "softmax") -> Record:
    predictions = tuple(Prediction(f"l{i}", score, i) for i, score in enumerate(scores))
    return Record(path, predictions, columns={} if kind == "softmax" else {"scores": kind})


def test_margins() -> None:
    assert margin(labelled("a", 0.6, 0.3, 0.1)) == pytest.approx(0.3)
    assert margin(labelled("a", 0.6)) == pytest.approx(0.6)  # -k 1: the least sure first
    assert margin(labelled("a")) == -1  # none reached the threshold
    assert margin(labelled("a", 0.9, 0.45, 0.1, kind="sigmoid")) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="regression"):
        margin(labelled("a", 3.2, kind="raw"))


def test_the_uncertain_come_first() -> None:
    records = [
        labelled("sure", 0.9, 0.1),
        Record("broken", error="empty file"),
        labelled("doubtful", 0.5, 0.49),
        labelled("done", 0.5, 0.5),
        labelled("as doubtful", 0.4, 0.39),
        labelled("none"),
    ]
    assert list(uncertain(records, {"done"})) == ["none", "doubtful", "as doubtful", "sure"]
    assert list(uncertain([])) == []


@pytest.mark.parametrize("seeds", [(), (3,), (3, 7, 3)], ids=str)
def test_farthest_first_is_greedy_k_center(seeds: tuple[int, ...]) -> None:
    """As Sener and Savarese's algorithm 1 says it, in float64."""
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    vectors[11] = vectors[12]
    wide = vectors.astype(np.float64)
    chosen = list(seeds)
    if not seeds:
        chosen.append(int(np.linalg.norm(wide - wide.mean(0), axis=1).argmin()))
    while len(set(chosen)) < len(vectors):
        distances = np.linalg.norm(wide[:, None] - wide[chosen], axis=2).min(1)
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    assert list(farthest_first(vectors, seeds)) == chosen[len(seeds) :]


def test_duplicates_come_last() -> None:
    points = [(0, 0), (9, 0), (0, 0), (0, 5), (9, 0)]
    records = [Record(str(i), embedding=tuple(map(float, p))) for i, p in enumerate(points)]
    records.insert(2, Record("broken", error="empty file"))
    assert list(diverse(records, {"0"})) == ["1", "3", "2", "4"]
    assert set(diverse(records)) == {"0", "1", "2", "3", "4"}
    assert list(diverse([])) == []
    with pytest.raises(ValueError, match="differ in size"):
        list(diverse([*records, Record("x", embedding=(1.0,))]))
