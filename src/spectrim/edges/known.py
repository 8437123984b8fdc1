"""The edge where the noise level is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectrim.metrics import misfit_of_rest
from spectrim.spectrum import NoiseFit, Spectrum, check_measurable


@dataclass(frozen=True)
class Known:
    """The edge of noise whose standard deviation is given.

        edge = sigma sqrt(n top_eigenvalue(p, n, beta))

    False-spike rate on pure noise: beta.

    Args:
        sigma: standard deviation of a noise entry, in the unit of W, > 0.
        beta: upper-tail probability in (0, 1).

    Example:
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, sigma=0.5, generator=np.random.default_rng(1))
        >>> fit = Known(sigma=0.5)(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90))
        >>> fit.sigma, fit.spikes
        (0.5, 0)

    References:
        Johnstone (2001), Theorem 1.1, as in `laws.top_eigenvalue`.
    """

    sigma: float
    beta: float = 0.1

    def __post_init__(self) -> None:
        for name in ("sigma", "beta"):  # plain floats, so that the repr is a call that can be read back
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma!r}; it is a standard deviation")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta!r}; it is an upper-tail probability")

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum)
        edge = self.sigma * spectrum.noise_edge(self.beta)
        spikes = int(np.count_nonzero(spectrum.s > edge))
        fit = misfit_of_rest(spectrum, self.sigma, spikes)
        return NoiseFit(self.sigma, edge, None, fit, spikes, repr(self))
