"""What can be done to one matrix: cut its rank, set entries to zero. Plain functions; their input is not changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .linalg import Factors, svd
from .reading import Equalised

DIGIT = 16  # bits of a magnitude that are found in one pass over the matrices


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

    Exact, with one matrix in memory at a time: the threshold is found digit by digit, from histograms of 16 bits of the
    magnitudes (non-negative floats are ordered as their bits are), in float64 if any matrix is, else in float32. Equal
    magnitudes at the threshold are taken from the earlier matrix first. The second figure is the relative Frobenius
    error that follows.

    Args:
        readers: one function a matrix, each returning it; called once a digit and once more.
        zeros: entries to be zeroed, 0 to the number of all entries.

    Example:
        >>> A, B = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 3.0]])
        >>> [count for count, _ in magnitude_counts([lambda: A, lambda: B], 2)]
        [1, 1]
    """
    dtype = torch.float64 if any(read().dtype == torch.float64 for read in readers) else torch.float32
    threshold, below = 0, 0  # the digits found so far, and how many magnitudes lie under them
    top = 8 * dtype.itemsize - DIGIT
    for shift in range(top, -1, -DIGIT):
        histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for read in readers:
            bits = _bits(read(), dtype)
            same = bits if shift == top else bits[bits >> (shift + DIGIT) == threshold]
            histogram += torch.bincount(same >> shift & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        reached = torch.cumsum(histogram, 0)
        digit = min(int(torch.searchsorted(reached, max(1, zeros - below))), len(reached) - 1)
        below += int(reached[digit - 1]) if digit else 0
        threshold = threshold << DIGIT | digit
    spare = zeros - below
    counts = []
    for read in readers:
        W = read()
        bits, squares = _bits(W, dtype), W.reshape(-1).to(torch.float64).square()
        under, level = bits < threshold, bits == threshold
        at = min(spare, int(level.sum()))
        spare -= at
        lost = float(squares[under].sum()) + (at * float(squares[level][0]) if at else 0.0)
        whole = float(squares.sum())
        counts.append((int(under.sum()) + at, math.sqrt(lost / whole) if whole else 0.0))
    return counts


def _bits(W: Tensor, dtype: torch.dtype) -> Tensor:
    whole = torch.int64 if dtype == torch.float64 else torch.int32
    return W.reshape(-1).to(dtype).abs().view(whole).to(torch.int64)
