"""What can be done to one matrix: cut its rank, set entries to zero. Plain functions; their input is not changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .linalg import Factors, svd
from .reading import Equalised

_HALF = 16  # a magnitude is found by the upper and the lower half of its 32 bits


def truncate(W: Tensor, rank: int, scales: Equalised | None = None) -> Factors:
    """Return the factors of the best approximation of W that has this rank.

    Without `scales` it minimises ||W - W'||_F; with them it minimises ||D1 (W - W') D2||_F, where D1 and D2 are the
    scales that make W even, so that a loud row does not decide what the others keep.

    Args:
        W: rows x cols, any float type.
        rank: values kept, 1 to min(rows, cols).
        scales: row and column scales from `reading.equalize`.

    Example:
        >>> W = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 3.0))
        >>> torch.allclose(truncate(W, 1).dense(), W.double())
        True

    References:
        C. Eckart and G. Young, Psychometrika 1 (1936) 211; the weighted form by substitution.
    """
    if scales is None:
        return svd(W).truncate(rank)
    return svd(scales.apply(W)).truncate(rank).rescale(scales.rows, scales.cols)


def smallest_to_zero(W: Tensor, zeros: int) -> Tensor:
    """Return W with its `zeros` entries of smallest magnitude at zero; of equal ones the first in row order go first.

    Entries that are zero already count, and are the first to be taken.

    Example:
        >>> smallest_to_zero(torch.tensor([[3.0, -1.0], [2.0, -4.0]]), 2)
        tensor([[ 3.,  0.],
                [ 0., -4.]])
    """
    out = W.clone().contiguous()
    flat = out.view(-1)
    if zeros:
        flat[torch.sort(flat.abs(), stable=True).indices[:zeros]] = 0
    return out


def magnitude_counts(readers: Sequence[Callable[[], Tensor]], zeros: int) -> list[tuple[int, float]]:
    """Return for each matrix how many of the `zeros` smallest magnitudes of all of them together are its own.

    Exact, with one matrix in memory at a time: the threshold is found digit by digit, from histograms of the upper
    and then the lower 16 bits of the magnitudes as float32 (non-negative floats are ordered as their bits are). Equal
    magnitudes at the threshold are taken from the earlier matrix first. The second figure is the relative Frobenius
    error that follows.

    Args:
        readers: one function a matrix, each returning it; called three times.
        zeros: entries to be zeroed, 0 to the number of all entries.

    Example:
        >>> A, B = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 3.0]])
        >>> [count for count, _ in magnitude_counts([lambda: A, lambda: B], 2)]
        [1, 1]
    """
    upper = torch.zeros(1 << _HALF, dtype=torch.int64)
    for read in readers:
        upper += torch.bincount(_bits(read()) >> _HALF, minlength=1 << _HALF)
    top, before = _digit(upper, zeros)
    lower = torch.zeros(1 << _HALF, dtype=torch.int64)
    for read in readers:
        bits = _bits(read())
        lower += torch.bincount(bits[bits >> _HALF == top] & ((1 << _HALF) - 1), minlength=1 << _HALF)
    low, below = _digit(lower, zeros - before)
    threshold, spare = (top << _HALF) + low, zeros - before - below
    counts = []
    for read in readers:
        W = read()
        bits = _bits(W)
        at = min(spare, int((bits == threshold).sum()))
        spare -= at
        squares = W.reshape(-1).to(torch.float64).square()
        lost = squares[bits < threshold].sum() + at * squares[bits == threshold].sum() / max(
            1, (bits == threshold).sum()
        )
        whole = float(squares.sum())
        counts.append((int((bits < threshold).sum()) + at, math.sqrt(float(lost) / whole) if whole else 0.0))
    return counts


def _bits(W: Tensor) -> Tensor:
    return W.reshape(-1).to(torch.float32).abs().view(torch.int32).to(torch.int64)


def _digit(histogram: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted`-th smallest lies, and how many lie before that bin."""
    reached = torch.cumsum(histogram, 0)
    place = min(int(torch.searchsorted(reached, max(1, wanted))), len(histogram) - 1)
    return place, int(reached[place - 1]) if place else 0
