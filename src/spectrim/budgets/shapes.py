"""Budgets that know shapes only: the same share for all, and Erdos-Renyi densities."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spectrim.survey import Survey

from .allotment import Allotment, asked, candidates, share_out


@dataclass(frozen=True)
class Uniform:
    """The same share of every matrix, rounded so that the total is exact.

    Example:
        >>> import torch, spectrim
        >>> found = spectrim.survey({"a": torch.randn(30, 40), "b": torch.randn(20, 20)})
        >>> Uniform()(found, 0.25).counts
        {'a': 300, 'b': 100}
    """

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        room = [t.entries for t in targets]
        counts = share_out([float(r) for r in room], room, asked(targets, zeros))
        return Allotment({t.name: n for t, n in zip(targets, counts, strict=True)})


@dataclass(frozen=True)
class ErdosRenyi:
    """Densities in proportion to (rows + cols) / (rows cols): entries kept in proportion to rows + cols.

    For a convolution whose kernel is known, outputs + inputs + height + width kept (ERK), on its own density. What a
    small matrix cannot hold goes to the others in proportion.

    Args:
        kernels: whether a convolution's kernel counts (ERK); if not, its matrix does, inputs x height x width wide.

    Example:
        >>> import torch, spectrim
        >>> found = spectrim.survey({"a": torch.randn(20, 40), "b": torch.randn(40, 80)})
        >>> ErdosRenyi()(found, 0.7).counts
        {'a': 400, 'b': 2400}

    References:
        D. Mocanu et al., Nature Communications 9 (2018) 2383; kernels: U. Evci et al., arXiv 1911.11134.
    """

    kernels: bool = True

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        room = [t.entries for t in targets]
        sides = []
        for t in targets:
            # rows + inputs + height + width, over the product of the same; times the entries this is what is kept.
            sizes = (t.reading.rows, *(t.kernel if self.kernels and t.kernel else (t.reading.cols,)))
            sides.append(float(sum(sizes)) * t.entries / math.prod(sizes))
        kept = share_out(sides, room, sum(room) - asked(targets, zeros))
        counts = {t.name: r - k for t, r, k in zip(targets, room, kept, strict=True)}
        reasons = {t.name: f"density {k / r:.1%}" for t, r, k in zip(targets, room, kept, strict=True)}
        return Allotment(counts, reasons)
