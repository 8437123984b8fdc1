"""One threshold, over all matrices, for what the removal of an entry costs on the inputs that its layer sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from numbers import Real

from torch import Tensor

from spectrim.inner.damage import metric
from spectrim.inner.obs import scores
from spectrim.moments import Moment, Moments
from spectrim.sites import listed
from spectrim.survey import Survey

from .allotment import Allotment, Target, asked, candidates, share_out
from .thresholds import threshold_counts


@dataclass(frozen=True, repr=False)
class MarginalDamage:
    """One threshold, over all matrices, for the marginal damage of an entry, against the energy of its layer's output.

        w_ij^2 C_jj / tr(W C W^T)^power

    Raw damage (power 0) is right where errors of all layers count alike at the end, relative damage (power 1) where
    what counts is the error beside the signal of its own layer: norms between layers, residual streams. Neither knows
    what later layers make of an error, and neither is safe. At 60 % zeros on MiniLM-L6 both did worse than the same
    share for all (cosine .64 raw, .74 relative, .84 even, each under SparseGPT's pass); on ViT-S/14 raw damage emptied
    a matrix, and the model with it (relative damage was not measured there). Controls, then, to be tried first.

    A matrix without moments gives the share that is asked of all of them, and the reason says so.

    Args:
        moments: of the model that was surveyed, by the names of its matrices.
        power: of the energy, finite; 0 and 1 are the two named ones.
        score: "wanda", w^2 C_jj as above; "obs", w^2 / [C^-1]_jj with `damping`, what the others cannot make up for.
        damping: share of the mean square of an input that is added to all of them, >= 0; for "obs" alone.

    Example:
        >>> import torch, spectrim
        >>> from spectrim.moments import Moment, Moments
        >>> torch.manual_seed(0) and None
        >>> found = spectrim.survey({"loud": torch.randn(30, 40), "quiet": torch.randn(30, 40)})
        >>> seen = {n: Moment(c * torch.ones(40), torch.zeros(40), 8) for n, c in (("loud", 9), ("quiet", 1))}
        >>> raw, even = (MarginalDamage(Moments(seen, "samples"), power=p)(found, 0.5).counts for p in (0, 1))
        >>> raw["quiet"] > 850, abs(even["quiet"] - 600) < 30
        (True, True)

    References:
        w^2 C_jj is the square of the score of M. Sun et al., arXiv 2306.11695, which they compare within a row only.
    """

    moments: Moments = field()
    power: float = 0.0
    score: str = "wanda"
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not isinstance(self.moments, Moments):
            raise TypeError(f"moments are what `gather` or `Moments.load` return, not {type(self.moments).__name__}")
        if isinstance(self.power, bool) or not isinstance(self.power, Real) or not math.isfinite(self.power):
            raise ValueError(f"power is a finite number, 0 for raw and 1 for relative damage, not {self.power!r}")
        if self.score not in ("wanda", "obs"):
            raise ValueError(f"score is 'wanda' or 'obs', not {self.score!r}")
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"damping is a share of the mean square of an input, >= 0, got {self.damping!r}")

    def __repr__(self) -> str:
        told = f"MarginalDamage({self.moments.source} {self.moments.fingerprint[:12]}, power={self.power:g}"
        return told + (", score='wanda')" if self.score == "wanda" else f", score='obs', damping={self.damping:g})")

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        room = [t.entries for t in targets]
        even = share_out([float(r) for r in room], room, asked(targets, zeros))
        counts = {t.name: n for t, n in zip(targets, even, strict=True)}
        reasons, seen, factors = {}, [], []
        for t in targets:
            why = self._without(t)
            if why:
                reasons[t.name] = f"the share of all, {why}"
                continue
            energy = self._energy(t)
            seen.append(t)
            factors.append(energy**-self.power if energy > 0 else 1.0)  # of an output of nothing every share is zero
            reasons[t.name] = f"output energy {energy:.3g}"
        largest = max(factors, default=1.0)
        reads = [partial(self._scores, t, factor / largest) for t, factor in zip(seen, factors, strict=True)]
        if seen:
            given = threshold_counts(reads, sum(counts[t.name] for t in seen))
            counts |= {t.name: n for t, n in zip(seen, given, strict=True)}
        lost = [t.name for t in targets if t not in seen]
        notes = (f"{listed(lost)} without moments: the share of all is taken there",) if lost else ()
        return Allotment(counts, reasons, notes)

    def _without(self, t: Target) -> str:
        """Why a matrix cannot be scored; empty where it can."""
        if t.name not in self.moments:
            return "it has no moments" + (f": {why}" if (why := self.moments.missing.get(t.name)) else "")
        moment = self.moments[t.name]
        if moment.cols != t.reading.cols:
            raise ValueError(
                f"{t.name} has {t.reading.cols} inputs and its moments {moment.cols}: they are of another model"
            )
        return "its inputs were zero at every position" if moment.dead else ""

    def _energy(self, t: Target) -> float:
        W = t.stored()[0]  # moments are those of the matrix as it is, in whatever basis the survey was evened
        return float(metric(W, self.moments[t.name]).energy(W).sum())

    def _scores(self, t: Target, factor: float) -> Tensor:
        moment: Moment = self.moments[t.name]
        return scores(t.stored()[0], moment, self.score, damping=self.damping).mul_(factor).cpu()
