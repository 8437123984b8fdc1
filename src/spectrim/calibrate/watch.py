"""Hooks that see what the layers of a live model read, and keep one set of sums for each input that is read.

Layers that are handed the very same tensor, as q, k and v are, share their sums for as long as that stays true.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import factored
from ..sites import Layer, Site
from .running import Running
from .views import View, patches

MASKS = {"attention_mask": False, "decoder_attention_mask": False, "src_key_padding_mask": True}  # True: marks padding


class NotFinite(ValueError):
    """Inputs of a layer that are NaN or infinite."""


class Enough(BaseException):
    """Ends a run of the model when everything that was asked of it has been seen."""


@dataclass(eq=False)
class Slot:
    """One input of the model's layers: the names of the matrices that read it, and the sums that it is counted in."""

    name: str
    sites: list[str]
    modules: list[nn.Module] = field(default_factory=list)  # whose calls are seen
    shared: Shared | None = None
    seen: int = 0


class Shared:
    """Sums that several slots may share, and the tensors that some of these have not been handed yet."""

    def __init__(self, running: Running):
        self.running, self.events = running, 0
        self.members: list[Slot] = []
        self.pending: list[tuple[int, Tensor, int | None, Callable[[], Iterable[Tensor]], Tensor | None]] = []
        self.first: Tensor | None = None  # the inputs of the first sample, until another one differs
        self.samples, self.varies = 0, False

    def settle(self) -> None:
        """Let go of the tensors that all members have read."""
        behind = min(member.seen for member in self.members)
        self.pending = [event for event in self.pending if event[0] > behind] if len(self.members) > 1 else []

    def compare(self, t: Tensor) -> None:
        """Note whether the samples of a tensor differ from the first one that was seen."""
        if t.is_nested or t.ndim < 2:
            self.varies = True
        if self.varies or not len(t):
            return
        if self.first is None:
            self.first = t[0].clone()
        same = t.shape[1:] == self.first.shape and bool((t == self.first).all())
        self.samples += len(t)
        if not same:
            self.varies, self.first = True, None


