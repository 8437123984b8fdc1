"""The spiked model: what noise does to a low-rank signal, and the best answer to it.

One unit everywhere: singular values are divided by sigma sqrt(n), so noise has entries of variance 1/n, its largest
singular value tends to 1 + sqrt(gamma), and a signal of strength theta is seen at ``observed(theta, gamma)``.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHRINKERS = ("frobenius", "operator", "nuclear")


def critical_strength(gamma: float) -> float:
    """Returns the strength below which a signal leaves no trace among the singular values, gamma**(1/4).

    In raw units of W that is sigma (p n)**(1/4).

    Args:
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> critical_strength(1.0)
        1.0

    References:
        F. Benaych-Georges and R. R. Nadakuditi, J. Multivariate Anal. 111 (2012) 120, section 3.1.
    """
    _check(gamma)
    return gamma**0.25


def observed(theta: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """Returns the singular value at which a signal of strength theta is seen, 1 + sqrt(gamma) where it is hidden.

        y = sqrt((1 + theta**2)(gamma + theta**2)) / theta   for theta > gamma**(1/4)

    Args:
        theta: signal strengths >= 0, any shape, in units of sigma sqrt(n).
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> round(float(observed(3.0, 1.0)), 6)
        3.333333

    References:
        Benaych-Georges and Nadakuditi (2012), Theorem 2.8 and section 3.1.
    """
    seen = np.maximum(np.asarray(theta, np.float64), critical_strength(gamma))
    return np.sqrt((1 + seen**2) * (gamma + seen**2)) / seen


def strength(y: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """Returns the strength of the signal that is seen at y, zero for y up to the edge 1 + sqrt(gamma).

        theta**2 = (u + sqrt(u**2 - 4 gamma)) / 2,   u = y**2 - 1 - gamma

    Args:
        y: singular values in units of sigma sqrt(n), any shape.
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> round(float(strength(observed(2.0, 0.5), 0.5)), 12)
        2.0

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 63 (2017) 2137, eq. (8).
    """
    _check(gamma)
    y = np.asarray(y, np.float64)
    edge = 1 + sqrt(gamma)
    safe = np.maximum(y, edge)
    # (y^2 - 1 - c)^2 - 4c factors; the product form keeps its digits next to the edge.
    rest = (safe - edge) * (safe + edge) * (safe**2 - (1 - sqrt(gamma)) ** 2)
    return np.where(y > edge, np.sqrt(0.5 * (safe**2 - 1 - gamma + np.sqrt(rest))), 0.0)


def cosines(theta: ArrayLike, gamma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the expected squared cosines (long, short) between the vectors of the signal and those that are seen.

        long  = 1 - (gamma + theta**2) / (theta**2 (theta**2 + 1))         vectors of length n
        short = 1 - gamma (1 + theta**2) / (theta**2 (theta**2 + gamma))   vectors of length p

    and zero for both where the signal is hidden. The short side is always the better known one.

    Args:
        theta: signal strengths >= 0, any shape, in units of sigma sqrt(n).
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> long, short = cosines(3.0, 0.4)
        >>> round(float(long), 4), round(float(short), 4)
        (0.8956, 0.9527)

    References:
        Benaych-Georges and Nadakuditi (2012), Theorem 2.9 and section 3.1, who call the sides by the transpose.
    """
    theta = np.asarray(theta, np.float64)
    shown = theta > critical_strength(gamma)
    t = np.where(shown, theta, 1.0) ** 2
    long = np.where(shown, 1 - (gamma + t) / (t * (t + 1)), 0.0)
    short = np.where(shown, 1 - gamma * (1 + t) / (t * (t + gamma)), 0.0)
    return long, short


