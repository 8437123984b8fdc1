"""The sweep itself: every method at every rate on a copy of the model, counted and measured, cell by cell."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ..budgets import candidates
from ..sites import listed
from ..survey import Survey, survey
from .checking import broken, flag_of, rates_of, same, scores_of, shapes, told, undefined, unmoved
from .counting import Counts, Positions, count, watched
from .keeping import Folder, candidates_fingerprint, label, model_fingerprint
from .methods import CONTROLS, Method, complete
from .record import Cell, Figure, ScoreInfo, Sweep
from .resampling import Drawn, resample
from .score import Score, Task

RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a sweep; `sweep` holds the cells that were finished."""

    def __init__(self, found: Sweep):
        super().__init__(f"stopped after {len(found)} cells")
        self.sweep = found


@dataclass(frozen=True)
class Job:
    """One cell to be done; `name` is what a progress bar shows."""

    method: str
    rate: float
    act: Method

    @property
    def name(self) -> str:
        """The method and the rate."""
        return f"{self.method} {self.rate:.0%}"


def sweep(
    task: Task,
    methods: Mapping[str, Method] | None = None,
    rates: Sequence[float] = RATES,
    *,
    seed: int = 0,
    bootstrap: int = 1000,
    work: str | os.PathLike | None = None,
    progress: Callable[[Iterable[Job]], Iterable[Job]] | None = None,
    options: Mapping[str, str] | None = None,
) -> Sweep:
    """Return the `Sweep` of a task: every method at every rate, measured, with errors and differences in pairs.

    Three controls are always in it: the same share of every matrix ("uniform"), the smallest magnitudes of all matrices
    together ("global magnitude"), and entries drawn at random ("random").

    Args:
        task: the model and its measure, see `Task`; the model itself is not changed.
        methods: functions (model, survey, rate, generator) by name, which change the model in place so that this share
            of its candidates' entries is gone; every budget of `spectrim.budgets` unless told otherwise.
        rates: shares in (0, 1).
        seed: of the random control, of methods that draw, and of the bootstrap.
        bootstrap: draws behind a standard error, 2 at least.
        work: a folder for finished cells: a sweep that was stopped goes on from there. A method that is a plain
            function is known there by its name: if what it does changes, take a fresh folder.
        progress: wraps the iteration over the cells, for instance `tqdm`.
        options: what the task was made with, for the record.

    A cell that fails is recorded with the reason, and the others go on. Raises RuntimeError where the dense model
    itself cannot be measured. Ctrl-C raises `Stopped`, a KeyboardInterrupt that holds what was finished.
    """
    rates = rates_of(rates)
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 2:
        raise ValueError(f"bootstrap is a number of draws, 2 at least, not {bootstrap!r}: 1000 is usual")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"a seed is a whole number, 0 or more, not {seed!r}")
    jobs = [Job(name, rate, act) for name, act in complete(methods).items() for rate in rates]
    run = _Run(task, seed, bootstrap, work, dict(options or {}))
    done: list[tuple[Cell, dict[str, dict[str, Drawn]]]] = []
    try:
        for job in (progress or iter)(jobs):
            done.append(run.cell(job))
    except KeyboardInterrupt:
        raise Stopped(run.record(done, rates)) from None
    return run.record(done, rates)


