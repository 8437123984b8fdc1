"""One block trained to give what the dense one gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..calibrate.gather import Batch
from ..calibrate.gather import run as run_batch
from ..calibrate.watch import Enough
from ..frozen import frozen_zeros
from .norms import Settled
from .record import Block

Aim = Literal["dense", "own"]
HELD_OUT = 4  # of so many batches one is not trained on, and says whether the others taught anything
LOOKS = 4  # how often a training is looked at; the best of what was seen stays
SLOWER = (1, 4, 16)  # where no look sees the error fall, the rate is divided by this, and the training begun anew


@dataclass
class _Call:
    """What a block was handed and gave back in a batch; `keep` tells positions from padding, where that is known.

    `around` is what the batch does to the model while the block runs.
    """

    args: tuple
    kwargs: dict
    output: Tensor | None = None
    keep: Tensor | None = None
    around: Callable[[], AbstractContextManager] = nullcontext


def trained_like(
    model: nn.Module,
    dense: nn.Module,
    held: list[Batch],
    name: str,
    parameters: list[nn.Parameter],
    aim: Aim,
    steps: int,
    rate: float,
    seed: int,
) -> Block:
    """Return how the training of one block of the model went; its parameters hold the best values seen."""
    began = time.perf_counter()
    block, other = model.get_submodule(name), dense.get_submodule(name)
    calls = _calls(model, block, held, output=False)
    if aim == "own" and name:
        for call, batch in zip(calls, held, strict=True):
            with _around(batch, dense)():
                call.output = _main(other(*_copied(call.args), **_copied(call.kwargs)))
    else:
        for call, target in zip(calls, _calls(dense, other, held, output=True), strict=True):
            call.output = target.output
    if any(call.output is None for call in calls):
        return Block(name, (0.0, 0.0), (0.0, 0.0), 0, 0.0, "left alone: it gives back no tensor")
    aside = calls[::HELD_OUT] if len(calls) >= HELD_OUT else []
    seen = [call for call in calls if not any(call is one for one in aside)] or calls
    aside = aside or calls
    scale = _variance(calls)
    before = (_error(block, seen, scale), _error(block, aside, scale))
    best, kept = before[1], [p.detach().clone() for p in parameters]
    start = kept
    sizes = [float(p.detach().double().square().mean().sqrt()) for p in parameters]
    usual = max(sizes)  # a bias of zeros is to move as well
    done, queue = 0, []
    try:
        with _trainable(model, parameters), _frozen(model), torch.enable_grad():
            for slower in SLOWER:
                order = torch.Generator().manual_seed(seed)
                own = [rate / slower * max(size, 0.1 * usual) for size in sizes]
                adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(parameters, own, strict=True)])
                plan = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
                looks = {round(steps * (k + 1) / LOOKS) for k in range(LOOKS)}
                for step in range(1, steps + 1):
                    queue = queue or torch.randperm(len(seen), generator=order).tolist()
                    loss = _loss(block, seen[queue.pop()], scale)
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
                    plan.step()
                    if step in looks and (found := _error(block, aside, scale)) < best:
                        best, kept = found, [p.detach().clone() for p in parameters]
                done += steps
                if best < before[1]:
                    break
                _write(parameters, start)
    finally:  # the best that was seen, after an interrupt too
        _write(parameters, kept)
    after = (_error(block, seen, scale), _error(block, aside, scale))
    note = "" if after[1] < before[1] else "undone: the error did not fall"
    seconds = time.perf_counter() - began
    return Block(name, (before[0], after[0]), (before[1], after[1]), done, seconds, note)


@torch.no_grad()
def _write(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def _frozen(model: nn.Module) -> AbstractContextManager:
    """The context in which zeros stay zero, where there are any."""
    some = any(bool((p == 0).any()) for p in model.parameters() if p.ndim > 1)
    return frozen_zeros(model, all_zero=True) if some else nullcontext()


@contextmanager
def _trainable(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Lets these parameters alone take gradients; flags and gradients are put back."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in parameters}
    for p, _, _ in flags:
        p.requires_grad_(id(p) in chosen)
        p.grad = None
    try:
        yield
    finally:
        for p, flag, gradient in flags:
            p.requires_grad_(flag)
            p.grad = gradient


def _calls(model: nn.Module, block: nn.Module, held: list[Batch], output: bool) -> list[_Call]:
    """What a block is handed (and gives back) in a run over each batch, which stops there."""
    found: list[_Call] = []

    def before(module, args, kwargs):
        found.append(_Call(_copied(args), _copied(kwargs)))
        if not output:
            raise Enough

    def after(module, args, kwargs, given):
        found[-1].output = _main(given)
        raise Enough

    with ExitStack() as hooks:
        hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        if output:
            hooks.callback(block.register_forward_hook(after, with_kwargs=True).remove)
        for i, batch in enumerate(held):
            with suppress(Enough):
                run_batch(model, batch, i)
            if len(found) != i + 1:
                raise ValueError(f"batch {i} does not reach every block, or calls one twice: name others by blocks=")
            found[-1].around = _around(batch, model)
            found[-1].keep = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return found


def _around(batch: Batch, model: nn.Module) -> Callable[[], AbstractContextManager]:
    return partial(batch.within, model) if isinstance(batch, Settled) else nullcontext


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(map(_copied, value))
    return {key: _copied(v) for key, v in value.items()} if type(value) is dict else value


def _main(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    """The positions of a result that are no padding, where the mask fits."""
    if keep is not None and keep.ndim == 2 and x.ndim > 2 and keep.shape == x.shape[:2]:
        return x[keep.to(x.device).bool()]
    return x


def _variance(calls: list[_Call]) -> float:
    """The mean square of the targets about their mean over samples and positions, the unit of the errors."""
    targets = [_kept(call.output, call.keep) for call in calls]
    rows = torch.cat([t.reshape(-1, t.shape[-1]).float() for t in targets])
    return max(float((rows - rows.mean(0)).double().square().mean()), torch.finfo(torch.float32).tiny)


def _loss(block: nn.Module, call: _Call, scale: float) -> Tensor:
    with call.around():
        got = _main(block(*_copied(call.args), **_copied(call.kwargs)))
    return (_kept(got, call.keep) - _kept(call.output, call.keep)).square().mean() / scale


def _error(block: nn.Module, calls: list[_Call], scale: float) -> float:
    with torch.no_grad():
        return sum(float(_loss(block, call, scale)) for call in calls) / len(calls)
