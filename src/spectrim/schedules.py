"""What share of the noise bulk is kept, and which threshold holds, as plain functions of the epoch.

A schedule is any function ``epoch -> number``; epochs count from 0. Those here are frozen dataclasses that are called,
so that they can be pickled and their `repr` is the code that makes them. Where a share is wanted a float is a schedule
too: `value` reads both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Schedule: TypeAlias = "float | Callable[[int], float]"


@dataclass(frozen=True)
class constant:
    """Returns the same share at every epoch.

    Args:
        share: the share of the bulk that is kept, in [0, 1].

    Example:
        >>> constant(0.45)(100)
        0.45

    References:
        arXiv 2303.08986, section 4: the printed architectures keep .45 of the bulk.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"a share kept lies in [0, 1], got {self.share!r}: .45 keeps 45 % of the bulk")

    def __call__(self, epoch: int) -> float:
        """Returns the share."""
        return float(self.share)


@dataclass(frozen=True)
class linear:
    """Returns a share that falls from 1 to 0: ``max(0, 1 - epoch / end)``.

    Args:
        end: the epoch from which nothing of the bulk is kept, > 0. It may lie beyond the last epoch: the paper trains
            100 epochs with 200, and keeps half of the bulk at the end.

    Example:
        >>> [linear(200)(epoch) for epoch in (0, 50, 100, 300)]
        [1.0, 0.75, 0.5, 0.0]

    References:
        arXiv 2503.01922, eq. (47).
    """

    end: float

    def __post_init__(self) -> None:
        if not 0 < self.end < math.inf:
            raise ValueError(f"the epoch at which the share reaches 0 must be positive and finite, got {self.end!r}")

    def __call__(self, epoch: int) -> float:
        """Returns the share of the bulk that is kept at this epoch."""
        return max(0.0, 1 - epoch / self.end)


@dataclass(frozen=True)
class rising:
    """Returns a threshold that goes from `start` at epoch 0 to `stop` in `epochs` epochs, evenly, and stays there.

        start + (stop - start) min(1, epoch / epochs)

    Args:
        start: the threshold of epoch 0, >= 0, in the unit of a weight.
        stop: the threshold from epoch `epochs` on, >= start.
        epochs: how long the rise takes, > 0.

    Example:
        >>> threshold = rising(0.001, 0.02, 40)
        >>> [round(threshold(epoch), 4) for epoch in (0, 20, 40, 60)]
        [0.001, 0.0105, 0.02, 0.02]

    References:
        The sparsification while training in the scripts of arXiv 2310.03165: .001 to .02, every 5 epochs.
    """

    start: float
    stop: float
    epochs: float

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop < math.inf:
            raise ValueError(f"a threshold rises: 0 <= start <= stop is wanted, got {self.start!r} and {self.stop!r}")
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"the rise takes a positive number of epochs, got {self.epochs!r}")

    def __call__(self, epoch: int) -> float:
        """Returns the threshold of this epoch."""
        return self.start + (self.stop - self.start) * min(1.0, epoch / self.epochs)


def value(schedule: Schedule, epoch: int) -> float:
    """Returns the share that a schedule gives at this epoch; ValueError if that is no share.

    Args:
        schedule: a function of the epoch, or a float, which is the same share at every epoch.
        epoch: counted from 0.

    Example:
        >>> value(linear(10), 4), value(0.45, 4)
        (0.6, 0.45)
    """
    share = schedule(epoch) if callable(schedule) else schedule
    try:
        number = math.nan if isinstance(share, bool | str) else float(share)
    except (TypeError, ValueError, RuntimeError):  # of a tensor of many entries, too
        number = math.nan
    if not 0 <= number <= 1:
        whence = f"{schedule!r} gave {share!r} at epoch {epoch}" if callable(schedule) else f"got {share!r}"
        raise ValueError(
            f"the share of the bulk that is kept must be a number in [0, 1], {whence}: "
            "a share is no percentage, and a schedule that runs below 0 wants max(0, ...)"
        )
    return number
