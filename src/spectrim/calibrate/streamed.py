"""The moments that `gather` returns, a part of them at a time: the others wait on disk, or for another run."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..moments import Filed, Moments, Place, given_back
from ..sites import Site
from .batch import Batch
from .gather import POSITIONS, Told, batches, chosen_sites, describe_all, model_fingerprint, moved, quiet, run, spent
from .running import STRIPE
from .watch import Enough, Watch

LEAST = 1 << 25  # bytes of sums for which a run more would save nothing that counts


def streamed(
    model: nn.Module,
    inputs: Iterable[Batch],
    *,
    sites: Sequence[Site] | None = None,
    only: Callable[[str], bool] | None = None,
    device: torch.device | str | None = None,
    positions: int | None = POSITIONS,
    source: str = "samples",
    recipe: Mapping[str, Any] | None = None,
    room: int | None = None,
    folder: str | os.PathLike | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Moments:
    """Return the moments of `gather`, bit for bit, with a bounded part of their sums in memory at a time.

    The inputs are run through the model once for each part, up to the last layer of it: with k parts of the same size
    that is (k + 1) / 2 runs. What a part has found is written to a temporary folder and read back one matrix at a time
    (`moments.Filed`), so that `plan` and `trim` hold one at a time too. The folder is gone with the moments, or when
    the process ends; `Moments.save` keeps them.

    Args:
        model, inputs, sites, only, device, positions, source, recipe: as `gather` takes them; batches are held, for
            they are run several times, and must be the same each time.
        room: bytes of sums that a part is to hold, about 4 cols^2 for each tensor that is read; it holds one tensor's
            at least. The size of the model, and 32 MiB at least, if not given.
        folder: where the temporary folder is made; that of the system (TMPDIR) if not given. It takes about 4 cols^2
            bytes for each tensor that is read.
        progress: wraps the iteration over the batches of all parts.

    Example:
        >>> from .gather import gather
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = streamed(net, [torch.eye(3)], room=1)
        >>> found.fingerprint == gather(net, [torch.eye(3)]).fingerprint
        True
    """
    chosen = chosen_sites(model, sites, only)
    held = [moved(model, batch, device) for batch in batches(inputs)]
    if not held:
        raise ValueError("inputs holds no batch: moments need at least one")
    own = {**describe_all(held), "positions": positions, **(recipe or {})}
    place = Path(tempfile.mkdtemp(prefix="spectrim-", dir=folder))
    places: dict[str, Place] = {}
    told = Told()
    try:
        with quiet(model):
            parts = _parts(_groups(model, chosen, held[0], positions), _room(model) if room is None else room)
            bar = iter((progress or iter)(range(len(parts) * len(held))))
            reads = None
            for part in reversed(parts):  # the last one is run whole, and tells the others where they may stop
                watch = Watch(model, part, positions)
                reads = _watched(model, held, watch, chosen, reads, lambda: next(bar, None))
                for names, moment in spent(watch, told):
                    places |= dict.fromkeys(names, Place.of(moment, place / f"{len(places)}.safetensors"))
            next(bar, None)
        told = told.ordered([site.name for site in chosen])
        filed = Filed({name: places[name] for name in told.names})
        found = Moments(filed, source, told.added(own), model_fingerprint(model), told.missing)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(filed, shutil.rmtree, place, ignore_errors=True)
    return found


def _room(model: nn.Module) -> int:
    return max(LEAST, sum(p.numel() * p.element_size() for p in model.parameters()))


def _groups(model: nn.Module, chosen: list[Site], batch: Batch, positions: int | None) -> list[tuple[list[Site], int]]:
    """The sites that read the same tensor in a batch, in the order of the reads, with the bytes that their sums take.

    What the batch does not reach stands apart, at the end.
    """
    watch = Watch(model, chosen, positions, trace=True)
    with watch.attached():
        run(model, batch, 0, watch)
    by_name = {site.name: site for site in chosen}
    together: dict[int, list[Site]] = {}
    for slot in watch.order:
        together.setdefault(id(slot.shared), []).extend(by_name[name] for name in slot.sites)
    seen = {site.name for sites in together.values() for site in sites}
    groups = [*together.values(), *([site] for site in chosen if site.name not in seen)]
    found = []
    for sites in groups:
        # Layers that read one tensor share sums; the groups of one convolution read different parts of it.
        counts = Counter((id(s.layer), s.cols) for s in sites if s.layer.form == "conv2d")
        times = {s.cols: max(counts.get((id(s.layer), s.cols), 1) for s in sites) for s in sites}
        found.append((sites, sum(n * 4 * cols * (cols + STRIPE) for cols, n in times.items())))
    return found


def _parts(groups: list[tuple[list[Site], int]], room: int) -> list[list[Site]]:
    """The groups in a row, cut into parts of about the same size."""
    total = sum(size for _, size in groups)
    count = max(1, min(len(groups), math.ceil(total / max(1, room))))
    parts: list[list[Site]] = [[] for _ in range(count)]
    before = 0
    for sites, size in groups:
        parts[min(count - 1, before * count // total)] += sites
        before += size
    return [part for part in parts if part]


def _watched(
    model: nn.Module,
    held: list[Batch],
    watch: Watch,
    chosen: list[Site],
    reads: list[dict[str, int]] | None,
    step: Callable[[], Any],
) -> list[dict[str, int]]:
    """Run all batches with a watch, as far as it has something to see; how often who reads what in each of them.

    Args:
        reads: that, where it is known already.
        step: called before each batch.
    """
    if reads is None:
        trace = Watch(model, chosen, watch.positions, trace=True)
        for b, batch in enumerate(held):
            step()
            given_back()
            with ExitStack() as hooks:
                hooks.enter_context(trace.attached())
                hooks.enter_context(watch.attached())
                run(model, batch, b, watch)
            trace.end_of_batch()
        return trace.reads
    for b, batch in enumerate(held):
        step()
        given_back()
        watch.until = {slot.sites[0]: reads[b].get(slot.sites[0], 0) for slot in watch.slots}
        if any(watch.until.values()):
            with watch.attached(), suppress(Enough):
                run(model, batch, b, watch)
            watch.end_of_batch()
    return reads