class _Run:
    """What is made once: the survey, the dense model's scores and positions; then one cell after the other."""

    def __init__(self, task: Task, seed: int, bootstrap: int, work: str | os.PathLike | None, options: dict):
        if not isinstance(getattr(task, "model", None), nn.Module) or not callable(getattr(task, "measure", None)):
            raise TypeError(
                f"a task has a name, a model (nn.Module), only, and measure(model) -> scores; {type(task).__name__} "
                "lacks model or measure"
            )
        if any(module.training for module in task.model.modules()):
            raise ValueError(
                f"the model of {getattr(task, 'name', type(task).__name__)} is in training mode, at least in parts: "
                "dropout and batch norm would have a say in the scores. Call model.eval() in the task"
            )
        from .. import __version__

        self.task, self.seed, self.bootstrap, self.options = task, seed, bootstrap, options
        self.name = str(getattr(task, "name", type(task).__name__))
        self.fingerprint = model_fingerprint(task.model)
        setting = {"task": self.name, "options": options, "model": self.fingerprint, "seed": seed}
        self.folder = Folder(work, setting | {"version": __version__})
        self.positions = Positions()
        self.infos: dict[str, ScoreInfo] = {}
        start = time.perf_counter()
        self.scores, self.drawn = self._measure_dense()
        self.seconds = time.perf_counter() - start
        whole = survey(task.model)
        self.found = _restricted(whole, getattr(task, "only", None))
        targets = candidates(self.found)
        self.entries = [(t.name, t.entries) for t in targets]
        self.folder.setting["candidates"] = candidates_fingerprint(self.entries)  # the dense model knows nothing of it
        self.left_out = sorted({r.name for r in whole.matrices} - dict(self.entries).keys())
        self.rank_step = max(t.reading.rows + t.reading.cols for t in targets)
        self.counts = count(task.model, self.entries, self.positions)

    def _measure_dense(self) -> tuple[dict[str, Score], dict[str, dict[str, Drawn]]]:
        model = self._copy()
        try:
            with watched(model) as self.positions, torch.no_grad():
                scores = scores_of(self.task.measure(model))
        except Exception as error:
            raise RuntimeError(f"measure() failed on the dense model itself: {told(error)}") from error
        if why := broken(scores) or "; ".join(undefined(scores)):
            raise RuntimeError(f"the dense model itself has no score: {why}")
        self.infos = {name: ScoreInfo(s.better, s.chance, s.items, s.square) for name, s in scores.items()}
        kept = self.folder.load("dense", "dense", 0.0)
        if kept is None:
            self.folder.save("dense", "dense", 0.0, {}, {name: s.table for name, s in scores.items()})
        elif same(scores, kept[1]):  # the last digits of a product depend on the machine's mood
            scores = {name: replace(s, table=kept[1][name]) for name, s in scores.items()}
        else:
            raise ValueError(
                f"{self.folder.place} holds other scores of the dense model than those measured now, though model and "
                "options are the same: the data or the task changed. Name another folder, or remove this one"
            )
        return scores, self._resampled(scores)

    def _copy(self) -> nn.Module:
        try:
            return deepcopy(self.task.model)
        except Exception as error:
            raise RuntimeError(
                f"the model of {self.name} cannot be copied, and a sweep changes copies: {told(error)}"
            ) from error

    def _resampled(self, scores: Mapping[str, Score]) -> dict[str, dict[str, Drawn]]:
        return {name: resample(score, name, self.seed, self.bootstrap) for name, score in scores.items()}

    def cell(self, job: Job) -> tuple[Cell, dict[str, dict[str, Drawn]]]:
        """Return one cell without its gains, and its draws: read from the folder, or done."""
        cell = Cell(job.method, job.rate, label(job.act), job.method in CONTROLS)
        kept = self.folder.load(job.method, cell.config, job.rate)
        try:
            counted, tables = kept if kept is not None and self._fits(kept[1]) else self._do(job, cell.config)
        except Exception as error:
            return replace(cell, failed=told(error)), {}
        counts = Counts(**counted["counts"] | {"missing": tuple(counted["counts"]["missing"])})
        scores = {name: replace(self.scores[name], table=table) for name, table in tables.items()}
        cell = replace(cell, counts=counts, seconds=tuple(counted["seconds"]), notes=tuple(counted["notes"]))
        slack = len(self.entries) + (0 if counts.stored == self.counts.stored else self.rank_step)
        flag = flag_of(counts, self.counts, job.rate, slack)
        if not flag and not counted["ran"] and unmoved(scores, self.scores):
            flag = "scores are exactly those of the dense model: does measure() use its argument?"
        return replace(cell, flag=flag), self._resampled(scores)

    def _fits(self, tables: Mapping) -> bool:
        return {k: t.shape for k, t in tables.items()} == {k: s.table.shape for k, s in self.scores.items()}

    def _do(self, job: Job, config: str) -> tuple[dict, dict]:
        model = self._copy()
        start = time.perf_counter()
        made = job.act(model, self.found, job.rate, torch.Generator().manual_seed(self.seed))
        pruned = time.perf_counter()
        counts = count(model, self.entries, self.positions)
        begun = time.perf_counter()
        with torch.no_grad(), watched(model) as used:
            scores = scores_of(self.task.measure(model))
        seconds = (round(pruned - start, 3), round(time.perf_counter() - begun, 3))
        tables = {name: score.table for name, score in scores.items()}
        if not self._fits(tables):
            raise ValueError(f"measure() gave {shapes(tables)}, of the dense model {shapes(self.scores)}")
        if why := broken(scores):
            raise ValueError(why)
        notes = [str(note) for note in getattr(made, "notes", ())] + undefined(scores)
        counted = {"counts": vars(counts) | {"missing": list(counts.missing)}, "seconds": seconds, "notes": notes}
        counted["ran"] = bool(used.of or used.other)  # few right or wrong answers may all stay as they were
        self.folder.save(job.method, config, job.rate, counted, tables)
        return counted, tables

    def record(self, done: list[tuple[Cell, dict]], rates: tuple[float, ...]) -> Sweep:
        """Return the sweep: every cell with its gains over the dense model and over the controls of the same rate."""
        drawn = {(cell.method, cell.rate): draws for cell, draws in done if draws}
        cells = []
        for cell, draws in done:
            others = {"dense": self.drawn}
            others |= {name: drawn.get((name, cell.rate), {}) for name in CONTROLS if name != cell.method}
            cells.append(replace(cell, scores=_figures(draws, others)))
        headline = "cosine" if "cosine" in self.scores else next(iter(self.scores))
        dense = Cell("dense", 0.0, "", False, _figures(self.drawn, {}), self.counts, (0.0, round(self.seconds, 3)))
        return Sweep(
            task=self.name,
            dense=dense,
            cells=tuple(cells),
            scores=self.infos,
            rates=rates,
            seed=self.seed,
            bootstrap=self.bootstrap,
            items=int(getattr(self.task, "items", None) or self.scores[headline].items),
            fingerprint=self.fingerprint,
            conditions=self._conditions(),
            notes=self._notes(),
            draws=drawn | {(dense.method, dense.rate): self.drawn},
        )

    def _conditions(self) -> dict:
        p = next(self.task.model.parameters())
        return {
            "model": type(self.task.model).__name__,
            "options": self.options,
            "edge": self.found.edge,
            "matrices": len(self.entries),
            "entries": sum(n for _, n in self.entries),
            "left_out": self.left_out,
            "dtype": str(p.dtype).removeprefix("torch."),
            "device": str(p.device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        }

    def _notes(self) -> tuple[str, ...]:
        unseen = self.positions.unseen
        if not unseen:
            return ()
        return (f"the multiply-adds of {len(unseen)} matrices are not in the counts: no hook sees them used",)


def _restricted(found: Survey, only: Callable[[str], bool] | None) -> Survey:
    """The survey with the matrices that the task leaves out as skipped."""
    if only is None:
        return found
    names = [r.name for r in found.fitted]
    if names and not any(map(only, names)):
        raise ValueError(
            f"the task's `only` lets none of the {len(names)} matrices through ({listed(names)}): it is given a name "
            "and says whether that matrix may be touched"
        )
    out = {"skipped": True, "fit": None, "plain": None, "spectrum": None, "plain_spectrum": None}
    readings = (
        r if r.skipped or only(r.name) else replace(r, **out, note="left out by the task") for r in found.readings
    )
    return replace(found, readings=tuple(readings))


def _figures(draws: Mapping[str, Mapping[str, Drawn]], others: Mapping[str, Mapping]) -> dict[str, dict[str, Figure]]:
    return {
        name: {
            half: Figure(
                drawn.value,
                drawn.error,
                {key: drawn.gain(other[name][half]) for key, other in others.items() if name in other},
            )
            for half, drawn in halves.items()
        }
        for name, halves in draws.items()
    }
