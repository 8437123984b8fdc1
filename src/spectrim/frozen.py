"""Frozen zeros: what is zero in a model's weight matrices stays exactly zero while the rest is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from .held import Held, live, pieces, whole
from .sites import check_only, listed

SCHEMA = "spectrim.frozen/1"


def frozen_zeros(
    model: nn.Module, *, only: Callable[[str], bool] | None = None, all_zero: bool | None = None
) -> Frozen:
    """Return a context in which every zero of the model's weight matrices is exactly zero after every optimiser step.

        W_ij = 0 when the context opens  =>  W_ij = +0.0 after each step, and the gradient at ij is 0 before clipping

    The training loop stays as it is. The zeros hold against momentum built up before, weight decay, gradient
    accumulation, clipping, loss scaling and schedulers, whichever torch optimiser steps; averages of the weights that
    are begun inside keep them too. Gradients are masked as soon as they are accumulated, so that a norm that is clipped
    is the norm of what is trained. Everything is found by name at each step: the model may be wrapped (Accelerate,
    DistributedDataParallel, `torch.compile`, `fully_shard`) before or after.

    Frozen are the matrices that `survey` reads, both halves of pairs, convolutions of all kinds and tables of
    embeddings. Not frozen are vectors (biases, norms), whole zero rows of embeddings, parameters of one leading row
    (class tokens, position tables), and matrices that are all zero: those are commonly made to be trained (the second
    half of a LoRA pair, a new head). `left` names what holds zeros and was not frozen, with the reason.

    Args:
        model: a live module with its weights loaded; wrapped or not.
        only: a function of a matrix's name, as `survey` calls it, that says whether its zeros are frozen; None for all.
        all_zero: whether matrices without a single other entry are frozen as well. None leaves them to train and warns.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> with torch.no_grad(): _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> adam = torch.optim.AdamW(net.parameters())
        >>> with frozen_zeros(net) as frozen:
        ...     net(torch.ones(1, 2)).sum().backward()
        ...     adam.step()
        >>> frozen.zeros, net[0].weight[0, 1].item()
        ({'0': 2}, 0.0)

    References:
        arXiv 2503.01922, section 3.2: zeros stay zero in the fine-tuning; its script masks gradients before it clips.
    """
    return Frozen(model, only=only, all_zero=all_zero)


class Frozen:
    """The context of `frozen_zeros`: use it with `with`, or by `start()` and `stop()`, and keep it in between.

    Dropped while it is open it freezes nothing any more, and warns.

    Attributes:
        zeros: zeros that are frozen, a count by name of the matrix.
        left: what holds zeros and is not frozen, by name, each with the reason.
    """

    def __init__(
        self, model: nn.Module, *, only: Callable[[str], bool] | None = None, all_zero: bool | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"frozen_zeros takes a live module, not a {type(model).__name__}")
        check_only(only)
        self.model, self.only, self.all_zero = model, only, all_zero
        self.zeros: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self._held: Held | None = None
        self._open = self._loaded = False

    def start(self) -> Frozen:
        """Read the zeros (unless a state was loaded), freeze them, and return this object."""
        if self._open:
            raise RuntimeError("this context is open already")
        held = self._held if self._loaded else Held(self.model, self._read())
        held.open()
        held.apply()  # also makes +0.0 of -0.0
        self._held, self._open = held, True
        return self

    def stop(self) -> None:
        """Let go of the zeros. What was lost since the last step is put back, with a warning that says why."""
        self._finish(quiet=False)

    __enter__ = start

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(quiet=error is not None)

    def apply(self, model: nn.Module | None = None) -> None:
        """Write the zeros into the model, or into a copy of it with the same names, such as an average of its weights.

        For optimisers that are none of torch's, after each of their steps, and for averages begun before the context.
        """
        self._opened().apply(model)

    def mask_gradients(self) -> None:
        """Set the gradients of frozen zeros to zero.

        A backward pass does so by itself; this is for gradients that came otherwise (`torch.autograd.grad`).
        """
        self._opened().mask_gradients()

    def refresh(self) -> None:
        """Read the zeros anew: those made since the context was opened are frozen too, those filled are let go."""
        self._opened()
        steps = self._held.steps
        self._held.close()
        self._held = Held(self.model, self._read())
        self._held.open()
        self._held.apply()
        self._held.steps = steps

    def state_dict(self) -> dict:
        """Return the masks, one bit an entry, for a checkpoint; plain numbers, strings and tensors.

        A live weight may happen to be 0 when it is saved: only the masks tell it from a frozen one. With sharded
        parameters all processes call this together.
        """
        if self._held is None:
            raise RuntimeError("nothing is frozen yet: open the context first")
        masks = {}
        for name, p in self._held.targets().items():
            mask = _gathered(self._held.fitted(name, p), p)
            masks[name] = {"shape": list(mask.shape), "bits": torch.from_numpy(np.packbits(mask.cpu().numpy()))}
        return {"schema": SCHEMA, "zeros": dict(self.zeros), "left": dict(self.left), "masks": masks}

    def load_state_dict(self, state: dict) -> None:
        """Freeze what was frozen when the state was saved, in place of what is zero now; before or inside the context.

        Once the context is open these entries are zero, whatever stood there. ValueError for another model's state.
        """
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise ValueError(f"this is no state of frozen zeros ({SCHEMA}): it wants what state_dict() gave")
        if missing := [part for part in ("masks", "zeros", "left") if not isinstance(state.get(part), dict)]:
            raise ValueError(
                f"this state of frozen zeros has no {listed(missing)}: it wants all that state_dict() gave"
            )
        there, wrong, masks = live(self.model), [], {}
        for name, saved in state["masks"].items():
            shape = tuple(saved["shape"])
            if name not in there:
                wrong.append(f"{name} is not there")
            elif tuple(there[name].shape) != shape:
                wrong.append(f"{name} is {tuple(there[name].shape)}, not {shape}")
            else:
                masks[name] = saved["bits"].cpu()
        if wrong:
            raise ValueError(f"these zeros belong to another model: {listed(wrong, '; ')}")
        self._unpack(masks, there, state["zeros"])
        held = Held(self.model, masks)
        if self._open:
            self._held.close()
            held.open()
            held.apply()
        self._held, self._loaded = held, True
        self.zeros, self.left = dict(state["zeros"]), dict(state["left"])

    def _unpack(self, masks: dict[str, Tensor], there: dict[str, nn.Parameter], zeros: dict[str, int]) -> None:
        """Make masks of saved bits, in place; ValueError if they are not as many as were saved."""
        found: dict[str, int] = {}
        named = pieces(self.model)
        for name, bits in masks.items():
            shape = there[name].shape
            if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
                raise ValueError(
                    f"the state is damaged: {bits.numel()} {bits.dtype} cannot be the bits of {name}, {tuple(shape)}"
                )
            unpacked = np.unpackbits(bits.numpy(), count=shape.numel()).reshape(shape)
            masks[name] = torch.from_numpy(unpacked).bool()
            for piece in named[name]:
                if count := int(piece.of(masks[name]).sum()):
                    found[piece.matrix] = found.get(piece.matrix, 0) + count
        if wrong := [name for name in {**zeros, **found} if zeros.get(name) != found.get(name)]:
            raise ValueError(f"the state is damaged: the masks of {listed(wrong)} have other counts than its zeros")

    def __str__(self) -> str:
        """Which matrices are frozen, and what was left with the reason."""
        lines = [f"{sum(self.zeros.values()):,} zeros of {len(self.zeros)} matrices are frozen"]
        lines += [f"  {name:<48} {count:,} zeros" for name, count in self.zeros.items()]
        lines += [f"  {name:<48} left: {why}" for name, why in self.left.items()]
        return "\n".join(lines)

    def _opened(self) -> Held:
        if not self._open:
            raise RuntimeError("the context is not open: with frozen_zeros(model) as frozen: ..., or frozen.start()")
        return self._held

    def _read(self) -> dict[str, Tensor]:
        """The masks of everything that is to be frozen, this process's part of each; fills `zeros` and `left`."""
        self.zeros, self.left = {}, {}
        named, seen, masks = pieces(self.model), set(), {}
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        empty, asked, refused = [], 0, 0
        for name, p in live(self.model).items():
            if p.ndim < 2 or id(p) in seen:
                continue
            seen.add(id(p))
            label = named[name][0].matrix
            if p.is_meta:
                raise ValueError(f"{name} has no data (meta device): load the weights before the context is opened")
            if not (p.is_floating_point() or p.is_complex()) or p.element_size() < 2:
                self.left[label] = f"{str(p.dtype).removeprefix('torch.')} is not trained entry by entry"
                continue
            mask = whole((p.detach() == 0).contiguous())
            if not mask.any():
                continue
            if len(p) == 1 and not name.endswith("weight"):
                self.left[label] = "a parameter of one leading row (a class token, a position table)"
                continue
            if id(p) in tables:
                rows = mask.all(1)
                if rows.any():
                    self.left[label] = f"{int(rows.sum())} whole zero rows of an embedding (padding, new words)"
                mask = mask & ~rows[:, None]
                if not mask.any():
                    continue
            kept = torch.zeros_like(mask)
            for piece in named[name]:
                part = piece.of(mask)
                count = int(part.sum())
                asked += bool(count)
                if not count:
                    continue
                if self.only is not None and not self.only(piece.matrix):
                    refused += 1
                    self.left[piece.matrix] = "only= leaves it out"
                elif count == part.numel() and not self.all_zero:
                    empty.append(piece.matrix)
                    self.left[piece.matrix] = "all zero: taken for freshly made, and left to train (all_zero=True)"
                else:
                    piece.of(kept).copy_(part)
                    self.zeros[piece.matrix] = self.zeros.get(piece.matrix, 0) + count
            if kept.any():
                masks[name] = kept
        self._tell(masks, empty, asked, refused)
        return masks

    def _tell(self, masks: dict, empty: list[str], asked: int, refused: int) -> None:
        if asked and asked == refused:
            raise ValueError(
                "only= lets none of the matrices through that hold zeros; it is given names such as those "
                f"of a survey: {listed(list(self.left))}"
            )
        if empty and self.all_zero is None:
            warnings.warn(
                f"{listed(empty)} hold nothing but zeros, and are left to train, as what was made anew: "
                "all_zero=True freezes such matrices, all_zero=False leaves them without this warning",
                stacklevel=4,
            )
        if not masks:
            warnings.warn("the model's weight matrices hold no zeros: nothing is frozen", stacklevel=4)

    def _finish(self, quiet: bool) -> None:
        if not self._open:
            return
        held, self._open, self._loaded = self._held, False, False
        held.close()
        try:
            held.check()
        except RuntimeError as changed:
            if not quiet:
                warnings.warn(str(changed), stacklevel=3)
            return
        broken = held.broken()
        held.apply()
        if not broken or quiet:
            return
        lost = f"{sum(broken.values())} frozen zeros ({listed(list(broken))}) had other values"
        if not held.steps:
            warnings.warn(
                f"{lost}, and no step of a torch optimiser that holds these parameters was seen. They are zero again; "
                "but in between they were not. Call frozen.apply() after each step of your optimiser, or open the "
                "context around the training loop",
                stacklevel=3,
            )
        else:
            warnings.warn(
                f"{lost}: they were written to after the last step (other weights loaded, an average copied?). They "
                "are zero again",
                stacklevel=3,
            )


def _gathered(mask: Tensor, p: Tensor) -> Tensor:
    """The whole mask, from all processes if the parameter is sharded."""
    if not hasattr(p, "placements") or mask.shape == p.shape:
        return mask
    from torch.distributed.tensor import DTensor

    parts = {"shape": p.shape, "stride": p.stride()}
    return DTensor.from_local(mask, p.device_mesh, p.placements, run_check=False, **parts).full_tensor()
