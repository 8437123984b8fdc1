"""Batches that are run with each BatchNorm at statistics of their own: those of the dense model, held still.

A block that is trained runs by itself, outside of what a batch does to the model around it; and a cut model that was
run at statistics of its own would hide the shift that is to be learnt. So what `calibrate.restated` takes from each
batch is taken from the dense model once, and stands for the stored statistics of both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calibrate.batch import call
from ..calibrate.gather import run
from ..calibrate.restated import Restated, stored_norms


@dataclass(frozen=True, eq=False)
class Settled:
    """A batch, and the mean and variance that each BatchNorm, by name, takes while it runs."""

    batch: Any
    statistics: dict[str, tuple[Tensor, Tensor]]

    def __call__(self, model: nn.Module) -> Any:
        """Return what the model gives."""
        with self.within(model):
            return call(model, self.batch)

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Hold the norms of a model at these statistics."""
        norms = [(model.get_submodule(name), found) for name, found in self.statistics.items()]
        kept = [(m, m.running_mean, m.running_var) for m, _ in norms]
        try:
            for m, (mean, variance) in norms:
                m.running_mean, m.running_var = mean, variance
            yield
        finally:
            for m, mean, variance in kept:
                m.running_mean, m.running_var = mean, variance


def settled(batch: Any, dense: nn.Module, i: int) -> Any:
    """Return batch i with the statistics that the dense model's norms take from it; any other batch as it is."""
    if not isinstance(batch, Restated):
        return batch
    norms, found = set(stored_norms(dense)), {}
    with ExitStack() as hooks:
        for name, m in dense.named_modules():
            if m in norms:
                hooks.callback(m.register_forward_pre_hook(_taker(found, name)).remove)
        run(dense, batch, i)
    return Settled(batch.batch, found)


def _taker(found: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable:
    def take(module, args):
        x = args[0]
        over = [d for d in range(x.ndim) if d != 1]
        variance, mean = torch.var_mean(x.float(), over, correction=0)
        found[name] = (mean.to(x.dtype), variance.to(x.dtype))

    return take