def spectral_shift(x: ArrayLike, theta: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """Returns how far a signal of strength theta pushes the noise up past x: expected eigenvalues moved, in [0, 1].

        xi(x) = arg(1 - t exp(-i phi)) / pi,   t = theta**2 / sqrt(gamma),   x = 1 + gamma + 2 sqrt(gamma) cos(phi)

    Noise of p x n has p F(x) eigenvalues s**2 / n below x, F the Marchenko-Pastur law; beside the signal xi(x) fewer. A
    signal above the transition, t > 1, has xi = 1 at the upper edge: one eigenvalue has left the bulk. If it is very
    strong, xi(x) = 1 - phi / pi, the difference that one row and one column less make; at the transition it is half.

    Args:
        x: eigenvalues in units of sigma**2, any shape; outside the bulk the value at its end is given.
        theta: signal strengths >= 0 in units of sigma sqrt(n), any shape that broadcasts against x.
        gamma: ratio short / long side, in (0, 1].

    Example:
        >>> spectral_shift([0.0, 2.0, 4.0], 10.0, 1.0).round(3).tolist()
        [0.0, 0.497, 1.0]

    References:
        Krein's spectral shift function of the additive model: log det(x - X X') changes by log(1 - theta**2 D(x)),
        with D the D-transform of Benaych-Georges and Nadakuditi (2012), section 2.3, and 1 / D(x + i0) = sqrt(gamma)
        exp(i phi) in the bulk.
    """
    _check(gamma)
    cosine = np.clip((np.asarray(x, np.float64) - 1 - gamma) / (2 * sqrt(gamma)), -1.0, 1.0)
    t = np.asarray(theta, np.float64) ** 2 / sqrt(gamma)
    return np.arctan2(t * np.sqrt(1 - cosine**2), 1 - t * cosine) / np.pi


def shrink(y: ArrayLike, gamma: float, loss: str = "frobenius") -> NDArray[np.float64]:
    """Returns the singular values that estimate the signal best in the given norm; zero up to the edge.

        frobenius   sqrt((y**2 - gamma - 1)**2 - 4 gamma) / y
        operator    theta(y)
        nuclear     max(0, theta**4 - gamma - sqrt(gamma) theta y) / (theta**2 y)

    Args:
        y: singular values in units of sigma sqrt(n), any shape.
        gamma: ratio short / long side, in (0, 1].
        loss: "frobenius", "operator" or "nuclear".

    Example:
        >>> round(float(shrink(4.0, 1.0)), 6)
        3.464102

    References:
        Gavish and Donoho (2017), eq. (7), (9) and (10).
    """
    if loss not in SHRINKERS:
        raise ValueError(f"loss must be one of {', '.join(SHRINKERS)}, got {loss!r}")
    y = np.asarray(y, np.float64)
    theta = strength(y, gamma)
    if loss == "operator":
        return theta
    shown = theta > 0
    safe, t = np.where(shown, y, 1.0), np.where(shown, theta, 1.0)
    if loss == "frobenius":
        # sqrt((y^2 - c - 1)^2 - 4c) = theta^2 - c / theta^2
        return np.where(shown, np.maximum(t**2 - gamma / t**2, 0.0) / safe, 0.0)
    return np.where(shown, np.maximum(t**4 - gamma - sqrt(gamma) * t * safe, 0.0) / (t**2 * safe), 0.0)


def hard_threshold(gamma: float, median: float | None = None) -> float:
    """Returns the cut that loses least in the Frobenius norm when values are kept whole or dropped.

        cut = sqrt(2 (g + 1) + 8 g / (g + 1 + sqrt(g**2 + 14 g + 1)))

    in units of sigma sqrt(n); with the median of the Marchenko-Pastur law given, cut / sqrt(median), in units of the
    median singular value, for noise of unknown level.

    Args:
        gamma: ratio short / long side, in (0, 1].
        median: median of the Marchenko-Pastur law of this gamma at sigma = 1, or None where sigma is known.

    Example:
        >>> round(hard_threshold(1.0), 6)
        2.309401

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 60 (2014) 5040, eq. (3), (5) and (11).
    """
    _check(gamma)
    cut = sqrt(2 * (gamma + 1) + 8 * gamma / (gamma + 1 + sqrt(gamma**2 + 14 * gamma + 1)))
    return cut if median is None else cut / sqrt(median)


def _check(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1], got {gamma!r}; it is short side / long side")
