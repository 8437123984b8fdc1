"""The amounts of the classical procedure: by how well the bulk fits the law of noise, and how much of it there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectrim.survey import Survey

from .allotment import NONE, Allotment, Target, asked, candidates, check_gate, share_out, told, unfit
from .magnitude import by_weight


@dataclass(frozen=True)
class BulkShare:
    """Shares of zeros in proportion to [(1 - mu) gamma]^(1.5 / i), the amount of the classical procedure.

    mu is the misfit of the bulk, gamma the share of the singular values that are bulk, i the cycle. The factor that
    makes the total exact stands for the amount of a cycle; what a matrix cannot give is asked of the others.

    Args:
        cycle: i >= 1; the first cycles tell matrices apart the most.
        misfit: whether mu takes part; False is gamma alone, and `Misfit` is mu alone.
        gate: largest misfit of a bulk that is believed, in [0, 1]: other matrices get the mean share. 1 is the formula
            of the paper, in which a bad fit speaks through mu.

    Example:
        >>> import torch, spectrim
        >>> torch.manual_seed(0) and None
        >>> W = torch.randn(40, 60) + torch.randn(40, 10) @ torch.randn(10, 60)
        >>> given = BulkShare()(spectrim.survey({"plain": torch.randn(40, 60), "shaped": W}), 0.5).counts
        >>> given["plain"] > given["shaped"]
        True

    References:
        arXiv 2503.01922, eq. (12).
    """

    cycle: float = 1.0
    misfit: bool = True
    gate: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        return _by_factor(self, candidates(found), zeros, use_share=True, use_misfit=self.misfit)


@dataclass(frozen=True)
class Misfit:
    """Shares of zeros in proportion to (1 - mu)^(1.5 / i), mu the misfit of the bulk: `BulkShare` without the share.

    Args:
        cycle: i >= 1.
        gate: as in `BulkShare`.

    Example:
        >>> Misfit(cycle=2)
        Misfit(cycle=2, gate=1.0)

    References:
        arXiv 2503.01922, eq. (12), one factor of it.
    """

    cycle: float = 1.0
    gate: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        return _by_factor(self, candidates(found), zeros, use_share=False, use_misfit=True)


def _check(budget: BulkShare | Misfit) -> None:
    if not isinstance(budget.cycle, int | float) or not 1 <= budget.cycle < np.inf:
        raise ValueError(f"cycle counts from 1, got {budget.cycle!r}")
    check_gate(budget.gate)


def _by_factor(
    budget: BulkShare | Misfit, targets: tuple[Target, ...], zeros: float, use_share: bool, use_misfit: bool
) -> Allotment:
    closed = unfit((t.reading for t in targets), budget.gate)
    factors, reasons = {}, {}
    for t in targets:
        mu = t.fit.misfit
        if mu is None and use_misfit:
            closed.setdefault(t.name, "its misfit could not be measured")
        if t.name not in closed:
            gamma = 1 - t.fit.spikes / len(t.spectrum.s)
            base = ((1 - mu) if use_misfit else 1.0) * (gamma if use_share else 1.0)
            factors[t.name] = base ** (1.5 / budget.cycle)
            told_of = [f"misfit {mu:.3f}"] if use_misfit else []
            reasons[t.name] = " and ".join([*told_of, f"bulk share {gamma:.1%}"] if use_share else told_of)
    if not factors:
        return by_weight(targets, zeros, {}, {name: f"plain magnitude: {why}" for name, why in closed.items()}, [NONE])
    mean = float(np.mean(list(factors.values())))
    reasons |= {name: f"the mean share, {why}" for name, why in closed.items()}
    room = [t.entries for t in targets]
    weights = [factors.get(t.name, mean) * t.entries for t in targets]
    counts = share_out(weights, room, asked(targets, zeros))
    notes = told(closed, "the mean share for them")
    return Allotment({t.name: n for t, n in zip(targets, counts, strict=True)}, reasons, notes)
