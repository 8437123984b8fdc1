"""What a task hands to a sweep: a table of items and what makes a score of it, so that errors can be resampled.

The statistics here are plain functions of a table's rows. A task may bring its own, as long as it takes any number of
rows, some of them repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One score of one model: what each item gave (`table`), and the figure that some items make (`statistic`).

    Args:
        table: items along the first axis, figures along the second; one figure an item may come as a vector. A square
            score is items x items, or items x items x figures.
        statistic: from rows of the table (repeated ones in a bootstrap) to the score; NaN where it is not defined. A
            square score hands it pairs of items as rows: those above the diagonal.
        better: "higher" or "lower".
        chance: what a model that knows nothing scores, where that is known.
        square: the second axis are the same items (all pairs of documents), so that both are resampled together.

    Example:
        >>> Score(np.array([1.0, 0.0, 1.0, 1.0]), mean).value
        0.75
    """

    table: Table
    statistic: Callable[[Table], float]
    better: Literal["higher", "lower"] = "higher"
    chance: float | None = None
    square: bool = False

    def __post_init__(self):
        table = np.asarray(self.table, np.float64)
        if self.square:
            if table.ndim == 2:
                table = table[:, :, None]
            if table.ndim != 3 or table.shape[0] != table.shape[1]:
                raise ValueError(f"a square score is items x items (x figures), not {np.shape(self.table)}")
        else:
            if table.ndim == 1:
                table = table[:, None]
            if table.ndim != 2:
                raise ValueError(
                    f"a table is items x figures, not {np.shape(self.table)}; square=True is for items x items"
                )
        if len(table) < 2:
            raise ValueError(f"a table of {len(table)} items has no standard error: give two items or more")
        if not callable(self.statistic):
            raise TypeError(f"statistic is a function of a table's rows, not {self.statistic!r}")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better is 'higher' or 'lower', not {self.better!r}")
        object.__setattr__(self, "table", table)

    @property
    def items(self) -> int:
        """How many items the table holds."""
        return len(self.table)

    @property
    def value(self) -> float:
        """The score over all items."""
        return self.of(np.arange(self.items))

    def of(self, index: NDArray[np.integer]) -> float:
        """Return the score of the items at `index`, an item drawn twice counting twice.

        The pair of items i and j of a square score counts as often as i was drawn times as often as j was; an item with
        itself is no pair, also where it was drawn twice.
        """
        if not self.square:
            return float(self.statistic(self.table[index]))
        first, second = _pairs(len(index))
        i, j = np.asarray(index)[first], np.asarray(index)[second]
        apart = i != j
        i, j = i[apart], j[apart]
        rows = self.table[np.minimum(i, j), np.maximum(i, j)]
        return float(self.statistic(rows)) if len(rows) else float("nan")


class Task(Protocol):
    """What a sweep measures: a model and what it is good for.

    `measure` returns the headline score first. It should also return "cosine", the mean cosine of the model's outputs
    to the dense ones, item by item: it moves where the task's own score does not yet.

    A task may have `items` too, how many inputs one `measure` puts through the model: multiply-adds are told for one of
    them. Without it they are those that "cosine", or else the headline, has rows for.
    """

    name: str
    model: nn.Module  # the dense model, in eval mode; a sweep works on copies of it
    only: Callable[[str], bool] | None  # which matrices may be touched, by name; None: all

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Return the scores of a model."""
        ...


def mean(rows: Table) -> float:
    """Returns the mean of the first column.

    Example:
        >>> mean(np.array([[1.0], [0.0]]))
        0.5
    """
    return float(rows[:, 0].mean())


def ratio(rows: Table) -> float:
    """Returns the sum of the first column over the sum of the second: errors over words.

    Example:
        >>> ratio(np.array([[1.0, 10.0], [2.0, 20.0]]))
        0.1
    """
    below = rows[:, 1].sum()
    return float(rows[:, 0].sum() / below) if below else float("nan")


def pearson(rows: Table) -> float:
    """Returns the correlation of the first two columns, NaN where one of them is constant.

    Example:
        >>> round(pearson(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])), 9)
        1.0
    """
    return _correlation(rows[:, 0], rows[:, 1])


def spearman(rows: Table) -> float:
    """Returns the correlation of the ranks of the first two columns, equal figures sharing their mean rank.

    Example:
        >>> round(spearman(np.array([[1.0, 2.0], [2.0, 4.0], [9.0, 5.0]])), 9)
        1.0
    """
    return _correlation(_ranks(rows[:, 0]), _ranks(rows[:, 1]))


@lru_cache(maxsize=4)
def _pairs(items: int) -> tuple[NDArray[np.intp], ...]:
    return np.triu_indices(items, 1)


def _correlation(x: Table, y: Table) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def _ranks(x: Table) -> Table:
    """As scipy's rankdata, which takes four times as long on a few hundred figures."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2.0)[place]
