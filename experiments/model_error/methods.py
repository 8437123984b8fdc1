"""Cuts priced as they are made: what they are estimated to do to the model, noted beside the cell of a sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrim import budgets
from spectrim.calibrate.batch import call
from spectrim.calibrate.stacks import main_tensor
from spectrim.inner.damage import metric
from spectrim.moments import Moments
from spectrim.survey import Survey, inventory

MARK = "estimates "
READ = 32  # samples, that the dense and the cut model are run on to see what is estimated


class Priced(NamedTuple):
    """What a sweep writes down beside a cell."""

    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Prices:
    """Estimates of what a cut does to a model, from its matrices before and after; the cut model is not run for them.

        weighed    sqrt(sum tr(diag(s) E C E^T)),            E = W - W', of all matrices: `Plan.model_error`
        summed     sqrt(sum tr(E C E^T) / tr(W C W^T))       each matrix by its own output, all alike
        plain      sqrt(sum ||E||^2 / ||W||^2)               C = I: a control
        magnitude  sum |w| of the entries now zero / sum |w| a control that no step can make up for

    the first two for each source of moments. And, told apart from them, what running the model shows: `seen`, the
    relative error of its output on `inputs`.

    Args:
        model: the dense one.
        moments: makes moments with weights of outputs, by what they are of.
        inputs: batches that the dense and the cut model are run on.
    """

    model: nn.Module
    moments: Mapping[str, Callable[[], Moments]]
    inputs: list[Any]
    wholes: dict[tuple[str, str], float] = field(default_factory=dict, init=False)  # tr(W C W^T), the same in all cells

    def of(self, cut: nn.Module, found: Survey) -> dict[str, float]:
        """Returns the estimates, and what is seen."""
        before, after = ({s.name: s for s in inventory(m, found.fused).sites} for m in (self.model, cut))
        sums: dict[str, float] = {}

        def add(name: str, value: Tensor | float) -> None:
            sums[name] = sums.get(name, 0.0) + float(value)

        gone = whole = 0.0
        for target in budgets.candidates(found):
            W, new = before[target.name].get(), after[target.name].get()
            error, size = (W - new).double(), W.double().abs()
            gone, whole = gone + float(size[new == 0].sum()), whole + float(size.sum())
            add("plain", error.square().sum() / size.square().sum())
            for source, made in self.moments.items():
                moment = made().get(target.name)
                if moment is None or moment.rows is None:
                    add(f"unseen, {source}", 1)
                    continue
                inner = metric(W, moment.second)
                lost = inner.energy(error)
                add(f"weighed, {source}", (lost * moment.rows.to(lost)).sum())
                key = source, target.name
                if key not in self.wholes:
                    self.wholes[key] = float(inner.energy(W).sum())
                add(f"summed, {source}", lost.sum() / self.wholes[key])
        told = {name: value if name.startswith("unseen") else math.sqrt(value) for name, value in sums.items()}
        return told | {"magnitude": gone / whole, "seen": seen(self.model, cut, self.inputs)}


@torch.no_grad()
def seen(model: nn.Module, cut: nn.Module, inputs: list[Any]) -> float:
    """Returns the relative error of the output of a cut model, a ratio of norms over all inputs without padding."""
    lost = whole = 0.0
    for batch in inputs:
        one, two = (main_tensor(call(m, batch)).double() for m in (model, cut))
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if mask is not None and one.ndim > mask.ndim and one.shape[: mask.ndim] == mask.shape:
            there = mask.to(one).reshape(*mask.shape, *[1] * (one.ndim - mask.ndim))
            one, two = one * there, two * there
        lost, whole = lost + float((one - two).square().sum()), whole + float(one.square().sum())
    return math.sqrt(lost / whole)


@dataclass(frozen=True, eq=False, repr=False)
class Estimated:
    """A cut and its prices; to a sweep it is the cut itself.

    Args:
        cut: a method of a sweep.
        prices: of the model.
    """

    cut: Any
    prices: Prices

    def __repr__(self) -> str:
        return repr(self.cut)

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> Priced:
        """Change the model in place."""
        self.cut(model, found, rate, generator)
        return Priced((MARK + json.dumps(self.prices.of(model, found)),))


def read(notes: list[str]) -> dict[str, float]:
    """Returns the estimates that stand in the notes of a cell; nothing where it failed.

    Example:
        >>> read(['estimates {"plain": 0.5}', "another note"])
        {'plain': 0.5}
    """
    return next((json.loads(note.removeprefix(MARK)) for note in notes if note.startswith(MARK)), {})
