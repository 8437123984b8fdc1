"""The edge from the median singular value: one order statistic, hard to mislead and a little less sharp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectrim.metrics import misfit
from spectrim.spectrum import NoiseFit, Spectrum, check_measurable


@dataclass(frozen=True)
class Median:
    """The edge of the noise whose median eigenvalue is the one seen.

        sigma**2 = median(s**2 / n) / median of what unit noise is expected to show (`Spectrum.noise_quantiles`)
        edge = sigma sqrt(n top_eigenvalue(p, n, beta))

    False-spike rate on pure noise: beta to 1.3 beta (measured: .07 to .125 at beta = .1), for one order statistic gives
    a sigma that wobbles more than the top of the noise. Signal moves the median up by its share of the values, and the
    edge with it: K spikes raise sigma**2 as if the median were the level 1/2 + K / 2p of the noise.

    Args:
        beta: upper-tail probability in (0, 1).

    Example:
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, sigma=0.5, generator=np.random.default_rng(1))
        >>> fit = Median()(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90))
        >>> abs(fit.sigma - 0.5) < 0.02, fit.spikes
        (True, 0)

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 60 (2014) 5040, section III-E, for sigma; Johnstone (2001),
        Theorem 1.1, for the edge.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        for name in ("beta",):  # plain floats, so that the repr is a call that can be read back
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta!r}; it is an upper-tail probability")

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum)
        sigma = spectrum.median_sigma()
        edge = sigma * spectrum.noise_edge(self.beta)
        spikes = int(np.count_nonzero(spectrum.s > edge))
        return NoiseFit(sigma, edge, None, misfit(spectrum, sigma, spikes=spikes), spikes, repr(self))
