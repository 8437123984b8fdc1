"""How well the kept directions of a matrix point along the signal, as a score of where the spectrum is cut.

Nobody sees the signal, so its cosines with what is seen come from the spiked model: a singular value s and the noise
level sigma tell the strength theta that lies behind it, and theta tells both cosines. `Ave_w(phi)`, the weighted mean
of the cosines kept, is named in the literature without its ingredients; what stands here is a reconstruction, and
every choice that the text leaves open is an option.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrim.laws import cosines, strength
from spectrim.metrics import alignment
from spectrim.spectrum import Spectrum

SIDES = ("product", "mean", "long", "short", "either")
WEIGHTS = ("s", "theta", "s**2")


def alignments(
    spectrum: Spectrum, sigma: float, side: str = "product", squared: bool = False, edge: float | None = None
) -> NDArray[np.float64]:
    """Returns the expected cosine phi_i between each direction of W and the signal, in [0, 1], one a singular value.

        y = s / (sigma sqrt(n)),   theta = strength(y),   long**2, short**2 = cosines(theta)

        product   long short            of the rank-one matrices u v^T
        mean      (long + short) / 2
        long      vectors of length n, the worse known side
        short     vectors of length p
        either    max(long, short)

    phi is zero up to the edge of the noise, sigma (sqrt(n) + sqrt(p)), and rises from there without a jump.

    Args:
        spectrum: what was measured.
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        side: one of `SIDES`.
        squared: squared cosines, in the formulas above as in the result, instead of cosines.
        edge: values up to this one count as noise as well, in the unit of W; None for the edge above.

    Example:
        >>> seen = Spectrum(np.r_[60.0, 30.0, np.linspace(19, 1, 98)], 100, 100)
        >>> alignments(seen, sigma=1.0)[:3].round(4).tolist()
        [0.9706, 0.8541, 0.0]

    References:
        F. Benaych-Georges and R. R. Nadakuditi, J. Multivariate Anal. 111 (2012) 120, Theorem 2.9; the average:
        arXiv 2512.12911.
    """
    _one_of("side", side, SIDES)
    long, short = cosines(strength(_seen(spectrum, sigma), spectrum.gamma), spectrum.gamma)
    phi = _combined(long, short, side, squared)
    return phi if edge is None else np.where(spectrum.s > edge, phi, 0.0)


def average(
    spectrum: Spectrum,
    sigma: float,
    side: str = "product",
    squared: bool = False,
    weights: str = "s",
    edge: float | None = None,
) -> NDArray[np.float64]:
    """Returns Ave_w(phi) when the k largest values are kept, for k = 1 up to all of them, each in [0, 1].

        Ave_w(phi)[k - 1] = sum_{i <= k} w_i phi_i / sum_{i <= k} w_i

    It is largest at k = 1 and falls, for the strongest direction is the best known; what can be read off is where it
    starts to fall fast, its `knee`. With weights theta it stands still from the last signal on.

    Args:
        spectrum: what was measured.
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        side: see `alignments`.
        squared: see `alignments`.
        weights: w_i, one of `WEIGHTS`: singular values, estimated strengths, or squares of the singular values.
        edge: see `alignments`.

    Example:
        >>> seen = Spectrum(np.r_[60.0, 30.0, np.linspace(19, 1, 98)], 100, 100)
        >>> average(seen, sigma=1.0)[:3].round(4).tolist()
        [0.9706, 0.9317, 0.7693]

    References:
        A reconstruction of the average in arXiv 2512.12911.
    """
    return averaged(alignments(spectrum, sigma, side, squared, edge), weigh(spectrum, sigma, weights))


def averaged(phi: ArrayLike, w: ArrayLike) -> NDArray[np.float64]:
    """Returns the running weighted mean of phi, 0 as long as the weights are.

    Args:
        phi: cosines, one a direction, strongest first.
        w: weights >= 0, as many.

    Example:
        >>> averaged([1.0, 0.5, 0.0], [2.0, 2.0, 1.0]).tolist()
        [1.0, 0.75, 0.6]

    References:
        As `average`.
    """
    w = np.asarray(w, np.float64)
    total = np.cumsum(w)
    return np.cumsum(w * np.asarray(phi, np.float64)) / np.where(total > 0, total, 1.0)


def weigh(spectrum: Spectrum, sigma: float, weights: str = "s") -> NDArray[np.float64]:
    """Returns the weight of each direction in the average, s, theta (in the unit of W) or s**2.

    Args:
        spectrum: what was measured.
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        weights: one of `WEIGHTS`.

    Example:
        >>> weigh(Spectrum(np.full(10, 3.0), 10, 10), 1.0, "s**2").tolist()[:2]
        [9.0, 9.0]

    References:
        As `average`.
    """
    _one_of("weights", weights, WEIGHTS)
    if weights == "theta":
        return sigma * sqrt(spectrum.n) * strength(_seen(spectrum, sigma), spectrum.gamma)
    return spectrum.s.copy() if weights == "s" else spectrum.s**2


def gain(
    spectrum: Spectrum, sigma: float, side: str = "product", by: str = "s", edge: float | None = None
) -> NDArray[np.float64]:
    """Returns a score of keeping the k largest values, for k = 1 up to all of them, that rises and then falls.

        by="s"        sum_{i <= k} s_i**2 (2 phi_i - 1)
        by="theta"    sum_{i <= k} s_i (2 theta_i phi_i - s_i)

    Its `peak` is a cut. The first rewards every direction whose cosine is over one half and charges the others. The
    second, with the product of the cosines, is the squared error that the kept values save, ||S||**2 - ||S - W_k||**2,
    as the spiked model expects it: its peak is the optimal hard threshold.

    Args:
        spectrum: what was measured.
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        side: see `alignments`.
        by: "s" or "theta", as above.
        edge: see `alignments`.

    Example:
        >>> seen = Spectrum(np.r_[60.0, 30.0, np.linspace(19, 1, 98)], 100, 100)
        >>> peak(gain(seen, sigma=1.0))
        2

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 60 (2014) 5040, eq. (3), is the peak of the second; the
        first is ours.
    """
    _one_of("by", by, ("s", "theta"))
    phi = alignments(spectrum, sigma, side, edge=edge)
    behind = spectrum.s if by == "s" else weigh(spectrum, sigma, "theta")
    return np.cumsum(spectrum.s * (2 * behind * phi - spectrum.s))


def peak(curve: ArrayLike) -> int:
    """Returns the number of values kept where the curve is highest, the smallest such; 0 where it is never above zero.

    Args:
        curve: a score for k = 1, 2, ...

    Example:
        >>> peak([1.0, 3.0, 2.0]), peak([-1.0, -2.0])
        (2, 0)

    References:
        Used with `gain`.
    """
    curve = np.asarray(curve, np.float64)
    best = int(np.argmax(curve))
    return best + 1 if curve[best] > 0 else 0


def knee(curve: ArrayLike) -> int:
    """Returns the number of values kept where a falling score turns down; 0 where it is zero from the start.

    The point that lies highest over the chord from the first to the last point, in log(k) and log(score). In these
    coordinates Ave_w(phi) is nearly flat as long as there is signal to keep, and then falls with a slope near -1, since
    only the denominator still grows. So where the curve ends matters little, as long as it ends well beyond.

    It falls somewhat short of the rank of the signal, whose last directions have small cosines; `reach` is the figure
    that counts them all.

    Args:
        curve: a score >= 0 for k = 1, 2, ...

    Example:
        >>> knee([1.0, 0.98, 0.95, 0.7, 0.55, 0.46, 0.4])
        3

    References:
        The chord rule of V. Satopaa et al., ICDCS Workshops (2011) 166, in logarithms.
    """
    curve = np.asarray(curve, np.float64)
    if curve.ndim != 1 or curve.size == 0 or not np.all(np.isfinite(curve)) or np.any(curve < 0):
        raise ValueError("a knee needs one row of finite scores >= 0")
    curve = curve[: int(np.argmin(curve > 0))] if not np.all(curve > 0) else curve
    if curve.size < 3:
        return int(curve.size > 0)
    k, level = np.log(np.arange(1, curve.size + 1)), np.log(curve)
    over = level - level[0] - (level[-1] - level[0]) * k / k[-1]
    # A straight line has no bend: what rounding puts over the chord is none.
    return int(np.argmax(over > over.max() - 1e-9)) + 1


def reach(phi: ArrayLike) -> int:
    """Returns the largest number of values of which the last still has a positive cosine, a count; 0 for none.

    Args:
        phi: cosines from `alignments`.

    Example:
        >>> reach([0.9, 0.4, 0.0])
        2

    References:
        Values above the edge of the noise, by another name.
    """
    return int(np.max(np.nonzero(np.asarray(phi) > 0)[0], initial=-1)) + 1


def known_alignments(
    U: ArrayLike, Vh: ArrayLike, signal_U: ArrayLike, signal_Vh: ArrayLike, side: str = "product", squared: bool = False
) -> NDArray[np.float64]:
    """Returns the cosine between each direction of W and the space of a signal that is known, in [0, 1].

        left_i = |P u_i|,   right_i = |Q v_i|,   combined as in `alignments`

    with P and Q the projections on the signal's left and right vectors. It is not the cosine with the signal's i-th
    vector: where two strengths lie close together their seen vectors are any rotation of the two, so single pairs are
    chance, while the space is not. A direction that is all noise has left about sqrt(k / rows), not zero.

    Args:
        U: left vectors of W, rows x p, orthonormal columns.
        Vh: right vectors of W, p x cols.
        signal_U: left vectors of the signal, rows x k, orthonormal columns.
        signal_Vh: right vectors of the signal, k x cols.
        side: one of `SIDES`; on a square matrix the left side counts as the long one.
        squared: squared cosines instead of cosines.

    Example:
        >>> U, Vh = np.eye(3), np.eye(3)
        >>> known_alignments(U, Vh, U[:, :1], Vh[:1]).tolist()
        [1.0, 0.0, 0.0]

    References:
        `metrics.alignment` between a vector and its projection.
    """
    _one_of("side", side, SIDES)
    squares = []
    for seen, true in ((np.asarray(U), np.asarray(signal_U)), (np.asarray(Vh).T, np.asarray(signal_Vh).T)):
        shadow = true @ (true.T @ seen)
        # A vector without a shadow would be 0/0.
        there = np.any(shadow, axis=0)
        squares.append(np.zeros(seen.shape[1]))
        squares[-1][there] = alignment(seen[:, there], shadow[:, there])
    long, short = squares if np.shape(U)[0] >= np.shape(Vh)[1] else squares[::-1]
    return _combined(long, short, side, squared)


def _combined(long: NDArray[np.float64], short: NDArray[np.float64], side: str, squared: bool) -> NDArray[np.float64]:
    """The two squared cosines as one figure."""
    long, short = (long, short) if squared else (np.sqrt(long), np.sqrt(short))
    if side in ("long", "short"):
        return long if side == "long" else short
    if side == "either":
        return np.maximum(long, short)
    return long * short if side == "product" else 0.5 * (long + short)


def _seen(spectrum: Spectrum, sigma: float) -> NDArray[np.float64]:
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be positive and finite, got {sigma!r}; it is a standard deviation")
    return spectrum.s / (sigma * sqrt(spectrum.n))


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
