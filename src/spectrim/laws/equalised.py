"""What is left of noise once its own rows and columns have been made even: a slightly narrower law."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

DAMPING = 12.0  # measured: with it the false-spike rate holds from 10 x 10 upwards; docs/equalisation.md has the table


def evened(x: ArrayLike, p: int, n: int, spread: float = 2.0) -> NDArray[np.float64]:
    """Returns where an eigenvalue x of unit noise lies after the mean squares of rows and columns were made even.

        x (1 - spread (x - 1 - g) / (p (1 + 12 / sqrt(n p)))),   g = p / n

    Evening a noise matrix takes out the chance differences between its rows, of relative variance spread / n, and
    between its columns, of spread / p; spread is the kurtosis of an entry less one, 2 if it is Gaussian. Differences of
    relative variance e between the rows of an otherwise even matrix move the quantiles of its law by
    e x (x - 1 - g) / (2 g), those between its columns by e x (x - 1 - g) / 2, to first order in e. The two together are
    spread x (x - 1 - g) / p, and evening removes them. At the edge of Gaussian noise that is the share 4 / sqrt(n p) of
    the eigenvalue: more than half a Tracy-Widom standard deviation at 384 x 384. The damping stands for the higher
    orders; it is a measured constant and matters below a side of 100.

    The mean of the law is kept, so sigma keeps its meaning.

    Args:
        x: eigenvalues s**2 / n of noise of unit variance, any shape.
        p: short side, a count.
        n: long side, a count, n >= p.
        spread: kurtosis of an entry less one, >= 0.

    Example:
        >>> round(float(evened(4.0, 400, 400)), 4)
        3.9612

    References:
        First-order change of the law: J. W. Silverstein, J. Multivariate Anal. 55 (1995) 331, eq. (1.4), expanded in
        the variance of H; evening: B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1.
    """
    x = np.asarray(x, np.float64)
    return x * (1 - spread * (x - 1 - p / n) / (p * (1 + DAMPING / sqrt(n * p))))
