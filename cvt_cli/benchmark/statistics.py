"""Statistics of repeated measurements."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

MIN_REPEATS = 3
MIN_ROUNDS = 3
ROUNDS = 10


@dataclass(frozen=True)
class Latency:
    """Durations of repeats, in seconds.

    Attributes:
        repeats: how many there were.
        p50, p90, p99: percentiles, interpolated between repeats.
        iqr: the interquartile range, p75 - p25.
    """

    repeats: int
    p50: float
    p90: float
    p99: float
    iqr: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Compute the figures of at least one repeat, in any order."""
        p25, p50, p75, p90, p99 = (percentile(seconds, p) for p in (25, 50, 75, 90, 99))
        return cls(len(seconds), p50, p90, p99=p99, iqr=p75 - p25)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return self.iqr / self.p50


@dataclass(frozen=True)
class Ratio:
    """The speed of one side relative to the other.

    Attributes:
        median: of the rounds' ratios, each of the medians in that round.
        least, greatest: of the rounds' ratios.
        rounds: how many there were.
    """

    median: float
    least: float
    greatest: float
    rounds: int

    @classmethod
    def of(cls, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Self:
        """Compute the ratio from the seconds of each side, one sequence per round; above 1 if ours
        is faster.

        A round's two sides ran one right after the other, so that what slows the machine down for
        a while slows both.
        """
        ratios = [
            percentile(their_round, 50) / percentile(our_round, 50)
            for our_round, their_round in zip(ours, theirs, strict=True)
        ]
        return cls(percentile(ratios, 50), min(ratios), max(ratios), rounds=len(ratios))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two nearest values."""
    return float(np.percentile(values, percent))


def times(run: Callable[[], object], seconds: float, at_least: int = MIN_REPEATS) -> list[float]:
    """Return the duration of each repeat, in seconds, until the time is up.

    Args:
        run: returns once its result is there.
        seconds: no repeat starts later.
        at_least: repeats, however long they take.
    """
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < at_least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    return taken


def take_turns(
    ours: Callable[[], object], theirs: Callable[[], object], seconds: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Run two sides in turns, for equally many seconds; the side that begins changes from round to
    round.

    Returns:
        What each repeat took, in seconds, a list a round, of both sides: `ROUNDS` rounds, or fewer
        where repeats take long, but at least `MIN_ROUNDS`.
    """
    rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
    sides = [(ours, rounds[0]), (theirs, rounds[1])]
    start = time.perf_counter()
    for number in range(ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - start >= 2 * seconds:
            break
        for run, taken in sides:
            taken.append(_turn(run, seconds / ROUNDS))
        sides.reverse()
    return rounds


def _turn(run: Callable[[], object], seconds: float) -> list[float]:
    """Time one side's turn. Its first repeat meets the caches and the spinning threads of the other
    side, and counts only if there is no other repeat."""
    taken = times(run, seconds, at_least=1)
    return taken[1:] or taken
