"""The other end of the noise, and the vectors: small singular values that are no noise, directions that are not random.

Noise has a lower edge as well. Below it stand directions that training has silenced, and they can matter as much as the
spikes do. And a value may hide inside the bulk while its vectors show structure: the singular vectors of Gaussian noise
are uniformly distributed on the sphere (Haar), whatever the value.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betainc, gammaln, jv, kolmogorov, ndtr

from spectrim.laws import TracyWidom, evened
from spectrim.spectrum import NoiseFit, Spectrum

ZERO = 1e-7  # of the largest singular value; below it lies what rounding leaves of an exact zero (see linalg)
SOFT_FROM = 20.0  # order from which the logarithmic Tracy-Widom form is as good as the determinant; docs/ends.md
NODES = 96  # Gauss-Legendre nodes of the determinant; half of them give the same law to 1e-12
BLOCK = 1 << 20  # components tested at once


def randomness(vectors: ArrayLike) -> NDArray[np.float64]:
    """Returns how likely a vector from the uniform law on the sphere is to look less random, one p-value a column.

    Four statistics of the d components u_j of the unit vector, the smallest of their p-values times four:

        max_j u_j**2        a few large entries; at most d times the tail of Beta(1/2, (d - 1)/2)
        sum_j |u_j|         too few or too even entries, two-sided; exact moments, Wilson and Hilferty's cube root
        (sum_j u_j)**2 / d  a common sign; Beta(1/2, (d - 1)/2), exactly
        sup |F_d - F|       any other shape; the Kolmogorov distance of the components from their law

    The first absolute moment does the work of the participation ratio 1 / sum u**4, whose law is too skewed to give
    p-values far out. Nothing depends on the order of the components, as neurons have none. On uniform vectors a value
    below alpha comes up in .65 to 1 of alpha of all cases (table in docs/ends.md).

    Args:
        vectors: d x k, one vector a column, any length but zero; d at least ten.

    Example:
        >>> g = np.random.default_rng(0)
        >>> noise, spot, even = g.standard_normal(100), np.eye(100)[0], np.ones(100)
        >>> (randomness(np.stack([noise, spot, even], axis=1)) < 0.001).tolist()
        [False, True, True]

    References:
        Uniform vectors as the null: M. Thamm, M. Staats and B. Rosenow, Phys. Rev. E 106 (2022) 054124, who use the
        Kolmogorov distance; cube root: E. Wilson and M. Hilferty, Proc. Natl. Acad. Sci. 17 (1931) 684; Kolmogorov's
        law at finite d: M. Stephens, J. R. Stat. Soc. B 32 (1970) 115.
    """
    X = np.asarray(vectors, np.float64)
    if X.ndim != 2 or X.shape[0] < 10:
        raise ValueError(f"vectors come as columns of at least ten components, got an array of shape {X.shape}")
    d, k = X.shape
    width = max(1, BLOCK // d)
    return np.concatenate([np.zeros(0), *(_randomness(X[:, i : i + width]) for i in range(0, k, width))])


def _randomness(X: NDArray[np.float64]) -> NDArray[np.float64]:
    d = X.shape[0]
    length = np.sqrt(np.sum(X * X, axis=0))
    if not np.all(length > 0) or not np.all(np.isfinite(length)):
        raise ValueError("a vector without a finite length above zero has no direction to test")
    v = np.sort(X / length * sqrt(d), axis=0)  # components of mean square one
    largest = d * _tail(np.maximum(v[0] ** 2, v[-1] ** 2) / d, d)
    common = _tail(np.minimum(1.0, v.mean(axis=0) ** 2), d)
    z = _even_score(np.abs(v).sum(axis=0) / sqrt(d), d)
    spread = 2 * ndtr(-np.abs(z))
    law = 0.5 + 0.5 * np.sign(v) * (1 - _tail(v**2 / d, d)) if d <= 100 else ndtr(v)  # the same to .1 / d
    step = np.arange(d)[:, None] / d
    distance = np.maximum(law - step, step + 1 / d - law).max(axis=0)
    shape = kolmogorov((sqrt(d) + 0.12 + 0.11 / sqrt(d)) * distance)
    return np.minimum(1.0, 4 * np.min([largest, common, spread, shape], axis=0))


def _tail(square: NDArray[np.float64], d: int) -> NDArray[np.float64]:
    """The probability that the square of one component of a uniform unit vector exceeds `square`."""
    return betainc(0.5 * (d - 1), 0.5, np.clip(1 - square, 0.0, 1.0))


def _even_score(total: NDArray[np.float64], d: int) -> NDArray[np.float64]:
    """The sum of the absolute components of uniform unit vectors as a standard normal variable."""
    mean, sd, skew = _absolute_moments(d)
    # A Gamma law of the same skewness, mirrored, whose cube root is nearly normal.
    shape = 4 / skew**2
    return 3 * sqrt(shape) * (1 - 1 / (9 * shape) - np.cbrt(np.maximum(1 + 0.5 * skew * (total - mean) / sd, 0)))


@lru_cache(maxsize=64)
def _absolute_moments(d: int) -> tuple[float, float, float]:
    """Mean, standard deviation and skewness of sum |u_j|: moments of sum |g_j| over those of the length of g."""
    a = sqrt(2 / pi)
    k1, k2, k3 = d * a, d * (1 - a**2), d * (2 * a**3 - a)
    r1 = sqrt(2) * exp(gammaln((d + 1) / 2) - gammaln(d / 2))
    m1, m2 = k1 / r1, (k2 + k1**2) / d
    sd = sqrt(m2 - m1**2)
    if d > 4000:  # the third moment is a small difference of large ones, and known by then: -1.76 / sqrt(d)
        return m1, sd, _absolute_moments(4000)[2] * sqrt(4000 / d)
    m3 = (k3 + 3 * k2 * k1 + k1**3) / ((d + 1) * r1)
    return m1, sd, (m3 - 3 * m2 * m1 + 2 * m1**3) / sd**3


def lower_edge(spectrum: Spectrum, sigma: float, beta: float = 0.1, spikes: int = 0) -> float:
    """Returns the singular value below which the smallest of the noise falls with probability beta.

    With P = p - 1/2, N = n - 1/2 and a = 2 (N P)**(1/4) (sqrt(N) - sqrt(P)), the order of the edge,

        a >= 20   log(s**2 / sigma**2) = log((sqrt(N) - sqrt(P))**2) + tau**2 / 8 - tau t,   tau = (a / 2)**(-2/3)
        a < 20    s**2 = sigma**2 x / (4 sqrt(N P)),   det(I - V) = 1 - beta on (0, 1),
                  V(u, w) = sqrt(x) J_a(sqrt(x) u w) sqrt(u w)

    with t the Tracy-Widom quantile at 1 - beta. The first is the soft edge. The second is the law of the hard edge,
    where p and n are close and zero itself stops the values; at p = n it is 1 - exp(-e**2 / 2 - e) for
    e = sqrt(n) s / sigma, but for the half in P. The order a is n - p next to the hard edge, and chosen so that the two
    meet: both are within simulation error of .01, .1 and .3 from 10 x 10 to 384 x 1536 (table in docs/ends.md).

    Args:
        spectrum: what was measured, of which the shape, and whether it was equalised, count here.
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        beta: probability in (0, 1); the larger, the higher this edge.
        spikes: number of values that are no noise, a count below p; they leave noise of p - spikes by n - spikes.

    Example:
        >>> square = Spectrum(np.ones(400), 400, 400)
        >>> round(lower_edge(square, sigma=1.0) * 20, 3), round(sqrt(1 - 2 * float(np.log(0.9))) - 1, 3)
        (0.1, 0.1)
        >>> wide = Spectrum(np.ones(400), 400, 900)
        >>> round(lower_edge(wide, sigma=1.0), 2), round(sqrt(900) - sqrt(400), 2)
        (9.95, 10.0)

    References:
        Z. Ma, Bernoulli 18 (2012) 322, Theorem 2; A. Edelman, SIAM J. Matrix Anal. Appl. 9 (1988) 543, section 3; the
        determinant: P. Forrester, Nonlinearity 19 (2006) 2989, for a = n - p; the real order a is ours.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie in (0, 1), got {beta!r}; it is a lower-tail probability")
    if not 0 <= spikes < spectrum.p:
        raise ValueError(f"spikes must lie in 0..{spectrum.p - 1}, got {spikes!r}")
    p, n = spectrum.p - spikes, spectrum.n - spikes
    square = bottom(p, n, beta)
    if spectrum.equalised:
        square = n * float(evened(square / n, p, n, spectrum.spread))
    return sigma * sqrt(square)


