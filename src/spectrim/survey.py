"""The survey of a model: for every weight matrix its spectrum, and where the noise ends in it."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, of_state, open_checkpoint
from .devices import ahead, chosen
from .edges import Bema
from .engines import Executor
from .journal import Journal
from .linalg import shared_out
from .lines import from_line, to_line
from .modules import of_module
from .names import of_checkpoint
from .readings import Edge, Look, Reading, fetched, read_site, skipped
from .sites import Inventory, Site
from .spectrum import NoiseFit, Spectrum
from .stored import stamps
from .tasks import Place, Reads, looked_at, place_of, readings_of
from .writing import write_whole

if TYPE_CHECKING:
    from .plan import Plan

Model = nn.Module | str | os.PathLike | Mapping[str, Tensor]
SCHEMA = "spectrim.survey/1"
SMALL = 1 << 22  # entries of a matrix that one thread judges while others judge the next ones: 2048 x 2048
Progress = Callable[[Iterable[Site]], Iterable[Site]]


@dataclass(frozen=True)
class Survey:
    """The readings of all tensors of a model, in its order; skipped ones carry their reason and count in no total."""

    model: str
    readings: tuple[Reading, ...]
    params: int
    bytes: int
    edge: str
    equalised: bool
    seconds: float
    source: object = field(default=None, repr=False, compare=False)
    fused: str = "split"

    @property
    def matrices(self) -> tuple[Reading, ...]:
        """The readings of weight matrices, those without a fit included."""
        return tuple(r for r in self.readings if not r.skipped)

    @property
    def fitted(self) -> tuple[Reading, ...]:
        """The readings that have a verdict."""
        return tuple(r for r in self.readings if r.fit is not None)

    @property
    def fingerprint(self) -> str:
        """A hash over the names and values of all weight matrices."""
        return hash_of((r.name, r.fingerprint) for r in self.matrices)

    @property
    def totals(self) -> dict:
        """Counts over the fitted matrices: matrices, params, values, spikes, plain spikes, bulk share."""
        values = sum(r.spectrum.p for r in self.fitted)
        spikes = sum(r.fit.spikes for r in self.fitted)
        return {
            "matrices": len(self.matrices),
            "fitted": len(self.fitted),
            "skipped": len(self.readings) - len(self.matrices),
            "params": sum(r.params for r in self.fitted),
            "values": values,
            "spikes": spikes,
            "plain_spikes": sum(r.plain.spikes for r in self.fitted if r.plain),
            "bulk_share": 1 - spikes / values if values else None,
        }

    def to_dict(self) -> dict:
        """Return the survey as its file holds it."""
        from . import __version__

        return {
            "schema": SCHEMA,
            "version": __version__,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "params": self.params,
            "bytes": self.bytes,
            "edge": self.edge,
            "equalised": self.equalised,
            "seconds": round(self.seconds, 3),
            "totals": self.totals,
            "readings": [r.to_dict() for r in self.readings],
        }

    def to_json(self, path: str | os.PathLike | None = None) -> str:
        """Return the survey as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            write_whole(path, text + "\n")
        return text

    def to_html(self, path: str | os.PathLike, plan: Plan | None = None, **more) -> Path:
        """Write the report to `path`, one self-contained HTML file, and return the path."""
        from .report import write_html

        return Path(write_html(path, survey=self, plan=plan, **more))

    def __str__(self) -> str:
        lines = [f"{self.model}: {_sentence(self.totals)}"]
        for r in self.matrices:
            if r.fit is None:
                lines.append(f"  {r.name:<48} {r.rows} x {r.cols}: {r.note}")
            else:
                plain = r.plain.spikes if r.plain else "-"
                misfit = "-" if r.fit.misfit is None else f"{r.fit.misfit:.3f}"
                sigma = "-" if r.fit.sigma is None else f"{r.fit.sigma:.4g}"
                lines.append(
                    f"  {r.name:<48} {r.rows} x {r.cols}: {r.fit.spikes} spikes above {r.fit.edge:.4g} "
                    f"(sigma {sigma}, misfit {misfit}, plain {plain}): {r.verdict.kind}"
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def _sentence(totals: dict) -> str:
    if not totals["fitted"]:
        return f"none of its {totals['matrices']} matrices has a verdict"
    return (
        f"{totals['fitted']} of {totals['matrices']} matrices judged; {totals['spikes']} of {totals['values']} "
        f"singular values ({1 - totals['bulk_share']:.1%}) stand above the noise edge; {totals['skipped']} skipped"
    )


def survey(
    model: Model,
    edge: Edge | None = None,
    *,
    equalize: bool = True,
    fused: str = "split",
    vectors: bool = False,
    device: str | torch.device | None = None,
    approximate: bool = False,
    journal: str | os.PathLike | None = None,
    engine: Executor | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Return the `Survey` of a model: every weight matrix with its spectrum, its noise level and its spikes.

    Args:
        model: a live module; the path of a folder or file of safetensors, of a transformers folder or of a state dict
            saved by torch; or a dict of matrices.
        edge: the estimator that separates noise from signal; `Bema()` unless told otherwise.
        equalize: judge each matrix with its row and column scales evened out, and keep the plain verdict beside it.
        fused: how weights that hold several matrices are read: "split" (q, k, v; gates), "whole" or "heads".
        vectors: look at the singular vectors too, and record which directions of the bulk are not random (slower).
        device: where matrices are decomposed, "cpu" or "cuda"; where they lie unless given.
        approximate: read matrices of at least `lanczos.FROM` rows and columns from products with them: their spikes one
            by one, their bulk as a density (see docs/approximate.md).
        journal: a folder, of safetensors only, in which every reading is put down as soon as it is made: killed and
            started again with the same one, the survey goes on where it was. It is gone when the survey is done.
        engine: who works on many matrices at once, `engines.Local(...)` or `engines.Ray(...)` (docs/machines.md); the
            cores of this machine share them unless given, and no memory is counted.
        progress: wraps the iteration over the sites, for instance `tqdm`.

    A matrix that cannot be judged (NaN, all zero, too small) is recorded with the reason, and the survey goes on.

    Example:
        >>> import torch, spectrim
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        >>> [reading.name for reading in spectrim.survey(net).matrices]
        ['0', '2']
    """
    start = time.perf_counter()
    edge = Bema() if edge is None else edge
    if isinstance(edge, type) or not callable(edge):
        raise TypeError(f"edge is an estimator such as Bema(), a function of a Spectrum, not {edge!r}")
    if approximate and vectors:
        raise ValueError("an approximation has vectors of spikes only: say vectors=True or approximate=True, not both")
    where = chosen(device)
    source = open_model(model)
    found = inventory(source, fused)
    how = Look(edge, equalize, vectors, approximate)
    crew = None if engine is None else _Crew(engine, place_of(source, fused, engine))
    with _noted(journal, source, how, fused) as notes:
        readings = _read_all(found.sites, how, progress or iter, notes, where, crew)
    readings += [skipped(tensor) for tensor in found.skipped]
    return Survey(
        model=found.label,
        readings=tuple(readings),
        params=found.params,
        bytes=found.bytes,
        edge=getattr(edge, "__qualname__", None) or repr(edge),  # a function's repr would hold its address
        equalised=equalize,
        seconds=time.perf_counter() - start,
        source=source,
        fused=fused,
    )


def open_model(model: Model | Checkpoint) -> nn.Module | Checkpoint:
    """Return what `survey` and `trim` read: the module itself, or the checkpoint at a path or over a dict."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("a scripted module is compiled: survey the module that it was made of, or its state_dict()")
    if isinstance(model, nn.Module | Checkpoint):
        return model
    if isinstance(model, str | os.PathLike):
        return open_checkpoint(model)
    if isinstance(model, Mapping):
        if not model:
            raise ValueError("the dict of matrices is empty")
        return of_state(model)
    raise TypeError(f"expected a module, a path or a dict of matrices, not {type(model).__name__}")


def inventory(source: nn.Module | Checkpoint, fused: str = "split") -> Inventory:
    """Return the sites of what `open_model` returned."""
    return of_module(source, fused) if isinstance(source, nn.Module) else of_checkpoint(source, fused)


def hash_of(matrices: Iterable[tuple[str, str]]) -> str:
    """Return the hash that stands for a model: over the names and fingerprints of its matrices, in any order."""
    return hashlib.sha256("\n".join(sorted(" ".join(pair) for pair in matrices)).encode()).hexdigest()


@contextmanager
def _noted(folder: str | os.PathLike | None, source: nn.Module | Checkpoint, how: Look, fused: str) -> Iterator:
    """The journal of a survey, or None for none; it is removed when all is read, and kept when that is broken off."""
    if folder is None:
        yield None
        return
    if not isinstance(source, Checkpoint) or not source.files:
        raise ValueError("a journal is of files of safetensors: what is in memory is gone when the survey is killed")
    from . import __version__

    work = {"input": stamps(list(source.files.values())), "survey": repr(how), "fused": fused, "spectrim": __version__}
    with Journal(Path(folder), work) as journal:
        if journal.fresh:
            warnings.warn(f"{folder} holds the work on another {journal.fresh}: it is done anew", stacklevel=4)
        try:
            yield journal
        except (KeyboardInterrupt, OSError, MemoryError) as error:
            if journal.done:
                error.add_note(f"what is done is kept in {folder}: the same command goes on from there")
            else:
                journal.remove()
            raise
        journal.remove()


class _Crew(NamedTuple):
    """Who works on the matrices, and where its workers find them: nowhere, if they share what is in memory."""

    engine: Executor
    place: Place | None

    def read(self, sites: list[Site], how: Look, device: torch.device | None) -> Iterator[tuple[Site, Reading]]:
        """Yield each matrix with its reading, as they come."""
        named = {site.name: site for site in sites}
        work = Reads(self.place, how, device)
        if self.place is None:
            work = lambda task: looked_at(named[task.key], how, device)  # noqa: E731 - nothing to send
        for task, reading in self.engine.run(work, readings_of(sites)):
            yield named[task.key], reading


def _read_all(
    sites: tuple[Site, ...],
    how: Look,
    progress: Progress,
    journal: Journal | None,
    device: torch.device | None,
    crew: _Crew | None,
) -> list[Reading]:
    """The readings in the order of the sites. Small matrices are shared out, one thread each; large ones take them all.

    Tensors are fetched here, so that a file is read by one thread and never more than a few matrices are in memory.
    """
    workers = torch.get_num_threads() if device is None or device.type == "cpu" else 1  # one thread feeds a GPU
    known = {} if journal is None else journal.done
    done = [i for i, site in enumerate(sites) if site.name in known]
    todo = [i for i, site in enumerate(sites) if site.name not in known]
    if crew is not None:
        workers = 1
    small = [i for i in todo if workers > 1 and sites[i].rows * sites[i].cols <= SMALL]
    large = sorted(set(todo) - set(small))
    position = {id(site): i for i, site in enumerate(sites)}
    stream = iter(progress([sites[i] for i in (*done, *small, *large)]))
    readings: dict[int, Reading] = {}

    def took(site: Site, reading: Reading) -> None:
        readings[position[id(site)]] = reading
        if journal is not None:
            journal.add(site.name, {"reading": to_line(reading)})

    for site in islice(stream, len(done)):
        readings[position[id(site)]] = from_line(known[site.name]["reading"], Reading, Spectrum, NoiseFit)
    if small:
        first = islice(stream, len(small))
        for site, reading in shared_out(first, partial(_begun, how, device), workers):
            took(site, reading)
    if crew is not None:
        for site, reading in crew.read([sites[i] for i in todo], how, device):
            next(stream, None)
            took(site, reading)
    for site, stored in ahead(stream, fetched, device):
        took(site, read_site(site, stored, how, device))
    return [readings[i] for i in range(len(sites))]


def _begun(how: Look, device: torch.device | None, site: Site) -> Callable[[], Reading]:
    [(_, stored)] = ahead([site], fetched, device)
    return partial(read_site, site, stored, how, device)
