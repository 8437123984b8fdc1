"""The edge from the density of the singular values, each broadened to a Gaussian as wide as its neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray

from spectrim.laws import MarchenkoPastur, evened
from spectrim.metrics import misfit_of_rest
from spectrim.spectrum import NoiseFit, Spectrum, check_measurable

NODES = 2049  # of the table of the law; between two of them a straight line is off by less than 1e-6 of the height
REACH = 8.0  # widths beyond which a Gaussian counts as zero
BLOCK = 64  # Gaussians worked on at once
NARROWEST = 0.25  # of the median width; the clamped widths at the ends of an ordinary spectrum are half of it
SHARE = 16  # the window is at most this part of the values: measured, the most that keeps the rate under .17 from 10 on


@dataclass(frozen=True)
class Broadening:
    """The bare edge of the noise whose density of singular values comes closest to the broadened one that is seen.

    With the singular values ascending, g_1 <= .. <= g_p, and a the window (indices past an end stop there),

        P(x) = mean over k of N(x; g_k, w_k**2),   w_k = (g_{k+a} - g_{k-a}) / 2
        sigma minimises sum over i of (P(g_i) - f(g_i; sigma))**2
        edge = sigma (sqrt(n) + sqrt(p))

    where f is the density of the singular values of p x n noise of standard deviation sigma. Where f is zero a value
    adds a constant. The edge is the end of the limiting law, without the Tracy-Widom term; equalised noise ends a
    little lower, and so does its edge.

    The gap below a spike widens the Gaussians of its neighbours, which thins P out at the end of the bulk and pulls the
    end inwards: beside five strong spikes sigma is 2 to 4 per cent low, and one or two false ones join them. Beside
    many it is high, for the bulk is then short of values. So with `refit` the K values above the edge are taken out and
    the rest fitted as noise of (p - K) x (n - K), as long as K grows: sigma is then within 1 per cent where n > p.
    Without it the formula stands as printed above.

    Fifteen neighbours of fifty are no neighbourhood: P would lose the shape of the law and sigma come out a third too
    high. So a is p / 16 at most, and 2 at least; from p = 240 on the window is the one that was asked for.

    False-spike rate on pure noise: .17 at most, the chance that the largest value lies above the end of the limiting
    law. Broadening rounds the end off, which sets sigma 1 to 2 per cent high where n = p (measured rates: .11
    at sides of 20 to 50, .02 and less from 100 on where n = p; .06 to .13 where n is three times p and more).

    Args:
        window: a, neighbours to either side that set the width, a count >= 1; see above for p under 240.
        refit: whether the values above the edge are taken out and the rest fitted anew.

    Example:
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, sigma=0.5, generator=np.random.default_rng(1))
        >>> fit = Broadening()(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90))
        >>> abs(fit.sigma - 0.5) < 0.02, fit.spikes
        (True, 0)

    References:
        V. Plerou et al., Phys. Rev. E 65 (2002) 066126, for the broadening of eigenvalues; M. Thamm, M. Staats and
        B. Rosenow, Phys. Rev. E 106 (2022) 054124, for singular values of weights; K. Nishikawa, K. Shimizu and
        H. Hashiguchi, arXiv 2512.12911, for the edge.
    """

    window: int = 15
    refit: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or int(self.window) != self.window or self.window < 1:
            raise ValueError(f"window must be a count of at least 1, got {self.window!r}; it is the neighbours a side")
        object.__setattr__(self, "window", int(self.window))
        object.__setattr__(self, "refit", bool(self.refit))

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum)
        unit = float(spectrum.s[0])
        top = MarchenkoPastur(spectrum.gamma).upper
        if spectrum.equalised:
            top = float(evened(top, spectrum.p, spectrum.n, spectrum.spread))
        reach, out = sqrt(spectrum.n * top), 0
        while True:
            rest = replace(spectrum, s=spectrum.s[out:] / unit, rows=spectrum.p - out, cols=spectrum.n - out)
            sigma = unit * self._fit(rest)
            edge = sigma * reach
            spikes = int(np.count_nonzero(spectrum.s > edge))
            # As in `Bema`: the count only grows, and up to where there is no majority of noise left.
            if not self.refit or spikes <= out or spikes > spectrum.p // 2:
                break
            out = spikes
        fit = misfit_of_rest(spectrum, sigma, spikes)
        return NoiseFit(sigma, edge, None, fit, spikes, repr(self))

    def _fit(self, spectrum: Spectrum) -> float:
        s = spectrum.s[::-1]
        seen = _broadened(s, min(self.window, max(2, s.size // SHARE)))
        nodes, heights = _law(spectrum)

        def distance(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
            scale = sigma[:, None] * sqrt(spectrum.n)
            return np.sum((seen - np.interp(s / scale, nodes, heights, 0.0, 0.0) / scale) ** 2, axis=1)

        # The sharp end of f makes small dents in the sum wherever it passes a value, so the least one is looked for on
        # grids, each around the best of the one before; the last step is that of a parabola through three points.
        middle = float(np.median(s)) / sqrt(spectrum.n * float(MarchenkoPastur(spectrum.gamma).ppf(0.5)))
        grid = middle * np.geomspace(1 / 8, 4, 160)
        for reach in (0.045, 0.003):
            grid = grid[np.argmin(distance(grid))] * np.exp(np.linspace(-reach, reach, 61))
        step = grid[1] / grid[0]
        best = grid[np.argmin(distance(grid))]
        before, here, after = distance(best * np.array([1 / step, 1.0, step]))
        bend = before - 2 * here + after
        return float(best * step ** (0.5 * (before - after) / bend if bend > 0 else 0.0))


def _broadened(s: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """P at each of the values s, ascending."""
    m = s.size
    place = np.arange(m)
    width = 0.5 * (s[np.minimum(place + window, m - 1)] - s[np.maximum(place - window, 0)])
    typical = float(np.median(width))
    if typical <= 1e-9 * s[-1]:
        raise ValueError("most singular values are equal, so they have no density to broaden")
    # A run of equal values would be a spike of the density and decide the fit alone.
    width = np.maximum(width, NARROWEST * typical)
    height = 1 / (sqrt(2 * pi) * m * width)
    density = np.zeros(m)
    for start in range(0, m, BLOCK):
        part = slice(start, start + BLOCK)
        reach = REACH * float(width[part].max())
        low, high = np.searchsorted(s, [s[part][0] - reach, s[part][-1] + reach])
        z = (s[low:high, None] - s[part]) / width[part]
        density[low:high] += np.exp(-0.5 * z * z) @ height[part]
    return density


def _law(spectrum: Spectrum) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The density of s / (sigma sqrt(n)) for noise treated as this matrix was, at nodes that crowd at its ends."""
    root = sqrt(spectrum.gamma)
    t = np.linspace(1e-9, 0.5 * pi, NODES)  # not zero: at gamma = 1 the height there is a limit
    x = (1 - root) ** 2 + 4 * root * np.sin(t) ** 2
    heights = 2 * np.sin(2 * t) / (pi * root * np.sqrt(x))
    if not spectrum.equalised:
        return np.sqrt(x), heights
    y = evened(x, spectrum.p, spectrum.n, spectrum.spread)
    return np.sqrt(y), heights * np.sqrt(y / x) * np.gradient(x, y)
