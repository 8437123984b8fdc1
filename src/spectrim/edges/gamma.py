"""The general model of bulk eigenvalue matching: noise whose rows differ in variance, fitted by simulation."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.optimize import minimize_scalar
from scipy.special import gammaincinv

from spectrim.laws import evened
from spectrim.spectrum import NoiseFit, Spectrum, check_measurable

SIDES = ("short", "long")
SHAPES = (0.5, 3000.0)  # of the Gamma law: variances from wilder than exponential to equal within 2 per cent
COARSE = 7  # shapes tried before the search closes in; they lie a factor 4 apart
CLOSE = 0.05  # of the logarithm of the shape, where the search ends: a tenth of its standard error at p = 384


@dataclass(frozen=True)
class BemaGamma:
    """The edge of noise whose rows (or columns) have Gamma-distributed variances, fitted to the central eigenvalues.

    One side of the matrix, by default the short one, has the variances v_j, independent with the law
    Gamma(shape theta, rate theta / sigma**2), of mean sigma**2. With x_k(theta) the mean over `draws` simulated
    matrices of the k-th eigenvalue at sigma = 1, theta minimises

        sum over k of (lambda_k - sigma**2 x_k(theta))**2,   sigma**2 = sum x_k lambda_k / sum x_k**2

    over the levels (k + 1/2) / p in [alpha, 1 - alpha]; the edge is the (1 - beta) quantile of the largest singular
    value of `tops` further matrices. The same random numbers serve every theta, so the sum is a smooth function of it.
    The misfit is the distance to the simulated law.

    To first order in their spread, variances on either side widen the law in the same way, so a fit on the short side
    copes with a long side that is uneven (measured false spikes below). The short side is simulated in p x p matrices,
    the long one in p x n. Equalisation answers the same question without assuming a law for the variances.

    Spikes are not taken out for a refit: K of them raise sigma and lower theta a little, and the edge with them.

    False-spike rate on pure noise: beta (60 draws of 60 x 90 at beta = .1: .05 for even noise, .10 and .15 for shapes 4
    and 1.5 on the side that is simulated, .20 for shape 4 on the other).

    Args:
        alpha: share of the eigenvalues left out at each end of the fit, in [0, 1/2).
        beta: upper-tail probability in (0, 1); the larger, the lower the edge.
        side: side whose rows differ in variance, "short" or "long".
        draws: simulated matrices for each theta, a count.
        tops: simulated matrices for the largest value, a count.
        seed: of the simulation, which is the same for every spectrum.

    Example:
        >>> from spectrim.planted import noise
        >>> generator = np.random.default_rng(0)
        >>> W = np.sqrt(generator.gamma(4, 1 / 4, (60, 1))) * noise(60, 90, generator=generator)
        >>> BemaGamma()(Spectrum(np.linalg.svd(W, compute_uv=False), 60, 90)).spikes
        0

    References:
        Z. T. Ke, Y. Ma and X. Lin, J. Amer. Statist. Assoc. 118 (2023) 374, Algorithm 2, with mid-point levels; the
        p x p form of the simulation: M. S. Bartlett, Proc. R. Soc. Edinburgh 53 (1933) 260.
    """

    alpha: float = 0.2
    beta: float = 0.1
    side: str = "short"
    draws: int = 10
    tops: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):  # plain numbers, so that the repr is a call that can be read back
            object.__setattr__(self, name, float(getattr(self, name)))
        for name, least in (("draws", 1), ("tops", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or int(value) != value or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
            object.__setattr__(self, name, int(value))
        if not 0 <= self.alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 1/2), got {self.alpha!r}; it is the share left out at each end")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta!r}; it is an upper-tail probability")
        if self.side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(SIDES)}, got {self.side!r}")

    def __call__(self, spectrum: Spectrum) -> NoiseFit:
        """Returns the verdict on the spectrum; raises ValueError where there is none."""
        check_measurable(spectrum)
        unit = float(spectrum.s[0])
        seen = (spectrum.s[::-1] / unit) ** 2 / spectrum.n
        levels = (np.arange(seen.size) + 0.5) / seen.size
        margin = min(self.alpha, levels[(seen.size - 1) // 2])
        inside = (levels >= margin) & (levels <= 1 - margin)
        tried: dict[float, tuple[float, float, NDArray[np.float64]]] = {}

        def distance(shape: float) -> float:
            """Of the central eigenvalues to those of noise of this log-shape at its best sigma."""
            if shape not in tried:
                law = sum(self._null(spectrum, np.exp(shape), draw) for draw in range(self.draws)) / self.draws
                variance = float(law[inside] @ seen[inside]) / float(law[inside] @ law[inside])
                tried[shape] = (float(np.sum((seen - variance * law)[inside] ** 2)), variance, law)
            return tried[shape][0]

        # A minimum inside the best pair of cells; where the rows do not differ, it is the upper end.
        grid = [float(v) for v in np.linspace(log(SHAPES[0]), log(SHAPES[1]), COARSE)]
        best = int(np.argmin([distance(v) for v in grid]))
        cells = (grid[max(best - 1, 0)], grid[min(best + 1, COARSE - 1)])
        minimize_scalar(distance, bounds=cells, method="bounded", options={"xatol": CLOSE})
        shape = min(tried, key=lambda v: tried[v][0])
        _, variance, law = tried[shape]
        tops = [self._null(spectrum, np.exp(shape), self.draws + draw, top=True)[-1] for draw in range(self.tops)]
        sigma = unit * sqrt(variance)
        edge = sigma * sqrt(spectrum.n * float(np.quantile(tops, 1 - self.beta)))
        heights = np.interp(seen[inside], variance * law, levels)
        fit = float(np.max(np.abs(heights - levels[inside]))) + 0.5 / seen.size
        return NoiseFit(sigma, edge, None, min(fit, 1.0), int(np.count_nonzero(spectrum.s > edge)), repr(self))

    def _null(self, spectrum: Spectrum, theta: float, draw: int, top: bool = False) -> NDArray[np.float64]:
        """The eigenvalues s**2 / n of one simulated matrix of mean variance one, ascending; or its largest alone."""
        p, n = spectrum.p, spectrum.n
        generator = np.random.default_rng([self.seed, draw])
        # By the quantile function, so that the variances move smoothly with theta.
        variances = gammaincinv(theta, generator.random(p if self.side == "short" else n)) / theta
        if self.side == "short":
            # The triangular root of a Wishart matrix has the singular values of a p x n Gaussian one.
            root = np.tril(generator.standard_normal((p, p)), -1)
            root[np.diag_indices(p)] = np.sqrt(generator.chisquare(n - np.arange(p)))
            root *= np.sqrt(variances)[:, None]
        else:
            root = generator.standard_normal((p, n)) * np.sqrt(variances)
        gram = root @ root.T / n
        values = eigvalsh(gram, subset_by_index=[p - 1, p - 1] if top else None, check_finite=False)
        values = np.maximum(values, 0.0)
        return evened(values, p, n, spectrum.spread) if spectrum.equalised else values
