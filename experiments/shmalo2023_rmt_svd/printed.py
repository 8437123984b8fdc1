"""What arXiv 2303.08986 prints of examples 4.3 to 4.7, and what its architectures say about the rule that made them.

The paper says that 45 % of the small singular values are removed. A layer between sides a and b, p = min(a, b), with k
values above the edge, is then left with .55 (p - k) + k of them, and .45 (p - k) + k if 45 % are kept. Every printed
size tells which.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One example as printed. Accuracies are in per cent, read in the text; `gate` is the required goodness of fit."""

    sizes: Sizes
    epochs: int
    every: int
    gate: float
    split: Sizes
    params: int
    params_split: int
    plain_accuracy: float
    split_accuracy: float


EXAMPLES = {
    "4.3": Example(
        (784, 3000, 3000, 500, 10),
        *(90, 3, 0.15),
        (784, 367, 176, 89, 54, 35, 3000, 143, 293, 627, 1366, 629, 294, 139, 3000, 71, 124, 241, 500, 10),
        *(12_863_510, 3_881_124, 86.0, 97.5),
    ),
    "4.4": Example(
        (784, 1500, 1500, 500, 500, 10),
        *(300, 3, 0.012),
        (784, 354, 167, 1500, 309, 677, 309, 1500, 228, 500, 105, 227, 107, 500, 10),
        *(4_435_010, 2_554_157, 88.0, 97.0),
    ),
    "4.5": Example(
        (784, 1500, 1500, 500, 500, 10),
        *(300, 3, 0.1),
        (784, 354, 164, 1500, 144, 309, 677, 309, 144, 1500, 107, 228, 500, 51, 107, 227, 107, 53, 500, 10),
        *(4_435_010, 1_943_563, 88.0, 95.0),  # "peaks at 95 and then falls to 20"
    ),
    "4.6": Example(
        (784, 2500, 2500, 2500, 2500, 500, 10),
        *(30, 3, 0.05),
        (784, 362, 2500, 518, 1134, 518, 2500, 518, 1134, 518, 2500, 518, 1134, 518, 2500, 234, 500, 10),
        *(21_975_510, 13_207_896, 86.4, 98.6),  # of 60,000 items, the number of the training set
    ),
    "4.7": Example(
        (784, 3000, 3000, 3000, 10),
        *(90, 3, 0.01),
        (784, 361, 3000, 1359, 3000, 1359, 3000, 10),
        *(20_391_010, 17_716_113, 78.0, 88.0),
    ),
}

# Example 4.1 in the authors' public notebook (jtj5311/NN-RMT-SVD, last cell): test accuracy in per cent against the
# values kept of the first layer, the rank it predicts, the accuracy of the whole net. The paper's text says 92 at 20.
CURVE = {0: 8.92, 5: 54.59, 10: 75.75, 15: 84.64, 20: 90.71, 25: 95.45, 30: 97.29, 35: 97.73, 40: 98.02, 45: 98.26}
CURVE |= {50: 98.21, 55: 98.22, 60: 98.23, 65: 98.26, 70: 98.27, 75: 98.28, 80: 98.29, 85: 98.32, 90: 98.33, 95: 98.32}
CURVE_RANK, CURVE_FULL = 56, 98.29

# The notebook's comparison on [784, 1000, 10], per cent of the test set after each epoch: a net left alone, and one cut
# before every epoch, the first time before any training (784 -> 353 -> 1000, and never again).
NOTEBOOK_PLAIN = (84.92, 86.16, 86.57, 86.87, 86.88, 86.94, 86.95, 86.79, 87.00)
NOTEBOOK_SPLIT = (95.49, 97.25, 97.48, 97.32, 96.87, 97.75, 97.49, 97.65, 97.48)


def count(sizes: Sizes, biases: bool = True) -> int:
    """Returns the parameters of fully connected layers of these sizes, with one bias vector a printed layer or none."""
    return sum(a * b + biases * b for a, b in pairwise(sizes))


def cuts(sizes: Sizes, split: Sizes) -> list[tuple[int, int]]:
    """Returns (rank, short side of what was cut) of every split that leads from the one row of sizes to the other.

    Between two sizes of the original the largest number is the rank of the first split; what stands to its left and to
    its right comes from splitting its two factors again. An original size that is repeated inside a run of ranks would
    be ambiguous; none is.

    Args:
        sizes: those of the layers before.
        split: those after; holds `sizes` in order.

    Example:
        >>> cuts((784, 1000, 10), (784, 160, 353, 1000, 10))
        [(353, 784), (160, 353)]
    """
    places, start = [], 0
    for size in sizes:
        start = split.index(size, start)
        places.append(start)
        start += 1
    return [found for a, b in pairwise(places) for found in _inside(split[a : b + 1])]


def _inside(run: Sizes) -> list[tuple[int, int]]:
    if len(run) < 3:
        return []
    at = max(range(1, len(run) - 1), key=lambda i: run[i])
    return [(run[at], min(run[0], run[-1])), *_inside(run[: at + 1]), *_inside(run[at:])]


def spikes_behind(rank: int, side: int, kept: float = 0.45) -> int:
    """Returns the number k of values above the edge that explains a printed rank, by the count of the notebook.

    It takes the values below the edge for one fewer, and keeps k + 1 + int(kept (side - k - 1)); the smallest k that
    comes nearest is returned, so a rank that the rule cannot make is seen by putting k in again.
    """
    return min(range(side), key=lambda k: abs(k + 1 + int(kept * (side - k - 1)) - rank))
