"""What the Marchenko-Pastur law leaves out at finite size: the mean of the counts, and how far sums wander."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct

WAVES = 2048  # of the cosine series; for a function with kinks they fall off like 1 / k**2


def mean_shift(x: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """Returns the expected count of eigenvalues of real noise below x, less p F(x): from 1/4 down to -1/4.

        1/4 - (1 - phi / pi) / 2,   x = 1 + gamma + 2 sqrt(gamma) cos(phi)

    Args:
        x: eigenvalues s**2 / n in units of sigma**2, any shape; outside the bulk the value at its end is given.
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> mean_shift([0.0, 2.0, 4.0], 1.0).tolist()
        [0.25, 0.0, -0.25]

    References:
        Z. Bai and J. W. Silverstein, Ann. Probab. 32 (2004) 553, Theorem 1.1, eq. (1.4) with H a point mass, read as a
        measure; Gaussian entries.
    """
    cosine = np.clip((np.asarray(x, np.float64) - 1 - gamma) / (2 * sqrt(gamma)), -1.0, 1.0)
    return 0.5 * np.arccos(cosine) / pi - 0.25


def sum_variance(f: Callable[[NDArray[np.float64]], NDArray[np.float64]], gamma: float) -> float:
    """Returns the variance of the sum of f over the eigenvalues s**2 / n of real unit noise, for large sizes.

        1/2 sum over k of k a_k**2,   f(x) = sum over k of a_k cos(k phi),   x = 1 + gamma + 2 sqrt(gamma) cos(phi)

    It does not grow with the size of the matrix: the eigenvalues keep their distance.

    Args:
        f: function of eigenvalues, continuous, evaluated on an array.
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> round(sum_variance(lambda x: x, 0.5), 9)  # of the trace: the mean of p n squares, times p
        1.0

    References:
        Bai and Silverstein (2004), Theorem 1.1, in the form of A. Lytova and L. Pastur, Ann. Probab. 37 (2009) 1778,
        Theorem 4.5, for Gaussian entries, with Chebyshev polynomials.
    """
    phi = (np.arange(WAVES) + 0.5) * pi / WAVES
    waves = dct(np.asarray(f(1 + gamma + 2 * sqrt(gamma) * np.cos(phi)), np.float64), type=2)[1:] / WAVES
    return 0.5 * float(np.arange(1, WAVES) @ waves**2)
