"""Entries of a live model that keep their value while an optimiser trains the others, looked up by name at every step.

By name, because wrapping, sharding and resuming put other objects where the parameters of a model stood.
"""

from __future__ import annotations

import re
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.swa_utils import AveragedModel

from .modules import of_module
from .sites import Layer, listed

# What torch puts into the names of parameters when it compiles, shards or checkpoints a part of a model.
INSERTED = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|\[|$)")
WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


class Piece(NamedTuple):
    """Where a matrix stands in a stored tensor: its name in a survey and its rows, or columns if stored transposed."""

    matrix: str
    start: int
    stop: int
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """Return the matrix, rows x cols: a view if the tensor is contiguous."""
        if tensor.ndim == 3:  # stacked experts, or what is read as no matrix
            return tensor.flatten(0, 1)[self.start : self.stop]
        return (tensor.T if self.transposed else tensor.flatten(1))[self.start : self.stop]


def bare(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers for several processes, for averages of weights, and for compilation."""
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, WRAPPERS) else model._orig_mod
    return model


def plain(name: str) -> str:
    """Return the name of a parameter without what wrappers around parts of a model put into it.

    Example:
        >>> plain("blocks.0._orig_mod.fc.weight")
        'blocks.0.fc.weight'
    """
    return INSERTED.sub("", name).lstrip(".")


def live(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that stand in a model now, by plain name; one that is tied stands under all its names."""
    return {plain(name): p for name, p in bare(model).named_parameters(remove_duplicate=False)}


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: its shard if it is sharded (DTensor), else the tensor."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from all processes if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "placements") else tensor


def pieces(model: nn.Module) -> dict[str, tuple[Piece, ...]]:
    """Return the matrices in each parameter of two or more dimensions, by the parameter's plain name.

    They are called as a survey calls them; both halves of a pair are named after the pair. What a survey does not read
    as a matrix is one piece, under the name that the survey skips it by.
    """
    model = bare(model)
    found = of_module(model)
    named: dict[str, list[Piece]] = {}
    for site in found.sites:
        layer, part = site.layer, site.layer.parts[site.part]
        for half in (None,) if part.rank is None else (0, 1):
            name = _full(layer, layer.key(site.part, half))
            start = 0
            if part.rank is None and not layer.stored_as_parts:
                start = sum(other.rows for other in layer.parts[: site.part])
            rows = part.rank if half == 0 else part.rows
            piece = Piece(plain(site.name), start, start + rows, layer.transposed and not layer.stored_as_parts)
            named.setdefault(name, []).append(piece)
    skipped = {plain(s.name) for s in found.skipped}
    for name, p in live(model).items():
        if p.ndim > 1 and name not in named:
            stem = name.removesuffix(".weight")
            rows = len(p.flatten(0, 1)) if p.ndim == 3 else len(p)
            named[name] = [Piece(stem if stem in skipped else name, 0, rows)]
    return {name: tuple(parts) for name, parts in named.items()}


def _full(layer: Layer, key: str) -> str:
    owner = layer.name.rpartition(".")[0] if layer.form == "parameter" else layer.name
    return plain(f"{owner}.{key}".lstrip("."))


class Held:
    """Keeps chosen entries of a model's parameters at their values, whatever an optimiser does, while it is open.

    Gradients of these entries are zero as soon as they have been accumulated, before anything can clip them. After each
    step of any optimiser that holds one of the parameters, the values are written back. It is open until `close`, or
    until nobody has it any more.

    Args:
        model: the live module, wrapped or not.
        masks: for each parameter, by plain name, which entries are held, or None for all of them.
        values: what they are held at, by the same names; None for zero.
        who: the name of the context for messages.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor | None],
        values: Mapping[str, Tensor] | None = None,
        who: str = "frozen_zeros",
    ) -> None:
        self.model, self.masks, self.values, self.who = bare(model), dict(masks), values, who
        self.steps = 0
        self._hooks: dict[str, tuple[nn.Parameter, torch.utils.hooks.RemovableHandle]] = {}
        self._global: list[torch.utils.hooks.RemovableHandle] = []
        self._ender: weakref.finalize | None = None

    def open(self) -> None:
        """Hang the hooks on the parameters and on the steps of all optimisers."""
        if flat := [type(module).__name__ for module in self.model.modules() if _is_flat(module)]:
            raise RuntimeError(
                f"{self.who}: {flat[0]} (version 1) keeps the weights as slices of one flat tensor, in which no matrix "
                "can be found: use fully_shard (version 2), or DistributedDataParallel"
            )
        for module in self.model.modules():  # a root that FSDP has gathered is sharded again by this
            if callable(getattr(module, "reshard", None)):
                module.reshard()
        there = self.targets()
        self.check(there)
        self._attach(there)
        self._global += [
            register_optimizer_step_pre_hook(_weak(self._before)),
            register_optimizer_step_post_hook(_weak(self._after)),
        ]
        self._ender = weakref.finalize(self, _abandoned, self._global, self._hooks, self.who)
        self._ender.atexit = False

    def close(self) -> None:
        """Take all hooks away again."""
        if self._ender is not None:
            self._ender.detach()
        _remove(self._global, self._hooks)

    def check(self, there: Mapping[str, nn.Parameter] | None = None) -> None:
        """Return nothing; RuntimeError if a parameter is gone, or has another shape than its mask."""
        there = self.targets() if there is None else there
        wrong = [f"{name} is not there any more" for name in self.masks if name not in there]
        for name, p in there.items():
            mask = self.masks[name]
            if mask is not None and mask.shape not in (p.shape, local(p).shape):
                wrong.append(f"{name} is now {_shape(p)}, not {_shape(mask)}")
        if wrong:
            raise RuntimeError(
                f"{self.who}: the structure of the model has changed: {listed(wrong, '; ')}. Close the context before "
                "layers are replaced, split or flattened (a Pruner's step, a trim, FSDP of version 1), and open a new "
                "one afterwards"
            )

    def targets(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are written to: those of the model, or the shards while FSDP has gathered them."""
        now = live(self.model)
        found = {}
        for name in self.masks:
            p, before = now.get(name), self._hooks.get(name, (None,))[0]
            gathered = hasattr(before, "placements") and not hasattr(p, "placements")
            if p is not None:
                found[name] = before if gathered else p
        return found

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> None:
        """Write the held values into the model, or into a copy that has the same names (an average of weights)."""
        there = self.targets() if model is None else live(model)
        for name in self.masks:
            if name not in there:
                raise ValueError(f"{type(model).__name__} has no {name}: it is no copy of the model")
            self._write(name, there[name])

    def mask_gradients(self) -> None:
        """Set the gradients of the held entries to zero, for gradients that no backward pass has put there."""
        for name, p in self.targets().items():
            self._mask_gradient(name, p)

    @torch.no_grad()
    def broken(self) -> dict[str, int]:
        """Return how many held entries have another value now, by name of the parameter, where there are any."""
        counts = {name: int(self._differing(name, p).sum()) for name, p in self.targets().items()}
        return {name: count for name, count in counts.items() if count}

    def fitted(self, name: str, p: Tensor) -> Tensor | None:
        """Return the mask of this process's part of a parameter, on its device."""
        mask = self.masks[name]
        if mask is None:
            return None
        there = local(p.detach())
        if mask.shape != there.shape:
            if mask.shape != p.shape:
                raise ValueError(f"{name} is {_shape(p)}, its mask {_shape(mask)}")
            mask = _sharded(mask, p)
        if mask.device != there.device:
            mask = mask.to(there.device)
        self.masks[name] = mask
        return mask

    def _write(self, name: str, p: Tensor) -> None:
        there, mask = local(p.detach()), self.fitted(name, p)
        if self.values is None:
            there.masked_fill_(mask, 0.0)
        else:
            value = self.values[name].to(there.device, there.dtype)
            there.copy_(value if mask is None else torch.where(mask, value, there))

    def _differing(self, name: str, p: Tensor) -> Tensor:
        there, mask = local(p.detach()), self.fitted(name, p)
        other = there != (0 if self.values is None else self.values[name].to(there.device, there.dtype))
        return other if mask is None else other & mask

    @torch.no_grad()
    def _mask_gradient(self, name: str, p: nn.Parameter) -> None:
        gradient, mask = p.grad, self.fitted(name, p)
        if gradient is None:
            return
        if mask is None:
            gradient.detach().zero_()
        elif gradient.is_sparse:  # of an embedding table: whole rows, by index
            rows = gradient.coalesce()
            values = rows.values().masked_fill(mask[rows.indices()[0]], 0.0)
            checked = {"is_coalesced": True, "check_invariants": False}
            p.grad = torch.sparse_coo_tensor(rows.indices(), values, rows.shape, **checked)
        else:
            local(gradient.detach()).masked_fill_(mask, 0.0)

    def _attach(self, there: Mapping[str, nn.Parameter]) -> list[str]:
        """Hang a hook on each parameter that has none yet, trained or not; return their names."""
        fresh = []
        for name, p in there.items():
            before, handle = self._hooks.get(name, (None, None))
            if p is before or not (p.is_floating_point() or p.is_complex()) or p.is_inference():
                continue
            if handle is not None:
                handle.remove()
            trained = p.requires_grad  # one that is not may be, later on; torch takes hooks for trained ones only
            handle = p.requires_grad_(True).register_post_accumulate_grad_hook(self._hook(name))
            self._hooks[name] = p.requires_grad_(trained), handle
            fresh.append(name)
        return fresh

    def _hook(self, name: str):
        me = weakref.ref(self)

        def accumulated(p: nn.Parameter) -> None:
            held = me()
            if held is not None:
                held._mask_gradient(name, p)

        return accumulated

    def _before(self, optimizer: Optimizer) -> None:
        there, held = self.targets(), _ids(optimizer)
        mine = {name: p for name, p in there.items() if id(p) in held}
        if not mine and held.isdisjoint(map(id, self.model.parameters())):
            return
        self.check(there)
        # All of it once; then not all for each optimiser of many, but what this one holds, and what was replaced.
        last = {name: p for name, (p, _) in self._hooks.items()}
        some = {name: p for name, p in there.items() if name in mine or p is not last.get(name, p)}
        self._unchanged(some if self.steps else there)
        before = set(self._hooks)
        late = [name for name in self._attach(there) if name in before and mine.get(name) is not None]
        if late and any(mine[name].grad is not None for name in late):
            warnings.warn(
                f"{self.who}: {listed(late)} took the place of other parameters after the context was opened (by a "
                "wrapper?). Their first gradients are masked now, after any clipping; from the next step on it comes "
                "before. Open the context after wrapping, or call mask_gradients() before you clip",
                stacklevel=4,
            )
        for name, p in mine.items():
            self._mask_gradient(name, p)

    @torch.no_grad()
    def _unchanged(self, there: Mapping[str, nn.Parameter]) -> None:
        flags: dict[torch.device, list[Tensor]] = {}
        for name, p in there.items():
            flags.setdefault(p.device, []).append(self._differing(name, p).any())
        if not any(bool(torch.stack(found).any()) for found in flags.values()):  # waits once for each device
            return
        what = listed([f"{count} entries of {name}" for name, count in self.broken().items()])
        when = "the last step" if self.steps else "the context was opened, before any step"
        way = "Load weights first (wrappers for several processes load those of process 0), then open the context"
        if self.values is None:
            way += (
                ". Inside it, after loading, replacing a layer, or a step of an optimiser that is none of torch's: "
                "frozen.apply() makes the same zeros again, frozen.refresh() freezes what is zero now"
            )
        raise RuntimeError(f"{self.who}: {what} were changed since {when}, and are not what the context holds. {way}")

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        held = _ids(optimizer)
        mine = {name: p for name, p in self.targets().items() if id(p) in held}
        for name, p in mine.items():
            self._write(name, p)
        self.steps += bool(mine)


def _weak(method: Callable[[Optimizer], None]) -> Callable[..., None]:
    """A hook for all optimisers that does not keep the object of the method alive."""
    found = weakref.WeakMethod(method)

    def hook(optimizer: Optimizer, *_: object) -> None:
        act = found()
        if act is not None:
            act(optimizer)

    return hook


def _remove(of_steps: list, of_parameters: dict) -> None:
    for handle in [*of_steps, *(handle for _, handle in of_parameters.values())]:
        handle.remove()
    of_steps.clear()
    of_parameters.clear()


def _abandoned(of_steps: list, of_parameters: dict, who: str) -> None:
    _remove(of_steps, of_parameters)
    warnings.warn(
        f"{who}: the context was dropped while it was open, and holds nothing any more: keep the object for as long as "
        "it is to hold, and call its stop()",
        stacklevel=3,
    )


def _is_flat(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel)


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _sharded(mask: Tensor, p: Tensor) -> Tensor:
    """This process's part of a whole mask, cut as the parameter is."""
    from torch.distributed.tensor import distribute_tensor

    mask = mask.to(p.device)
    return distribute_tensor(mask, p.device_mesh, p.placements, src_data_rank=None).to_local()
