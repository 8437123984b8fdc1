"""What an engine is given to do: one matrix of a checkpoint, named by path and key, and read where it is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .checkpoint import Checkpoint, open_checkpoint
from .devices import ahead
from .engines import Executor, Local, Task
from .names import of_checkpoint
from .readings import Look, Reading, fetched, read_site
from .sites import Site
from .stored import stamps


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is, for a worker that opens it itself; `stamp` tells one state of its files from another."""

    path: str
    fused: str
    stamp: tuple

    def opened(self) -> tuple[Checkpoint, dict[str, Site]]:
        """Return the checkpoint and its matrices by name; a worker opens it once."""
        return _opened(self)


@lru_cache(maxsize=1)
def _opened(place: Place) -> tuple[Checkpoint, dict[str, Site]]:
    source = open_checkpoint(place.path)
    return source, {site.name: site for site in of_checkpoint(source, place.fused).sites}


def place_of(source: object, fused: str, engine: Executor) -> Place | None:
    """Return where a worker finds a checkpoint, or None where threads share what is in memory.

    Raises ValueError where the engine's workers have no way to it.
    """
    if isinstance(engine, Local) and not engine.processes:
        return None
    if not isinstance(source, Checkpoint) or source.path is None:
        raise ValueError(
            "other processes cannot see what is in memory here: give the path of a folder or file of safetensors, or "
            "leave out the engine"
        )
    stamp = tuple(map(tuple, stamps(list(source.files.values()))))
    return Place(str(source.path), fused, stamp)


@dataclass(frozen=True)
class Reads:
    """The reading of the matrix that a task names."""

    place: Place
    look: Look
    device: torch.device | None

    def __call__(self, task: Task) -> Reading:
        """Return the reading."""
        return looked_at(self.place.opened()[1][task.key], self.look, self.device)


def looked_at(site: Site, look: Look, device: torch.device | None) -> Reading:
    """Return the reading of a matrix, fetched here."""
    [(_, stored)] = ahead([site], fetched, device)
    return read_site(site, stored, look, device)


def readings_of(sites: Sequence[Site]) -> list[Task]:
    """Return a task for the reading of each matrix: p^2 n to do, and the matrix, its Gram matrix and more to hold.

    Bytes, for entries of 4: 20 rows cols + 40 p^2, measured at 1024 x 3072 and rounded up.
    """
    return [Task(s.name, cost_of(s), 20 * s.rows * s.cols + 40 * min(s.rows, s.cols) ** 2) for s in sites]


def cost_of(site: Site) -> float:
    """Return the relative time that a decomposition takes, p^2 n."""
    return float(min(site.rows, site.cols) ** 2 * max(site.rows, site.cols))
