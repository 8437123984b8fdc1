"""How far the results of a cut model can lie from the dense ones, step by step.

Around the dense activations c of a sample the cut model has c + v + rho: v is known, of rho it is known that each of
its entries is at most b and its norm at most d. For every sample of a batch:

    Affine   v' = (W' - W) c + W' v      |rho'| <= |W'| b, and <= d times the norm of a row over units that may be on
    Bend     v' = s v + middle           |rho'| <= |s| b + half, see curves.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .chain import Affine, Bend, Chain, Largest, Shape, Step, Sum
from .curves import Band
from .rounding import EXACT, GROW, TINY, Rounding, gamma
from .weights import overlap


@dataclass(eq=False)
class State:
    """What is known after a step; samples first. `half` and `rounded` are the parts of b that are new with this step.

    `own` is the part of v that is new, `slope` (or `chosen`, indices into the image) carries an entry of rho on.
    """

    c: Tensor
    v: Tensor
    b: Tensor
    d: Tensor
    own: Tensor
    half: Tensor
    rounded: Tensor
    slope: Tensor | None = None
    chosen: Tensor | None = None


@dataclass(frozen=True)
class How:
    """How bounds are taken: radius of the ball, arithmetic of the cut model, band of a curve, and whether to refine."""

    radius: float
    rounding: Rounding
    band: Callable[..., Band]
    around_cut: bool = False
    refine: bool = False


def norm(x: Tensor) -> Tensor:
    """Return the l2 norm of each sample, rounded up."""
    return x.flatten(1).norm(dim=1) * GROW


def _each(d: Tensor, like: Tensor) -> Tensor:
    return d.reshape(-1, *[1] * (like.ndim - 1))


def start(x: Tensor, radius: float) -> State:
    """Return what is known of the input: anything in a ball of this radius around x."""
    zero = torch.zeros_like(x)
    d = x.new_full((len(x),), radius * GROW)
    return State(x, zero, torch.full_like(x, radius * GROW), d, zero, zero, zero)


def forward(chain: Chain, x: Tensor, how: How) -> list[State]:
    """Return the states, the input first; x: float64, samples x anything."""
    states = [start(x, how.radius)]
    for i, step in enumerate(chain.steps, start=1):
        states.append(_after(step, states, how))
        hidden = isinstance(step, Affine) and step.op is F.linear and i < len(chain.steps)
        if how.refine and hidden and states[-1].b.ndim == 2 and (how.radius or i > 2):
            _refine(chain, states, i, how)
    return states


def _after(step: Step, states: list[State], how: How) -> State:
    if isinstance(step, Sum):
        one, two = (states[i] for i in step.befores)
        c, v, b = one.c + two.c, one.v + two.v, one.b + two.b
        zero = torch.zeros_like(c)
        rounded = (how.rounding.stored + 4 * EXACT) * (c.abs() + one.v.abs() + two.v.abs() + b + one.c.abs()) + TINY
        b = (b + rounded) * GROW
        d = torch.minimum(one.d + two.d + norm(rounded), norm(b))
        return State(c, v, b, d, zero, zero, rounded)
    before = states[step.before]
    if isinstance(step, Shape):
        c, v, b = (step.to(part) for part in (before.c, before.v, before.b))
        zero = torch.zeros_like(c)
        return State(c, v, b, before.d, zero, zero, zero)
    if isinstance(step, Affine):
        return _affine(step, before, how)
    if isinstance(step, Bend):
        return _bend(step, before, how)
    return _largest(step, before, how)


def rounding_of(step: Affine, before: State, c: Tensor, reach: Tensor, how: Rounding) -> Tensor:
    """Return what rounding may add to each output of a layer, where |inputs| <= reach: in the cut model, and here."""
    W, bias = step.dense
    terms = step.terms or 2 + before.c[0].numel() // max(1, c[0].numel())
    there = step.op(reach, step.size)
    there = there if step.offset is None else there + step.offset
    here = step.op(before.c.abs(), W.abs())
    here = here if bias is None else here + bias.abs()
    return how.of_sum(terms) * there + 8 * gamma(terms + 4, EXACT) * (there + here) + TINY


def _affine(step: Affine, before: State, how: How) -> State:
    (W, bias), (new, shift) = step.dense, step.cut
    c, own = step.op(before.c, W), step.op(before.c, new - W)
    if bias is not None or shift is not None:
        zero = torch.zeros((), dtype=W.dtype, device=W.device)
        bias, shift = (zero if part is None else part for part in (bias, shift))
        c, own = c + bias, own + (shift - bias)
    v = own + step.op(before.v, new)
    rounded = rounding_of(step, before, c, before.c.abs() + before.v.abs() + before.b, how.rounding)
    b = step.op(before.b, new.abs())
    if step.squares:
        rows = step.op((before.b > 0).to(b.dtype), new.square()).clamp_min(0).sqrt()
        b = torch.minimum(b, _each(before.d, b) * rows * GROW)
    b = (b + rounded) * GROW
    d = torch.minimum(before.d * step.norm + norm(rounded), norm(b))
    return State(c, v, b, d, own, torch.zeros_like(c), rounded)


def _bend(step: Bend, before: State, how: How) -> State:
    curve, c = step.curve, before.c
    v, slope, half = how.band(curve, c, before.v, before.b)
    reach = c.abs() + before.v.abs() + before.b
    # A remainder that is rounding is counted as such, so that a unit that keeps its piece has none.
    half, rounded = half.masked_fill(half <= 4 * EXACT * reach, 0.0), 16 * EXACT * reach
    if curve.ulps:
        rounded = rounded + (curve.ulps * how.rounding.stored + 16 * EXACT) * (reach + 1)
    rounded = torch.where((slope == 0) & (half == 0) & (v == 0) & (curve.ulps == 0), 0.0, rounded)  # surely off
    b = (slope.abs() * before.b + half + rounded) * GROW
    steepest = slope.abs().flatten(1).amax(1)
    d = torch.minimum(steepest * before.d + norm(half) + norm(rounded), norm(b))
    return State(curve.f(c), v, b, d, v - slope * before.v, half, rounded, slope)


def _largest(step: Largest, before: State, how: How) -> State:
    c, v, b = before.c, before.v, before.b
    how_wide = {"kernel_size": step.kernel, "stride": step.stride, "padding": step.padding}
    top = F.max_pool2d(c, **how_wide)
    chosen = F.max_pool2d(c + v if how.around_cut else c, **how_wide, return_indices=True)[1]
    # What another of the window may have more than the chosen one, at most.
    over = (_best_other(c + v + b, chosen, step) - take(c + v - b, chosen)).clamp_min(0)
    half = over / 2
    moved = take(c + v, chosen) - top + half
    rounded = 8 * EXACT * (top.abs() + moved.abs() + over)
    b = (take(b, chosen) + half + rounded) * GROW
    d = before.d * overlap(step.kernel, step.stride, (1, 1)) ** 0.5 + norm(half) + norm(rounded)
    own = moved - take(v, chosen)
    return State(top, moved, b, torch.minimum(d, norm(b)), own, half, rounded, None, chosen)


def take(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the pixels at these places of each image."""
    return x.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen)


