"""Sums over the inputs of one matrix, taken as they pass by: what a `Moment` is made of.

Products are taken in float32 (float64 where the inputs are) of inputs less a provisional mean, that of the first block,
and added up in float64. So a mean a thousand times the spread costs the covariance nothing, and the sums of a million
positions are as good as those of a thousand. Of the symmetric sum only the blocks on and below the diagonal are held.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..moments import Moment

BLOCK = 1 << 19  # entries of a block of inputs that is worked on at a time, 2 MiB
FEW = 32  # rows summed in the precision that they come in: rounding is that of the figures themselves
STRIPE = 128  # rows of a stripe of the symmetric sum: beyond two stripes nearly half of the work and memory is saved
# Where a mean is this many times a deviation, squared, C in float32 would hold less than four figures of the variance.
FAR = 1e4
CONSTANT = 1e-12  # variances below this share of the squared mean are rounding


class Running:
    """The sums so far: positions seen, the provisional mean, powers of each input, the products of all pairs."""

    def __init__(self, cols: int):
        self.cols, self.count = cols, 0
        self.center: Tensor | None = None
        self.largest: Tensor | None = None

    def _begin(self, x: Tensor) -> None:
        self.center = x.mean(0)
        zeros = torch.zeros(4, self.cols, dtype=torch.float64, device=x.device)
        self.powers = zeros  # sums of d, d^2, d^3, d^4 for d = x - center
        self.largest = torch.zeros(self.cols, dtype=x.dtype, device=x.device)
        starts = range(0, self.cols, STRIPE)
        ends = [min(start + STRIPE, self.cols) for start in starts]
        self.spans = list(zip(starts, ends, strict=True))
        # One piece of memory, which the system takes back as a whole when it is spent.
        self.sums = torch.zeros(sum((b - a) * b for a, b in self.spans), dtype=torch.float64, device=x.device)

    def _stripes(self) -> list[tuple[int, int, Tensor]]:
        """Rows a to b of the lower triangle, (b - a) x b: the columns beyond b follow from symmetry."""
        parts = self.sums.split([(b - a) * b for a, b in self.spans])
        return [(a, b, part.view(b - a, b)) for (a, b), part in zip(self.spans, parts, strict=True)]

    def add(self, x: Tensor, sign: int = 1) -> None:
        """Add the positions of `x`, positions x cols; with sign -1 take them out again (`largest` stays).

        ValueError where they are not finite; nothing was added then.
        """
        for part in x.split(max(STRIPE, BLOCK // self.cols)):
            part = part.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
            if part.device.type == "mps":  # which has no float64
                part = part.cpu()
            total = _sums(part)
            if not bool(torch.isfinite(total).all()):
                bad = int((~torch.isfinite(part)).sum())
                raise ValueError(f"{bad} of {part.numel()} are NaN or infinite")
            if not len(part):
                continue
            if self.center is None:
                self._begin(part)
            self.largest = torch.maximum(self.largest, part.abs().amax(0).to(self.largest.dtype))
            d = part - self.center.to(part.dtype)
            for a, b, stripe in self._stripes():
                stripe.add_((d[:, :b].T @ d[:, a:b]).T, alpha=sign)
            self.powers[0].add_(total - len(part) * self.center.double(), alpha=sign)
            squares = d.square()
            self.powers[1].add_(_sums(squares), alpha=sign)
            self.powers[2].add_(_sums(d.mul_(squares)), alpha=sign)
            self.powers[3].add_(_sums(squares.square_()), alpha=sign)
            self.count += sign * len(part)

    def copied(self) -> Running:
        """Return sums of their own, equal to these."""
        return copy.deepcopy(self)

    def moment(self) -> Moment:
        """Return the moment of all positions seen, on the CPU; the sums are spent."""
        n = self.count
        d1, d2, d3, d4 = self.powers / n
        mean = self.center.double() + d1
        second = torch.empty(self.cols, self.cols, dtype=self.center.dtype)
        variance = (d2 - d1.square()).clamp_min(0)
        live = variance > CONSTANT * mean.square()
        if bool((mean.square()[live] > FAR * variance[live]).any()):
            second = second.double()
        for a, b, stripe in self._stripes():
            block = stripe / n
            block += torch.outer(mean[a:b], mean[:b]) - torch.outer(d1[a:b], d1[:b])
            second[a:b, :b] = block
            second[:a, a:b] = block[:, :a].T
            second[a:b, a:b] = (block[:, a:b] + block[:, a:b].T) / 2  # rounding left it symmetric to some figures only
        fourth = d4 - 4 * d1 * d3 + 6 * d1.square() * d2 - 3 * d1**4
        kurtosis = torch.where(live, fourth / variance.square().clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        second.diagonal().clamp_min_(0)
        del self.sums
        return Moment(
            second,
            mean.to(second.dtype).cpu(),
            n,
            kurtosis=kurtosis.float().cpu(),
            largest=self.largest.float().cpu(),
        )


def _sums(x: Tensor) -> Tensor:
    """The sums of the columns, (cols,) float64: of FEW rows at a time as they are, for torch sums into a wider type one
    entry after the other, as slowly as it multiplies matrices."""
    few = len(x) // FEW * FEW
    found = x[few:].sum(0, dtype=torch.float64)
    return found + x[:few].reshape(-1, FEW, x.shape[1]).sum(1).sum(0, dtype=torch.float64) if few else found
