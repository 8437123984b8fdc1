"""LAMP: the smallest magnitudes, each measured against what would be left of its own matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectrim.survey import Survey

from .allotment import Allotment, asked, candidates
from .thresholds import threshold_counts


@dataclass(frozen=True)
class Lamp:
    """One threshold, over all matrices, for an entry's square as a share of what is left when all smaller ones went.

        score(u) = W_u^2 / sum of W_v^2 over v >= u,   entries of the matrix in ascending order

    Equal magnitudes are in row order, so that the last entry of a matrix has score 1, and no matrix is emptied while
    another one holds two entries. A scale of a matrix cancels.

    Example:
        >>> import torch, spectrim
        >>> torch.manual_seed(0) and None
        >>> found = spectrim.survey({"quiet": torch.randn(30, 40), "loud": 100 * torch.randn(30, 40)})
        >>> abs(Lamp()(found, 0.5).counts["quiet"] - 600) < 30
        True

    References:
        J. Lee, S. Park, S. Mo, S. Ahn and J. Shin, arXiv 2010.07611.
    """

    def __call__(self, found: Survey, zeros: float) -> Allotment:
        """Return the zeros of each matrix at this share of all entries, in [0, 1]."""
        targets = candidates(found)
        counts = threshold_counts([_scores(t.get) for t in targets], asked(targets, zeros))
        return Allotment({t.name: n for t, n in zip(targets, counts, strict=True)})


def _scores(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def scores() -> Tensor:
        W = read().reshape(-1).abs()
        # Sorted by numpy, which is several times as fast; sixteen bits are exact in 32.
        w = np.sort((W if W.dtype == torch.float64 else W.to(torch.float32)).cpu().numpy()).astype(np.float64)
        if not w[-1]:
            return torch.from_numpy(w)
        squares = np.ldexp(w, -np.frexp(w[-1])[1]) ** 2  # a power of two: nothing is rounded, and no square overflows
        left = np.cumsum(squares[::-1])[::-1]
        return torch.from_numpy(squares / left)

    return scores
