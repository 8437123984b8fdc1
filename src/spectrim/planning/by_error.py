"""How much may go for a given error: the largest cut whose cost stays under a bound."""

from __future__ import annotations

import math
from collections.abc import Callable

NEAR = 0.98  # of the bound: near enough
WIDTH = 0.004  # of the share: no nearer is asked
LEAST = 0.1  # of the interval, that a step moves into it from either end


def largest(cost: Callable[[float], float], bound: float, low: float = 0.0, high: float = 1.0) -> float:
    """Return the largest share tried whose cost is at most the bound; `low` itself where every share costs more.

    The cost is taken to rise with the share. Tried are shares where its logarithm, drawn as a line between what is
    known, meets the bound; at .98 of the bound, or within .004 of a share that costs more, the search ends.

    Args:
        cost: of a share, >= 0.
        bound: > 0.
        low, high: the interval, within [0, 1]; `low` is not tried.

    Example:
        >>> round(largest(lambda share: share**2, 0.25), 2)
        0.5
    """
    known: dict[float, float] = {}
    share = (low + high) / 2
    while True:
        known[share] = cost(share)
        if NEAR * bound <= known[share] <= bound:
            return share
        if known[share] <= bound:
            low = share
        else:
            high = share
        if high - low <= WIDTH:
            return low
        share = (low + high) / 2
        under, over = known.get(low, 0.0), known.get(high, math.inf)
        if 0 < under < bound < over < math.inf:
            rise = math.log(bound) - math.log(under)  # a ratio of the two might be more than a float holds
            way = rise / (math.log(over) - math.log(under))
            share = low + (high - low) * min(max(way, LEAST), 1 - LEAST)