@lru_cache(maxsize=512)
def bottom(p: int, n: int, beta: float) -> float:
    """Returns s**2 below which the smallest of p x n noise of unit variance falls with probability beta.

    Args:
        p: short side, a count.
        n: long side, a count, n >= p.
        beta: probability in (0, 1).

    Example:
        >>> round(bottom(50, 51, 0.1), 5), round(-2 * float(np.log(0.9)) / 50, 5)  # exact where n = p + 1
        (0.00421, 0.00421)

    References:
        As `lower_edge`.
    """
    P, N = p - 0.5, n - 0.5
    gap = sqrt(N) - sqrt(P)
    order = 2 * (N * P) ** 0.25 * gap
    if order >= SOFT_FROM:
        tau = (order / 2) ** (-2 / 3)
        return gap**2 * exp(tau**2 / 8 - tau * float(TracyWidom().ppf(1 - beta)))
    root = brentq(lambda x: 1 - _free(x, order) - beta, 0.0, order + 40.0, xtol=1e-12)
    return root**2 / (4 * sqrt(N * P))


def _free(root: float, order: float) -> float:
    """The probability that no scaled eigenvalue lies below root**2 at a hard edge of this order."""
    u, w = np.polynomial.legendre.leggauss(NODES)
    u, w = 0.5 * (u + 1), 0.5 * w
    half = np.sqrt(u * w)
    return float(np.linalg.det(np.eye(NODES) - root * jv(order, root * np.outer(u, u)) * np.outer(half, half)))


