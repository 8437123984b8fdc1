"""Figures read off singular values and vectors: how well the law fits, how full the bulk, how high the rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrim.laws import MarchenkoPastur
from spectrim.spectrum import Spectrum


def window(m: int, alpha: float, missing: int = 0) -> NDArray[np.bool_]:
    """Returns which of the m - missing largest of m values lie in the central window, ascending, at least one or two.

    The window is alpha <= (i + 1/2) / m <= 1 - alpha, i from `missing` on, together with the lower half of the values
    that are left, so that it holds half of them however much is missing.

    Args:
        m: number of values of the bulk, a count.
        alpha: share left out at each end, in [0, 1/2).
        missing: number of the smallest values that are not known, a count below m.

    Example:
        >>> window(10, 0.2).nonzero()[0].tolist(), window(10, 0.2, missing=8).nonzero()[0].tolist()
        ([2, 3, 4, 5, 6, 7], [0])

    References:
        Z. T. Ke, Y. Ma and X. Lin, J. Amer. Statist. Assoc. 118 (2023) 374, Algorithm 1, where nothing is missing.
    """
    levels = (np.arange(missing, m) + 0.5) / m
    # The middle value, or two, belong to every window, however narrow.
    margin = min(alpha, (m - 1) // 2 / m)
    lower = np.arange(m - missing) < (m - missing + 1) // 2
    return (levels >= margin) & ((levels <= 1 - margin) | lower)


def misfit(spectrum: Spectrum, sigma: float, alpha: float = 0.2, spikes: int = 0) -> float:
    """Returns the largest distance between the bulk and its Marchenko-Pastur law on the central window, in [0, 1].

        max over i of max(|F(x_i) - i / m|, |F(x_i) - (i + 1) / m|),   alpha <= (i + 1/2) / m <= 1 - alpha

    with the m = p - spikes smallest values, x_i = s**2 / (n - spikes) ascending and gamma = m / (n - spikes). Where
    values are missing, levels and law are those within what is left: with a = missing / m, i counts from the smallest
    known value, i / (m - missing) and (F - a) / (1 - a), over the `window`.

    Args:
        spectrum: what was measured.
        sigma: standard deviation of the noise, in the unit of W.
        alpha: share left out at each end, in [0, 1/2).
        spikes: number of largest values that are no noise, a count below p.

    Example:
        >>> levels = (np.arange(50) + 0.5) / 50
        >>> ideal = Spectrum(np.sqrt(100 * MarchenkoPastur(0.5).ppf(levels)), 50, 100)
        >>> round(misfit(ideal, sigma=1.0), 6)
        0.01

    References:
        Shmalo, Jenkins and Krupchytskyi, arXiv 2303.08986,
        section 4.3.
    """
    m, missing = spectrum.p - spikes, spectrum.p - len(spectrum.s)
    x = spectrum.s[spikes:][::-1] ** 2 / (spectrum.n - spikes)
    levels = (np.arange(missing, m) + 0.5) / m
    inside = window(m, alpha, missing)
    law = np.maximum(MarchenkoPastur(m / (spectrum.n - spikes), sigma).cdf(x[inside]), missing / m)
    return float(np.max(np.abs(law - levels[inside])) + 0.5 / m) / (1 - missing / m)


def misfit_of_rest(spectrum: Spectrum, sigma: float, spikes: int) -> float | None:
    """Returns the misfit of what `spikes` largest values leave, or None where fewer than three values are left.

    Args:
        spectrum: complete spectrum.
        sigma: standard deviation of the noise, in the unit of W.
        spikes: number of largest values that are no noise, a count.

    Example:
        >>> misfit_of_rest(Spectrum([4.0, 2.0, 1.0, 1.0], 4, 6), sigma=0.1, spikes=4) is None
        True

    References:
        As `misfit`.
    """
    return misfit(spectrum, sigma, spikes=spikes) if spikes <= spectrum.p - 3 else None


def bulk_share(spectrum: Spectrum, edge: float) -> float:
    """Returns the share of the p singular values that do not exceed the edge, in [0, 1].

    The papers call this the spike metric, although it counts what is no spike.

    Args:
        spectrum: what was measured; values missing from an incomplete spectrum count as bulk.
        edge: in the unit of W.

    Example:
        >>> bulk_share(Spectrum([4.0, 2.0, 1.0, 1.0], 4, 6), edge=3.0)
        0.75

    References:
        Berlyand, Bourdais, Owhadi and Shmalo, arXiv 2503.01922, eq. (12).
    """
    return 1.0 - int(np.count_nonzero(spectrum.s > edge)) / spectrum.p


def stable_rank(s: ArrayLike) -> float:
    """Returns sum(s**2) / max(s)**2, between 1 and the rank; 0 for a zero matrix.

    Args:
        s: singular values, any order and unit.

    Example:
        >>> stable_rank([2.0, 2.0, 0.0])
        2.0

    References:
        M. Rudelson and R. Vershynin, J. ACM 54 (2007), art. 21.
    """
    w = _relative_energy(s)
    return float(w.sum())


def entropy_rank(s: ArrayLike) -> float:
    """Returns exp(entropy of s / sum(s)), between 1 and the rank; 0 for a zero matrix.

    Args:
        s: singular values, any order and unit.

    Example:
        >>> round(entropy_rank([1.0, 1.0, 1.0, 0.0]), 12)
        3.0

    References:
        O. Roy and M. Vetterli, EUSIPCO (2007) 606, Definition 1.
    """
    w = np.sqrt(_relative_energy(s))
    w = w[w > 0]
    if w.size == 0:
        return 0.0
    w = w / w.sum()
    return float(np.exp(-np.sum(w * np.log(w))))


def participation_rank(s: ArrayLike) -> float:
    """Returns sum(s**2)**2 / sum(s**4), the number of directions that share the energy; 0 for a zero matrix.

    Args:
        s: singular values, any order and unit.

    Example:
        >>> participation_rank([3.0, 3.0, 3.0, 3.0])
        4.0

    References:
        P. Gao et al., bioRxiv 214262 (2017), eq. (5), for covariance eigenvalues s**2.
    """
    w = _relative_energy(s)
    return float(w.sum() ** 2 / np.sum(w**2)) if w.any() else 0.0


def alignment(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Returns the squared cosine between column i of `first` and column i of `second`, in [0, 1].

        (a . b)**2 / (|a|**2 |b|**2)

    Args:
        first: d x k, one vector a column.
        second: d x k, the same shape.

    Example:
        >>> alignment([[1.0], [0.0]], [[1.0], [1.0]]).round(12).tolist()
        [0.5]

    References:
        The quantity that `laws.cosines` predicts.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"alignment compares two d x k arrays column by column, got {a.shape} and {b.shape}")
    return np.sum(a * b, axis=0) ** 2 / (np.sum(a * a, axis=0) * np.sum(b * b, axis=0))


def _relative_energy(s: ArrayLike) -> NDArray[np.float64]:
    """(s / max s)**2, so that no square can overflow; empty or zero input gives zeros."""
    s = np.asarray(s, np.float64)
    top = s.max(initial=0.0)
    return (s / top) ** 2 if top > 0 else np.zeros_like(s)
