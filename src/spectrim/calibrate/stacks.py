"""Stacks whose blocks can be run one at a time: told from what they do in the model's own runs, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .watch import Enough


@dataclass
class Call:
    """The arguments of a block, and where its main input stands among them."""

    args: tuple
    kwargs: dict
    key: int | str

    def handed(self, x: Tensor) -> tuple[tuple, dict]:
        """Return the arguments with this main input."""
        if isinstance(self.key, str):
            return self.args, {**self.kwargs, self.key: x}
        return (*self.args[: self.key], x, *self.args[self.key + 1 :]), self.kwargs

    def without(self) -> Call:
        """Return the call without its main input, which would be kept in memory."""
        args, kwargs = self.handed(None)
        return Call(args, kwargs, self.key)


class Seen:
    """What the blocks of a stack were handed and gave back in one run of the model."""

    def __init__(self, blocks: list[nn.Module], disturb: list[nn.Module] | None = None, stop: bool = False):
        self.blocks, self.stop = blocks, stop
        self.disturb, self.aside = disturb is not None, disturb or []
        self.order: list[int] = []
        # Copies of the main inputs and of the last output: a block may work in place, as nn.ReLU(inplace=True) does.
        self.copies: list[Tensor | None] = []
        self.given: list[tuple[tuple, dict]] = []
        self.outputs: list[Tensor | None] = []
        self.versions: list[tuple[int, int]] = []
        self.handed_on = True
        self.generator = torch.Generator().manual_seed(0)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Holds the hooks in place; they are gone on the way out."""
        with ExitStack() as held:
            for i, block in enumerate(self.blocks):
                before = block.register_forward_pre_hook(self._before(i), with_kwargs=True)
                held.callback(before.remove)
                held.callback(block.register_forward_hook(self._after(i)).remove)
            for module in self.aside:
                noisy = module.register_forward_hook(lambda module, args, output: _map(output, self._noisy))
                held.callback(noisy.remove)
            yield

    def _before(self, i: int) -> Callable:
        def hook(module, args, kwargs):
            if self.order and self.outputs and self.outputs[-1] is not None and not self.disturb:
                self.handed_on &= _version(self.outputs[-1]) == self.versions[-1]
            if not self.order:  # which of them is the main one, the next block tells
                named = (*enumerate(args), *kwargs.items())
                self.begun = {k: v.clone() for k, v in named if isinstance(v, Tensor)}
            elif not self.stop:
                self.copies.append(self.outputs[-1].clone() if self.outputs and self.outputs[-1] is not None else None)
            self.order.append(i)
            self.given.append((args, kwargs))
            if self.stop and i == len(self.blocks) - 1:
                raise Enough

        return hook

    def _after(self, i: int) -> Callable:
        def hook(module, args, output):
            out = main_tensor(output)
            if self.disturb:
                output = _map(output, self._noisy)
                self.outputs.append(out)
                return output
            self.outputs.append(out)
            self.versions.append(_version(out) if out is not None else -1)
            if i == len(self.blocks) - 1 and out is not None:
                self.copies.append(out.clone())
            return None

        return hook

    def _noisy(self, t: Tensor) -> Tensor:
        if not t.is_floating_point() or t.is_nested:
            return t
        noise = torch.randn(t.shape, generator=self.generator).to(t.device, t.dtype)
        return t + noise * t.abs().mean()

    def chain(self) -> list[Call] | None:
        """Return the calls of the blocks without their main inputs, or None where they are no chain."""
        if self.order != list(range(len(self.blocks))) or not self.handed_on:
            return None
        keys = set()
        for (args, kwargs), before in zip(self.given[1:], self.outputs, strict=False):
            at = [k for k, v in (*enumerate(args), *kwargs.items()) if v is before]
            keys.add(at[0] if before is not None and len(at) == 1 else None)
        if not keys and self.given:  # one block: its first tensor
            args, kwargs = self.given[0]
            keys = {next((k for k, v in (*enumerate(args), *kwargs.items()) if isinstance(v, Tensor)), None)}
        key = keys.pop() if len(keys) == 1 else None
        if key is None:
            return None
        if key not in self.begun:
            return None
        self.copies.insert(0, self.begun[key])
        return [Call(args, kwargs, key).without() for args, kwargs in self.given]


def verified(stack: nn.Module, run: Callable, aside: list[nn.Module]) -> bool:
    """Whether the blocks of a stack, run by themselves on the first batch, do what they do in the model.

    `aside` are layers outside the stack whose outputs are disturbed like those of the blocks.
    """
    own, disturbed = Seen(list(stack)), Seen(list(stack), aside)
    with own.attached():
        run(0)
    calls = own.chain()
    if calls is None:
        return False
    for block, call, x, there in zip(stack, calls, own.copies[:-1], own.copies[1:], strict=True):
        args, kwargs = call.handed(x.clone())
        others = tensors_of((call.args, call.kwargs))
        before = [_version(t) for t in others]
        try:
            out = main_tensor(block(*args, **kwargs))
        except Exception:
            return False
        changed = before != [_version(t) for t in others]
        if changed or out is None or there is None or out.shape != there.shape or not _close(out, there):
            return False
    try:
        with disturbed.attached():
            run(0)
    except Exception:  # a model may well not stand noise
        return False
    if disturbed.order != own.order:
        return False
    others = [
        Call(args, kwargs, call.key).without() for (args, kwargs), call in zip(disturbed.given, calls, strict=True)
    ]
    return all(_same((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in zip(calls, others, strict=True))


def main_tensor(output: Any) -> Tensor | None:
    """The first tensor of what a block gives back, or of a list of arguments."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_map(v, change) for v in value)
    if type(value) is dict:
        return {key: _map(v, change) for key, v in value.items()}
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors of a value, however nested in mappings, tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors_of(v)] if isinstance(value, tuple | list) else []


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments of different runs are the same; what cannot be compared is not."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and not a.is_nested and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, int | float | str | bool | torch.dtype | torch.device | torch.Size) and a == b


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()) if b.numel() else 0)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version
