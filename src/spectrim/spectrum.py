"""What is measured on a weight matrix, and what an edge estimator says about it: the unit rule of the library.

    quantity          name           definition
    matrix            W              rows x cols; rows are outputs, cols are inputs
    sides             p, n           the short and the long one, so W and its transpose give the same results
    ratio             gamma          p / n in (0, 1], never its inverse
    singular values   s              descending, float64, of the raw W, without normalisation
    eigenvalues       s**2 / n       follow MarchenkoPastur(gamma, sigma) where W is noise of standard deviation sigma
    noise level       sigma          a standard deviation of an entry, never a variance
    edge              edge           in singular-value units of W
    spike                            a singular value above the edge
    shares                           in [0, 1]; percent only in print

An *equalised* spectrum is that of D1 W D2, whose row and column mean squares are even and whose Frobenius norm is that
of W; its sigma, edge and spikes refer to that matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray

from spectrim.laws import MarchenkoPastur, evened, mean_shift, spectral_shift, strength, top_eigenvalue

SMALLEST = 10  # short side; below it Tracy-Widom's limit and a central window of eigenvalues mean little
ZERO = 1e-7  # of the largest value: rounding leaves about 1e-8 where a Gram matrix has an exact zero; see linalg
NODES = 513  # on which counts are inverted: the error, 4e-6 of a value, is a thirtieth of what chance does at p = 8192


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of a matrix, with the shape they belong to.

    gamma = p / n and eigenvalues = s**2 / n, where p = min(rows, cols) and n = max(rows, cols).

    Args:
        s: singular values, 1-d, finite, >= 0, in the unit of W; kept as a read-only descending float64 copy.
        rows: rows of the matrix measured, a count.
        cols: columns of the matrix measured, a count.
        complete: whether all p values are given; False where only the largest are known, or were left by a cut.
        equalised: whether the matrix was brought to even row and column mean squares by scales found from itself,
            which tightens its noise edge a little (see `edges`).
        spread: kurtosis of the entries less one, in [0, 2]: how far chance had set rows and columns apart before they
            were made even. 2 for Gaussian noise, and for heavier tails, where it is a bound; used if equalised.
        measured: how many of the largest were found one by one, the others being quantiles of their density (see
            `lanczos`), in 0..p; None where all of them were.

    Example:
        >>> found = Spectrum([3.0, 1.0, 2.0], rows=5, cols=3)
        >>> found.s.tolist(), found.p, found.n, found.gamma
        ([3.0, 2.0, 1.0], 3, 5, 0.6)

    References:
        The conventions above.
    """

    s: NDArray[np.float64]
    rows: int
    cols: int
    complete: bool = True
    equalised: bool = False
    spread: float = 2.0
    measured: int | None = None

    def __post_init__(self) -> None:
        s = np.array(self.s, np.float64)
        if s.ndim != 1:
            raise ValueError(f"singular values come as one row, got an array of shape {s.shape}")
        if self.rows < 1 or self.cols < 1:
            raise ValueError(f"a matrix needs rows and columns, got {self.rows} x {self.cols}")
        if not np.all(np.isfinite(s)):
            raise ValueError(f"{np.count_nonzero(~np.isfinite(s))} of {s.size} singular values are not finite")
        if np.any(s < 0):
            raise ValueError(f"singular values cannot be negative, got {s.min():g}; are these eigenvalues?")
        if s.size > self.p or (self.complete and s.size != self.p):
            raise ValueError(
                f"a {self.rows} x {self.cols} matrix has {self.p} singular values, got {s.size}; "
                "say complete=False where only the largest are known"
            )
        if self.measured is not None and not 0 <= self.measured <= self.p:
            raise ValueError(f"of {self.p} values 0 to {self.p} can be measured one by one, not {self.measured}")
        s = np.sort(s)[::-1]
        s.setflags(write=False)
        object.__setattr__(self, "s", s)

    @property
    def p(self) -> int:
        """The short side, a count."""
        return min(self.rows, self.cols)

    @property
    def n(self) -> int:
        """The long side, a count."""
        return max(self.rows, self.cols)

    @property
    def gamma(self) -> float:
        """The ratio p / n of the short to the long side, in (0, 1]."""
        return self.p / self.n

    @property
    def eigenvalues(self) -> NDArray[np.float64]:
        """The eigenvalues s**2 / n, descending, in the unit of W squared."""
        return self.s**2 / self.n

    def largest(self, k: int) -> Spectrum:
        """Returns the spectrum with only its k largest values known, and itself where it has no more.

        So a matrix is read that was cut to k values: what stands below them is rounding, or was added since. Values
        that are zero, to rounding, are not among them.

        Args:
            k: number of values, a count.

        Example:
            >>> Spectrum([3.0, 1.0, 0.0], 5, 3).largest(2)
            Spectrum(5 x 3, 2 values, largest 3, incomplete)
        """
        k = min(k, int(np.count_nonzero(self.s > ZERO * self.s[:1])))
        return self if k >= len(self.s) else replace(self, s=self.s[:k], complete=False)

    def noise_edge(self, beta: float) -> float:
        """Returns the singular value that noise of unit variance, treated as this matrix was, exceeds with odds beta.

        Args:
            beta: upper-tail probability in (0, 1).

        Example:
            >>> plain = Spectrum(np.ones(400), 400, 400)
            >>> even = Spectrum(np.ones(400), 400, 400, equalised=True)
            >>> round(plain.noise_edge(0.1), 3), round(even.noise_edge(0.1), 3)
            (40.104, 39.907)

        References:
            `laws.top_eigenvalue`, and `laws.evened` where the matrix was equalised.
        """
        top = top_eigenvalue(self.p, self.n, beta)
        return sqrt(self.n * float(evened(top, self.p, self.n, self.spread) if self.equalised else top))

    def noise_quantiles(self, spikes: int = 0, sigma: float | None = None) -> NDArray[np.float64]:
        """Returns the eigenvalues s**2 / (n - K) expected of unit noise beside K spikes, ascending.

        With m = p - K, g = m / (n - K) and F the Marchenko-Pastur law of g, the i-th is the x below which i + 1/2 of
        the m are expected:

            m F(x) + mean_shift(x) + sum over the spikes of (1 - phi / pi - xi(x)) = i + 1/2,   cos(phi) as in `laws`

        A very strong spike has xi(x) = 1 - phi / pi: it takes one row and one column along and nothing else. A weaker
        one pushes the noise up less than that.

        Args:
            spikes: K, how many of the largest values are no noise, a count below p.
            sigma: noise level by which the strengths of the spikes are read off, in the unit of W; None takes them for
                very strong.

        Example:
            >>> Spectrum(np.ones(4), 4, 4).noise_quantiles().round(3).tolist()
            [0.011, 0.282, 0.981, 2.466]

        References:
            `laws.mean_shift` and `laws.spectral_shift`; `laws.evened` where the matrix was equalised.
        """
        p, n = self.p - spikes, self.n - spikes
        gamma = p / n
        phi = np.linspace(pi, 0.0, NODES)
        x = 1 + gamma + 2 * sqrt(gamma) * np.cos(phi)
        below = p * MarchenkoPastur(gamma).cdf(x) + mean_shift(x, gamma)
        if spikes and sigma:
            # Each is seen beside noise of the sides that the others leave. One that noise made, or that is half hidden,
            # has left the bulk all the same.
            theta = np.maximum(strength(self.s[:spikes] / (sigma * sqrt(n)), gamma), 1.000001 * gamma**0.25)
            below += spikes * (1 - phi / pi) - spectral_shift(x, theta[:, None], gamma).sum(0)
        # In the outermost cells the shift turns the count back by less than a quarter.
        angle = np.interp(np.arange(p) + 0.5, np.maximum.accumulate(below), phi)
        values = 1 + gamma + 2 * sqrt(gamma) * np.cos(angle)
        return evened(values, p, n, self.spread) if self.equalised else values

    def median_sigma(self) -> float:
        """Returns the noise level at which the median eigenvalue is the one that pure noise is expected to show.

            sigma**2 = median(s**2 / n) / median(noise_quantiles())

        Example:
            >>> even = Spectrum(np.sqrt(40 * Spectrum(np.ones(20), 20, 40).noise_quantiles()), 20, 40)
            >>> round(even.median_sigma(), 12)
            1.0

        References:
            M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 60 (2014) 5040, section III-E, for eigenvalues.
        """
        # The same median of both: of the middle one or two of the p values.
        return sqrt(float(np.median(self.eigenvalues)) / float(np.median(self.noise_quantiles())))

    def __repr__(self) -> str:
        top = f"{self.s[0]:.4g}" if self.s.size else "none"
        flags = ("" if self.complete else ", incomplete") + (", equalised" if self.equalised else "")
        flags += "" if self.measured is None else f", {self.measured} of them measured"
        return f"Spectrum({self.rows} x {self.cols}, {self.s.size} values, largest {top}{flags})"


