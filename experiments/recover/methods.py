"""Cuts and what is done to bring a model back after them, as a sweep takes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrim import recover
from spectrim.recover import Recovered
from spectrim.survey import Survey

HOW = {"fit": (True, False), "train": (False, True), "both": (True, True)}  # fit=, train=


@dataclass(eq=False)
class Given:
    """Inputs to recover from, made when they are first needed."""

    label: str
    make: Callable[[], Any] = field(repr=False)

    @cached_property
    def batches(self) -> Any:
        """The inputs."""
        return self.make()


class Done(NamedTuple):
    """What a sweep writes down beside a cell."""

    notes: tuple[str, ...]


@dataclass(eq=False, repr=False)
class Once:
    """A cut that leaves the shapes as they are, made once a rate: later models get the weights that it left."""

    cut: Any
    left: dict[float, dict[str, Tensor]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return repr(self.cut)

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> None:
        """Change the model in place."""
        if rate not in self.left:
            self.cut(model, found, rate, generator)
            self.left[rate] = {name: t.clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self.left[rate])


@dataclass(frozen=True, eq=False, repr=False)
class Then:
    """A cut, and what is done afterwards.

    Args:
        cut: a method of a sweep.
        dense: the model before it.
        how: "fit", "train" or "both".
        given: the inputs.
        steps: of the optimiser, a block.
        only: which matrices may be touched.
    """

    cut: Any
    dense: nn.Module
    how: str
    given: Given
    steps: int
    only: Callable[[str], bool] | None = None

    def __repr__(self) -> str:
        return f"{self.cut!r} then {self.how} from {self.given.label}, {self.steps} steps a block"

    def __call__(self, model: nn.Module, found: Survey, rate: float, generator: torch.Generator) -> Done:
        """Change the model in place."""
        self.cut(model, found, rate, generator)
        fit, train = HOW[self.how]
        inputs = self.given.batches
        begun = time.process_time()  # of this process: what else the machine does is left out
        done = recover(model, self.dense, inputs, fit=fit, train=train, only=self.only, steps=self.steps)
        return Done((f"{time.process_time() - begun:.1f} core seconds", *told(done), *done.notes))


def told(done: Recovered) -> list[str]:
    """Returns in words what was fitted and trained, and what of it was undone."""
    lines = []
    if done.fits:
        before, after = (sum(getattr(f, key) for f in done.fits) / len(done.fits) for key in ("before", "after"))
        lines.append(f"{len(done.fits)} matrices fitted: mean relative damage {before:.4f} -> {after:.4f}")
    if done.blocks:
        before, after = (sum(b.held[i] for b in done.blocks) / len(done.blocks) for i in (0, 1))
        undone = sum(b.note.startswith("undone") for b in done.blocks)
        lines.append(f"{len(done.blocks)} blocks trained, {undone} undone: mean error {before:.4f} -> {after:.4f}")
    return lines
