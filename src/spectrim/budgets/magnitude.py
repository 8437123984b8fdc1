"""The smallest magnitudes of all matrices together: the budget that every other one has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spectrim.survey import Survey

from .allotment import Allotment, Target, asked, candidates
from .thresholds import magnitudes, threshold_counts


@dataclass(frozen=True)
class GlobalMagnitude:
    """One threshold for |W| over all matrices.

    Example:
        >>> import torch, spectrim
        >>> torch.manual_seed(0) and None
        >>> found = spectrim.survey({"quiet": torch.randn(30, 40), "loud": 100 * torch.randn(30, 40)})
        >>> GlobalMagnitude()(found, 0.5).counts["quiet"] > 1150
        True

    References:
        S. Han, J. Pool, J. Tran and W. Dally, arXiv 1506.02626, with the threshold common to all layers.
    """

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        return by_weight(candidates(found), zeros, {})


def by_weight(
    targets: Sequence[Target],
    zeros: float,
    weights: Mapping[str, float],
    reasons: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Allotment:
    """Return the allotment of one threshold for weight |W| over all matrices; a matrix without a weight has 1.

    Equal scores are taken from the earlier matrix first. Scores are float64, so that a weight moves no order within a
    matrix of 32 bits or fewer.

    Args:
        targets: the matrices.
        zeros: share of all entries, in [0, 1].
        weights: finite, >= 0, by name.
        reasons: by name.
        notes: of the whole.
    """
    total = asked(targets, zeros)
    counts = threshold_counts([magnitudes(t.get, weights.get(t.name, 1.0)) for t in targets], total)
    return Allotment({t.name: n for t, n in zip(targets, counts, strict=True)}, dict(reasons or {}), tuple(notes))
