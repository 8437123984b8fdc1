"""Activation functions, and how far from a straight line they can be on an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Band = tuple[Tensor, Tensor, Tensor]  # (shift, slope, half): f(z + v + rho) - f(z) is in shift + slope rho +- half


@dataclass(frozen=True)
class Curve:
    """A function of one number: its slopes lie in [low, high]; straight between `kinks`, or |f''| <= curvature.

    `ulps` is what a kernel may err by, in units of rounding of |input| + 1; 0 where the result is one of its inputs.
    """

    f: Callable[[Tensor], Tensor]
    low: float
    high: float
    kinks: tuple[float, ...] | None = None
    curvature: float = math.inf
    ulps: int = 0

    @property
    def steepest(self) -> float:
        """The Lipschitz constant."""
        return max(abs(self.low), abs(self.high))

    def slope(self, z: Tensor) -> Tensor:
        """Return f'(z), one of the two where there is a kink."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            return torch.autograd.grad(self.f(z).sum(), z)[0]


def curve_of(module: nn.Module) -> Curve | None:
    """Return the curve of an activation module of torch, or None for another module.

    Bounds of slopes are rounded outwards: GELU's are -.12895 and 1.12895 at -+sqrt(2) (those of its tanh form .13 and
    1.13), SiLU's -.09984 and 1.09984.

    Example:
        >>> curve_of(nn.ReLU()).kinks, curve_of(nn.Linear(2, 2))
        ((0.0,), None)
    """
    kind = type(module)
    if kind is nn.ReLU:
        return Curve(F.relu, 0, 1, (0.0,))
    if kind is nn.ReLU6:
        return Curve(F.relu6, 0, 1, (0.0, 6.0))
    if kind is nn.Hardtanh:
        low, high = float(module.min_val), float(module.max_val)
        return Curve(lambda z: z.clamp(low, high), 0, 1, (low, high))
    if kind is nn.LeakyReLU:
        slope = float(module.negative_slope)
        return Curve(lambda z: F.leaky_relu(z, slope), min(slope, 1), max(slope, 1), (0.0,), ulps=4)
    if kind is nn.Hardsigmoid:
        return Curve(F.hardsigmoid, 0, 0.1667, (-3.0, 3.0), ulps=4)
    if kind is nn.GELU:
        # In the tanh form the second derivative is .7979 at most as well, at 0; .82 leaves room.
        wide = 0.12896 if module.approximate == "none" else 0.13
        return Curve(lambda z: F.gelu(z, approximate=module.approximate), -wide, 1 + wide, None, 0.82, 16)
    if kind is nn.SiLU:
        return Curve(F.silu, -0.09985, 1.09985, None, 0.501, 16)
    if kind is nn.Tanh:
        return Curve(torch.tanh, 0, 1, None, 0.77, 16)
    if kind is nn.Sigmoid:
        return Curve(torch.sigmoid, 0, 0.25, None, 0.0963, 16)
    if kind is nn.ELU and module.alpha == 1:
        return Curve(F.elu, 0, 1, None, 1.0, 16)
    return None


def response(curve: Curve, z: Tensor, v: Tensor, b: Tensor) -> Band:
    """Return the narrowest band we know over all that lies between the dense point z and where |rho| <= b allows.

    A unit of a piecewise linear curve that keeps its piece between z and everything in z + v -+ b has the slope of that
    piece and no remainder; another has the chord over that interval. A smooth curve has the tangent at z. The curve is
    asked for its range between the dense point and others, never for its value at the changed point alone.
    """
    low, high = (v - b).clamp_max(0), (v + b).clamp_min(0)
    slope = curve.slope(z) if curve.kinks is None else _chord(curve, z, low, high)
    middle, half = _between(*_remainder(curve, z, slope, low, high))
    return slope * v + middle, slope, half


def enclosure(curve: Curve, z: Tensor, v: Tensor, b: Tensor) -> Band:
    """Return the narrowest band we know around f(z + v): its value there is computed, and b alone is bounded."""
    if curve.kinks is None:
        at = z + v
        slope = curve.slope(at)
        middle, half = _between(*_remainder(curve, at, slope, -b, b))
        return curve.f(at) - curve.f(z) + middle, slope, half
    slope = _chord(curve, z, v - b, v + b)
    middle, half = _between(*_remainder(curve, z, slope, v - b, v + b))
    return slope * v + middle, slope, half


def _chord(curve: Curve, z: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The slope from f(z + low) to f(z + high), exact where there is no kink between."""
    start, end = z + low, z + high
    bent = torch.zeros_like(z, dtype=torch.bool)
    for kink in curve.kinks:
        bent |= (start <= kink) & (kink <= end)
    # Over a short way the quotient is rounding; any slope will do there, for the remainder is taken with it.
    bent &= end - start > 1e-9 * (z.abs() + 1)
    wide = torch.where(bent, end - start, 1.0)
    return torch.where(bent, (curve.f(end) - curve.f(start)) / wide, curve.slope((start + end) / 2))


def _between(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (low + high) / 2, ((high - low) / 2).clamp_min(0)


def _remainder(curve: Curve, z: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The range of f(z + t) - f(z) - slope t over low <= t <= high."""
    if curve.kinks is not None:  # piecewise linear in t: its extremes are at the ends and at the kinks
        points = [low, high, *(torch.minimum(torch.maximum(k - z, low), high) for k in curve.kinks)]
        here = curve.f(z)
        values = torch.stack([curve.f(z + t) - here - slope * t for t in points])
        return values.amin(0), values.amax(0)
    ends = torch.stack([(s - slope) * t for s in (curve.low, curve.high) for t in (low, high)])
    ends = torch.cat([ends, torch.zeros_like(ends[:1])])
    far = torch.maximum(low.abs(), high.abs())
    curved = curve.curvature / 2 * far.square()  # f'(z) is the slope, so Taylor's remainder
    return torch.maximum(ends.amin(0), -curved), torch.minimum(ends.amax(0), curved)
