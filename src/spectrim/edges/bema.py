"""Bulk eigenvalue matching analysis: the noise level from the middle of the spectrum, the edge from Tracy-Widom."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from spectrim.metrics import misfit
from spectrim.spectrum import NoiseFit, Spectrum, check_measurable


@dataclass(frozen=True)
class Bema:
    """The edge of the noise whose law runs through the central eigenvalues, refitted without the spikes it finds.

    With K spikes taken out, m = p - K values lambda_i = s**2 / (n - K) are left, ascending, and q_i is the quantile of
    MarchenkoPastur(m / (n - K)) at the level (i + 1/2) / m. Over the levels in [alpha, 1 - alpha]

        sigma**2 = sum q_i lambda_i / sum q_i**2,   edge = sigma sqrt(n top_eigenvalue(p, n, beta))

    K starts at zero and becomes the number of values above the edge, as long as that number grows. So K cannot cycle,
    it settles within a few rounds, and where a refit would take a spike back, the higher edge stands.

    False-spike rate on pure noise: beta. Bias of sigma**2 beside planted signal: half a per cent to two per cent low,
    where a fit without refit is 4 to 20 per cent high (table in docs/equalisation.md).

    Args:
        alpha: share of the eigenvalues left out at each end of the fit, in [0, 1/2).
        beta: upper-tail probability in (0, 1); the larger, the lower the edge.

    Example:
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, sigma=0.5, generator=np.random.default_rng(1))
        >>> fit = Bema()(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90))
        >>> abs(fit.sigma - 0.5) < 0.02, fit.spikes
        (True, 0)

    References:
        Z. T. Ke, Y. Ma and X. Lin, J. Amer. Statist. Assoc. 118 (2023) 374, Algorithm 1, with mid-point levels; the law
        of what is left after K spikes: F. Benaych-Georges and R. R. Nadakuditi (2012), section 4.
    """

    alpha: float = 0.2
    beta: float = 0.1

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):  # plain floats, so that the repr is a call that can be read back
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 1/2), got {self.alpha!r}; it is the share left out at each end")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta!r}; it is an upper-tail probability")

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum)
        # The unit of a huge or tiny matrix must not overflow its squares.
        unit = float(spectrum.s[0])
        s = spectrum.s[::-1] / unit
        reach = spectrum.noise_edge(self.beta)
        out = 0
        while True:
            sigma = self._fit(s, spectrum, out)
            spikes = int(np.count_nonzero(s > sigma * reach))
            # Beyond half of the values there is no bulk left to be the majority; the fit stays where it is.
            if spikes <= out or spikes > spectrum.p // 2:
                break
            out = spikes
        edge = unit * sigma * reach
        # One comparison decides, the one anybody can repeat with the fields of the result.
        spikes = int(np.count_nonzero(spectrum.s > edge))
        fit = misfit(spectrum, unit * sigma, self.alpha, spikes) if spikes <= spectrum.p // 2 else None
        return NoiseFit(unit * sigma, edge, None, fit, spikes, repr(self))

    def _fit(self, s: NDArray[np.float64], spectrum: Spectrum, out: int) -> float:
        m = s.size - out
        seen = s[:m] ** 2 / (spectrum.n - out)
        levels = (np.arange(m) + 0.5) / m
        law = spectrum.noise_quantiles(out)
        # The middle value, or two, belong to every window, however narrow.
        margin = min(self.alpha, (m - 1) // 2 / m)
        inside = (levels >= margin) & (levels <= 1 - margin)
        return sqrt(float(law[inside] @ seen[inside]) / float(law[inside] @ law[inside]))
