"""Trim: the plan carried out on a live model or a checkpoint, verified, and written as a folder that opens anywhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from . import edges, factored
from .calibrate import sources
from .checkpoint import Checkpoint, Info, copy_companions, whole_folder, write_index, write_tensors
from .cut import ranked, zeroed
from .linalg import Factors
from .moments import Moment, Moments
from .names import layers_by_name, leading_tensor, stored_tensors
from .output import check_loadable, write_structure
from .plan import Entry, Plan
from .reading import Equalised, equalize
from .sites import Site, listed
from .survey import Edge, Model, fingerprint, inventory, open_model

SLACK = 1e-3  # between the relative error that a plan states and the one found anew: other threads, other rounding
Progress = Callable[[Iterable[Entry]], Iterable[Entry]]
Piece = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Change:
    """What was done to one matrix. `relative_error` is ||W - W'||_F / ||W||_F, as stored.

    `fresh` names the parameters that took the place of others: an optimiser knows nothing of them yet.
    """

    name: str
    action: str
    rank: int | None
    params_before: int
    params_after: int
    zeros: int | None
    relative_error: float
    seconds: float
    fresh: tuple[str, ...] = ()


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
    progress: Progress | None = None,
) -> Changes:
    """Return the `Changes` that carry out `plan`: on a live module in place, on a checkpoint into the new folder `out`.

    Everything is checked first: that each matrix the plan touches is there and is the one that it was made for. What
    was achieved is then held against the plan: ranks, parameters, zeros, error. RuntimeError if they differ; with a
    checkpoint nothing is left behind then.

    Args:
        model: what `survey` takes.
        plan: a `Plan`, or the path of one.
        out: the folder to write; needed for a checkpoint, optional for a live module.
        moments: those that the plan was made with, or their file; only a plan in the inner product of inputs needs any.
            Those that took no data are made again if they are not given, from the recipe that the plan holds.
        progress: wraps the iteration over the entries.
    """
    if not isinstance(plan, Plan):
        plan = Plan.from_json(plan)
    source = open_model(model)
    how = _How(_edge_of(plan), _moments_of(plan, moments, model, source))
    if isinstance(source, Checkpoint):
        if out is None:
            raise ValueError("a checkpoint is not changed in place: name the folder to write, out='OUT/'")
        return _trim_checkpoint(source, plan, Path(out), progress or iter, how)
    done = _trim_module(source, plan, progress or iter, how)
    return done if out is None else replace(done, out=done.save(out))


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


@dataclass(frozen=True)
class _How:
    """What the cuts of a plan need besides the matrices: the estimator behind its scales, the moments of its inputs."""

    edge: Edge | None
    moments: Moments | None

    def moment(self, entry: Entry) -> Moment | None:
        """The moment that this entry is cut in, or None."""
        if entry.basis != "moments":
            return None
        try:
            return self.moments[entry.name]
        except KeyError as error:
            raise ValueError(f"{entry.name} is cut in the inner product of its inputs: {error.args[0]}") from None


class _Work:
    """One matrix cut as its entry says, and held against it before anything is written.

    `piece` is what the layer takes: two halves, or a dense matrix; `W` what was there.
    """

    def __init__(self, site: Site, entry: Entry, how: _How):
        start = time.perf_counter()
        self.site, self.entry = site, entry
        self.W = site.get().clone()
        scales = equalize(self.W, edge=how.edge) if entry.basis == "equalised" else None
        moment = how.moment(entry)
        if entry.action == "zeros":
            more = {} if moment is None else {"damping": how.moments.damping}
            self.piece: Piece = zeroed(self.W, entry.zeros, scales, moment, entry.step, **more)
            self.error = _norm(self.W - self.piece) / (_norm(self.W) or 1.0)
            self._check_damage(self.error)
        else:
            factors = ranked(self.W, entry.rank, scales, entry.also, moment)
            dtype = self.W.dtype
            if entry.action == "split":
                self.piece = tuple(half.to(dtype).contiguous() for half in factors.split())
            else:
                self.piece = factors.dense().to(dtype)
            self._check(factors, scales)
        self.seconds = time.perf_counter() - start

    def _check(self, factors: Factors, scales: Equalised | None) -> None:
        """Hold the cut, as it will be stored, against the factors, and its cost against the plan; RuntimeError."""
        W, ideal = self.W.to(torch.float64), factors.dense()
        halves = [piece.to(torch.float64) for piece in (self.piece if isinstance(self.piece, tuple) else (self.piece,))]
        new = halves[0] if len(halves) == 1 else halves[0] @ halves[1]
        # Rounding an entry errs by half an eps of it at most, in either half, or by a subnormal step. In the basis of
        # the cut the directions of one half are orthonormal, so these errors do not add up beyond the norm.
        limits = torch.finfo(self.W.dtype)
        steps = limits.smallest_normal * limits.eps * (halves[0].numel() + halves[-1].numel()) ** 0.5
        loud = 1.0 if scales is None else float(scales.rows.max() * scales.cols.max())
        allowed = 4 * max(limits.eps, 1e-12) * _norm(ideal, scales) + steps * loud * max(1.0, *map(_norm, halves))
        if not _norm(new - ideal, scales) <= allowed:
            raise self._differs("what would be stored is not the cut that was computed")
        self._check_damage(_norm(W - ideal, scales) / _norm(W, scales))
        self.error = _norm(W - new) / _norm(W)

    def _check_damage(self, found: float) -> None:
        e = self.entry
        if e.damage is not None and e.decision == e.decided and abs(found - e.damage) > SLACK:
            raise self._differs(f"the cut costs {found:.4f} of the norm, the plan says {e.damage:.4f}")

    def _differs(self, what: str) -> RuntimeError:
        return RuntimeError(f"{self.entry.name}: what was achieved is not what was planned: {what}")

    def verify(self, after: Site) -> Change:
        """Hold what now stands in the model against the entry; RuntimeError where they differ."""
        e, zeros = self.entry, None
        if e.action == "split":
            if after.pair_rank != e.rank or after.params != e.rank * (e.rows + e.cols):
                raise self._differs(f"{after.params} numbers are stored at inner size {after.pair_rank}, not {e.rank}")
            if not all(torch.equal(a, b) for a, b in zip(after.layer.factors(after.part), self.piece, strict=True)):
                raise self._differs("its halves are not the ones that were computed")
        elif not torch.equal(new := after.get(), self.piece):
            raise self._differs("its entries are not the ones that were computed")
        if e.action == "zeros":
            zeros = int((new == 0).sum())
            least = max(e.zeros, int((self.W == 0).sum()))
            # A weight that makes up for others may round to zero itself; a magnitude that stays is no zero.
            if zeros < e.zeros if e.basis == "moments" else zeros != least:
                raise self._differs(f"{zeros} entries are zero, {e.zeros} were planned")
        return Change(
            e.name, e.action, e.rank, e.params_before, after.params, zeros, self.error, round(self.seconds, 4)
        )


def _norm(W: Tensor, scales: Equalised | None = None) -> float:
    return float(torch.linalg.norm(W.to(torch.float64) if scales is None else scales.apply(W)))


def _apply(works: list[_Work]) -> None:
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
        found = given if isinstance(given, Moments) else Moments.load(given)
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


def _by_layer(works: Iterable[_Work]) -> list[list[_Work]]:
    groups: dict[int, list[_Work]] = {}
    for work in works:
        groups.setdefault(id(work.site.layer), []).append(work)
    return list(groups.values())


def _trim_module(model: nn.Module, plan: Plan, progress: Progress, how: _How) -> Changes:
    before = inventory(model, plan.model.fused)
    sites = _check({site.name: site for site in before.sites}, plan)
    works = [_Work(sites[entry.name], entry, how) for entry in progress(plan.touched)]
    for group in _by_layer(works):
        _apply(group)
    found = inventory(model, plan.model.fused)
    after = {site.name: site for site in found.sites}
    changes = tuple(work.verify(after[work.entry.name]) for work in works)
    return Changes(changes, plan, before.params, found.params, before.bytes, found.bytes, model=model)


def _trim_checkpoint(source: Checkpoint, plan: Plan, out: Path, progress: Progress, how: _How) -> Changes:
    found = inventory(source, plan.model.fused)
    sites = _check({site.name: site for site in found.sites}, plan)
    layers, _ = layers_by_name(source, plan.model.fused)
    place = {layer.name: source.infos[leading_tensor(source, layer)].shard for layer in layers}
    by_shard: dict[str, list[Entry]] = {shard: [] for shard in source.shards}
    for entry in plan.touched:
        layer = sites[entry.name].layer
        by_shard[place[layer.name]].append(entry)
        if entry.action == "split":  # what a split replaces leaves its own file, whichever that is
            source.edits |= {key: {} for key in stored_tensors(source, layer.name, layer.form)}
    split = {sites[e.name].layer.name for e in plan.touched if e.action == "split"}
    floats = [name for name, info in source.infos.items() if info.dtype.is_floating_point]
    architecture = check_loadable(source.config, floats, split)
    stream = iter(progress([entry for here in by_shard.values() for entry in here]))
    changes: list[Change] = []
    params = nbytes = 0
    shards: dict[str, list[str]] = {}
    with whole_folder(out) as folder:
        copy_companions(source.folder, folder)
        for shard, names in source.shards.items():
            works = [_Work(sites[e.name], e, how) for e in islice(stream, len(by_shard[shard]))]
            for group in _by_layer(works):
                _apply(group)
            tensors: dict[str, Tensor] = {}
            for name in names:
                if name in source.edits:
                    tensors |= source.edits.pop(name)
                elif name not in source.tied:
                    tensors[name] = source.read(name)
            changes += _verify_written(source, tensors, works, plan.model.fused)
            file = folder / (shard if shard.endswith(".safetensors") else "model.safetensors")
            write_tensors(tensors, file, {name: kept for name, kept in source.tied.items() if kept in tensors})
            shards[file.name] = list(tensors)
            params += sum(t.numel() for t in tensors.values())
            nbytes += sum(t.numel() * t.element_size() for t in tensors.values())
        next(stream, None)  # let a progress bar see the end
        write_index(folder, shards, nbytes)
        done = Changes(tuple(changes), plan, found.params, params, found.bytes, nbytes, out)
        write_structure(folder, source.splits, _record(done), architecture)
    return done


def _verify_written(source: Checkpoint, tensors: dict[str, Tensor], works: list[_Work], fused: str) -> list[Change]:
    """Read the new tensors back by their own names and shapes, and hold them against the plan."""
    new = {name: Info(tuple(t.shape), t.dtype, "") for name, t in tensors.items()}
    splits = {
        name: spec
        for name, spec in source.splits.items()
        if any(key in new for key in stored_tensors(replace(source, infos=new), name, spec["form"]))
    }
    written = replace(source, infos=source.infos | new, read=tensors.__getitem__, splits=splits, edits={})
    after = {site.name: site for site in inventory(written, fused).sites} if works else {}
    return [work.verify(after[work.entry.name]) for work in works]


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
