"""Pruning while you train: now and then, in your own loop, each matrix gives up a part of its noise."""

from __future__ import annotations

import gc
import operator
import os
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from . import factored
from .edges import Bema
from .handover import Handover, Optimizers, as_tuple, check_trained, parameters_of
from .linalg import one_thread
from .modules import of_module, prunable
from .readings import Edge, Reading
from .rule import Cut, Left, Rule
from .schedules import Schedule, value
from .sites import Layer, Site, check_only, listed
from .spectrum import SMALLEST
from .survey import Progress
from .trim import Change, save
from .verdict import GATE

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
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise TypeError(f"a pruner works on a live module as it was built, not on a {type(model).__name__}")
        every = _count(every, "every is a number of epochs")
        floor = _count(floor, "floor is a number of values that always stay")
        if isinstance(gate, bool) or not isinstance(gate, int | float) or not 0 <= gate <= 1:
            raise ValueError(f"a gate lies in [0, 1], not {gate!r}: the largest misfit of a bulk that may be cut")
        if not split and not rebuild:
            raise ValueError("with split=False and rebuild=False there is nothing that may be done")
        if isinstance(edge, type) or not (edge is None or callable(edge)):
            raise TypeError(f"edge is an estimator such as Bema(), a function of a Spectrum, not {edge!r}")
        check_only(only)
        value(keep, every - 1)
        self.model, self.optimizers, self.keep, self.every = model, as_tuple(optimizer), keep, every
        self.rule = Rule(Bema() if edge is None else edge, gate, split, rebuild, equalize, floor)
        self.only, self.fused, self.progress = only, fused, progress or iter
        self.history: list[tuple[int, Change]] = []
        self.readings: dict[str, Reading] = {}
        self.kept: dict[str, str] = {}
        self.seconds = self.decomposing = 0.0
        self._left: dict[str, Left] = {}
        self._gone: dict[str, weakref.ref[nn.Parameter]] = {}
        self._sites()

    def due(self, epoch: int) -> bool:
        """Return whether `step` cuts in this epoch, counted from 0."""
        return (operator.index(epoch) + 1) % self.every == 0

    def step(self, epoch: int) -> list[Change]:
        """Return what was changed after this epoch: nothing if it is not due, or where nothing had to go.

        Call it once an epoch, after the last step of the optimiser. ValueError, with the model unchanged, where a
        weight is not finite, where an optimiser does not hold what it trains, or where no matrix is there to cut. It
        warns where somebody still holds a parameter that an earlier step replaced.

        Args:
            epoch: the epoch that has just ended, counted from 0.
        """
        if not self.due(epoch):
            return []
        start = time.perf_counter()
        self._look_for_holders()
        sites = self._sites()
        small = max(min(site.rows, site.cols) for site in sites) < SMALL
        try:
            # Parameters made in inference mode could never be trained.
            with torch.inference_mode(False), torch.no_grad(), one_thread() if small else nullcontext():
                return self._step(epoch, sites)
        finally:
            self.seconds += time.perf_counter() - start

    def _step(self, epoch: int, sites: list[Site]) -> list[Change]:
        share = value(self.keep, epoch)
        bad = [site.name for site in sites if not torch.isfinite(site.get()).all()]
        if bad:
            raise ValueError(
                f"epoch {epoch}: the weights of {listed(bad)} hold NaN or infinite entries: the training "
                "has diverged before this step; nothing was changed"
            )
        readings, kept, cuts = {}, dict(self._skipped), []
        for site in self.progress(sites):
            left, began = self._left.get(site.name), time.perf_counter()
            reading, scales = self.rule.read(site, left)
            self.decomposing += time.perf_counter() - began
            readings[site.name] = reading
            decided = self.rule.decide(site, reading, left, share)
            if isinstance(decided, str):
                kept[site.name] = decided
            else:
                cuts.append(self.rule.cut(site, reading, scales, *decided))
                self.decomposing += cuts[-1].seconds
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
        return {
            "splits": factored.describe(self.model),
            "left": {name: tuple(left) for name, left in self._left.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Give the model, as it was built, the structure of a saved one, and the optimiser its new parameters.

        Call it before the states of model and optimiser are loaded.
        """
        if not isinstance(state, dict) or not {"splits", "left"} <= set(state):
            raise ValueError("this is not the state of a pruner: it wants what state_dict() gave")
        self._sites()
        there = factored.describe(self.model)
        layers = {site.layer.name: site.layer for site in of_module(self.model, self.fused).sites}
        missing = {name: spec for name, spec in state["splits"].items() if there.get(name) != spec}
        other = [name for name, spec in missing.items() if not _fits(layers.get(name), spec)]
        other += [name for name in there if name not in state["splits"]]
        if other:
            raise ValueError(
                f"this state belongs to another model, or to another time of this one: {', '.join(other[:3])} differs; "
                "load it into the model as it was built"
            )
        with Handover(self.model, [layers[name] for name in missing], self.optimizers):
            factored.restructure(self.model, missing)
        self._left = {name: Left(*left) for name, left in state["left"].items()}

    def _sites(self) -> list[Site]:
        """The matrices that may be cut, every one of them known to an optimiser; ValueError if there is none."""
        chosen, self._skipped = prunable(self.model, self.fused, self.only)
        if self.optimizers:
            layers = {site.layer.name: site.layer for site in chosen}
            check_trained(
                self.optimizers,
                {
                    name: p
                    for layer in layers.values()
                    for name, p in parameters_of(self.model, layer).items()
                    if p.ndim > 1 or len(layer.parts) > 1  # the bias of several parts is cut into pieces
                },
            )
        return chosen

    def _look_for_holders(self) -> None:
        """Warn of parameters that were replaced and are still alive: what holds them does not see the new ones."""
        if any(ref() is not None for ref in self._gone.values()):
            gc.collect()
        held = [name for name, ref in self._gone.items() if ref() is not None]
        self._gone = {}
        if held:
            warnings.warn(
                f"something still holds {listed(held)}, which an earlier cut replaced: an optimiser that "
                "was not given, a list of parameters or of layers? It does not see the new ones",
                stacklevel=3,
            )

    def _carry_out(self, cuts: list[Cut]) -> list[Change]:
        by_layer: dict[str, list[Cut]] = {}
        for cut in cuts:
            by_layer.setdefault(cut.site.layer.name, []).append(cut)
        with Handover(self.model, [group[0].site.layer for group in by_layer.values()], self.optimizers) as handed:
            for group in by_layer.values():
                group[0].site.layer.replace({cut.site.part: cut.piece for cut in group})
        self._gone |= handed.gone
        self._left |= {cut.site.name: cut.left for cut in cuts}
        after = {site.name: site for site in of_module(self.model, self.fused).sites}
        return [cut.change(after[cut.site.name], handed.fresh[cut.site.layer.name]) for cut in cuts]


def _count(number: int, what: str) -> int:
    try:
        found = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        found = 0
    if found < 1:
        raise ValueError(f"{what}, 1 or more, not {number!r}")
    return found


def _fits(layer: Layer | None, spec: dict) -> bool:
    """Whether a layer as it stands can take the structure of a saved one: the same matrices, of whatever ranks."""
    rows = [part["rows"] for part in spec["parts"]]
    return layer is not None and layer.cols == spec["cols"] and [part.rows for part in layer.parts] == rows
