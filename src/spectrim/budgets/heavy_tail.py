"""Heavy tails: matrices whose large eigenvalues fall off slowly give less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectrim.spectrum import Spectrum
from spectrim.survey import Survey
from spectrim.tails import hill

from .allotment import Allotment, asked, candidates, share_out


@dataclass(frozen=True)
class HeavyTail:
    """Shares of zeros that rise in a straight line with the exponent of the heavy tail (AlphaPruning).

        share = eta (1 - tau + 2 tau (alpha - least) / (largest - least))

    alpha is Hill's exponent of the density of the upper half of the eigenvalues s^2; eta makes the total exact, and
    what a matrix cannot give is asked of the others in proportion. A slow fall (small alpha) is taken for learnt
    structure. The exponent needs no law of noise, so there is no gate.

    Args:
        tau: half the spread of the shares, in [0, 1]; 0 is uniform.

    Example:
        >>> import torch, spectrim
        >>> torch.manual_seed(0) and None
        >>> W = torch.randn(40, 60) + 3 * torch.randn(40, 4) @ torch.randn(4, 60)
        >>> given = HeavyTail(tau=0.2)(spectrim.survey({"plain": torch.randn(40, 60), "shaped": W}), 0.5).counts
        >>> given["plain"] == 1.5 * given["shaped"]
        True

    References:
        H. Lu, Y. Zhou, S. Liu, Z. Wang, M. Mahoney and Y. Yang, arXiv 2410.10912; here each matrix has its own share.
    """

    tau: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.tau, int | float) or not 0 <= self.tau <= 1:
            raise ValueError(f"tau lies in [0, 1], not {self.tau!r}: half the spread of the shares")

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        alphas, without = {}, {}
        for t in targets:
            try:
                alphas[t.name] = exponent(t.spectrum)
            except ValueError as error:
                without[t.name] = str(error)
        least, largest = (min(alphas.values()), max(alphas.values())) if alphas else (0.0, 0.0)
        spread = largest - least if largest - least > 1e-12 * largest else 0.0
        height = {name: (alpha - least) / spread if spread else 0.5 for name, alpha in alphas.items()}
        middle = float(np.mean(list(height.values()))) if height else 0.5
        slopes = {t.name: 1 - self.tau + 2 * self.tau * height.get(t.name, middle) for t in targets}
        room = [t.entries for t in targets]
        counts = share_out([slopes[t.name] * t.entries for t in targets], room, asked(targets, zeros))
        reasons = {name: f"exponent {alpha:.2f}" for name, alpha in alphas.items()}
        reasons |= {name: f"the mean share, no exponent: {why}" for name, why in without.items()}
        notes = [f"{len(without)} matrices show no tail, and get the mean share"] if without else []
        return Allotment({t.name: n for t, n in zip(targets, counts, strict=True)}, reasons, tuple(notes))


def exponent(spectrum: Spectrum) -> float:
    """Return Hill's exponent of the upper half of the eigenvalues; ValueError where they are too few or all alike.

    Args:
        spectrum: of the matrix.

    Example:
        >>> round(exponent(Spectrum([8.0, 4.0, 2.0, 1.0], 4, 4)), 3)
        1.481

    References:
        B. Hill, Ann. Statist. 3 (1975) 1163; half of the values as in arXiv 2410.10912.
    """
    return hill(spectrum.eigenvalues, len(spectrum.s) // 2)
