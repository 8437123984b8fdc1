"""The Marchenko-Pastur law: where the eigenvalues ``s**2 / n`` of a noise matrix lie.

Everything is written in the angle t of ``x = lower + (upper - lower) sin(t)**2``. There the density has no square-root
ends, so one uniform table and a few Newton steps invert the distribution function, and the closed form needs no case
for gamma = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

NODES = 513  # of the table that starts the Newton steps; twice as many saves no step, half as many costs one


@dataclass(frozen=True)
class MarchenkoPastur:
    """The law of the eigenvalues ``s**2 / n`` of a p x n matrix of independent entries, p <= n.

    Density on (lower, upper), with lower, upper = sigma**2 (1 -+ sqrt(gamma))**2:

        f(x) = sqrt((upper - x)(x - lower)) / (2 pi gamma sigma**2 x)

    Args:
        gamma: ratio p / n of the short to the long side, in (0, 1].
        sigma: standard deviation of an entry, > 0, in the unit of the matrix.

    Example:
        >>> law = MarchenkoPastur(gamma=0.25)
        >>> law.lower, law.upper
        (0.25, 2.25)
        >>> round(float(law.ppf(0.5)), 6)
        0.916004

    References:
        V. A. Marchenko and L. A. Pastur, Math. USSR-Sb. 1 (1967) 457, eq. (1.14).
    """

    gamma: float
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma!r}; it is short side / long side")
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma!r}; it is a standard deviation")

    @property
    def lower(self) -> float:
        """The lower end of the support, sigma**2 (1 - sqrt(gamma))**2, an eigenvalue."""
        return self.sigma**2 * (1 - sqrt(self.gamma)) ** 2

    @property
    def upper(self) -> float:
        """The upper end of the support, sigma**2 (1 + sqrt(gamma))**2, an eigenvalue."""
        return self.sigma**2 * (1 + sqrt(self.gamma)) ** 2

    def pdf(self, x: ArrayLike) -> NDArray[np.float64]:
        """Returns the density at x, zero at and outside the ends of the support.

        f(x) = sqrt((upper - x)(x - lower)) / (2 pi gamma sigma**2 x)

        Args:
            x: eigenvalues, any shape, in units of the matrix squared.

        Example:
            >>> round(float(MarchenkoPastur(1.0).pdf(2.0)), 6)
            0.159155

        References:
            Marchenko and Pastur (1967), eq. (1.14).
        """
        x = np.asarray(x, np.float64)
        inside = (x > self.lower) & (x < self.upper)
        safe = np.where(inside, x, 0.5 * (self.lower + self.upper))
        height = np.sqrt((self.upper - safe) * (safe - self.lower)) / (2 * pi * self.gamma * self.sigma**2 * safe)
        return np.where(inside, height, 0.0)

    def cdf(self, x: ArrayLike) -> NDArray[np.float64]:
        """Returns the share of the eigenvalues at or below x; exactly 0 below the support and 1 above it.

        With c = gamma and x = lower + (upper - lower) sin(t)**2,

            F = [2 c t + sqrt(c) sin 2t - (1 - c) atan2(sqrt(c) sin 2t, 1 - sqrt(c) cos 2t)] / (pi c).

        Args:
            x: eigenvalues, any shape, in units of the matrix squared.

        Example:
            >>> MarchenkoPastur(0.5, sigma=2.0).cdf([-1.0, 100.0]).tolist()
            [0.0, 1.0]

        References:
            The integral of Marchenko and Pastur (1967), eq. (1.14), by the substitution above.
        """
        x = np.asarray(x, np.float64)
        low, high = self.lower, self.upper
        # Both legs of the angle are measured from their own end, so neither end loses digits.
        t = np.arctan2(np.sqrt(np.clip(x - low, 0, None)), np.sqrt(np.clip(high - x, 0, None)))
        inner = np.clip(_share(t, self.gamma), 0.0, 1.0)
        # A NaN stays a NaN: it fails both comparisons.
        return np.where(x <= low, 0.0, np.where(x >= high, 1.0, inner))

    def ppf(self, q: ArrayLike) -> NDArray[np.float64]:
        """Returns the eigenvalue below which the share q of the law lies.

        Solves F(x) = q by Newton steps in the angle t, each kept inside the bracket that a table of F gives.

        Args:
            q: levels in [0, 1], any shape; 0 gives `lower` and 1 gives `upper`.

        Example:
            >>> law = MarchenkoPastur(0.1)
            >>> round(float(law.ppf(law.cdf(1.25))), 12)
            1.25

        References:
            The inverse of `cdf`.
        """
        q = np.asarray(q, np.float64)
        if not np.all((q >= 0) & (q <= 1)):
            raise ValueError("ppf needs levels in [0, 1]; a share above 1 is often a percentage")
        t = _angle(np.atleast_1d(q).ravel(), self.gamma).reshape(q.shape)
        x = self.lower + 4 * sqrt(self.gamma) * self.sigma**2 * np.sin(t) ** 2
        return np.where(q == 1, self.upper, x)


def _share(t: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """F as a function of the angle t in [0, pi/2]."""
    root = sqrt(c)
    sine, cosine = np.sin(2 * t), np.cos(2 * t)
    return (2 * c * t + root * sine - (1 - c) * np.arctan2(root * sine, 1 - root * cosine)) / (pi * c)


def _slope(t: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    """dF/dt = 4 sin(2t)**2 / (pi x), with the removable 0/0 at t = 0, gamma = 1 kept away by the smallest float."""
    x = (1 - sqrt(c)) ** 2 + 4 * sqrt(c) * np.sin(t) ** 2
    return 4 * np.sin(2 * t) ** 2 / (pi * np.maximum(x, np.finfo(float).tiny))


@lru_cache(maxsize=64)
def _table(c: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    t = np.linspace(0, pi / 2, NODES)
    f = np.maximum.accumulate(np.clip(_share(t, c), 0, 1))
    f[0], f[-1] = 0.0, 1.0
    return t, f


def _angle(q: NDArray[np.float64], c: float) -> NDArray[np.float64]:
    nodes, shares = _table(c)
    cell = np.clip(np.searchsorted(shares, q, side="right") - 1, 0, NODES - 2)
    low, high = nodes[cell], nodes[cell + 1]
    rise = np.maximum(shares[cell + 1] - shares[cell], np.finfo(float).tiny)
    t = low + (high - low) * np.clip((q - shares[cell]) / rise, 0, 1)
    todo = np.arange(q.size)
    noise = 4e-16 + 2e-16 / sqrt(c)  # of F itself: its terms are larger than their sum by that much
    # Three steps settle every level but those in the outermost cells, where F grows like a cube and Newton starts
    # slowly; a step that leaves the bracket is replaced by its middle, so fifty halvings bound the work.
    for step in range(60):
        gap = _share(t[todo], c) - q[todo]
        low[todo] = np.where(gap <= 0, t[todo], low[todo])
        high[todo] = np.where(gap >= 0, t[todo], high[todo])
        slope = _slope(t[todo], c)
        new = t[todo] - gap / np.where(slope > 0, slope, np.inf)
        outside = (new < low[todo]) | (new > high[todo]) | (slope <= 0)
        new = np.where(outside, 0.5 * (low[todo] + high[todo]), new)
        t[todo] = new
        if step >= 2:
            todo = todo[np.abs(gap) > noise]
            if todo.size == 0:
                break
    t[q == 0] = 0.0
    return t
