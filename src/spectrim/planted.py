"""Matrices with a known truth: noise, noise with uneven rows and columns, and signal planted in either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Planted:
    """A matrix ``W = row_scales[:, None] * (U diag(strengths) Vh + N) * col_scales`` and all that made it.

    Args:
        W: the matrix, rows x cols.
        U: left vectors of the signal, rows x k, orthonormal columns.
        strengths: singular values of the signal, k of them, descending, in the unit of W.
        Vh: right vectors of the signal, k x cols, orthonormal rows.
        row_scales: one factor a row, > 0.
        col_scales: one factor a column, > 0.
        sigma: standard deviation of an entry of N.

    Example:
        >>> made = planted(30, 20, [40.0, 30.0], generator=np.random.default_rng(0))
        >>> made.W.shape, made.U.shape, made.Vh.shape
        ((30, 20), (30, 2), (2, 20))

    References:
        F. Benaych-Georges and R. R. Nadakuditi (2012), section 2.
    """

    W: NDArray[np.float64]
    U: NDArray[np.float64]
    strengths: NDArray[np.float64]
    Vh: NDArray[np.float64]
    row_scales: NDArray[np.float64]
    col_scales: NDArray[np.float64]
    sigma: float


def noise(
    rows: int,
    cols: int,
    sigma: float = 1.0,
    *,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Returns a rows x cols matrix of independent normal entries of standard deviation sigma.

    Args:
        rows: a count.
        cols: a count.
        sigma: standard deviation of an entry.
        generator: source of the randomness.

    Example:
        >>> noise(2, 3, generator=np.random.default_rng(0)).shape
        (2, 3)

    References:
        The null of Johnstone (2001).
    """
    return sigma * generator.standard_normal((rows, cols))


def scales(count: int, log_sd: float, *, generator: np.random.Generator) -> NDArray[np.float64]:
    """Returns log-normal factors of expected mean square one, exp(log_sd z - log_sd**2) with z standard normal.

    Args:
        count: how many.
        log_sd: standard deviation of their logarithm, >= 0; 0 gives ones.
        generator: source of the randomness.

    Example:
        >>> scales(3, 0.0, generator=np.random.default_rng(0)).tolist()
        [1.0, 1.0, 1.0]

    References:
        A model of the uneven row and column norms of trained layers.
    """
    return np.exp(log_sd * generator.standard_normal(count) - log_sd**2)


def frame(size: int, count: int, *, generator: np.random.Generator) -> NDArray[np.float64]:
    """Returns `count` orthonormal columns of length `size`, uniformly distributed (Haar).

    Args:
        size: length of a column.
        count: how many, at most size.
        generator: source of the randomness.

    Example:
        >>> q = frame(9, 2, generator=np.random.default_rng(0))
        >>> np.allclose(q.T @ q, np.eye(2))
        True

    References:
        F. Mezzadri, Notices AMS 54 (2007) 592, section 5.
    """
    q, r = np.linalg.qr(generator.standard_normal((size, count)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def critical(rows: int, cols: int, sigma: float = 1.0) -> float:
    """Returns the strength below which a planted value leaves no trace, sigma (rows cols)**(1/4).

    Args:
        rows: a count.
        cols: a count.
        sigma: standard deviation of a noise entry.

    Example:
        >>> critical(16, 16)
        4.0

    References:
        `laws.critical_strength` in the unit of W.
    """
    return sigma * (rows * cols) ** 0.25


def planted(
    rows: int,
    cols: int,
    strengths: Sequence[float] | NDArray[np.float64],
    sigma: float = 1.0,
    row_log_sd: float = 0.0,
    col_log_sd: float = 0.0,
    *,
    generator: np.random.Generator,
) -> Planted:
    """Returns signal of the given strengths along Haar vectors in noise, with log-normal row and column scales.

        W = D1 (U diag(strengths) Vh + N) D2

    Args:
        rows: a count.
        cols: a count.
        strengths: singular values of the signal, in the unit of W; none for noise alone.
        sigma: standard deviation of an entry of N.
        row_log_sd: standard deviation of the logarithm of a row scale; 0 for even rows.
        col_log_sd: the same for columns.
        generator: source of the randomness.

    Example:
        >>> made = planted(40, 60, [3 * critical(40, 60)], row_log_sd=0.3, generator=np.random.default_rng(0))
        >>> round(float(made.strengths[0]), 4), made.row_scales.shape
        (20.9978, (40,))

    References:
        F. Benaych-Georges and R. R. Nadakuditi (2012), section 2, with scales as in B. Landa and Y. Kluger, arXiv
        2103.13840, eq. (3).
    """
    strong = np.sort(np.asarray(strengths, np.float64))[::-1]
    U = frame(rows, strong.size, generator=generator)
    Vh = frame(cols, strong.size, generator=generator).T
    d1 = scales(rows, row_log_sd, generator=generator)
    d2 = scales(cols, col_log_sd, generator=generator)
    W = d1[:, None] * ((U * strong) @ Vh + noise(rows, cols, sigma, generator=generator)) * d2
    return Planted(W, U, strong, Vh, d1, d2, sigma)