def _best_other(x: Tensor, chosen: Tensor, step: Largest) -> Tensor:
    """The largest of each window but for the chosen one; -inf where there is no other."""
    (n, channels, height, width), (y, z) = x.shape, step.padding

    def windows(images: Tensor, fill: float) -> Tensor:
        padded = F.pad(images, (z, z, y, y), value=fill)
        return F.unfold(padded, step.kernel, stride=step.stride)

    places = torch.arange(height * width, dtype=x.dtype, device=x.device).reshape(1, 1, height, width)
    mine = windows(places, -1.0) == chosen.reshape(n * channels, 1, -1)
    values = windows(x.reshape(n * channels, 1, height, width), -torch.inf)
    return values.masked_fill(mine, -torch.inf).amax(1).view_as(chosen)


@dataclass(eq=False)
class Seen:
    """What functionals of a result can be: their known change by step, and bounds of the rest; functionals x samples.

    `own[i]` and `half[i]` belong to step i - 1; `ball` is what the ball may add, `rounded` what rounding may.
    """

    own: dict[int, Tensor]
    half: dict[int, Tensor]
    rounded: Tensor
    ball: Tensor

    @property
    def rest(self) -> Tensor:
        """A bound of what is not known."""
        return (sum(self.half.values()) + self.rounded + self.ball) * GROW


