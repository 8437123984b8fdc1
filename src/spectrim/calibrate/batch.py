"""One batch, as a model takes it, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

Batch: TypeAlias = "Tensor | tuple | list | Mapping[str, Any] | Callable[[nn.Module], Any]"


def is_function(batch: Batch) -> bool:
    """Return whether a batch is a function of the model; a dict of arguments may be callable too, and is none."""
    return callable(batch) and not isinstance(batch, Mapping)


def samples_of(batch: Batch) -> int:
    """Return how many samples a batch holds, by the length of its first tensor; 1 where it has none."""
    batch = getattr(batch, "batch", batch)  # what a function of the model runs it on, where it says so
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((samples_of(v) for v in values if isinstance(v, Tensor | tuple | list | Mapping)), 1)


def call(model: nn.Module, batch: Batch) -> Any:
    """Return what a model gives for a batch: a tensor, a tuple of arguments, a dict of named ones, or a function of it.

    Example:
        >>> call(nn.Identity(), (3,)), call(nn.Identity(), lambda model: model(4))
        (3, 4)
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else batch(model)
