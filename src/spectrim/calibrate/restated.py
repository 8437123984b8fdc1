"""Batches that are run with each BatchNorm at their own statistics, so that what it has stored holds behind it.

What comes out of each norm then has exactly the mean and the scale that it has on training data, whatever the inputs
are; only what no norm stores (correlations) is that of the noise. It costs nothing: the one pass is made anyway.

Reference:
    Li et al., arXiv 1603.04779 (AdaBN): statistics of the batch in the place of the stored ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .batch import call

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def stored_norms(model: nn.Module) -> list[nn.Module]:
    """Returns the BatchNorms of a model that hold running means and variances."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.running_mean is not None]


@contextmanager
def of_the_batch(model: nn.Module) -> Iterator[None]:
    """Lets each BatchNorm take the batch's own statistics; what it has stored is untouched."""
    norms = stored_norms(model)
    kept = [(m, m.running_mean, m.running_var) for m in norms]
    try:
        for m in norms:  # without statistics a BatchNorm takes those of the batch in evaluation too
            m.running_mean = m.running_var = None
        yield
    finally:
        for m, mean, variance in kept:
            m.running_mean, m.running_var = mean, variance


@dataclass(frozen=True, eq=False)
class Restated:
    """A batch that is run with the norms at its own statistics; called with the model, as `gather` takes it."""

    batch: Any

    def __call__(self, model: nn.Module) -> Any:
        """Returns what the model gives."""
        with of_the_batch(model):
            return call(model, self.batch)
