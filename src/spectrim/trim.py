"""Trim: the plan carried out on a live model or a checkpoint, verified, and written as a folder that opens anywhere."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from . import edges, factored
from .calibrate import sources
from .checkpoint import Checkpoint
from .engines import Executor
from .moments import Moments, given_back
from .output import write_structure
from .plan import Entry, Plan
from .readings import Edge, fingerprint
from .rebuild import rebuild
from .shapes import Shape, rebuilt
from .sites import READ_ONLY, Site, listed
from .survey import Model, inventory, open_model
from .undisturbed import undisturbed
from .work import Change, How, Work
from .writing import whole_folder, write_tensors

Progress = Callable[[Iterable[Entry]], Iterable[Entry]]


@dataclass(frozen=True)
class Changes:
    """What a trim did: one `Change` a matrix touched, and the whole model before and after."""

    changes: tuple[Change, ...]
    plan: Plan
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    out: Path | None = None
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __getitem__(self, i: int) -> Change:
        return self.changes[i]

    def to_dict(self) -> dict:
        """Return the record as JSON holds it."""
        return {
            "params_before": self.params_before,
            "params_after": self.params_after,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "changes": [asdict(change) for change in self.changes],
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self)} matrices trimmed; the model keeps {self.params_after} of {self.params_before} parameters "
            f"({self.params_after / self.params_before:.1%})"
        ]
        for c in self.changes:
            what = f"rank {c.rank}" if c.rank is not None else f"{c.zeros} zeros"
            lines.append(f"  {c.name:<48} {c.action:<6} {what}, relative error {c.relative_error:.3f}")
        return "\n".join(lines)

    def save(self, out: str | os.PathLike) -> Path:
        """Write the trimmed live model to a new folder and return its path; see output.py for what stands there.

        A transformers model is written so that its Auto class loads it. Any other loads with
        `modeling_spectrim.load(Model(), out)`, or as ever where nothing was split.
        """
        if self.model is None:
            raise ValueError("this trim wrote its folder already, or was undone; only a live model is saved here")
        return save(self.model, out, _record(self))


def trim(
    model: Model,
    plan: Plan | str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    moments: Moments | str | os.PathLike | None = None,
    undo: bool = False,
    shape: Shape | None = None,
    rank: int | None = None,
    engine: Executor | None = None,
    progress: Progress | None = None,
) -> Changes:
    """Return the `Changes` that carry out `plan`: on a live module in place, on a checkpoint into the new folder `out`.

    Everything is checked first: that each matrix the plan touches is there and is the one that it was made for. What
    was achieved is then held against the plan: ranks, parameters, zeros, error. RuntimeError if they differ.

    A live module is written when all cuts are made; those in the inner product of inputs wait for that on disk, not in
    memory. So Ctrl-C leaves it as it was; one that comes while it is written, a matter of moments, waits until all is.

    Of a checkpoint a matrix at a time is in memory, or a few small ones. Each is on disk as soon as it is cut, in a
    hidden folder beside `out`, and `out` appears when all is there and verified. After Ctrl-C, a full disk or a killed
    process the same call goes on where it was, to the same bytes, if neither input nor plan was changed.

    Args:
        model: what `survey` takes.
        plan: a `Plan`, or the path of one.
        out: the folder to write; needed for a checkpoint, optional for a live module.
        moments: those that the plan was made with, or their file; only a plan in the inner product of inputs needs any.
            Those that took no data are made again if they are not given, from the recipe that the plan holds.
        undo: keep in `out` what `spectrim.undo` needs to give back the original files, of safetensors, byte for byte:
            at most `undo_bytes(plan)`.
        shape: that a checkpoint is written in (docs/shapes.md): as the plan says unless given, which is "split" where
            it splits; "dense" rebuilds what it splits; "adapter" takes the top part of each matrix into a LoRA pair for
            PEFT; "packed" stores zeros as bit masks.
        rank: of the pairs of an adapter, >= 1; the number of spikes of each matrix unless given.
        engine: who cuts many matrices of a checkpoint at once, `engines.Local(...)` or `engines.Ray(...)`.
        progress: wraps the iteration over the entries.
    """
    if not isinstance(plan, Plan):
        plan = Plan.from_json(plan)
    if shape not in (None, *get_args(Shape)):
        raise ValueError(f"shape is one of {', '.join(get_args(Shape))}, not {shape!r}")
    if rank is not None and (shape != "adapter" or type(rank) is not int or rank < 1):
        raise ValueError(f"rank={rank!r}: the pairs of shape='adapter' have one, a whole number of 1 or more")
    if undo and shape in ("adapter", "packed"):
        raise ValueError(f"undo works on the shapes split and dense: leave out undo, or shape={shape!r}")
    if shape in ("dense", "adapter"):
        plan = rebuilt(plan)
    source = open_model(model)
    if shape is not None and not isinstance(source, Checkpoint):
        raise ValueError(f"a shape is of files: trim the folder of the model, or leave out shape={shape!r}")
    how = How(_edge_of(plan), _moments_of(plan, moments, model, source))
    if isinstance(source, Checkpoint):
        if out is None:
            raise ValueError("a checkpoint is not changed in place: name the folder to write, out='OUT/'")
        more = {"undo": undo, "shape": shape or "split", "rank": rank, "engine": engine}
        return _trim_checkpoint(source, plan, Path(out), progress or iter, how, more)
    if engine is not None:
        raise ValueError("a live module is cut where it is: an engine is for checkpoints")
    if undo:
        raise ValueError("a live module keeps nothing for undo: it is restored from where it was loaded")
    done = _trim_module(source, plan, progress or iter, how)
    return done if out is None else replace(done, out=done.save(out))


def undo_bytes(plan: Plan) -> int:
    """Return how many bytes `trim(..., undo=True)` keeps at most: those of the matrices that change, not compressed."""
    return sum(entry.bytes_before for entry in plan.touched)


def _check(sites: dict[str, Site], plan: Plan) -> dict[str, Site]:
    """The sites that the plan touches. ValueError with every reason why it cannot be carried out on this model."""
    wrong, other = [], 0
    for entry in plan.touched:
        site = sites.get(entry.name)
        if site is None:
            wrong.append(f"{entry.name} is not there")
            other += 1
            continue
        if (site.rows, site.cols) != (entry.rows, entry.cols):
            wrong.append(f"{entry.name} is {site.rows} x {site.cols}, not {entry.rows} x {entry.cols}")
            other += 1
            continue
        if site.kind == READ_ONLY:
            wrong.append(f"{entry.name} cannot be cut: {site.note}")
            continue
        W = site.get()
        if not torch.isfinite(W).all():
            wrong.append(f"{entry.name} holds NaN or infinite entries: it cannot be cut")
        elif fingerprint(*site.stored()) != entry.fingerprint:
            wrong.append(f"{entry.name} has other values than the matrix that the plan was made for")
            other += 1
        elif entry.action == "split" and site.split is None:
            wrong.append(f"{entry.name} cannot be split: {site.note or 'nothing is known of its layer'}")
        elif entry.action == "zeros" and site.pair_rank is not None:
            wrong.append(f"{entry.name} is a pair of layers: its product cannot be given zeros")
    if wrong:
        head = "this plan was made for another model" if other else "this plan cannot be carried out"
        made = f" (it was made for {plan.model.label}: survey and plan again)" if other else ""
        raise ValueError(f"{head}{made}: {listed(wrong, '; ')}")
    return {entry.name: sites[entry.name] for entry in plan.touched}


def _apply(works: list[Work]) -> None:
    works[0].site.layer.replace({work.site.part: work.piece for work in works})


def _edge_of(plan: Plan) -> Edge | None:
    """The estimator that the survey used: its spikes take part in the scales of the equalised basis."""
    if all(entry.basis != "equalised" for entry in plan.touched):
        return None
    try:
        return edges.from_repr(plan.model.edge)
    except ValueError:
        raise ValueError(
            f"the plan cuts in the equalised basis of {plan.model.edge!r}, which is no estimator of spectrim.edges: "
            "plan with basis='plain'"
        ) from None


def _moments_of(
    plan: Plan, given: Moments | str | os.PathLike | None, model: Model, source: nn.Module | Checkpoint
) -> Moments | None:
    """The moments that a plan was made with; ValueError where they are not given, or are others."""
    if not any(entry.basis == "moments" for entry in plan.touched):
        return None
    used = plan.moments
    if given is not None:
        found = given if isinstance(given, Moments) else Moments.load(given, held=False)
        if used is not None and found.fingerprint != used.fingerprint:
            raise ValueError("these moments are not those that the plan was made with: plan anew, or give those")
        return found
    if used is None or used.source not in sources.WITHOUT_DATA:
        raise ValueError(
            f"the plan cuts in the inner product of the layers' inputs ({used.source if used else 'of unknown source'})"
            ": give their moments, moments=FILE (--moments FILE), as `Moments.save` wrote them"
        )
    live = source if isinstance(source, nn.Module) else sources.live(model)
    return sources.again(live, used.source, used.recipe)


def _by_layer(works: Iterable[Work]) -> list[list[Work]]:
    groups: dict[int, list[Work]] = {}
    for work in works:
        groups.setdefault(id(work.site.layer), []).append(work)
    return list(groups.values())


@contextmanager
def _aside(how: How) -> Iterator[Path | None]:
    """A folder that cuts wait in until all are made, where they were made in the inner product of inputs: None else.

    Whoever asked for moments a part at a time has no room for a second model in memory.
    """
    if how.moments is None:
        yield None
        return
    given_back()
    with tempfile.TemporaryDirectory(prefix=".spectrim-") as folder:
        yield Path(folder)


def _file(folder: Path | None, i: int) -> Path | None:
    return None if folder is None else folder / f"{i}.pt"


def _trim_module(model: nn.Module, plan: Plan, progress: Progress, how: How) -> Changes:
    before = inventory(model, plan.model.fused)
    sites = _check({site.name: site for site in before.sites}, plan)
    with _aside(how) as folder:
        works = [Work(sites[e.name], e, how, _file(folder, i)) for i, e in enumerate(progress(plan.touched))]
        with undisturbed():
            for group in _by_layer(works):
                _apply(group)
        found = inventory(model, plan.model.fused)
        after = {site.name: site for site in found.sites}
        changes = tuple(work.verify(after[work.entry.name]) for work in works)
    return Changes(changes, plan, before.params, found.params, before.bytes, found.bytes, model=model)


def _trim_checkpoint(source: Checkpoint, plan: Plan, out: Path, progress: Progress, how: How, more: dict) -> Changes:
    found = inventory(source, plan.model.fused)
    sites = _check({site.name: site for site in found.sites}, plan)
    if how.moments is not None:
        given_back()
    done = rebuild(source, found, plan, sites, out, how, progress, **more)
    return Changes(done.changes, plan, found.params, done.params, found.bytes, done.bytes, out)


def _record(done: Changes) -> dict:
    return {"plan": json.loads(done.plan.to_json()), "achieved": done.to_dict()}


def save(model: nn.Module, out: str | os.PathLike, record: Mapping) -> Path:
    """Write a cut live model to a new folder, with a record of what was done; see output.py for what stands there."""
    out = Path(out)
    state, tied, met = {}, {}, {}
    for name, t in model.state_dict().items():
        place = (t.data_ptr(), t.shape) if t.numel() else name
        if met.setdefault(place, name) == name:
            state[name] = t
        else:  # stored once; the metadata tells, as safetensors' own save_model does
            tied[name] = met[place]
    architecture = None
    with whole_folder(out) as folder:
        config = getattr(model, "config", None)
        if hasattr(config, "save_pretrained"):
            import transformers

            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            if getattr(transformers, type(model).__name__, None) is type(model):
                architecture = type(model).__name__
        write_tensors(state, folder / "model.safetensors", tied)
        write_structure(folder, factored.describe(model), record, architecture)
    return out