def backward(chain: Chain, states: list[State], top: int, functional: Tensor, radius: float) -> Seen:
    """Return what linear functionals of result `top` can be, taken back to where each part of rho came in.

    |g . rho| <= sum over steps |g_i| . (half_i + rounded_i) + radius ||g_0||, g_i the functional taken back to step i

    functional: functionals x samples x the shape of the result.
    """
    taken = {top: functional}
    zero = functional.new_zeros(functional.shape[:2])
    seen = Seen({}, {}, zero.clone(), zero)

    def give(i: int, g: Tensor) -> None:
        taken[i] = taken[i] + g if i in taken else g

    for i in range(top, 0, -1):
        if i not in taken:
            continue
        g, step, state = taken.pop(i), chain.steps[i - 1], states[i]
        size = g.abs()
        if isinstance(step, Affine | Bend | Largest):
            seen.own[i] = _dot(g, state.own)
            if not isinstance(step, Affine):
                seen.half[i] = _dot(size, state.half)
        seen.rounded = seen.rounded + _dot(size, state.rounded)
        if isinstance(step, Sum):
            for before in step.befores:
                give(before, g)
            continue
        shape = states[step.before].c.shape
        if isinstance(step, Affine):
            g = _back(step, g, shape)
        elif isinstance(step, Bend):
            g = g * state.slope
        elif isinstance(step, Largest):
            flat = g.new_zeros(*g.shape[:3], shape[2] * shape[3])
            g = flat.scatter_add(3, state.chosen.flatten(2).expand(len(g), -1, -1, -1), g.flatten(3))
        give(step.before, g.reshape(len(g), *shape))
    if radius and 0 in taken:
        seen.ball = radius * taken[0].flatten(2).norm(dim=2) * GROW
    return seen


def _dot(g: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("kni,ni->kn", g.flatten(2), x.flatten(1))


def _back(step: Affine, g: Tensor, shape: torch.Size) -> Tensor:
    """The functional of what goes into a layer: the transpose of its map."""
    W = step.cut[0]
    if step.op is F.linear:
        return g @ W
    if step.op is torch.mul:
        return g * W
    with torch.enable_grad():
        x = g.new_zeros(len(g) * shape[0], *shape[1:], requires_grad=True)
        return torch.autograd.grad(step.op(x, W), x, g.flatten(0, 1))[0].reshape(len(g), *shape)


def _refine(chain: Chain, states: list[State], top: int, how: How, entries: int = 1 << 24) -> None:
    """Bound each unit of a hidden layer by its own functional, taken back to the input."""
    state = states[top]
    n, units = state.b.shape
    widest = max(s.c[0].numel() for s in states)
    few = max(1, entries // (n * widest))
    eye = torch.eye(units, dtype=state.b.dtype, device=state.b.device)
    for some in eye.split(few):
        own = backward(chain, states, top, some[:, None].expand(-1, n, -1), how.radius)
        at = some.argmax(1)
        state.b[:, at] = torch.minimum(state.b[:, at], own.rest.T + 1e-9 * state.b[:, at])
    state.d = torch.minimum(state.d, norm(state.b))