def departures(spectrum: Spectrum, fit: NoiseFit, beta: float = 0.1) -> int:
    """Returns how many singular values lie below the lower edge of the noise, exact zeros not counted.

    On noise the answer is not zero with probability beta. Zero as well where the fit has no noise level, where the
    spectrum is incomplete or its smallest values were not measured, and where more than half of the values are spikes,
    so that sigma is only a bound.

    Args:
        spectrum: what was measured.
        fit: the verdict on it.
        beta: probability in (0, 1); the larger, the higher the edge.

    Example:
        >>> from spectrim.edges import Known
        >>> s = np.r_[np.linspace(49, 11, 397), 8.0, 7.0, 0.0]
        >>> seen = Spectrum(s, 400, 900)
        >>> departures(seen, Known(sigma=1.0)(seen))
        2

    References:
        M. Staats, M. Thamm and B. Rosenow, arXiv 2410.17770, on what small singular values of trained layers hold.
    """
    if fit.sigma is None or not spectrum.complete or fit.spikes > spectrum.p // 2 or spectrum.measured is not None:
        return 0
    low = lower_edge(spectrum, fit.sigma, beta, fit.spikes)
    return int(np.count_nonzero((spectrum.s < low) & (spectrum.s > ZERO * spectrum.s[0])))


def structured(spectrum: Spectrum, fit: NoiseFit, U: ArrayLike, Vh: ArrayLike, level: float = 0.01) -> tuple[int, ...]:
    """Returns the positions of singular values in the bulk whose left or right vector is not random.

    Every direction at or under the edge is tested on both sides by `randomness`, exact zeros aside, whose vectors are
    any basis of the null space. Holm's correction holds the odds of a false find on a whole matrix of noise to `level`.

    Args:
        spectrum: what was measured.
        fit: the verdict on it; only its edge counts.
        U: left vectors, rows x k, one a singular value, of the matrix that the spectrum belongs to (equalised, and
            without its zero rows and columns, if the spectrum is).
        Vh: right vectors, k x cols.
        level: odds of a false find on noise, in (0, 1).

    Example:
        >>> from spectrim.edges import Known
        >>> W = np.random.default_rng(0).standard_normal((60, 90))
        >>> W[0] *= 0.01
        >>> U, s, Vh = np.linalg.svd(W, full_matrices=False)
        >>> seen = Spectrum(s, 60, 90)
        >>> structured(seen, Known(1.0)(seen), U, Vh)
        (59,)

    References:
        Staats, Thamm and Rosenow, arXiv 2410.17770; S. Holm, Scand. J. Statist. 6 (1979) 65.
    """
    U, Vh = np.asarray(U, np.float64), np.asarray(Vh, np.float64)
    k = spectrum.s.size
    if U.shape != (spectrum.rows, k) or Vh.shape != (k, spectrum.cols):
        raise ValueError(
            f"{k} values of a {spectrum.rows} x {spectrum.cols} matrix have vectors of shape {(spectrum.rows, k)} and "
            f"{(k, spectrum.cols)}, got {U.shape} and {Vh.shape}"
        )
    tested = np.nonzero((spectrum.s <= fit.edge) & (spectrum.s > ZERO * spectrum.s[0]))[0]
    odds = np.minimum(1.0, 2 * np.minimum(randomness(U[:, tested]), randomness(Vh[tested].T)))
    order = np.argsort(odds)
    failed = odds[order] > level / np.arange(tested.size, 0, -1)
    found = order[: int(np.argmax(failed)) if failed.any() else tested.size]
    return tuple(sorted(tested[found].tolist()))