class Watch:
    """What was read so far. `missing` names the matrices whose inputs cannot be seen, with the reason."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], positions: int | None, trace: bool = False):
        self.model, self.positions = model, positions
        self.trace = trace  # only who reads what is noted, and in which order
        self.order: list[Slot] = []
        self.reads: list[dict[str, int]] = [{}]  # a batch: how often each slot has read something
        self.until: dict[str, int] | None = None  # counts at which a run may end
        self.slots: list[Slot] = []
        self.missing: dict[str, str] = {}
        self.last = ""
        self.masks: dict[str, Tensor] = {}
        self.masks_before = self.masks  # of the batch before
        self.masked = self.padded = False
        self._recent: dict[tuple[int, View], tuple[weakref.ref, int | None, Shared, int]] = {}
        self._hooks: list[tuple[nn.Module, Callable]] = []
        self._weights: dict[int, tuple[nn.Parameter, list[Slot], Layer]] = {}
        holders: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for p in module._parameters.values():
                holders.setdefault(id(p), []).append(module)
        by_layer: dict[int, tuple[Layer, dict[int, str]]] = {}
        for site in sites:
            by_layer.setdefault(id(site.layer), (site.layer, {}))[1][site.part] = site.name
        for layer, names in by_layer.values():
            self._place(layer, names, holders)

    # Where the hooks go -------------------------------------------------------------------------------------------

    def _slots(self, layer: Layer, names: dict[int, str], each: bool) -> list[Slot]:
        """Slots of a layer: one for all its parts, or one for each."""
        count = len(layer.parts) if each else 1
        slots = [Slot(layer.name, []) for _ in range(count)]
        for part, name in names.items():
            slots[part if each else 0].sites.append(name)
        self.slots += [slot for slot in slots if slot.sites]
        return slots

    def _place(self, layer: Layer, names: dict[int, str], holders: dict[int, list[nn.Module]]) -> None:
        if layer.form == "parameter":
            owner, _, tensor = layer.name.rpartition(".")
            return self._place_parameter(layer, names, self.model.get_submodule(owner), tensor)
        module = self.model.get_submodule(layer.name)
        parent = self.model.get_submodule(layer.name.rpartition(".")[0]) if layer.name else None
        if isinstance(parent, nn.MultiheadAttention) and module is parent.out_proj:
            slots = self._slots(layer, names, each=False)
            self._hook(parent, slots, partial(self._on_heads, slots[0], View(layer.cols)))
            return None
        slots = self._slots(layer, names, each=layer.form == "conv2d" and len(layer.parts) > 1)
        leaf = module
        while isinstance(leaf, nn.Sequential | factored.Parts):
            leaf = leaf[0]
        if isinstance(module, factored.Parts):  # its parts are handed pieces of what it is handed
            views = [View(layer.cols)]
            if layer.form == "conv2d":
                views = _of_conv(leaf, len(module))
            self._hook(module, slots, partial(self._on_call, slots, views))
            return None
        for holder in dict.fromkeys([leaf, *holders.get(id(leaf._parameters.get("weight")), [])]):
            if _own_forward(holder):  # only the call of torch's function tells what meets the weight
                self._weights[id(holder.weight)] = (holder.weight, slots, layer)
                for slot in slots:
                    slot.modules.append(holder)
            else:
                views = _of_conv(holder, holder.groups) if layer.form == "conv2d" else [View(layer.cols)]
                self._hook(holder, slots, partial(self._on_call, slots, views))
        return None

    def _hook(self, module: nn.Module, slots: list[Slot], hook: Callable) -> None:
        self._hooks.append((module, hook))
        for slot in slots:
            slot.modules.append(module)

    def _place_parameter(self, layer: Layer, names: dict[int, str], module: nn.Module, tensor: str) -> None:
        if isinstance(module, nn.MultiheadAttention):
            if tensor == "in_proj_weight":
                slots = self._slots(layer, names, each=True)
                letters = [part.label[:1] for part in layer.parts]
            else:
                slots, letters = self._slots(layer, names, each=False), [tensor[0]]
            self._hook(module, slots, partial(self._on_attention, slots, letters, View(layer.cols)))
        elif tensor in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
            slots = self._slots(layer, names, each=False)
            self._hook(module, slots, partial(self._on_call, slots, [View(layer.cols)]))
        else:
            reason = f"its inputs are made inside {type(module).__name__}, which no hook can see"
            self.missing |= {name: reason for name in names.values()}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Holds the hooks in place; they are gone on the way out, whatever happened."""
        with ExitStack() as held:
            for module, hook in [(self.model, self._on_model), *self._hooks]:
                held.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if self._weights:
                held.enter_context(_Functions(self._on_function))
            yield

    # What the hooks do --------------------------------------------------------------------------------------------

    def _on_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = _bound(module, args, kwargs)
        self.masks = {}
        for name, marks_padding in MASKS.items():
            mask = given.get(name)
            if isinstance(mask, Tensor) and mask.ndim == 2:
                keep = mask > 0 if mask.dtype != torch.bool else mask
                self.masks[name] = ~keep if marks_padding else keep
                self.padded |= not bool(self.masks[name].all())

    def _on_call(self, slots: list[Slot], views: list[View], module: nn.Module, args: tuple, kwargs: dict) -> None:
        t = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        t = t.data if isinstance(t, nn.utils.rnn.PackedSequence) else t
        if isinstance(t, Tensor):
            for slot, view in zip(slots, views * (len(slots) // len(views)), strict=True):
                self.read(slot, t, view)

    def _on_attention(self, slots, letters, view: View, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = _bound(module, args, kwargs)
        handed = {letter: given.get(name) for letter, name in zip("qkv", ("query", "key", "value"), strict=True)}
        for slot, letter in zip(slots, letters, strict=True):
            if not letter and not (handed["q"] is handed["k"] is handed["v"]):
                self.missing |= {name: "q, k and v read different inputs: take them apart" for name in slot.sites}
            elif slot.sites and slot.sites[0] not in self.missing:
                self.read(slot, handed[letter or "q"], view)

    def _on_heads(self, slot: Slot, view: View, module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
        # The last map of an attention module is never called: its weight goes to a fused function. With the identity
        # in its place the module returns what that weight is multiplied by.
        if self.trace:
            return self.read(slot, torch.empty(0), view)
        there = module._modules["out_proj"]
        like = there.weight
        plain = nn.Module()
        plain.weight, plain.bias = torch.eye(view.cols, dtype=like.dtype, device=like.device), None
        module._modules["out_proj"] = plain
        try:
            heads = module.forward(*args, **kwargs)[0]
        finally:
            module._modules["out_proj"] = there
        return self.read(slot, heads, view)

    def _on_function(self, weight: Tensor, t: Tensor, views: list[View] | None) -> None:
        held = self._weights.get(id(weight))
        if held is not None and held[0] is weight:
            _, slots, layer = held
            for slot, view in zip(slots, views or [View(layer.cols)], strict=True):
                self.read(slot, t, view)

    def _keep(self, t: Tensor) -> Tensor | None:
        if t.is_nested or t.ndim != 3:
            return None
        found = None
        for mask in self.masks.values():
            for turned in (mask, mask.T):
                if t.shape[:2] == turned.shape:
                    found = turned if found is None else found | turned
                    break
        self.masked |= found is not None
        return None if found is None or bool(found.all()) else found.to(t.device)

    def read(self, slot: Slot, t: Tensor, view: View) -> None:
        """Count a tensor as read by a slot, and add it to the sums if no slot that shares them has read it yet."""
        if not slot.sites:
            return
        self.last = slot.name
        if not self.trace and not view.fits(t):
            return
        self._count(slot, t, view if not self.trace else View(0))  # a trace asks for the tensor alone
        reads = self.reads[-1]
        reads[slot.sites[0]] = reads.get(slot.sites[0], 0) + 1
        if self.until is not None and all(reads.get(name, 0) >= n for name, n in self.until.items()):
            raise Enough

    def _count(self, slot: Slot, t: Tensor, view: View) -> None:
        place, version = (id(t), view), None if t.is_inference() else t._version
        ref, then, shared, at = self._recent.get(place, (lambda: None, None, None, 0))
        if ref() is t and then == version:
            if slot.shared is None and at == shared.events == 1:
                slot.shared, slot.seen = shared, 1
                self.order.append(slot)
                shared.members.append(slot)
                return
            if slot.shared is shared and slot.seen == at - 1:
                slot.seen = at
                shared.settle()
                return
        if slot.shared is None:
            self.order.append(slot)
            slot.shared = Shared(Running(view.cols))
            slot.shared.members.append(slot)
        elif slot.seen < slot.shared.events:
            self._part(slot)
        shared = slot.shared
        again: Callable[[], Iterable[Tensor]] = partial(iter, ())
        if not self.trace:
            again = partial(view.rows, t, self.positions, self._keep(t) if view.kernel is None else None)
            shared.compare(t)
        before = shared.running.largest
        try:
            for x in again():
                shared.running.add(x)
        except ValueError as error:
            raise NotFinite(f"the inputs of {slot.name or 'the model'} are not finite: {error}") from None
        shared.events += 1
        slot.seen = shared.events
        if len(shared.members) > 1:
            shared.pending.append((shared.events, t, version, again, before))
        self._recent = {k: v for k, v in self._recent.items() if v[0]() is not None}
        self._recent[place] = (weakref.ref(t), version, shared, shared.events)

    def _part(self, slot: Slot) -> None:
        """Give a slot sums of its own: it was not handed what those that it shared with were."""
        old = slot.shared
        unread = [event for event in old.pending if event[0] > slot.seen]
        new = Shared(old.running.copied())
        for _, t, version, again, _ in unread:
            if version is not None and t._version != version:
                raise ValueError(f"{slot.name} shares inputs with {old.members[0].name} that were changed in place")
            for x in again():
                new.running.add(x, sign=-1)
        new.running.largest = unread[0][4]
        new.events, new.members, new.varies, new.first = slot.seen, [slot], old.varies, old.first
        new.samples = old.samples
        old.members.remove(slot)
        old.settle()
        slot.shared = new

    def end_of_batch(self) -> None:
        """Part the slots that were not handed what the others were, and let go of every tensor."""
        for slot in self.slots:
            if slot.shared is not None and slot.seen < slot.shared.events:
                self._part(slot)
        self._recent = {}
        self.masks_before, self.masks = self.masks, {}
        self.reads.append({})
        for shared in self.sums():
            shared.pending = []

    def sums(self) -> list[Shared]:
        """Return the different sums."""
        return list({id(slot.shared): slot.shared for slot in self.slots if slot.shared is not None}.values())


@dataclass(eq=False)
class _Functions(TorchFunctionMode):
    """Sees the calls of F.linear and F.conv2d, whoever makes them."""

    seen: Callable[[Tensor, Tensor, list[View] | None], None] = field()

    def __post_init__(self):
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d, torch.conv2d):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | kwargs
            weight, views = given["weight"], None
            if func is not F.linear:
                how = [given.get(k, v) for k, v in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))]
                views = patches(weight, *how)
            self.seen(weight, given["input"], views)
        return func(*args, **kwargs)


def _bound(module: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a call by name; those that no signature names are left out."""
    try:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the call will fail, or the signature is not to be had
        return kwargs
    return {**bound.arguments, **kwargs}


def _of_conv(conv: nn.Conv2d, groups: int) -> list[View]:
    return patches(conv.weight, conv.stride, conv.padding, conv.dilation, groups, conv.padding_mode)


def _own_forward(module: nn.Module) -> bool:
    """Whether a linear layer or a convolution computes something of its own on the way to its weight."""
    if "forward" in vars(module):
        return True
    if isinstance(module, nn.Conv2d):
        kept = (nn.Conv2d.forward, nn.Conv2d._conv_forward)
        return (type(module).forward, type(module)._conv_forward) != kept
    return isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
