"""One threshold, over all matrices, for what the removal of an entry costs on the inputs that its layer sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from numbers import Real

from torch import Tensor

from spectrim.moments import Moments
from spectrim.sites import listed
from spectrim.survey import Survey

from .allotment import Allotment, Target, asked, candidates, share_out
from .thresholds import threshold_counts


@dataclass(frozen=True, repr=False)
class MarginalDamage:
    """One threshold, over all matrices, for the damage that an entry's removal does to what the model gives.

        w_ij^2 (s_i C_jj)^trust

    With `trust` 1 this is the damage to first order, where the outputs are weighed by s (`calibrate.weighed`); with 0
    it is global magnitude. C and s are not the user's own where they come of noise, and a budget that spends all on
    them can empty a layer; the root, halfway, was as good or nearly so on every model tried. At 60 % zeros from noise,
    cosine to the dense outputs at trust 0, .5, 1, values made up for by `alternate` with these weights: MiniLM-L6 .845,
    .878, .884; ViT-S/14 .658, .754, .724; EfficientNet-Lite0 .729, .745, .726 (.751 by global magnitude with outputs
    that are not weighed).

    Without weights every s is 1, and what later layers make of an error is not known: at trust 1 that did worse than
    the same share for all on MiniLM, and emptied a matrix of the ViT.

    A matrix without moments, or without weights where others have some, gives the share that is asked of all of them,
    and the reason says so.

    Args:
        moments: of the model that was surveyed, by the names of its matrices.
        trust: in what is known of inputs and outputs, in [0, 1].

    Example:
        >>> import torch, spectrim
        >>> from spectrim.moments import Moment, Moments
        >>> torch.manual_seed(0) and None
        >>> found = spectrim.survey({"loud": torch.randn(30, 40), "quiet": torch.randn(30, 40)})
        >>> seen = {n: Moment(c * torch.ones(40), torch.zeros(40), 8) for n, c in (("loud", 9), ("quiet", 1))}
        >>> whole, none = (MarginalDamage(Moments(seen, "samples"), trust=t)(found, 0.5).counts for t in (1, 0))
        >>> whole["quiet"] > 850, abs(none["quiet"] - 600) < 30
        (True, True)

    References:
        w^2 C_jj is the square of the score of M. Sun et al., arXiv 2306.11695, which they compare within a row only.
    """

    moments: Moments = field()
    trust: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.moments, Moments):
            raise TypeError(f"moments are what `gather` or `Moments.load` return, not {type(self.moments).__name__}")
        if isinstance(self.trust, bool) or not isinstance(self.trust, Real) or not 0 <= self.trust <= 1:
            raise ValueError(f"trust lies in [0, 1], 0 for global magnitude and 1 for damage, not {self.trust!r}")

    def __repr__(self) -> str:
        return f"MarginalDamage({self.moments.source} {self.moments.fingerprint[:12]}, trust={self.trust:g})"

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        room = [t.entries for t in targets]
        even = share_out([float(r) for r in room], room, asked(targets, zeros))
        counts = {t.name: n for t, n in zip(targets, even, strict=True)}
        known = {t.name: self._factors(t) for t in targets}  # moments may be on disk, and scores are read several times
        lacking = {name: f"the share of all, {found}" for name, found in known.items() if isinstance(found, str)}
        seen = [t for t in targets if t.name not in lacking]
        if seen:
            reads = [partial(_scores, t, *known[t.name]) for t in seen]
            given = threshold_counts(reads, sum(counts[t.name] for t in seen))
            counts |= {t.name: n for t, n in zip(seen, given, strict=True)}
        notes = (
            (f"the share of all is taken of {listed(list(lacking))}: no moments, or nothing tells their weight",)
            if lacking
            else ()
        )
        return Allotment(counts, lacking, notes)

    def _factors(self, t: Target) -> tuple[Tensor, Tensor | None] | str:
        """The factors of the columns and of the rows of a matrix, or why it cannot be scored."""
        if why := self.moments.lacking(t.name, t.reading.cols):
            return why
        moment = self.moments[t.name]
        columns, rows = moment.diagonal.cpu().pow(self.trust), moment.rows
        if rows is None:
            # Next to weights, of which the sum over all matrices is about 1, an entry without one would count for all.
            return "nothing tells what its outputs weigh" if self.moments.rows else (columns, None)
        if tuple(rows.shape) != (t.reading.rows,):
            raise ValueError(
                f"{t.name} has {t.reading.rows} outputs and weights of {rows.numel()}: they are of another model"
            )
        return columns, rows.cpu().double().pow(self.trust)[:, None]


def _scores(t: Target, columns: Tensor, rows: Tensor | None) -> Tensor:
    W = t.stored()[0].to("cpu").double()  # as it is: moments are not those of an evened-out matrix
    found = W.square() * columns
    return found if rows is None else found * rows
