"""How the inputs of a matrix are cut from the tensor that its module is handed: rows of features, or patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .running import BLOCK

MODES = {"zeros": "constant"}  # what F.pad calls the padding of a convolution


class View(NamedTuple):
    """The shape of the inputs, and for patches the geometry of the convolution."""

    cols: int
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, above, below
    dilation: tuple[int, int] = (1, 1)
    mode: str = "zeros"
    group: int = 0
    groups: int = 1

    def fits(self, t: Tensor) -> bool:
        """Whether a tensor can be what the matrix reads; if not, the layer is about to raise its own error."""
        if t.is_nested:
            return True
        if self.kernel is None:
            return t.ndim > 0 and t.shape[-1] == self.cols
        channels = self.cols // math.prod(self.kernel) * self.groups
        return t.ndim in (3, 4) and t.shape[-3] == channels and min(self._grid(t)) > 0

    def _grid(self, t: Tensor) -> list[int]:
        """Positions down and across."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sides = (t.shape[-2] + sum(self.padding[2:]), t.shape[-1] + sum(self.padding[:2]))
        return [(side - r) // s + 1 for side, r, s in zip(sides, reach, self.stride, strict=True)]

    def rows(self, t: Tensor, positions: int | None, keep: Tensor | None) -> Iterator[Tensor]:
        """Yield the inputs at every position, positions x cols, a block at a time."""
        if self.kernel is None:
            if t.is_nested:
                t = torch.cat([part.reshape(-1, self.cols) for part in t.unbind()])
            yield t.reshape(-1, self.cols) if keep is None else t[keep]
            return
        t = t if t.ndim == 4 else t[None]
        t = t.chunk(self.groups, dim=1)[self.group]
        grid = self._grid(t)
        step = 1 if positions is None else math.ceil(math.sqrt(math.prod(grid) / positions))
        stride = tuple(step * s for s in self.stride)
        first = [min((step - 1) // 2, n - 1) * s for n, s in zip(grid, self.stride, strict=True)]
        taken = math.prod(-(-(n - f // s) // step) for n, f, s in zip(grid, first, self.stride, strict=True))
        for part in t.split(max(1, BLOCK // max(1, taken * self.cols))):
            part = part.to(torch.float64 if t.dtype == torch.float64 else torch.float32)
            if any(self.padding):
                part = F.pad(part, self.padding, mode=MODES.get(self.mode, self.mode))
            part = part[:, :, first[0] :, first[1] :]
            if self.kernel == (1, 1):
                part = part[:, :, :: stride[0], :: stride[1]].flatten(2)
            else:
                part = F.unfold(part, self.kernel, self.dilation, 0, stride)
            yield part.transpose(1, 2).reshape(-1, self.cols)


def patches(weight: Tensor, stride, padding, dilation, groups: int, mode: str = "zeros") -> list[View]:
    """Return the views of a convolution's groups, from the arguments as torch takes them."""
    kernel = tuple(weight.shape[2:])
    stride, dilation = (((v, v) if isinstance(v, int) else tuple(v)) * 2 for v in (stride, dilation))
    stride, dilation = stride[:2], dilation[:2]
    if padding == "same":  # the odd one goes to the right and below
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pad = (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    else:
        above, left = (0, 0) if padding == "valid" else ((padding, padding) if isinstance(padding, int) else padding)
        pad = (left, left, above, above)
    cols = weight[0].numel()
    return [View(cols, kernel, stride, pad, dilation, mode, group, groups) for group in range(groups)]