@dataclass(frozen=True)
class NoiseFit:
    """The verdict of an edge estimator on one spectrum.

    A singular value s is a spike where s > edge, else bulk; sigma and edge refer to the matrix that was measured.

    Args:
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        edge: largest singular value that noise explains, in the unit of W, > 0.
        edge_interval: (low, high) around sigma (sqrt(n) + sqrt(p)), where the law of the noise ends, same unit, nominal
            at 90 per cent; None where the estimator has none to give. The edge lies a little above that
            end, and about at it where the matrix was equalised, which draws the top of noise in.
        misfit: sup-distance of the bulk to its law on the central window, in [0, 1], or None where it was not asked.
        spikes: number of singular values above the edge, a count.
        method: repr of the estimator, a complete configuration.

    Example:
        >>> NoiseFit(1.0, 2.25, None, None, 0, "Known(sigma=1.0)").spikes
        0

    References:
        The conventions of this module.
    """

    sigma: float
    edge: float
    edge_interval: tuple[float, float] | None
    misfit: float | None
    spikes: int
    method: str


def check_measurable(spectrum: Spectrum, partial: bool = False) -> None:
    """Returns nothing; raises ValueError where no noise law can be read off the spectrum.

    Refused are incomplete spectra, a short side under ten, and spectra that are zero altogether or from the middle
    down, where the level of the noise is not defined.

    Args:
        spectrum: what was measured.
        partial: whether the estimator can do with the largest values alone; then ten of them are enough.

    Example:
        >>> check_measurable(Spectrum([2.0, 1.0, 0.5], rows=3, cols=5))
        Traceback (most recent call last):
        ValueError: a 3 x 5 matrix is too small to tell signal from noise: its short side is under 10

    References:
        At p = 10 the false-spike rate of `Bema` is still the nominal one; see tests/test_edges.py.
    """
    shape = f"{spectrum.rows} x {spectrum.cols}"
    if not spectrum.complete and not partial:
        raise ValueError(f"the spectrum of this {shape} matrix is incomplete: an edge needs all {spectrum.p} values")
    if spectrum.p < SMALLEST:
        raise ValueError(f"a {shape} matrix is too small to tell signal from noise: its short side is under {SMALLEST}")
    if len(spectrum.s) < SMALLEST:
        raise ValueError(
            f"the spectrum of this {shape} matrix is incomplete: {len(spectrum.s)} values are too few to measure noise"
        )
    if spectrum.s[0] == 0:
        raise ValueError(f"this {shape} matrix is all zero")
    rank = int(np.count_nonzero(spectrum.s > ZERO * spectrum.s[0]))
    if rank <= min(spectrum.p // 2, len(spectrum.s) - 1):
        raise ValueError(f"this {shape} matrix has rank {rank}, so more than half of its singular values are zero")
