"""Ranks: how many singular values each matrix keeps, so that all together store no more than they may."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Candidate(NamedTuple):
    """A matrix that may be split: its shape, the numbers it stores now, its spectrum and how many values are spikes.

    `weight` is what the whole of it counts beside the others: rows cols, so that an entry counts alike in all of them.
    """

    rows: int
    cols: int
    params: int
    s: np.ndarray  # singular values in the basis of the plan
    spikes: int
    weight: float

    @property
    def side(self) -> int:
        """Numbers that one value costs in a pair."""
        return self.rows + self.cols

    @property
    def least(self) -> int:
        """Values that stay while there is bulk anywhere to cut."""
        return max(1, self.spikes)

    @property
    def whole(self) -> int:
        """The k of a matrix left as it is: more than it has values where zero rows or columns were dropped."""
        return min(self.rows, self.cols)

    def cost(self, k: int) -> int:
        """Numbers stored when k values are kept: what is stored now where a split would not be smaller."""
        return self.params if k >= self.whole else min(self.params, k * self.side)

    def pays(self, k: int) -> bool:
        """Whether k values stored as a pair are fewer numbers than what is stored now: the break-even guard."""
        return self.cost(k) < self.params


class _Cut(NamedTuple):
    """One move down the hull of a matrix: to k values, at this much damage for each number saved."""

    spikes: bool
    price: float
    owner: int
    k: int


def _damages(c: Candidate) -> np.ndarray:
    """weight ||W - W_k||^2 / ||W||^2 for k = 0 .. whole."""
    energy = c.weight * c.s**2 / np.sum(c.s**2)
    return np.concatenate([np.cumsum(energy[::-1])[::-1], np.zeros(1 + c.whole - len(c.s))])


def _cuts(owner: int, c: Candidate) -> list[_Cut]:
    """The moves along the lower convex hull of damage against numbers stored: through the bulk, then the spikes."""
    damage = _damages(c)
    cuts, start = [], (c.params, 0.0, c.whole)
    below = [k for k in range(len(c.s), 0, -1) if c.pays(k)]
    for spikes in (False, True):
        hull = [start]
        for k in below:
            if (k < c.least) is not spikes:
                continue
            point = (k * c.side, damage[k], k)
            while len(hull) > 1 and _price(hull[-1], point) <= _price(hull[-2], hull[-1]):
                hull.pop()
            hull.append(point)
        cuts += [_Cut(spikes, _price(p, q), owner, q[2]) for p, q in pairwise(hull)]
        start = hull[-1]
    return cuts


def _price(above: tuple, below: tuple) -> float:
    return (below[1] - above[1]) / (above[0] - below[0])


def allocate(candidates: list[Candidate], budget: float) -> list[int]:
    """Return the values kept in each matrix: least damage in total for at most `budget` numbers, bulk before any spike.

    Damage is the sum of weight ||W - W_k||^2 / ||W||^2. A matrix costs k (rows + cols) numbers as a pair, and what it
    stores now where no pair is smaller; so its curve of damage against cost has a gap, from no cut to the first that
    pays. Moves along the lower convex hulls of all curves, cheapest damage first, are optimal for the totals that they
    reach (Lagrange). The last may overshoot; the room it leaves is filled value by value, or by a whole matrix, so that
    the total ends within one value's cost under the budget.

    Args:
        candidates: the matrices.
        budget: numbers that they may store together; at least one value in each must fit.

    Example:
        >>> s = np.array([3.0, 2.0, 1.0, 1.0])
        >>> loud, even = (Candidate(4, 4, 16, v, 0, 16.0) for v in (s, np.ones(4)))
        >>> allocate([loud, even], 24)
        [1, 4]

    References:
        Lagrangian budget allocation: Y. Shoham and A. Gersho, IEEE Trans. ASSP 36 (1988) 1445.
    """
    kept = [c.whole for c in candidates]
    left = sum(c.params for c in candidates)
    spikes = False
    for cut in sorted(cut for i, c in enumerate(candidates) for cut in _cuts(i, c)):
        if left <= budget:
            break
        c = candidates[cut.owner]
        left += c.cost(cut.k) - c.cost(kept[cut.owner])
        kept[cut.owner] = cut.k
        spikes = cut.spikes
    # A move may overshoot: what room is left goes to the values that matter most and still fit.
    room: list[tuple[float, int, int]] = []
    damages = [_damages(c) for c in candidates]

    def offer(i: int) -> None:
        c, k = candidates[i], kept[i]
        following = k + 1 if k < len(c.s) and c.pays(k + 1) else c.whole  # past break-even it is all or nothing
        if k < following <= (c.spikes if spikes else c.whole):
            gain = damages[i][k] - damages[i][following]
            heapq.heappush(room, (-gain / (c.cost(following) - c.cost(k)), i, following))

    for i in range(len(candidates)):
        offer(i)
    while room:
        _, i, following = heapq.heappop(room)
        more = candidates[i].cost(following) - candidates[i].cost(kept[i])
        if left + more <= budget:
            kept[i] = following
            left += more
            offer(i)
    return kept
