"""Names of matrices as a reader wants them: short, and apart into the path and what is their own."""

from __future__ import annotations

import re


def block(name: str) -> str:
    """Returns the first numbered part of a dotted name, which is the block of the network; "" where none is.

    Example:
        >>> block("encoder.layer.3.attention.key"), block("pooler.dense")
        ('layer 3', '')
    """
    found = re.search(r"(?:^|\.)([A-Za-z_]\w*)\.(\d+)(?=[.\[]|$)", name)
    return f"{found[1]} {found[2]}" if found else ""


def halves(name: str) -> tuple[str, str]:
    """Returns the path up to the last number of a dotted name, and what is its own.

    Example:
        >>> halves("layer.3.attention.key")
        ('layer.3.', 'attention.key')
    """
    found = re.match(r"(.*\.\d+\.)?(.+)", name, re.DOTALL)
    return (found[1] or "", found[2]) if found else ("", name)


def short_names(names: list[str]) -> list[str]:
    """Returns the names without ".weight" and without the dotted start that all of them, or all in a block, share.

    Example:
        >>> short_names(["bert.layer.0.key", "bert.layer.1.key", "pooler.dense"])
        ['layer.0.key', 'layer.1.key', 'pooler.dense']
    """
    parts = [n.removesuffix(".weight").split(".") for n in names]
    # "encoder.layer.0.key" beside "pooler.dense": what all blocks share says nothing, though the pooler lacks it.
    starts = {tuple(p[: i - 1]) for p in parts for i in [_first_number(p)] if i}
    shared = len(starts.pop()) if len(starts) == 1 else 0
    return [".".join(p[shared:] if _first_number(p) else p) for p in parts]


def _first_number(parts: list[str]) -> int:
    """Where a dotted name first has a number after a word, or 0."""
    return next((i for i, part in enumerate(parts) if i and part.isdigit()), 0)
