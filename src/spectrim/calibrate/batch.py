"""One batch, as a model takes it, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

Batch: TypeAlias = "Tensor | tuple | list | Mapping[str, Any] | Callable[[nn.Module], Any]"


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
