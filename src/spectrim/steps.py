"""What can be done to one matrix: cut its rank, shrink its singular values, set entries to zero.

Plain functions; their input is not changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from .laws import shrink as optimal
from .linalg import Factors, svd, without_zero_lines
from .reading import Equalised

DIGIT = 16  # bits of a magnitude that are found in one pass over the matrices


def truncate(W: Tensor, rank: int, scales: Equalised | None = None, also: Sequence[int] = ()) -> Factors:
    """Return the factors of the best approximation of W that has this rank, or that keeps some smaller values instead.

    Without `scales` it minimises ||W - W'||_F; with them it minimises ||D1 (W - W') D2||_F, where D1 and D2 are the
    scales that make W even, so that a loud row does not decide what the others keep.

    Args:
        W: rows x cols, any float type.
        rank: values kept, 1 to min(rows, cols).
        scales: row and column scales from `reading.equalize`.
        also: positions of values that are kept before the largest of the others, 0 the largest of all; they count in
            `rank`.

    Example:
        >>> W = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 3.0))
        >>> torch.allclose(truncate(W, 1).dense(), W.double())
        True

    References:
        C. Eckart and G. Young, Psychometrika 1 (1936) 211; the weighted form by substitution.
    """
    factors = svd(W if scales is None else scales.apply(W))
    kept = factors.select(kept_positions(factors.rank, rank, also)) if also else factors.truncate(rank)
    return kept if scales is None else kept.rescale(scales.rows, scales.cols)


def kept_positions(values: int, rank: int, also: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the positions of the `rank` values kept of so many, ascending: `also`, and then the largest of the others.

    Example:
        >>> kept_positions(10, 4, also=(7, 9))
        (0, 1, 7, 9)
    """
    first = set(also)
    others = (i for i in range(values) if i not in first)
    return tuple(sorted([*also, *islice(others, rank - len(also))]))


def shrink(W: Tensor, sigma: float, loss: str = "frobenius", scales: Equalised | None = None) -> Factors:
    """Return the factors of the best estimate of the signal in W when its noise has standard deviation sigma.

        W' = sigma sqrt(n) sum_i eta(s_i / (sigma sqrt(n))) u_i v_i^T

    eta takes each singular value back to what the signal behind it is worth in the given norm, and everything up to the
    edge sigma (sqrt(n) + sqrt(p)) to zero. Truncation keeps the values as they are seen, too long and along vectors
    that are partly noise; on planted signal the squared error of W' is a quarter to a third smaller. W' estimates the
    signal: as an approximation of W itself it is no better.

    Values that become zero are dropped. Where nothing stands above the edge the rank is 0, and `dense` all zeros.

    With `scales` the noise of D1 W D2 has standard deviation sigma (an equalised fit says so); its values are shrunk
    and the factors un-scaled. The loss is then that of D1 (S - W') D2.

    Args:
        W: rows x cols, any float type.
        sigma: standard deviation of a noise entry, in the unit of W (of D1 W D2 with `scales`), > 0.
        loss: "frobenius", "operator" or "nuclear", the norm of S - W' that is to be small.
        scales: row and column scales from `reading.equalize`.

    Example:
        >>> W = torch.diag(torch.tensor([8.0, 1.0, 0.5, 0.1]))
        >>> found = shrink(W, sigma=1.0)
        >>> found.rank, round(float(found.s[0]), 3)
        (1, 6.928)

    References:
        M. Gavish and D. Donoho, IEEE Trans. Inform. Theory 63 (2017) 2137, eq. (7), (9) and (10).
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma!r}; it is a standard deviation")
    # The law is that of the rows and columns that hold anything, as in a spectrum; the others change no value.
    p, n = sorted(without_zero_lines(W)[0].shape)
    found = svd(W if scales is None else scales.apply(W))
    unit = sigma * math.sqrt(n)
    values = unit * torch.from_numpy(optimal(found.s.cpu().numpy() / unit, p / n, loss)).to(found.s.device)
    kept = found.truncate(int((values > 0).sum()))
    kept = replace(kept, s=values[: kept.rank])
    return kept if scales is None else kept.rescale(scales.rows, scales.cols)


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
