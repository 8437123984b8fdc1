"""Dead leaves: shapes of every size that hide one another, each with its colour, texture and shading.

Reference:
    Lee, Mumford and Huang (2001), Int. J. Computer Vision 41, 35: radii of density r^-3 give natural statistics.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from .images import coloured, developed, fields, uniform

LEAVES = 200  # an image; with radii of density r^-3 the rest would be hidden or a pixel wide
TEXTURES = 16  # fields that leaves cut their textures out of


def stamp(ids: Tensor, value: int, y: float, x: float, r: float, form: int, tilt: float, flat: float) -> None:
    """Writes `value` where a disc, an ellipse, a rectangle or a lobed shape of radius r lies, in place."""
    side = ids.shape[0]
    top, bottom = max(0, math.floor(y - r)), min(side, math.ceil(y + r) + 1)
    left, right = max(0, math.floor(x - r)), min(side, math.ceil(x + r) + 1)
    if top >= bottom or left >= right:
        return
    dy = torch.arange(top, bottom)[:, None] - y
    dx = torch.arange(left, right)[None, :] - x
    if form:
        cos, sin = math.cos(tilt), math.sin(tilt)
        dy, dx = cos * dy + sin * dx, (cos * dx - sin * dy) / flat
    if form == 2:
        inside = (dy.abs() <= 0.7 * r) & (dx.abs() <= 0.7 * r)
    elif form == 3:
        lobes = 2 + int(tilt * 7) % 5
        inside = (dy**2 + dx**2).sqrt() <= r * (0.75 + 0.25 * torch.sin(lobes * torch.atan2(dy, dx)))
    else:
        inside = dy**2 + dx**2 <= r * r
    ids[top:bottom, left:right][inside] = value


def leaf_maps(
    count: int, side: int, generator: Generator, leaves: int = LEAVES, radii: tuple[float, float] = (0.02, 0.5)
) -> Tensor:
    """Returns which leaf is seen at each pixel of images covered by leaves that hide one another.

    Radii have density r^-3 between the two ends, which makes the picture look the same at every scale. A leaf is a
    disc, an ellipse, a rectangle or a lobed shape.

    Args:
        count, side: images; pixels.
        generator: of the processor.
        leaves: an image; the last lies on top, 0 is the ground.
        radii: least and largest, over the side.

    Returns:
        count x side x side, whole numbers in [0, leaves).

    Example:
        >>> ids = leaf_maps(1, 32, torch.Generator().manual_seed(0), leaves=8)
        >>> tuple(ids.shape), int(ids.max()) < 8
        ((1, 32, 32), True)
    """
    least, largest = (max(1.0, share * side) for share in radii)
    u = torch.rand(count, leaves, generator=generator)
    r = (least**-2 + u * (largest**-2 - least**-2)) ** -0.5
    # The largest lie lowest in half of the images, so that small things are seen there.
    sort = torch.rand(count, generator=generator) < 0.5
    r[sort] = r[sort].sort(1, descending=True).values
    place = uniform(-0.1, 1.1, 2, count, leaves, generator=generator) * side
    form = torch.randint(0, 4, (count, leaves), generator=generator)
    tilt = uniform(0, math.pi, count, leaves, generator=generator)
    flat = uniform(0.4, 1.0, count, leaves, generator=generator)
    ids = torch.zeros(count, side, side, dtype=torch.long)
    table = torch.stack([*place, r, form, tilt, flat], 2).tolist()
    for i in range(count):
        for k in range(1, leaves):
            y, x, radius, kind, turn, thin = table[i][k]
            stamp(ids[i], k, y, x, radius, int(kind), turn, thin)
    return ids


def filled(ids: Tensor, generator: Generator, texture: float, shading: float) -> Tensor:
    """Returns axes of colour (count x 3 x side x side) of maps: a colour, a texture and a shading a region."""
    count, side, _ = ids.shape
    regions = int(ids.max()) + 1
    flat = ids.view(count, -1)

    def of_region(values: Tensor) -> Tensor:  # count x regions x ... -> count x pixels x ...
        return torch.gather(values, 1, flat[..., None].expand(-1, -1, values.shape[-1]))

    axes = of_region(torch.randn(count, regions, 3, generator=generator))
    bank = fields(TEXTURES, side, generator, (0.3, 1.5)).reshape(-1)
    start = torch.randint(0, len(bank), (count, regions, 1), generator=generator)
    depth = texture * torch.rand(count, regions, 3, generator=generator) ** 2
    where = (of_region(start)[..., 0] + torch.arange(side * side)) % len(bank)
    axes += of_region(depth) * bank[where][..., None]
    slope = shading * torch.randn(count, regions, 2, generator=generator)
    ramp = torch.linspace(-1, 1, side)
    grid = torch.stack([ramp[:, None].expand(side, side), ramp[None, :].expand(side, side)], -1).reshape(-1, 2)
    axes[..., 0] += (of_region(slope) * grid).sum(-1)
    return axes.permute(0, 2, 1).reshape(count, 3, side, side)


def dead_leaves(
    count: int,
    side: int,
    generator: Generator,
    *,
    leaves: int = LEAVES,
    texture: float = 0.5,
    shading: float = 0.3,
    blur: tuple[float, float] = (0.4, 2.0),
) -> Tensor:
    """Returns images of leaves that hide one another, each with its colour, texture and shading, in [0, 1].

    Args:
        count, side: images; pixels.
        generator: of the processor.
        leaves: an image.
        texture: most strength of a leaf's texture, in standard deviations of colour.
        shading: of the light across a leaf, likewise.
        blur: least and most width, pixels.

    Returns:
        count x 3 x side x side.

    Example:
        >>> dead_leaves(2, 28, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 28, 28])
    """
    ids = leaf_maps(count, side, generator, leaves)
    return developed(coloured(filled(ids, generator, texture, shading)), generator, blur)
