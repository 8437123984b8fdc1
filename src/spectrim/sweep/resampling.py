"""Standard errors of scores and of their differences: a bootstrap over the items, in pairs, whole and in two halves.

Every model that a sweep measures sees the same draws of items. The difference of two models then is taken draw by draw,
and what both of them find easy or hard drops out of it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .score import Score

HALVES = ("all", "choose", "report")  # all items; those at even positions, to choose by; the others, to report on
LEAST = 0.5  # share of the draws that must give a figure before an error is made of them
ROUNDING = 1e-12  # a spread of equal figures is what their sums were rounded by


@dataclass(frozen=True)
class Gain:
    """By how much one model is better than another, with its standard error and the 95 % interval of the bootstrap.

    Positive is better, whether the score itself is to be high or low.
    """

    value: float
    error: float
    low: float
    high: float

    @property
    def clear(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Drawn:
    """The value of one score on one set of items, and its values on resampled ones."""

    value: float
    draws: NDArray[np.float64]
    sign: int = 1  # -1 where lower is better

    @property
    def error(self) -> float:
        """The standard error: the standard deviation of the draws, NaN where most of them give no figure."""
        return _spread(self.draws)

    def gain(self, other: Drawn) -> Gain:
        """Return by how much this model is better than another that saw the same draws."""
        apart = self.sign * (self.draws - other.draws)
        there = apart[np.isfinite(apart)]
        value = self.sign * (self.value - other.value)
        if len(there) < max(2, LEAST * len(apart)):
            return Gain(value, float("nan"), float("nan"), float("nan"))
        if np.abs(there).max() <= ROUNDING * max(abs(self.value), abs(other.value)):
            return Gain(value, 0.0, 0.0, 0.0)
        low, high = np.quantile(there, (0.025, 0.975))
        return Gain(value, float(there.std(ddof=1)), float(low), float(high))


def resample(score: Score, name: str, seed: int, draws: int) -> dict[str, Drawn]:
    """Return the `Drawn` of all items and of either half.

    The draws depend on the name of the score, its number of items and the seed, and on nothing of the model: so two
    models that are measured on the same items are drawn in pairs.

    Args:
        score: of one model.
        name: of the score.
        seed: of the bootstrap.
        draws: how often the items are drawn, 2 at least.

    Example:
        >>> from spectrim.sweep import mean
        >>> found = resample(Score(np.arange(100.0), mean), "accuracy", 0, 200)
        >>> found["all"].value, found["choose"].value, found["report"].value
        (49.5, 49.0, 50.0)
        >>> bool(abs(found["all"].error - np.std(np.arange(100)) / 10) < 0.5)
        True
    """
    items = np.arange(score.items)
    out = {}
    for i, (half, index) in enumerate(zip(HALVES, (items, items[::2], items[1::2]), strict=True)):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode()), score.items, i])
        drawn = (index[generator.integers(0, len(index), len(index))] for _ in range(draws))
        with np.errstate(all="ignore"):
            values = np.array([score.of(picked) for picked in drawn])
            out[half] = Drawn(score.of(index), values, 1 if score.better == "higher" else -1)
    return out


def _spread(draws: NDArray[np.float64]) -> float:
    there = draws[np.isfinite(draws)]
    if len(there) < max(2, LEAST * len(draws)):
        return float("nan")
    error = float(there.std(ddof=1))
    return error if error > ROUNDING * float(np.abs(there).max()) else 0.0
