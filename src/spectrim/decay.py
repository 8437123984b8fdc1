"""Decay without data: what thousands of optimiser steps on an L1 and L2 loss of the weights do, in one pass.

Nothing in such a loss couples two weights, and the pull on each is nearly the same at every step. So the steps add up
to a soft threshold, which is written down here; the steps themselves stand beside it, to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BLOCK = 1 << 18  # weights at a time: a few float64 copies of them stay in the cache
CELL = 17  # bits of a float32 below the sign, the exponent and six of the mantissa: weights that share a rounded shift
FINE = 64  # spacings of a number in the largest step, from which on the rounding of steps averages out
DRIFT = 0.02  # by which the gradient of a weight may change on the way; the closed form takes it for constant


class NoClosedForm(ValueError):
    """The group lasso of a tensor changes so much on the way that the steps have to be taken."""


@dataclass(frozen=True)
class Decay:
    """The settings of a decay: steps of an optimiser on  l1 sum |w| + l2 sum w^2 + lasso s ||W||_2,  and no data.

    `s`, the strength of a layer, is given with each tensor. It multiplies its gradient once more, as in the script.

    "script" is the authors' published script, "text" arXiv 2503.01922, whose figures were lost from its public copy.

    Args:
        optimizer: "adamw" (script) or "sgd" (text).
        steps: their number, a count; 5000 in the first cycle (script).
        lr: the first learning rate, > 0; 5e-8 (script).
        cosine: whether it falls to zero along half a cosine (script), or stays.
        l1: weight of sum |w|, >= 0; 5e-7 (script).
        l2: weight of sum w^2, >= 0; 2e-7 (script).
        lasso: weight of the norm of each tensor of a judged layer, >= 0; 1e-6 (script). AdamW only.
        weight_decay: AdamW's own, decoupled, >= 0; 2e-7 (script, which gives l2 twice).
        betas: AdamW's memories; torch's defaults, which the script leaves.
        eps: what AdamW adds to the size of a gradient; torch's default, which the script leaves.

    Example:
        >>> f"{Decay().reach:.3g}", f"{Decay().shift():.4g}", f"{Decay().shift(strength=1e-3):.2g}"
        ('0.000125', '0.0001226', '6e-06')

    References:
        Berlyand, Bourdais, Owhadi and Shmalo, arXiv 2503.01922, section 3.1.3.
    """

    optimizer: str = "adamw"
    steps: int = 5000
    lr: float = 5e-8
    cosine: bool = True
    l1: float = 5e-7
    l2: float = 2e-7
    lasso: float = 1e-6
    weight_decay: float = 2e-7
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f'optimizer is "adamw" or "sgd", not {self.optimizer!r}')
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps is a count, 0 or more, not {self.steps!r}")
        for name in ("lr", "l1", "l2", "lasso", "weight_decay", "eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number, 0 or more and finite, got {value!r}")
        if self.optimizer == "sgd" and self.lasso:
            raise ValueError("the group lasso belongs to AdamW here: with optimizer='sgd' say lasso=0")
        if self.optimizer == "sgd" and self.weight_decay:
            raise ValueError("with optimizer='sgd' l2 is the weight decay: say weight_decay=0")
        if self.lr * self._shrink >= 1:
            raise ValueError(f"lr={self.lr!r} takes a weight past zero in one step of its L2 part alone")

    @property
    def _shrink(self) -> float:
        return self.weight_decay if self.optimizer == "adamw" else 2 * self.l2

    def rates(self) -> Tensor:
        """Returns the learning rate of each step, float64."""
        t = torch.arange(self.steps, dtype=torch.float64)
        return self.lr * (1 + torch.cos(math.pi * t / max(self.steps, 1))) / 2 if self.cosine else 0 * t + self.lr

    @property
    def reach(self) -> float:
        """The sum of the learning rates: the way that a weight goes with a pull of one."""
        return float(self.rates().sum())

    def pull(self, size: Tensor | float, strength: float = 1.0, norm: float = math.inf) -> Tensor | float:
        """Returns how far a weight of this size moves towards zero, per unit of learning rate.

            g = s (l1 + 2 l2 |w| + lasso s |w| / ||W||_2),   AdamW: g / (g + eps),   SGD: s l1

        While g stays what it is, AdamW's two means with their bias corrections are g and g^2 at every step, from the
        first on, so that a step is lr g / (g + eps) exactly. What SGD owes to l2 is in the factor that `decayed` takes.
        """
        if self.optimizer == "sgd":
            return strength * self.l1 + 0 * size
        g = self.gradient(size, strength, norm)
        return g / (g + self.eps)

    def gradient(self, size: Tensor | float, strength: float = 1.0, norm: float = math.inf) -> Tensor | float:
        """Returns g of `pull` for a weight of this size, at this strength, in a tensor of this norm."""
        return strength * (self.l1 + (2 * self.l2 + strength * self.lasso / norm) * size)

    def shift(self, size: float = 0.0, strength: float = 1.0, norm: float = math.inf) -> float:
        """Returns |w0| - |w| of a weight of this size, if it does not reach zero; no rounding is in it."""
        shrink, reach = self.sums(strength)
        return (1 - shrink) * size + reach * float(self.pull(size, strength, norm))

    def check_constant(self) -> None:
        """Returns nothing; ValueError where L2 changes the pull of AdamW on the way, so that there is no closed form.

        What the lasso changes depends on the tensor: see `decayed`.
        """
        drift = 2 * self.l2 * self.reach
        if self.optimizer == "adamw" and drift > DRIFT * self.l1:
            raise ValueError(
                f"the pull on a weight changes by up to {drift / self.l1 if self.l1 else math.inf:.1%} on the way: "
                "with so large an l2, lr or steps beside l1 there is no closed form; take the steps (as_executed)"
            )

    def sums(self, strength: float = 1.0) -> tuple[float, float]:
        """Returns K and R: a weight with a pull of r becomes K |w| - R r, clamped at zero.

        Of the recursion |w| <- (1 - lr_t c) |w| - lr_t r the second is sum_t lr_t prod_{u > t} (1 - lr_u c), which
        telescopes to (1 - prod_t (1 - lr_t c)) / c.
        """
        c = self._shrink * (strength if self.optimizer == "sgd" else 1.0)
        rates = self.rates()
        log = float(torch.log1p(-rates * c).sum())
        return math.exp(log), -math.expm1(log) / c if c else float(rates.sum())


def decayed(
    W: Tensor, settings: Decay | None = None, strength: float | None = None, *, rounded: bool = False
) -> Tensor:
    """Returns what the steps leave of W, in one pass: a soft threshold, in the dtype of W.

        w' = sign(w) max(0, K |w| - R r),   R = (1 - K) / c,   K = prod_t (1 - lr_t c)

    with the pull r of `Decay.pull`, a number for each weight, and c the decoupled weight decay of AdamW, or 2 l2 s of
    SGD. For SGD with a clamp where a weight would cross zero this is exact. For AdamW it takes the pull for constant:
    with the script's settings |w0| - |w| is right to 1e-4 in tensors of a norm of one and more.

    The share |w| / ||W||_2 of a weight, and with it the part of the group lasso, moves as both shrink. In a tensor that
    is small as a whole, such as a bias near zero, it may move far: where that changes the gradient of a weight that
    stays by more than 2 %, `NoClosedForm` is raised. Up to there |w0| - |w| is right to 1 %.

    A weight that the steps would carry past zero is zero. AdamW leaves it trembling around zero, for its first mean
    remembers some ten steps: with a falling rate by less than the rate of twenty steps before the end, if there are 200
    steps and more, with a constant rate by up to a few learning rates.

    It is computed in float64 and rounded once. A shift below the spacing of the numbers near w is lost then, as it must
    be: near .05 that spacing is 3.7e-9 in float32, and 2.4e-4 in bfloat16. The loop rounds at every step, and a step of
    5e-8 or less is often below half a spacing: then the weight stays where it is, for ever. With `rounded` this is
    followed too, |w0| - |w| = sum_t u round(lr_t r / u), where u is the spacing at w0.

    Args:
        W: any shape and float type; not changed.
        settings: `Decay()`, the script's, unless told otherwise.
        strength: s of this layer in (0, 1]; None where it was not judged, without a lasso and at full strength.
        rounded: as AdamW in float32 does it, each step rounded; W is float32 then.

    Example:
        >>> W = torch.tensor([0.05, -0.05, 0.0001, 0.0])
        >>> [round(w, 6) for w in decayed(W).tolist()]
        [0.049877, -0.049877, 0.0, 0.0]
        >>> [bool((W - decayed(W, strength=1e-4, rounded=r))[0] > 0) for r in (False, True)]
        [True, False]

    References:
        arXiv 2503.01922, section 3.1.3; the soft threshold: N. Parikh and S. Boyd, Proximal Algorithms, section 6.5.2.
    """
    settings = Decay() if settings is None else settings
    _check(W, strength)
    settings.check_constant()
    s = 1.0 if strength is None else float(strength)
    norm = float(torch.linalg.vector_norm(W.detach(), dtype=torch.float64)) if strength is not None else math.inf
    norm = norm or math.inf
    factor, reach = settings.sums(s)
    coarse = _rounded_shifts(W, settings, s, norm) if rounded else None
    out = torch.empty_like(W, memory_format=torch.contiguous_format, requires_grad=False)
    flat, found = W.detach().reshape(-1), out.view(-1)
    for start in range(0, flat.numel(), BLOCK):
        part = flat[start : start + BLOCK]
        w = part.to(torch.float64)
        size = w.abs()
        left = factor * size - reach * settings.pull(size, s, norm)
        if coarse is not None:
            shift = coarse[part.abs().view(torch.int32) >> CELL]
            left = torch.where(shift.isnan(), left, size - shift)
        found[start : start + BLOCK] = torch.copysign(left.clamp_min_(0), w)
    if settings.lasso and strength is not None:
        _check_lasso(flat, found, settings, s, norm)
    return out


def _check_lasso(flat: Tensor, found: Tensor, settings: Decay, s: float, norm: float) -> None:
    """NoClosedForm where the gradient of a weight that stays is another at the end."""
    after = float(torch.linalg.vector_norm(found, dtype=torch.float64))
    if not after:
        return
    # No share falls by more than the way over the norm, and none rises by more than the norm falls: in a large tensor
    # that settles it, without another pass.
    factor, reach = settings.sums(s)
    most = s * settings.lasso * max(reach / norm + 1 - factor, norm / after - 1) + 2 * settings.l2 * reach
    if most <= DRIFT * settings.l1:
        return
    drift = 0.0
    for start in range(0, flat.numel(), BLOCK):
        w, left = (t[start : start + BLOCK].to(torch.float64).abs() for t in (flat, found))
        first, last = settings.gradient(w, s, norm), settings.gradient(left, s, after)
        drift = max(drift, float(torch.where(left > 0, (last / first - 1).abs(), 0.0).max()))
    if drift > DRIFT:
        raise NoClosedForm(
            f"the group lasso changes the pull on a weight by {drift:.1%} on the way, as the norm of its tensor falls "
            f"from {norm:.2g} to {after:.2g}: there is no closed form; take the steps (as_executed), or lasso=0"
        )


def _rounded_shifts(W: Tensor, settings: Decay, s: float, norm: float) -> Tensor:
    """Return |w0| - |w| by the leading bits of a float32 weight, or NaN where its spacing is fine."""
    if W.dtype != torch.float32 or settings.optimizer != "adamw":
        raise ValueError(f"steps are followed in float32 and for AdamW, not in {W.dtype} for {settings.optimizer}")
    low = torch.arange(1 << (31 - CELL), dtype=torch.int32) << CELL
    size = low.view(torch.float32).double()
    spacing = torch.exp2(torch.floor(torch.log2(size.clamp_min(2.0**-126))) - 23)
    size = size + (1 << (CELL - 1)) * spacing  # the middle of the cell
    step = settings.pull(size, s, norm)
    rates = settings.rates().sort().values
    coarse = (settings.lr * step < FINE * spacing) & size.isfinite()
    # A step becomes k spacings from (k - 1/2) of them on, so it is worth counting who reaches each of these levels.
    unit, levels = (spacing / step)[coarse, None], torch.arange(FINE, dtype=torch.float64) + 0.5
    reached = len(rates) - torch.searchsorted(rates, unit * levels, right=True)
    table = torch.full_like(size, math.nan)
    table[coarse] = spacing[coarse] * reached.sum(1)
    return table.to(W.device)


def as_executed(
    tensors: Sequence[Tensor], settings: Decay | None = None, strengths: Sequence[float | None] | None = None
) -> list[Tensor]:
    """Returns what the steps leave of the tensors, taken one by one by torch's own optimiser, in their own dtypes.

    As in the authors' script: the loss and its gradient by autograd; the gradient of a judged layer multiplied by its
    strength; the gradient of what is zero set to zero; then a step, and one of the schedule. Two things differ: the
    norm of a tensor that is zero throughout is left out, which in the script makes it NaN, and a step of SGD that would
    carry a weight past zero leaves it there, which that script has no case of.

    It takes thousands of passes over the weights where `decayed` takes one. On the whole it is for comparison; and for
    settings that have no closed form.

    Args:
        tensors: any shapes, one float type or several; not changed.
        settings: `Decay()`, the script's, unless told otherwise.
        strengths: one a tensor, as in `decayed`; None for no judged layer at all.

    Example:
        >>> W = torch.tensor([0.05, -0.05, 0.0001, 0.0], dtype=torch.float64)
        >>> (found,) = as_executed([W], Decay(steps=200, lr=1e-6))
        >>> torch.allclose(found, decayed(W, Decay(steps=200, lr=1e-6)), atol=1e-7)
        True

    References:
        Script of arXiv 2503.01922.
    """
    settings = Decay() if settings is None else settings
    strengths = [None] * len(tensors) if strengths is None else list(strengths)
    for W, strength in zip(tensors, strengths, strict=True):
        _check(W, strength)
    # Whoever calls this may have switched gradients off, or be in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        params = [nn.Parameter(W.detach().clone()) for W in tensors]
        if settings.optimizer == "adamw":
            optimizer = torch.optim.AdamW(
                params, settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
            )
        else:
            optimizer = torch.optim.SGD(params, settings.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps) if settings.cosine else None
        for _ in range(settings.steps):
            _step(params, strengths, settings, optimizer)
            if schedule:
                schedule.step()
    return [p.detach() for p in params]


def _step(
    params: Sequence[nn.Parameter], strengths: Sequence[float | None], settings: Decay, optimizer: torch.optim.Optimizer
) -> None:
    optimizer.zero_grad()
    loss = sum(settings.l1 * p.abs().sum() + settings.l2 * p.pow(2).sum() for p in params)
    for p, s in zip(params, strengths, strict=True):
        if s is not None and settings.lasso and p.any():
            loss = loss + settings.lasso * s * p.pow(2).sum().sqrt()
    loss.backward()
    with torch.no_grad():
        for p, s in zip(params, strengths, strict=True):
            p.grad *= 1.0 if s is None else s
            p.grad *= p != 0
        before = [p.clone() for p in params] if settings.optimizer == "sgd" else []
        optimizer.step()
        for p, old in zip(params, before, strict=False):
            p.masked_fill_(p * old < 0, 0)


def _check(W: Tensor, strength: float | None) -> None:
    if not W.is_floating_point():
        raise ValueError(f"weights are floating-point numbers, got {W.dtype}")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"the strength of a layer lies in (0, 1], got {strength!r}; None where it was not judged")
