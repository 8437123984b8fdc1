"""The numbers of one layer in float64, whatever form a cut has left it in."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def both(value: int | tuple[int, ...]) -> tuple[int, int]:
    """Return a size in both directions.

    Example:
        >>> both(2), both((3, 1))
        ((2, 2), (3, 1))
    """
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def overlap(kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> int:
    """Return in how many windows one input can stand, at most.

    Example:
        >>> overlap((3, 3), (2, 2), (1, 1)), overlap((2, 2), (2, 2), (1, 1))
        (4, 1)
    """
    sides = zip(kernel, stride, dilation, strict=True)
    return math.prod(math.ceil(k / s) if d == 1 else k for k, s, d in sides)


def wide(p: Tensor) -> Tensor:
    """Return the values of a parameter in float64, for these sums are not to add to the rounding that they bound."""
    return p.detach().to(torch.float64)


def of_layer(name: str, module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Return (weight, bias, magnitudes behind the weight, inner terms) of a layer, a pair, or row blocks of either.

    The bias of a convolution is shaped so that it can be added to images.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        base, forwards = (nn.Linear, ["forward"])
        if isinstance(module, nn.Conv2d):
            base, forwards = (nn.Conv2d, ["forward", "_conv_forward"])
        if any(getattr(type(module), f) is not getattr(base, f) for f in forwards) or len(module._modules):
            raise ValueError(f"no bound is known for {name}: {type(module).__name__} has a forward of its own")
        W = wide(module.weight)
        bias = None if module.bias is None else wide(module.bias)
        if isinstance(module, nn.Conv2d) and bias is not None:
            bias = bias.reshape(-1, 1, 1)
        return W, bias, W.abs(), 0
    if isinstance(module, nn.Sequential) and len(module) == 2:
        (R, inner, _, _), (L, bias, _, _) = (of_layer(name, half) for half in module)
        if inner is not None or R.shape[0] != L.shape[1] or L[0, 0].numel() != 1:
            raise ValueError(f"no bound is known for {name}: the two layers in its place do not make one matrix")
        shape = (len(L), *R.shape[1:])
        product, size = (a.flatten(1) @ b.flatten(1) for a, b in ((L, R), (L.abs(), R.abs())))
        return product.reshape(shape), bias, size.reshape(shape), len(R)
    if isinstance(module, nn.ModuleList) and len(module):  # what a split leaves of a fused layer or of groups
        weights, biases, sizes, inner = zip(*(of_layer(name, part) for part in module), strict=True)
        bias = None if any(b is None for b in biases) else torch.cat(biases)
        return torch.cat(weights), bias, torch.cat(sizes), max(inner)
    raise ValueError(f"no bound is known for {name}: {type(module).__name__} stands in its place in the cut model")


def of_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scale, shift, magnitudes behind the shift) of a BatchNorm in evaluation mode, one of each a channel."""
    if module.running_mean is None:
        raise ValueError(f"no bound is known for {name}: it has no running statistics, and takes those of the batch")
    mean = wide(module.running_mean)
    scale = torch.rsqrt(wide(module.running_var) + module.eps)
    scale = scale if module.weight is None else scale * wide(module.weight)
    bias = torch.zeros_like(mean) if module.bias is None else wide(module.bias)
    shape = (-1, 1, 1) if isinstance(module, nn.BatchNorm2d) else (-1,)
    found = (scale, bias - mean * scale, bias.abs() + (mean * scale).abs())
    return tuple(part.reshape(shape) for part in found)
