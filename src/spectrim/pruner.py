"""Pruning while you train: now and then, in your own loop, each matrix gives up a part of its noise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import factored
from .edges import Bema
from .handover import Handover, Optimizers, as_tuple, check_trained, parameters_of
from .linalg import Factors, leading, one_thread
from .modules import of_module
from .reading import Equalised, read_equalised, read_spectrum
from .schedules import Schedule, value
from .sites import Site
from .spectrum import SMALLEST
from .survey import Edge, Progress, Reading
from .trim import Change, save
from .verdict import GATE, judge

COMPILED = "_orig_mod"  # where torch.compile keeps the model that it was given
# Where every matrix has a shorter side below this, decompositions take one thread: a second gains little, and the pools
# of torch, numpy and scipy wait for one another in busy loops.
SMALL = 512


class Pruner:
    """Cuts the noise out of a model's matrices between epochs, and tells the optimiser.

    In an epoch that is due, each matrix W is read, rows x cols with p the shorter side. K of its singular values are
    spikes, and the others are noise if their misfit is within the gate. It then keeps

        r = K + int(keep(epoch) (p - K))

    of its values, the largest. The portion is of the whole bulk, so that a constant one cuts once and a falling one
    cuts again. Where r (rows + cols) < rows cols the layer becomes a pair of layers, sqrt(S) V^T and then U sqrt(S)
    with the bias, no activation between; else W is rebuilt in place at that rank. A pair is read as the one matrix that
    it stands for, its noise from the values that are left (see `Bema`), and cut again.

    Biases, and matrices that are rebuilt in place, stay the same parameters with the same optimiser state. The two
    halves of a pair are new parameters: they take the old one's place in its group, their state starts anew, and the
    `Change` names them (`fresh`). A step changes all that it said or, after an error, nothing.

    Args:
        model: a live module, not compiled and not wrapped for several processes.
        optimizer: the optimiser that trains it, several as a list, or None where you make it anew after a change.
        keep: portion of the bulk that is kept, in [0, 1]; a number or a function of the epoch (`schedules`).
        every: epochs between cuts, counted so that the cuts fall on the epochs every - 1, 2 every - 1, ...
        edge: the estimator that tells noise from signal; `Bema()` unless told otherwise.
        gate: largest misfit of a bulk that is cut, in [0, 1]; 1 cuts whatever has an edge.
        split: whether a layer may become a pair; if not, all cuts are rebuilt in place.
        rebuild: whether what would be no smaller as a pair is rebuilt in place; if not, it is left alone.
        equalize: judge and cut with row and column scales evened out, as `survey` does, until a matrix was cut.
        only: a function of a matrix's name that says whether it may be cut; None for all.
        floor: values that are always kept, a count. Ten, below which no noise can be told, spares the last layer of a
            classifier of ten classes.
        fused: how weights that hold several matrices are read, as in `survey`.
        progress: wraps the iteration over the matrices of a step, for instance `tqdm`.

    Attributes:
        history: (epoch, `Change`) of all steps so far.
        readings: what the last step that was due read, by name of the matrix.
        kept: what it left alone, by name, each with the reason.
        seconds: time spent in steps so far, and `decomposing`, the part of it in decompositions.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pruner = Pruner(net, sgd, keep=0.25)
        >>> [(change.name, change.action, change.rank) for change in pruner.step(epoch=0)]
        [('0', 'split', 16)]

    References:
        Shmalo, Jenkins and Krupchytskyi, arXiv 2303.08986, section 4.4; Berlyand, Sandier, Shmalo and Zhang, arXiv
        2310.03165; arXiv 2503.01922, appendix A. That a portion of the noise stays is theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        keep: Schedule,
        *,
        every: int = 1,
        edge: Edge | None = None,
        gate: float = GATE,
        split: bool = True,
        rebuild: bool = True,
        equalize: bool = False,
        only: Callable[[str], bool] | None = None,
        floor: int = SMALLEST,
        fused: str = "split",
        progress: Progress | None = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is a number of epochs, 1 or more, not {every!r}")
        if isinstance(gate, bool) or not 0 <= gate <= 1:
            raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that may be cut")
        if isinstance(floor, bool) or not isinstance(floor, int) or floor < 1:
            raise ValueError(f"floor is a number of values that always stay, 1 or more, not {floor!r}")
        if not split and not rebuild:
            raise ValueError("with split=False and rebuild=False there is nothing that may be done")
        value(keep, 0)
        self.model, self.optimizers, self.keep, self.every = model, as_tuple(optimizer), keep, every
        self.edge = Bema() if edge is None else edge
        self.gate, self.split, self.rebuild, self.equalize = gate, split, rebuild, equalize
        self.only, self.floor, self.fused, self.progress = only, floor, fused, progress or iter
        self.history: list[tuple[int, Change]] = []
        self.readings: dict[str, Reading] = {}
        self.kept: dict[str, str] = {}
        self.seconds = self.decomposing = 0.0
        self._ranks: dict[str, int] = {}  # of matrices that were rebuilt in place: what training adds beside is small
        self._sites()

    def due(self, epoch: int) -> bool:
        """Return whether `step` cuts in this epoch, counted from 0."""
        return (epoch + 1) % self.every == 0

    def step(self, epoch: int) -> list[Change]:
        """Return what was changed after this epoch: nothing if it is not due, or where nothing had to go.

        Call it once an epoch, after the last step of the optimiser. ValueError, with the model unchanged, where a
        weight is not finite, where an optimiser does not hold what it trains, or where nothing is left to cut.

        Args:
            epoch: the epoch that has just ended, counted from 0.
        """
        if not self.due(epoch):
            return []
        start = time.perf_counter()
        sites = self._sites()
        small = max(min(site.rows, site.cols) for site in sites) < SMALL
        try:
            with one_thread() if small else nullcontext():
                return self._step(epoch, sites)
        finally:
            self.seconds += time.perf_counter() - start

    def _step(self, epoch: int, sites: list[Site]) -> list[Change]:
        share = value(self.keep, epoch)
        bad = [site.name for site in sites if not torch.isfinite(site.get()).all()]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise ValueError(
                f"epoch {epoch}: the weights of {', '.join(bad[:3])}{more} hold NaN or infinite entries: the training "
                "has diverged before this step; nothing was changed"
            )
        readings, kept, cuts = {}, {}, []
        for site in self.progress(sites):
            reading, scales = self._read(site)
            readings[site.name] = reading
            decided = self._decide(site, reading, share)
            if isinstance(decided, str):
                kept[site.name] = decided
            else:
                cuts.append(self._cut(site, scales, *decided))
        changes = self._carry_out(cuts)
        self.readings, self.kept = readings, kept
        self.history += [(epoch, change) for change in changes]
        return changes

    def __str__(self) -> str:
        """What was done so far, one line a matrix."""
        first: dict[str, Change] = {}
        last: dict[str, tuple[int, Change]] = {}
        for epoch, change in self.history:
            first.setdefault(change.name, change)
            last[change.name] = epoch, change
        before = sum(change.params_before for change in first.values())
        after = sum(change.params_after for _, change in last.values())
        lines = [
            f"{len(last)} matrices cut; they hold {after} of {before} numbers" if last else "nothing was cut so far"
        ]
        for name, (epoch, change) in last.items():
            count = f"{first[name].params_before} -> {change.params_after}"
            lines.append(f"  {name:<48} {change.action:<6} rank {change.rank} since epoch {epoch}, {count}")
        lines += [f"  {name:<48} kept   {why}" for name, why in self.kept.items() if name not in last]
        return "\n".join(lines)

    def save(self, out: str | os.PathLike) -> Path:
        """Write the model as it is to a new folder and return its path; it loads without spectrim (`Changes.save`)."""
        history = [{"epoch": epoch, **asdict(change)} for epoch, change in self.history]
        return save(self.model, out, {"pruned": history})

    def state_dict(self) -> dict:
        """Return what a resumed training needs beside the states of model and optimiser: which layers are pairs."""
        return {"splits": factored.describe(self.model), "ranks": dict(self._ranks)}

    def load_state_dict(self, state: dict) -> None:
        """Give the model, as it was built, the structure of a saved one, and the optimiser its new parameters.

        Call it before the states of model and optimiser are loaded.
        """
        there = factored.describe(self.model)
        missing = {name: spec for name, spec in state["splits"].items() if there.get(name) != spec}
        layers = {site.layer.name: site.layer for site in of_module(self.model, self.fused).sites}
        unknown = [name for name in missing if name not in layers]
        if unknown:
            raise ValueError(f"this state belongs to another model: it has no layer {', '.join(unknown[:3])}")
        with Handover(self.model, [layers[name] for name in missing], self.optimizers):
            factored.restructure(self.model, missing)
        self._ranks = dict(state["ranks"])

    def _sites(self) -> list[Site]:
        """The matrices that may be cut, every one of them known to an optimiser; ValueError if there is none."""
        if hasattr(self.model, COMPILED):
            raise ValueError("the model is compiled: prune the module that it was made of, and compile it afterwards")
        if isinstance(self.model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise ValueError(
                "the model is wrapped for several processes or devices: prune its .module, and wrap it anew"
            )
        found = of_module(self.model, self.fused).sites
        chosen = [site for site in found if self.only is None or self.only(site.name)]
        if not chosen:
            why = "only= lets none of them through" if found else "it has no linear or convolutional layer"
            raise ValueError(f"{type(self.model).__name__} has no matrix that could be pruned: {why}")
        if self.optimizers:
            layers = {site.layer.name: site.layer for site in chosen}
            check_trained(
                self.optimizers,
                {
                    name: p
                    for layer in layers.values()
                    for name, p in parameters_of(self.model, layer).items()
                    if p.ndim > 1
                },
            )
        return chosen

    def _read(self, site: Site) -> tuple[Reading, Equalised | None]:
        about = {"name": site.name, "kind": site.kind, "rows": site.rows, "cols": site.cols, "params": site.params}
        rank, scales, notes = self._held(site), None, [site.note] if site.note else []
        began = time.perf_counter()
        try:
            W = site.get()
            if self.equalize and rank == min(site.rows, site.cols):
                spectrum, scales = read_equalised(W, self.edge, notes=notes)
            else:  # a cut leaves noise that is no longer even over rows and columns
                spectrum = read_spectrum(W, notes=notes).largest(rank)
        except ValueError as error:
            return Reading(**about, note=str(error)), None
        finally:
            self.decomposing += time.perf_counter() - began
        try:
            return Reading(**about, spectrum=spectrum, fit=self.edge(spectrum), note="; ".join(notes)), scales
        except ValueError as error:
            return Reading(**about, spectrum=spectrum, note=str(error)), scales

    def _held(self, site: Site) -> int:
        """How many values a matrix holds: its pair's inner size, what an earlier step left of it, or all."""
        whole = min(site.rows, site.cols)
        return min(site.pair_rank or whole, self._ranks.get(site.name, whole))

    def _decide(self, site: Site, reading: Reading, share: float) -> tuple[int, bool] | str:
        """The rank to cut to and whether as a pair, or why the matrix is left alone."""
        fit, held, p = reading.fit, self._held(site), min(site.rows, site.cols)
        if fit is None:
            return f"no verdict: {reading.note}"
        if self.gate < 1:
            verdict = judge(reading.spectrum, fit, panel={}, gate=self.gate)
            if not verdict.cuttable:
                return f"{verdict.kind}: {verdict.reason}"
        rank = max(min(self.floor, p), fit.spikes + int(share * (p - fit.spikes)))
        paired = site.pair_rank is not None
        if rank >= held and (paired or held == p):
            return f"nothing had to go: it holds {held} values, {fit.spikes} of them spikes, and may hold {rank}"
        rank = min(rank, held)
        smaller = rank * (site.rows + site.cols) < site.rows * site.cols
        if paired or (self.split and site.split is not None and smaller):
            return rank, True
        if not self.rebuild:
            return f"a pair of {rank} values would be no smaller" if self.split and site.split else site.note
        return rank, False

    def _cut(self, site: Site, scales: Equalised | None, rank: int, pair: bool) -> _Cut:
        began = time.perf_counter()
        W = site.get()
        factors = leading(W if scales is None else scales.apply(W), rank)
        seconds = time.perf_counter() - began
        self.decomposing += seconds
        return _Cut.of(site, W, factors if scales is None else factors.rescale(scales.rows, scales.cols), pair, seconds)

    def _carry_out(self, cuts: list[_Cut]) -> list[Change]:
        by_layer: dict[str, list[_Cut]] = {}
        for cut in cuts:
            by_layer.setdefault(cut.site.layer.name, []).append(cut)
        with Handover(self.model, [group[0].site.layer for group in by_layer.values()], self.optimizers) as handed:
            for group in by_layer.values():
                group[0].site.layer.replace({cut.site.part: cut.piece for cut in group})
        for cut in cuts:
            self._ranks.pop(cut.site.name, None)
            if cut.action == "dense":
                self._ranks[cut.site.name] = cut.rank
        after = {site.name: site for site in of_module(self.model, self.fused).sites}
        return [cut.change(after[cut.site.name], handed.fresh[cut.site.layer.name]) for cut in cuts]


@dataclass(frozen=True)
class _Cut:
    """One matrix cut and ready to be written: a pair (left, right) or a dense matrix, and what it costs."""

    site: Site
    piece: Tensor | tuple[Tensor, Tensor]
    rank: int
    error: float
    seconds: float

    @classmethod
    def of(cls, site: Site, W: Tensor, factors: Factors, pair: bool, seconds: float) -> _Cut:
        halves = [half.to(W.dtype).contiguous() for half in factors.split()]
        dense = halves[0] @ halves[1] if pair else factors.dense().to(W.dtype)
        error = float(torch.linalg.norm((W - dense).double()) / torch.linalg.norm(W.double()))
        return cls(site, tuple(halves) if pair else dense, factors.rank, error, seconds)

    @property
    def action(self) -> str:
        return "split" if isinstance(self.piece, tuple) else "dense"

    def change(self, after: Site, fresh: tuple[str, ...]) -> Change:
        before = self.site.params
        return Change(
            self.site.name, self.action, self.rank, before, after.params, None, self.error, self.seconds, fresh
        )
