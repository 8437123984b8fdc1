"""Tensors on the device that works on them: which one it is, and how they come there while it is busy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

import torch

T = TypeVar("T")
Tensors: TypeAlias = tuple[torch.Tensor, ...]
Send: TypeAlias = Callable[[Tensors], Callable[[], Tensors]]


def chosen(device: str | torch.device | None) -> torch.device | None:
    """Returns the device that a name stands for, once it is known to be there; None for None: where a tensor lies.

    Example:
        >>> chosen("cpu"), chosen(None)
        (device(type='cpu'), None)
        >>> chosen("gpu")
        Traceback (most recent call last):
        ValueError: device="gpu" is no device; say "cpu", "cuda" or "cuda:1"
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f'device="{device}" is no device; say "cpu", "cuda" or "cuda:1"') from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f'device="{device}": matrices are decomposed on "cpu" or "cuda", in float64')
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device="{device}": this torch ({torch.__version__}) sees no GPU; device="cpu" works here')
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device="{device}": there are {torch.cuda.device_count()} GPUs here, counted from cuda:0')
    return found


def ahead(
    items: Iterable[T],
    fetch: Callable[[T], Tensors | Exception],
    device: torch.device | None,
    send: Send | None = None,
) -> Iterator[tuple[T, Tensors | Exception]]:
    """Yields each item with what `fetch` has of it, on the device; on a GPU the next one is under way by then.

    Where the GPU has no room for a tensor it is yielded on the CPU. With the CPU or None nothing is moved or fetched
    before its turn.

    Args:
        items: what is to be worked on, in order.
        fetch: returns the tensors of an item, or the exception that stands for them and is handed on.
        device: from `chosen`.
        send: starts the transfer of tensors and returns what waits for its end; pinned memory and a stream of its own
            unless given.

    Example:
        >>> [(i, x.tolist()) for i, (x,) in ahead([1, 2], lambda i: (torch.ones(i),), None)]
        [(1, [1.0]), (2, [1.0, 1.0])]
    """
    if device is None or device.type == "cpu":
        for item in items:
            found = fetch(item)
            yield item, found if device is None or isinstance(found, Exception) else tuple(x.to(device) for x in found)
        return
    send = send or _by_stream(device)
    under_way: tuple[T, Callable[[], Tensors | Exception]] | None = None
    for item in items:
        before, under_way = under_way, (item, _started(send, fetch(item)))
        if before is not None:
            yield before[0], before[1]()
            before = None  # or its tensors would lie on the device beside the next two
    if under_way is not None:
        yield under_way[0], under_way[1]()


def _started(send: Send, found: Tensors | Exception) -> Callable[[], Tensors | Exception]:
    if isinstance(found, Exception):
        return lambda: found
    try:
        return send(found)
    except torch.OutOfMemoryError:
        return lambda: tuple(x.cpu() for x in found)


def _by_stream(device: torch.device) -> Send:
    stream = torch.cuda.Stream(device)

    def send(found: Tensors) -> Callable[[], Tensors]:
        with torch.cuda.stream(stream):
            moved = tuple((x if x.is_cuda else x.pin_memory()).to(device, non_blocking=True) for x in found)

        def arrived() -> Tensors:
            working = torch.cuda.current_stream(device)
            working.wait_stream(stream)
            for x in moved:  # the allocator must not hand its memory to the next transfer before the work is done
                x.record_stream(working)
            return moved

        return arrived

    return send
