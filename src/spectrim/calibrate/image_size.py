"""The size of the images that a model takes, found by running it on blank ones where it does not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TRIED = (28, 32, 48, 64, 96, 112, 128, 160, 192, 224, 227, 256, 299, 384)
USUAL = 224
LAST_MAP = (
    7  # pixels on the last map of a convolutional net at the size that it is meant for, 8 on those of small images
)
REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Holds a model in evaluation, without gradients; the mode of each module is put back on the way out."""
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in before:
            module.training = mode


def declared(model: nn.Module, config: Mapping[str, Any]) -> Any:
    """Returns the size that a model's config or an attribute names, or None."""
    for place in (config, config.get("vision_config") or {}):
        for name in ("image_size", "input_size"):
            if place.get(name) is not None:
                return place[name]
    found = (getattr(m, name, None) for m in model.modules() for name in ("image_size", "img_size"))
    return next((size for size in found if isinstance(size, int | tuple | list)), None)


def pair(size: Any) -> tuple[int, int]:
    """Returns (height, width) of a number, a pair, or a triple that begins with the channels."""
    try:
        found = (int(size), int(size)) if isinstance(size, int) else tuple(int(s) for s in size)[-2:]
    except (TypeError, ValueError):
        found = ()
    if len(found) != 2 or min(found) < 1:
        raise ValueError(f"image_size is a whole number of pixels or (height, width), not {size!r}")
    return found


def runs(model: nn.Module, channels: int, side: tuple[int, int], named: bool) -> bool:
    """Returns whether a model takes blank images of this size."""
    own = next(model.parameters())
    blank = torch.zeros(1, channels, *side, dtype=own.dtype, device=own.device)
    try:
        with evaluating(model):
            model(pixel_values=blank) if named else model(blank)
    except REFUSALS:
        return False
    return True


def affordable(model: nn.Module, channels: int, side: tuple[int, int], named: bool) -> tuple[tuple[int, int], str]:
    """Returns the size, or the usual one where a larger is declared and that one runs as well."""
    if max(side) <= USUAL:
        return side, ""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    step = first.stride[0] if first is not None else 1
    small = (USUAL // step * step,) * 2
    if small[0] < 1 or not runs(model, channels, small, named):
        return side, ""
    return small, f"{small[0]} pixels, where {side[0]} are declared: it runs on fewer; image_size= says otherwise"


def found(model: nn.Module, channels: int, named: bool) -> tuple[tuple[int, int], str]:
    """Returns the one size that a model runs on, or where it runs on many that whose last map is 7 or 8 pixels wide.

    Also a sentence that says how it was found.

    Raises:
        ValueError: it runs on none of the sizes tried.
    """
    taken = []
    for side in TRIED:
        if runs(model, channels, (side, side), named):
            taken.append(side)
        if len(taken) == 3:
            break
    if len(taken) == 1:
        return (taken[0],) * 2, f"{taken[0]} pixels: of the sizes tried the only one that it runs on"
    seen: list[int] = []
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    handles = [m.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1])) for m in layers]
    try:
        fits = bool(taken) and runs(model, channels, (USUAL, USUAL), named)
    finally:
        for handle in handles:
            handle.remove()
    maps = [side for side in seen if side > 1]  # those of squeeze and excitation are one pixel wide
    if not fits or not maps:
        raise ValueError("the size of the model's images cannot be told: say it with image_size=")
    stride = max(1, round(USUAL / min(maps)))
    side = LAST_MAP * stride if stride >= 32 else min(USUAL, (LAST_MAP + 1) * stride)
    side = max(side, TRIED[0])
    return (side,) * 2, f"{side} pixels, assumed: it runs on several sizes; image_size= says which"
