"""One threshold for the scores of many matrices: how many of the smallest scores of all together are whose.

Exact, whatever the number of entries, with one matrix in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DIGIT = 16  # bits of a score that are found in one pass over the matrices
HELD = 1 << 22  # scores around the threshold that are sorted in memory: 32 MB
BLOCK = 1 << 22  # scores that are looked at in one go
Scores = Callable[[], Tensor]


def threshold_counts(scores: Sequence[Scores], zeros: int) -> list[int]:
    """Return for each matrix how many of the `zeros` smallest scores of all of them together are its own.

    The same as one stable sort of all scores, the matrices one after the other: equal scores at the threshold are taken
    from the earlier matrix first. Non-negative floats are ordered as their bits are, so the threshold is found digit by
    digit, from histograms of 16 bits; as soon as few enough scores share the digits found, these are sorted.

    Args:
        scores: one function a matrix, returning its scores >= 0 as float64, in any shape; called two to five times.
        zeros: entries to be zeroed, 0 to the number of all entries.

    Example:
        >>> A, B = torch.tensor([1.0, 5.0]).double(), torch.tensor([2.0, 3.0]).double()
        >>> threshold_counts([lambda: A, lambda: B], 3)
        [1, 2]
    """
    threshold = below = shift = at = 0  # the digits found so far, and how many scores lie under all that have them
    for shift in range(64 - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for bits in (block for read in scores for block in _blocks(read())):
            if shift + DIGIT < 64:
                bits = bits[bits >> shift + DIGIT == threshold]
            histogram += torch.bincount(bits >> shift & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        reached = below + torch.cumsum(histogram, 0)
        if not 0 <= zeros <= int(reached[-1]):
            raise ValueError(f"{zeros} zeros are asked of {int(reached[-1])} entries")
        digit = int(torch.searchsorted(reached, zeros))
        at = int(histogram[digit])
        below = int(reached[digit]) - at
        threshold = threshold << DIGIT | digit
        if at <= HELD:
            break
    counts, sizes = [], []
    # One block for all of them, asked for beforehand: small ones between the large ones of each matrix would keep the
    # memory of these from being used again, to the size of the model in the end.
    levels, taken = torch.empty(at if at <= HELD else 0, dtype=torch.int64), 0
    for read in scores:
        under = level = 0
        for bits in _blocks(read()):
            place = bits >> shift
            under += int((place < threshold).sum())
            here = place == threshold
            level += int(here.sum())
            if at <= HELD:
                found = bits[here]
                levels[taken : taken + len(found)] = found
                taken += len(found)
        counts.append(under)
        sizes.append(level)
    spare = zeros - below
    if at <= HELD:
        owner = torch.repeat_interleave(torch.tensor(sizes))
        first = owner[torch.sort(levels, stable=True).indices[:spare]]
        return [n + int(more) for n, more in zip(counts, torch.bincount(first, minlength=len(counts)), strict=True)]
    for i, level in enumerate(sizes):  # all alike to the last bit
        counts[i] += (taken := min(spare, level))
        spare -= taken
    return counts


def magnitudes(read: Callable[[], Tensor], weight: float = 1.0) -> Scores:
    """Return the scores weight |W| of a matrix, as a function that reads it.

    Args:
        read: returns the matrix, any float type.
        weight: finite, >= 0.

    Example:
        >>> magnitudes(lambda: torch.tensor([[-2.0, 1.0]]), 3.0)().tolist()
        [[6.0, 3.0]]
    """

    def scores() -> Tensor:
        found = read().abs().to(torch.float64)  # abs makes a copy, which may be changed in place
        return found if weight == 1 else found.mul_(weight)

    return scores


def _blocks(scores: Tensor) -> tuple[Tensor, ...]:
    """The scores as whole numbers of the same order, in blocks, so that little is held beside them."""
    return scores.reshape(-1).view(torch.int64).cpu().split(BLOCK)
