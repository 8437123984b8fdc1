"""One run of a model on a stand-in for its input, every operation on a tensor shown to whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...sites import Site
from ..batch import Batch, call
from ..gather import batches, moved, quiet, shape_of
from ..inputs import synthetic

Seen = Callable[[Any, tuple, dict, Any], None]


class Shown(TorchDispatchMode):
    """Runs every operation as it is, and shows it: `seen(operation, args, kwargs, out)`."""

    def __init__(self, seen: Seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.seen(func, args, kwargs, out)
        return out


def tensors_of(tree: Any) -> list[Tensor]:
    """Returns the tensors in what an operation or a model takes or gives back."""
    return [leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor)]


def _leaves(tree: Any) -> Iterator[Any]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Mapping):  # the outputs of transformers are dicts that torch may not know of
            for value in leaf.values():
                yield from _leaves(value)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor | nn.Module | type):
            for value in vars(leaf).values():
                if isinstance(value, Tensor | tuple | list | dict):
                    yield from _leaves(value)
        else:
            yield leaf


def stand_in(model: nn.Module, example: Batch | None) -> Batch:
    """Returns one batch of the right shape: that of the user, or one made from the model's signature."""
    if example is None:
        return synthetic(model, count=1, batch=1)[0]
    if isinstance(example, Tensor | Mapping | tuple) or callable(example):
        return moved(model, example, None)
    return moved(model, next(iter(batches(example))), None)


def run(model: nn.Module, batch: Batch, seen: Seen) -> Any:
    """Returns the output of one run in evaluation mode, every operation shown; model and random numbers stay as found.

    Args:
        model: a live module.
        batch: a tensor, a tuple of arguments, a dict of named ones, or a function of the model.
        seen: is called after each operation.

    ValueError, with the model's own error, where the batch does not run through it.
    """
    try:
        with quiet(model), Shown(seen):
            return call(model, batch)
    except Exception as error:
        raise ValueError(
            f"the example ({shape_of(batch)}) does not run through {type(model).__name__}: {error}. Give one batch as "
            "the model takes it, example=: a tensor, a tuple of arguments, or a dict of keyword arguments"
        ) from error


class Weights:
    """The matrices that are looked for in a run, told by where their weights are stored."""

    def __init__(self, sites: Sequence[Site]):
        self.places: dict[int, list[tuple[Site, Tensor, int, int]]] = {}
        self.hidden: dict[str, str] = {}  # why one cannot be told
        for site in sites:
            layer, part = site.layer, site.part
            pair = site.pair_rank is not None
            try:
                tensor = layer.load(layer.key(part, 0) if pair else layer.key(part))
            except AttributeError:
                self.hidden[site.name] = "its weight is made anew at each call"
                continue
            start = 0 if layer.stored_as_parts else sum(p.rows for p in layer.parts[:part])
            stop = start + (site.pair_rank if pair else site.rows)
            self.places.setdefault(storage(tensor), []).append((site, tensor, start, stop))

    def used(self, weight: Tensor) -> Iterator[tuple[Site, int | None]]:
        """Yields the matrices that a tensor (a weight or a view of one) holds, each with its group of a convolution."""
        found = self.places.get(storage(weight))
        for site, tensor, start, stop in found or ():
            lies = weight.storage_offset() - tensor.storage_offset()
            each = tensor[0].numel()
            whole = weight.numel() == tensor.numel() and not lies
            if whole or (lies // each <= start and stop <= (lies + weight.numel()) // each):
                layer = site.layer
                grouped = layer.form == "conv2d" and len(layer.parts) > 1 and not layer.stored_as_parts
                yield site, site.part if grouped else None


def storage(tensor: Tensor) -> int:
    """Return the address of what a tensor stores its entries in, views of it included; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor has none
        return 0
