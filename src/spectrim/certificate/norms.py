"""The plain bound of the data path: norms of layers times the norm of what came in. The control of the sharper ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .bounds import State, norm, rounding_of, start
from .chain import Bend, Chain, Largest, Shape, Sum
from .rounding import EXACT, GROW, Rounding
from .weights import overlap

Found = tuple[Tensor, Tensor, Tensor]  # bounds of margins, margins, scores


def norm_bound(chain: Chain, x: Tensor, classes: Tensor, radius: float, rounding: Rounding) -> Found:
    """Return (lower bounds of the margins of the cut model, the dense ones, the dense scores), samples x classes.

        ||x'_(l+1) - x_(l+1)|| <= ||(W - W') x_l|| + ||W'|| ||x'_l - x_l||

    The last layer, if it is linear, is taken pair by pair: (w'_i - w'_j) x' for the rows of two classes.
    """
    states, last = [start(x, radius)], len(chain.steps)
    for i, step in enumerate(chain.steps, start=1):
        if isinstance(step, Sum):
            one, two = (states[k] for k in step.befores)
            c = one.c + two.c
            size = norm(c.abs() + one.c.abs()) + one.d + two.d
            states.append(_state(c, one.d + two.d + (rounding.stored + 4 * EXACT) * size))
            continue
        before = states[step.before]
        if isinstance(step, Shape):
            states.append(_state(step.to(before.c), before.d))
        elif isinstance(step, Bend):
            size = norm(before.c.abs() + 1) + before.d
            slack = (step.curve.ulps * rounding.stored + 16 * EXACT) * size
            states.append(_state(step.curve.f(before.c), step.curve.steepest * before.d + slack))
        elif isinstance(step, Largest):
            c = F.max_pool2d(before.c, step.kernel, step.stride, step.padding)
            states.append(_state(c, before.d * overlap(step.kernel, step.stride, (1, 1)) ** 0.5))
        else:
            (W, bias), (new, shift) = step.dense, step.cut
            c, own = step.op(before.c, W), step.op(before.c, new - W)
            if bias is not None or shift is not None:
                bias, shift = (torch.zeros_like(c[0]) if part is None else part for part in (bias, shift))
                c, own = c + bias, own + (shift - bias)
            reach = before.c.abs() + before.d.reshape(-1, *[1] * (before.c.ndim - 1))
            rounded = rounding_of(step, before, c, reach, rounding)
            if i == last and step.op is F.linear and c.ndim == 2:
                return _pairs(c, own, rounded, new, before.d, classes)
            states.append(_state(c, norm(own) + step.norm * before.d + norm(rounded)))
    c, d = states[-1].c, states[-1].d
    dense = margins_of(c, classes)
    return dense - (2**0.5 * d * GROW)[:, None], dense, c


def _state(c: Tensor, d: Tensor) -> State:
    return State(c, c, c, d * GROW, c, c, c)


def margins_of(scores: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the score of a sample's class is ahead of each; 0 at the class itself."""
    return scores.gather(1, classes[:, None]) - scores


def _pairs(c: Tensor, own: Tensor, rounded: Tensor, W: Tensor, d: Tensor, classes: Tensor) -> Found:
    rows = torch.stack([(W - row).norm(dim=1) for row in W]) * GROW
    rest = rows[classes] * d[:, None] + rounded + rounded.gather(1, classes[:, None])
    dense = margins_of(c, classes)
    return dense + margins_of(own, classes) - rest * GROW, dense, c
