"""Heavy tails: the power law that the largest values of a spectrum follow, if they follow one.

Training can leave eigenvalues that fall like x**-a instead of ending at the edge of a noise bulk. Then no edge divides
signal from noise, and an estimator that reports one is to be doubted.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 10  # values a tail is fitted to; below it every sample looks like a power law
# When a tail counts as heavy; what these figures do to planted matrices stands in docs/ends.md.
STEEPEST = 6.0  # exponent of the density
SPAN = 5.0  # the largest value over the start; steep ends of a bulk reach 2 or 3
CLOSE = 0.9  # Kolmogorov distance times sqrt(count)


@dataclass(frozen=True)
class Tail:
    """A power law of the largest values, with density proportional to x**-exponent from `start` on.

    Args:
        exponent: of the density, > 1.
        stderr: its standard error, (exponent - 1) / sqrt(count).
        start: where the power law begins, in the unit of the values; one of them.
        count: values at or above the start.
        distance: largest distance between the tail seen and the law, in [0, 1].
        span: the largest value over the start, >= 1.

    Example:
        >>> Tail(exponent=2.5, stderr=0.15, start=1.0, count=100, distance=0.05, span=30.0).count
        100

    References:
        As `power_tail`.
    """

    exponent: float
    stderr: float
    start: float
    count: int
    distance: float
    span: float


def power_tail(x: ArrayLike, fewest: int = FEWEST) -> Tail | None:
    """Returns the power law that fits the largest values best, or None where there are too few values.

        a = 1 + m / sum ln(x_i / start)   over the m values x_i >= start

    with the start, among the values seen, that gives the smallest Kolmogorov distance between the values above it and
    the law 1 - (x / start)**(1 - a). Zeros are left out.

    Args:
        x: values >= 0, any order, such as `Spectrum.eigenvalues`.
        fewest: smallest number of values to fit a tail to, a count of two or more.

    Example:
        >>> pareto = (1 - (np.arange(200) + 0.5) / 200) ** (-1 / 1.5)
        >>> round(power_tail(pareto).exponent, 1)
        2.5

    References:
        A. Clauset, C. R. Shalizi and M. E. J. Newman, SIAM Review 51 (2009) 661, eq. (3.1), (3.2) and section 3.3.
    """
    x = np.asarray(x, np.float64).ravel()
    if not np.all(np.isfinite(x)) or np.any(x < 0):
        raise ValueError("a tail is fitted to finite values >= 0")
    if fewest < 2:
        raise ValueError(f"a tail needs two values or more, got fewest={fewest!r}")
    logs = np.log(np.sort(x[x > 0]))
    if logs.size < fewest or logs[-1] == logs[-fewest]:
        return None
    # Of equal values the first one starts the tail: all of them belong to it.
    starts = np.unique(logs[: logs.size - fewest + 1], return_index=True)[1]
    counts = logs.size - starts
    above = np.cumsum(logs[::-1])[::-1][starts] - counts * logs[starts]
    slopes = counts / above  # a - 1
    distances = _distances(logs, starts, slopes)
    # Of starts that are equally good but for rounding, the one with the longest tail.
    best = int(np.argmax(distances <= distances.min() + 1e-12))
    start, count, slope = int(starts[best]), int(counts[best]), float(slopes[best])
    return Tail(
        exponent=1 + slope,
        stderr=slope / sqrt(count),
        start=float(np.exp(logs[start])),
        count=count,
        distance=float(distances[best]),
        span=float(np.exp(logs[-1] - logs[start])),
    )


def _distances(
    logs: NDArray[np.float64], starts: NDArray[np.int64], slopes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Kolmogorov distances of the values from each start on to their law."""
    left = np.arange(logs.size, 0, -1.0)  # how many values are at or above each
    out = np.empty(starts.size)
    for i, (start, slope) in enumerate(zip(starts, slopes, strict=True)):
        gap = logs[start:] * -slope
        gap += slope * logs[start]
        np.exp(gap, out=gap)  # the share above each value by the law
        share = 1 / left[start]
        gap -= left[start:] * share
        # What is seen is a stair: just beyond a value it is one share less.
        out[i] = max(-gap.min(), gap.max() + share)
    return out


def hill(x: ArrayLike, count: int) -> float:
    """Returns the exponent of the density from the `count` largest values over the next one, 1 + 1 / mean log ratio.

        a = 1 + k / sum_{i <= k} ln(x_(i) / x_(k + 1)),   k = count

    Args:
        x: values >= 0, any order, more than `count` of them positive.
        count: how many of the largest to use.

    Example:
        >>> round(hill([8.0, 4.0, 2.0, 1.0], 3), 4)
        1.7213

    References:
        B. Hill, Ann. Statist. 3 (1975) 1163, whose index is a - 1.
    """
    top = np.sort(np.asarray(x, np.float64).ravel())[::-1]
    if not 1 <= count < np.count_nonzero(top > 0):
        raise ValueError(f"count must lie in 1..{np.count_nonzero(top > 0) - 1} for these values, got {count!r}")
    ratios = np.log(top[:count] / top[count])
    if not ratios.any():
        raise ValueError(f"the {count + 1} largest values are all equal, which is no tail")
    return 1 + count / float(ratios.sum())


def is_heavy(tail: Tail | None) -> bool:
    """Returns whether a tail is a power law one may speak of: shallow, long, and close to the law.

        exponent <= 6,   span >= 5,   distance <= .9 / sqrt(count)

    A power law of density exponent a spans 5 only from about 5**(a - 1) values on, so an exponent of 4 shows in a few
    hundred values and one of 6 in a few thousand. The last figure is the 99 per cent point of tails that are power
    laws, start and exponent fitted (.89 to .90 at 50, 200 and 800 values). A ladder of planted spikes can pass all
    three, as can exponential or log-normal eigenvalues: the question is meant for spectra whose bulk fits no noise law.

    Args:
        tail: from `power_tail`; None is not heavy.

    Example:
        >>> is_heavy(power_tail((1 - (np.arange(200) + 0.5) / 200) ** -1.0)), is_heavy(power_tail(np.arange(200.0)))
        (True, False)

    References:
        Exponents of 2 to 6 in trained layers: C. H. Martin and M. W. Mahoney, J. Mach. Learn. Res. 22 (2021), art. 165;
        span and distance were measured (docs/ends.md).
    """
    if tail is None:
        return False
    return bool(tail.exponent <= STEEPEST and tail.span >= SPAN and tail.distance <= CLOSE / sqrt(tail.count))
