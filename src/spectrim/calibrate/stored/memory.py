"""What is known of the tensors of one run that depend on the model's input; every other tensor is a constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .law import Law, Spread, spread_of
from .operations import known_of
from .rules import Known, Scores, Unknown, shape_of
from .run import storage, tensors_of

PIXELS, COLOURS = 0.97, 0.9


class Memory:
    """What is known of each tensor of a run that depends on the input; every other tensor is a constant."""

    def __init__(self, met: Callable[[Tensor, Callable[[int | None], Law]], None]):
        self.met = met  # is told of each weight that is used: the weight, and the law of its inputs (of a group)
        self.found: dict[int, tuple[Tensor, Spread | Scores | Unknown]] = {}
        self.tainted: dict[int, Tensor] = {}  # storages that something unknown was written into
        self.stored: dict[int, list[int]] = {}
        self.without_rule: dict[str, int] = {}
        self.unseen: list[tuple[Tensor, str]] = []  # weights that met something unknown

    def put(self, tensor: Tensor, state: Spread | Scores | Unknown) -> None:
        """Remember what is known of a tensor."""
        if id(tensor) not in self.found:
            self.stored.setdefault(storage(tensor), []).append(id(tensor))
        self.found[id(tensor)] = (tensor, state)

    def get(self, tensor: Any) -> Spread | Scores | Unknown | None:
        """Return what is known of an argument, None for a constant."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self.found:
            return self.found[id(tensor)][1]
        if self.tainted and storage(tensor) in self.tainted:
            return Unknown("it was written in place")
        return None

    def look(self, tensor: Any) -> Known:
        """Return the spread of an argument, None for a constant or where it is not known."""
        state = self.get(tensor)
        return None if isinstance(state, Unknown) else state

    def input(self, tensor: Tensor, dim: int) -> None:
        """Take in an input of the model: floats count as white along one dimension, of anything else nothing is known.

        White is mean 0 and variance 1, independent: what features are mostly brought to. Pixels are alike: neighbours
        correlate by PIXELS, three colours at one place by COLOURS, as they do in photographs.
        """
        if not tensor.is_floating_point():
            self.put(tensor, Unknown("it is computed from the numbers of tokens"))
            return
        size = tensor.shape[dim] if tensor.ndim else 1
        law = Law(torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64))
        if size <= 512:
            law = replace(law, cov=torch.eye(size, dtype=torch.float64))
        if tensor.ndim == 4 and dim == 1:
            law = replace(law, near=PIXELS)
            if size == 3:
                law = replace(law, cov=COLOURS + (1 - COLOURS) * law.cov)
        if tensor.ndim:
            self.put(tensor, spread_of(law, shape_of(tensor), dim))
        else:
            self.put(tensor, Unknown("it is computed from a number"))

    def seen(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Work out what is known of the output of one operation."""
        inputs = tensors_of((args, kwargs))
        states = [self.get(t) for t in inputs]
        if all(state is None for state in states):
            return
        name = func.overloadpacket.__name__
        mutable = func._schema.is_mutable
        plain = name[:-1] if mutable and name.endswith("_") else name
        overload = func._overloadname
        try:
            known = known_of(self, plain, overload, args, kwargs, out)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError) as error:
            known = Unknown(f"the rule of {plain} does not fit: {str(error).splitlines()[0][:80]}")
        outs = tensors_of(out)
        if mutable and isinstance(args[0], Tensor):
            self._written(args[0])
            outs = outs or [args[0]]
        if not isinstance(known, list):
            known = [known] + [None] * (len(outs) - 1)
        why = next((state.reason for state in states if isinstance(state, Unknown)), None)
        if known[0] is None and why is None:
            self.without_rule[plain] = self.without_rule.get(plain, 0) + 1
            why = f"it is computed by {plain}, of which nothing is known here"
        for tensor, state in zip(outs, known, strict=False):
            if isinstance(state, Spread) and not _sound(state, tensor):
                state = Unknown(f"{plain} gives figures that are not finite")
            self.put(tensor, state or Unknown(why or f"it is a second result of {plain}"))

    def _written(self, target: Tensor) -> None:
        """Forget what was known of the other views of a tensor that is written in place."""
        place = storage(target)
        for key in self.stored.get(place, []):
            tensor = self.found[key][0]
            if tensor is not target:
                self.found[key] = (tensor, Unknown("it was written in place"))
        if id(target) not in self.found or len(self.stored.get(place, [])) > 1:
            self.tainted[place] = target


def _sound(state: Spread, tensor: Tensor) -> bool:
    figures = [state.base.mean, state.base.var] if state.values is None else [state.values]
    return tuple(state.index.shape) == tuple(tensor.shape) and all(bool(torch.isfinite(f).all()) for f in figures)
