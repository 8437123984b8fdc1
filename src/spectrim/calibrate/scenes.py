"""Scenes: a thing made of some parts before a ground, with or without a horizon, the whole of it bent smoothly.

What dead leaves lack is a middle: photographs show one thing, large, before something else. The ways in which that
matters to the second moments inside a vision transformer are not known; that it does was measured.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from .images import coloured, developed, fields, uniform
from .leaves import filled, stamp

PARTS = 14  # of the thing, at most
LIMBS = 0.35  # share of its parts that are long and thin
HORIZONS = 0.6  # share of the images with one
BEND = 0.12  # most deviation of the bending, over half a side


def bent(axes: Tensor, generator: Generator, most: float = BEND) -> Tensor:
    """Returns images under smooth displacements, each of its own strength; borders are met by reflections.

    Args:
        axes: count x channels x side x side.
        generator: of the processor.
        most: largest standard deviation of a displacement, over half a side.
    """
    count, _, side, _ = axes.shape
    moved = fields(2 * count, side, generator, (2.0, 3.0)).view(count, 2, side, side)
    moved = moved * uniform(0.0, most, count, 1, 1, 1, generator=generator)
    ramp = torch.linspace(-1, 1, side)
    grid = torch.stack([ramp[None, :].expand(side, side), ramp[:, None].expand(side, side)], -1)
    return grid_sample(axes, grid + moved.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=True)


def things(count: int, side: int, generator: Generator, sizes: tuple[float, float]) -> Tensor:
    """Returns which part of the thing is seen at each pixel: 0 the ground, 1 the body, further ones the parts on it.

    Args:
        count, side: images; pixels.
        generator: of the processor.
        sizes: least and largest radius of the body, over the side.

    Returns:
        count x side x side, whole numbers in [0, PARTS].
    """
    ids = torch.zeros(count, side, side, dtype=torch.long)
    size = uniform(*sizes, count, generator=generator) * side
    middle = side * (0.5 + 0.12 * torch.randn(count, 2, generator=generator))
    number = torch.randint(3, PARTS + 1, (count,), generator=generator)
    offset = torch.randn(count, PARTS, 2, generator=generator)
    scale = uniform(0.25, 1.0, count, PARTS, generator=generator)
    form = torch.randint(0, 4, (count, PARTS), generator=generator)
    tilt = uniform(0, math.pi, count, PARTS, generator=generator)
    flat = uniform(0.3, 1.0, count, PARTS, generator=generator)
    limb = torch.rand(count, PARTS, generator=generator) < LIMBS
    for i in range(count):
        body = float(size[i])
        y, x = middle[i].tolist()
        stamp(ids[i], 1, y, x, body, int(form[i, 0]), float(tilt[i, 0]), float(flat[i, 0]))
        for k in range(1, int(number[i])):
            dy, dx = (0.6 * body * offset[i, k]).tolist()
            r, thin, kind = 0.7 * body * float(scale[i, k]), float(flat[i, k]), int(form[i, k])
            if limb[i, k]:
                r, thin, kind = 1.5 * r, 0.05 + 0.2 * thin, 1
            stamp(ids[i], k + 1, y + dy, x + dx, r, kind, float(tilt[i, k]), thin)
    return ids


def scenes(
    count: int,
    side: int,
    generator: Generator,
    *,
    sizes: tuple[float, float] = (0.15, 0.55),
    horizons: float = HORIZONS,
    bend: float = BEND,
    blur: tuple[float, float] = (0.5, 3.0),
) -> Tensor:
    """Returns images of one thing each, before a ground of clouds that a horizon may divide, in [0, 1].

    Args:
        count, side: images; pixels.
        generator: of the processor.
        sizes: least and largest radius of the thing, over the side.
        horizons: share of images with a horizon.
        bend: most strength of the bending of shapes, see `bent`; 0 leaves them as they are.
        blur: least and most width, pixels.

    Returns:
        count x 3 x side x side.

    Example:
        >>> scenes(2, 28, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 28, 28])
    """
    ids = things(count, side, generator, sizes)
    line = uniform(0.2, 0.8, count, 1, 1, generator=generator) * side
    slope = uniform(-0.25, 0.25, count, 1, 1, generator=generator)
    pixel = torch.arange(side).float()
    below = pixel[:, None] > line + slope * (pixel - side / 2)
    below &= torch.rand(count, 1, 1, generator=generator) < horizons
    axes = filled(ids, generator, 0.5, 0.4)
    for part in (~below, below):
        clouds = fields(3 * count, side, generator, (0.8, 1.8)).view(count, 3, side, side)
        level = torch.randn(count, 3, 1, 1, generator=generator)
        depth = uniform(0.03, 0.8, count, 1, 1, 1, generator=generator)
        axes = torch.where(((ids == 0) & part)[:, None], level + depth * clouds, axes)
    return developed(coloured(bent(axes, generator, bend)), generator, blur)
