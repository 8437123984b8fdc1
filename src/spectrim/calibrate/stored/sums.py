"""Rules of torch's operations on numbers: sums, products, means, pools."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import rules
from .law import APPROXIMATE, Spread, added, multiplied
from .rules import Known, Scores, shape_of

if TYPE_CHECKING:
    from .memory import Memory


def _two(memory, x, y, shape, times: bool, function, independent, by_number) -> Known:
    sx, sy = memory.get(x), memory.get(y)
    if isinstance(sx, Scores):  # a mask is added, or the scores are scaled
        if not times:
            return sx
        one = y if not isinstance(y, Tensor) else float(y) if y.numel() == 1 and sy is None else None
        return None if one is None else replace(sx, scale=sx.scale * one)
    if isinstance(sx, Spread) and isinstance(sy, Spread):
        return rules.combined(sx, sy, shape, function, independent)
    for mine, other, state in ((sx, y, sy), (sy, x, sx)):
        if isinstance(mine, Spread) and state is None:
            if isinstance(other, Tensor) and other.numel() > 1:
                return rules.with_constant(mine, other.detach().cpu(), shape, times)
            found = mine.pointwise(lambda grid, other=other: by_number(grid, float(other)))
            return replace(found, index=found.index.expand(shape))
    return None


def _add(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, y = args[:2]
    alpha = kwargs.get("alpha", 1)
    if alpha != 1:
        return None
    return _two(memory, x, y, shape_of(out), False, torch.add, added, torch.add)


def _sub(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, y = args[:2]
    if kwargs.get("alpha", 1) != 1:
        return None
    if isinstance(sy := memory.look(y), Spread):
        minus = sy.pointwise(torch.neg)
        if isinstance(sx := memory.look(x), Spread):
            return rules.combined(sx, minus, shape_of(out), torch.add, added)
        if memory.get(x) is not None:
            return None
        return rules.with_constant(minus, number_of(x), shape_of(out), False)
    y = -y.detach() if isinstance(y, Tensor) and memory.get(y) is None else (-y if not isinstance(y, Tensor) else y)
    return _two(memory, x, y, shape_of(out), False, torch.add, added, torch.add)


def _rsub(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    return _sub(memory, (args[1], args[0]), kwargs, out)


def _mul(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    return _two(memory, *args[:2], shape_of(out), True, torch.mul, multiplied, torch.mul)


def _div(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, y = args[:2]
    if kwargs.get("rounding_mode"):
        return None
    sx, sy = memory.look(x), memory.look(y)
    if isinstance(sx, Scores) and memory.get(y) is None and number_of(y).numel() == 1:
        return replace(sx, scale=sx.scale / float(number_of(y)))
    if isinstance(sy, Spread):
        if isinstance(sx, Spread):
            return rules.combined(sx, sy.pointwise(torch.reciprocal), shape_of(out), torch.mul, multiplied)
        if memory.get(x) is not None:
            return None
        return rules.with_constant(sy.pointwise(torch.reciprocal), number_of(x), shape_of(out), True)
    if isinstance(sx, Spread) and memory.get(y) is None:
        return rules.with_constant(sx, 1 / number_of(y), shape_of(out), True)
    return None


def _mean(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x = memory.look(args[0])
    if not isinstance(x, Spread):
        return None
    dims = args[1] if len(args) > 1 and args[1] is not None else range(x.index.ndim)
    dims = (dims,) if isinstance(dims, int) else tuple(dims) or tuple(range(x.index.ndim))
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    return rules.averaged(x, dims, keep)


def _sum(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    found = _mean(memory, args, kwargs, out)
    if found is None:
        return None
    n = args[0].numel() / max(1, out.numel())
    return found.pointwise(lambda grid: grid * n)


def _pooled(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x = memory.look(args[0])
    if not isinstance(x, Spread):
        return None
    dims = tuple(range(2, out.ndim))
    n = math.prod(x.index.shape[2:]) / math.prod(out.shape[2:])
    law = x.law()
    law = replace(law, cov=law.cov / math.sqrt(max(n, 1.0)), cov_trust=APPROXIMATE, origin=None)
    return Spread(rules.resized(x.index, dims, shape_of(out)), law)


def _max_pool2d_with_indices(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x = memory.look(args[0])
    if not isinstance(x, Spread):
        return None
    size = math.prod(each_of(args[1], 2))
    return rules.largest(x, (2, 3), size, shape_of(first_of(out)))


def _resampled(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x = memory.look(args[0])
    if not isinstance(x, Spread):
        return None
    return replace(x, index=rules.resized(x.index, tuple(range(2, out.ndim)), shape_of(out)))


def first_of(out: Any) -> Tensor:
    """Returns the first tensor of what an operation gives back."""
    return out if isinstance(out, Tensor) else out[0]


def number_of(x: Any) -> Tensor:
    """Returns a constant, a tensor or a number, in float64."""
    return x.detach().cpu().double() if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


def each_of(value: Any, dims: int) -> tuple[int, ...]:
    """Returns a setting of a convolution or a pool, for each dimension."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value


SUMS = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "mean": _mean,
    "sum": _sum,
    "_adaptive_avg_pool2d": _pooled,
    "adaptive_avg_pool2d": _pooled,
    "avg_pool2d": _pooled,
    "max_pool2d_with_indices": _max_pool2d_with_indices,
    "upsample_nearest2d": _resampled,
    "upsample_bilinear2d": _resampled,
    "upsample_bicubic2d": _resampled,
    "upsample_nearest1d": _resampled,
}
