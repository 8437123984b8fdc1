"""Weights of 8-bit floats, read and never written: each entry times the scale of its block.

DeepSeek-V3 keeps `weight_scale_inv`, one scale a block of 128 x 128; compressed-tensors, FBGEMM and others keep
`weight_scale`, one for the tensor, for each row or for each block. Both are factors, whatever the name says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checkpoint import Checkpoint

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
SUFFIXES = ("_scale_inv", "_scale")
BLOCK = 128


def scale_of(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the name of the tensor that holds the scales of an fp8 weight, or None where there is none."""
    return next((key for end in SUFFIXES if (key := name + end) in checkpoint.infos), None)


def scaled_by(checkpoint: Checkpoint, name: str) -> str | None:
    """Return the name of the fp8 weight whose scales a tensor holds, or None."""
    for end in SUFFIXES:
        weight = checkpoint.infos.get(name.removesuffix(end)) if name.endswith(end) else None
        if weight is not None and weight.dtype in DTYPES:
            return name.removesuffix(end)
    return None


def check(checkpoint: Checkpoint, name: str) -> None:
    """Return nothing; ValueError where the scales of an fp8 weight fit no blocks of it."""
    if (scales := scale_of(checkpoint, name)) is not None:
        info = checkpoint.infos[scales]
        if not (info.dtype.is_floating_point or info.dtype is torch.uint8):
            raise ValueError(f"its scales are {info.dtype}".replace("torch.", ""))
        blocks_of(checkpoint.infos[name].shape, info.shape, checkpoint.config)


def dequantised(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    """Return rows start to stop of an fp8 weight as float32, its leading dimensions taken as rows.

    Args:
        checkpoint: that holds it, and its scales if it has any.
        name: of the weight, of two dimensions or three.
        start, stop: rows, as `Checkpoint.read_rows` counts them.
    """
    W = checkpoint.read_rows(name, start, stop).to(torch.float32)
    scales = scale_of(checkpoint, name)
    if scales is None:
        return W
    shape = checkpoint.infos[name].shape
    tall, wide = blocks_of(shape, checkpoint.infos[scales].shape, checkpoint.config)
    S = checkpoint.read(scales)
    # Scales of 8 bits without a sign are powers of two (OCP microscaling formats, section 5.4.1).
    S = (S.to(torch.float32) - 127).exp2() if S.dtype is torch.uint8 else S.to(torch.float32)
    across, down = -(-shape[-1] // wide), -(-shape[-2] // tall)
    S = S.reshape(-1, across)
    rows = torch.arange(start, stop)
    one = S.shape[0] == down  # of all matrices of a stack, where each has not its own
    own = S[(0 if one else rows // shape[-2] * down) + rows % shape[-2] // tall]
    for j in range(across):
        W[:, j * wide : (j + 1) * wide] *= own[:, j : j + 1]
    return W


def blocks_of(shape: Sequence[int], scales: Sequence[int], config: Mapping) -> tuple[int, int]:
    """Return rows and columns of the blocks that have a scale each; ValueError where the shapes fit none.

    Args:
        shape: of the weight, ... x rows x cols.
        scales: shape of its scales: one, one a row, or a grid of blocks; as many grids as matrices, or one for all.
        config: config.json; `quantization_config` may name the blocks.

    Example:
        >>> blocks_of((576, 7168), (5, 56), {}), blocks_of((64, 48), (64, 1), {}), blocks_of((64, 48), (), {})
        ((128, 128), (1, 48), (64, 48))
    """
    rows, cols = shape[-2:]
    grid = list(scales[-2:]) if len(scales) >= 2 else [*scales, 1] if list(scales) == [rows] else None
    count = torch.Size(scales).numel()
    matrices = torch.Size(shape[:-2]).numel()
    if grid is None and count in (1, matrices):
        grid = [1, 1]
    if grid is None or not count or count not in (grid[0] * grid[1], matrices * grid[0] * grid[1]):
        raise ValueError(f"scales of shape {tuple(scales)} fit no blocks of {tuple(shape)}")
    told = config.get("quantization_config")
    told = told.get("weight_block_size") if isinstance(told, Mapping) else None
    if not (isinstance(told, list) and [type(n) for n in told] == [int, int] and min(told) > 0):
        told = (BLOCK, BLOCK)
    return _block(rows, grid[0], told[0], scales), _block(cols, grid[1], told[1], scales)


def _block(size: int, count: int, told: int, scales: Sequence[int]) -> int:
    if count == 1:
        return size
    if -(-size // told) == count:
        return told
    if size % count:
        raise ValueError(f"scales of shape {tuple(scales)} fit no blocks of it: {size} into {count}")
    return size // count
