"""Bulk eigenvalue matching analysis: the noise level from the middle of the spectrum, the edge from Tracy-Widom."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import hypot, sqrt

import numpy as np

from spectrim.laws import MarchenkoPastur, TracyWidom, sum_variance
from spectrim.metrics import misfit, window
from spectrim.spectrum import SMALLEST, NoiseFit, Spectrum, check_measurable

NORMAL = 1.6448536269514722  # of 90 per cent, two-sided
DOUBT = 0.25  # share of the push of the spikes, short of that of very strong ones, that counts as not known; measured
EVENING = 0.4  # what finding the scales adds to the spread of sigma**2, in units of 1 / sqrt(p n); measured
STEPS = 2  # of sigma and the strengths that follow from it, once the count stands; the last moves sigma by 1e-6


@dataclass(frozen=True)
class Bema:
    """The edge of the noise whose law runs through the central eigenvalues, refitted without the spikes it finds.

    With K spikes taken out, m = p - K values lambda_i = s**2 / (n - K) are left, ascending, and q_i is what noise of
    unit variance is expected to show in their place (`Spectrum.noise_quantiles`). Over the i whose level (i + 1/2) / m
    lies in [alpha, 1 - alpha]

        sigma**2 = sum q_i lambda_i / sum q_i**2,   edge = sigma sqrt(n top_eigenvalue(p, n, beta))

    K starts at zero and becomes the number of values above the edge, as long as that number grows. So K cannot cycle,
    it settles within a few rounds, and where a refit would take a spike back, the higher edge stands. Where the median
    eigenvalue shows clearly more spikes (over 3 and 2 per cent of p more), that count is a second start, and the
    outcome of smaller misfit is kept: signal that fills the window hides from the first.

    Of an incomplete spectrum, what a cut has left of p values, the r values are compared with the r largest of the
    law, over `metrics.window`; ten of them must be left below the edge. It has no interval. Signal near the transition,
    which hides in the upper bulk, weighs more the less is left of the bulk: sigma comes out high then, and spikes are
    missed.

    False-spike rate on pure noise: beta, incomplete or not. Of whole spectra, bias of sigma**2 beside planted signal:
    .2 per cent where the signal takes a sixth of the values, for each spike is given its own push on the bulk. The law
    of (p - K) x (n - K) noise, which takes all spikes for very strong, is one to two per cent low there, and a fit
    without refit 13 to 20 high.

    `edge_interval` is nominal at 90 per cent, for the end sigma (sqrt(n) + sqrt(p)) of the law of the noise. It is

        sigma (sqrt(n) + sqrt(p)) (1 -+ 1.645 w / 2),   w**2 = matched_spread**2 + (1 - sigma_K**2 / sigma**2)**2 / 16

    where `matched_spread` is the relative standard deviation of sigma**2 on pure noise, from the theory of linear
    statistics, and sigma_K the fit that takes the K spikes for very strong: a quarter of the correction for their
    finite strength counts as not known. An equalised matrix has its norm fixed, so sigma is there the root mean square
    of the noise at hand, better known than that of its source; finding the scales adds .16 / (p n) to w**2. The
    interval speaks of independent normal entries beside spikes that are seen. Of a bulk that does not fit it says
    nothing, and spikes just over the transition that are missed raise sigma beyond it. Coverage by simulation:
    docs/intervals.md. None where more than half of the values stand above the edge.

    Args:
        alpha: share of the eigenvalues left out at each end of the fit, in [0, 1/2).
        beta: upper-tail probability in (0, 1); the larger, the lower the edge.
        compat: None, or "authors": levels i / m, no refit, the scale (1 + sqrt(g))**4 / 3 in place of the power 4/3,
            and a distribution function that falls back to 0 above the edge in the misfit. For reproductions of
            published figures only; their false-spike rate is not beta.

    Example:
        >>> from spectrim.planted import noise
        >>> W = noise(60, 90, sigma=0.5, generator=np.random.default_rng(1))
        >>> fit = Bema()(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90))
        >>> abs(fit.sigma - 0.5) < 0.02, fit.spikes
        (True, 0)

    References:
        Z. T. Ke, Y. Ma and X. Lin, J. Amer. Statist. Assoc. 118 (2023) 374, Algorithm 1, with mid-point levels; what is
        left beside K spikes: `laws.spectral_shift`; the variance: `laws.sum_variance`.
    """

    alpha: float = 0.2
    beta: float = 0.1
    compat: str | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):  # plain floats, so that the repr is a call that can be read back
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 1/2), got {self.alpha!r}; it is the share left out at each end")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta!r}; it is an upper-tail probability")
        if self.compat not in (None, "authors"):
            raise ValueError(f'compat is None or "authors", got {self.compat!r}')

    def __repr__(self) -> str:
        compat = f", compat={self.compat!r}" if self.compat else ""
        return f"Bema(alpha={self.alpha}, beta={self.beta}{compat})"

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum, partial=not self.compat)
        if self.compat:
            return self._as_the_authors(spectrum)
        # The unit of a huge or tiny matrix must not overflow its squares.
        unit = float(spectrum.s[0])
        scaled = replace(spectrum, s=spectrum.s / unit)
        reach = spectrum.noise_edge(self.beta)
        out, sigma = self._settle(scaled, reach, 0)
        # Where signal fills the window of the fit, no count is ever found that could be taken out. The median still
        # shows a part of it then: a second start, and the one whose bulk fits better is kept.
        shown = self._shown_by_the_median(scaled, reach)
        if shown > out + max(3, 0.02 * spectrum.p):
            other = self._settle(scaled, reach, shown)
            found = [misfit(scaled, level, self.alpha, count) for count, level in ((out, sigma), other)]
            out, sigma = other if found[1] < found[0] else (out, sigma)
        edge = unit * sigma * reach
        # One comparison decides, the one anybody can repeat with the fields of the result.
        spikes = int(np.count_nonzero(spectrum.s > edge))
        if spikes > _most(spectrum):
            if not spectrum.complete:
                raise ValueError(f"of its noise only {len(spectrum.s) - spikes} values are left: too few to measure it")
            return NoiseFit(unit * sigma, edge, None, None, spikes, repr(self))
        fit = misfit(spectrum, unit * sigma, self.alpha, spikes)
        if not spectrum.complete:
            return NoiseFit(unit * sigma, edge, None, fit, spikes, repr(self))
        middle = unit * sigma * (sqrt(spectrum.n) + sqrt(spectrum.p))
        half = 0.5 * NORMAL * self._width(scaled, out, sigma)
        return NoiseFit(unit * sigma, edge, (middle * (1 - half), middle * (1 + half)), fit, spikes, repr(self))

    def _settle(self, spectrum: Spectrum, reach: float, out: int) -> tuple[int, float]:
        """The count of spikes from which a refit finds no more of them, starting with `out`, and sigma."""
        sigma, settled = self._fit(spectrum, out, None), False
        while True:
            spikes = int(np.count_nonzero(spectrum.s > sigma * reach))
            # Beyond half of the values there is no bulk left to be the majority; the fit stays where it is.
            if spikes > _most(spectrum) or (spikes <= out and (settled or not out)):
                return out, sigma
            settled = spikes <= out
            out = max(out, spikes)
            # Their strengths follow from sigma, and sigma from them: a few more steps when the count stands.
            for _ in range(STEPS if settled else 1):
                sigma = self._fit(spectrum, out, sigma)

    @staticmethod
    def _shown_by_the_median(spectrum: Spectrum, reach: float) -> int:
        """How many values stand above the edge that the median eigenvalue gives; 0 where they are the majority."""
        if not spectrum.complete:
            return 0
        shown = int(np.count_nonzero(spectrum.s > spectrum.median_sigma() * reach))
        return shown if shown <= spectrum.p // 2 else 0

    def _fit(self, spectrum: Spectrum, out: int, sigma: float | None) -> float:
        missing = spectrum.p - len(spectrum.s)
        seen = spectrum.s[out:][::-1] ** 2 / (spectrum.n - out)
        law = spectrum.noise_quantiles(out, sigma)[missing:]
        inside = window(spectrum.p - out, self.alpha, missing)
        return sqrt(float(law[inside] @ seen[inside]) / float(law[inside] @ law[inside]))

    def _width(self, spectrum: Spectrum, out: int, sigma: float) -> float:
        """The relative standard deviation of sigma**2: of the noise, and of what is known of the push of K spikes."""
        width = matched_spread(spectrum.p - out, spectrum.n - out, self.alpha, spectrum.equalised)
        if spectrum.equalised:
            width = hypot(width, EVENING / sqrt(spectrum.p * spectrum.n))
        if not out:
            return width
        strong = self._fit(spectrum, out, None)
        return hypot(width, DOUBT * (sigma**2 - strong**2) / sigma**2)

    def _as_the_authors(self, spectrum: Spectrum) -> NoiseFit:
        p, n, gamma = spectrum.p, spectrum.n, spectrum.gamma
        seen = spectrum.eigenvalues[::-1]
        window = np.arange(int(self.alpha * p), int((1 - self.alpha) * p))
        if not window.size:
            raise ValueError(f"no value lies in the central window alpha={self.alpha} of {p} values")
        law = MarchenkoPastur(gamma)
        q = law.ppf(window / p)
        variance = float(q @ seen[window]) / float(q @ q)
        wide = float(TracyWidom().ppf(1 - self.beta)) * n ** (-2 / 3) * gamma ** (-1 / 6) * (1 + sqrt(gamma)) ** 4 / 3
        edge = sqrt(n * variance * ((1 + sqrt(gamma)) ** 2 + wide))
        x = seen[window] / variance
        levels = self.alpha + (1 - 2 * self.alpha) * np.arange(window.size) / window.size
        worst = float(np.max(np.abs(levels - np.where(x > law.upper, 0.0, law.cdf(x)))))
        spikes = int(np.count_nonzero(spectrum.s > edge))
        return NoiseFit(sqrt(variance), edge, None, worst, spikes, repr(self))


def _most(spectrum: Spectrum) -> int:
    """How many values may be spikes: half of them, or where some are missing, all but ten of those that are left."""
    return spectrum.p // 2 if spectrum.complete else len(spectrum.s) - SMALLEST


@lru_cache(maxsize=256)
def matched_spread(p: int, n: int, alpha: float, given: bool = False) -> float:
    """Returns the relative standard deviation of the sigma**2 that is matched to the central values of pure noise.

    To first order sum q_i lambda_i / sum q_i**2 is the mean over the eigenvalues of f(x) = x**2 / (2 C), clipped at the
    ends of the window, with C the integral of q**2 over it; its variance is sum_variance(f) / p**2.

    Args:
        p: short side, a count.
        n: long side, a count.
        alpha: share left out at each end, in [0, 1/2).
        given: whether sigma**2 is the mean square of the entries at hand, as it is where the norm of the matrix was
            fixed by evening it; else that of the source they were drawn from. Then f(x) - x takes the place of f(x).

    Example:
        >>> round(matched_spread(500, 1000, 0.2), 5)
        0.00228

    References:
        `laws.sum_variance`; S. Stigler, Ann. Statist. 2 (1974) 676, for sums over order statistics as means of f.
    """
    law = MarchenkoPastur(p / n)
    low, high = law.ppf(np.array([alpha, 1 - alpha]))
    levels = alpha + (1 - 2 * alpha) * (np.arange(1024) + 0.5) / 1024
    energy = (1 - 2 * alpha) * float(np.mean(law.ppf(levels) ** 2))
    return sqrt(sum_variance(lambda x: np.clip(x, low, high) ** 2 / (2 * energy) - given * x, p / n)) / p
