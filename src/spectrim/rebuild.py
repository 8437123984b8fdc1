"""A checkpoint cut on disk: a matrix in memory at a time, resumed where it was, and absent or whole at the end.

.OUT.partial/journal.jsonl   what is done, a line each
.OUT.partial/pieces/         the new tensors of each layer, until the file that they belong to is written
.OUT.partial/whole/          what becomes OUT, by one renaming, when all of it is there and verified
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import safetensors
import torch

from . import adapter
from .checkpoint import Checkpoint, open_checkpoint
from .engines import Executor
from .entries import Entry, Plan
from .journal import Journal
from .linalg import shared_out
from .output import check_loadable, write_structure
from .pieces import Cuts, Unit, cut, cuts_of, shard_of, units_of
from .shapes import Shape, shaped
from .shards import NUMBERED
from .sites import Inventory, Site
from .stored import CODES, Layout, Stored, hash_file, layout, of_tensor, spliced, stamps, write_file
from .survey import SMALL, inventory
from .tasks import place_of
from .undo import FOLDER as UNDO
from .undo import manifest
from .work import Change, How
from .writing import copy_companions, write_index

Progress = Callable[[Iterable[Entry]], Iterable[Entry]]


@dataclass(frozen=True)
class Rebuilt:
    """What was written: a `Change` a matrix touched, in the order of the plan, and the numbers and bytes of it all."""

    changes: tuple[Change, ...]
    params: int
    bytes: int


def rebuild(
    source: Checkpoint,
    found: Inventory,
    plan: Plan,
    sites: Mapping[str, Site],
    out: Path,
    how: How,
    progress: Progress,
    undo: bool = False,
    shape: Shape = "split",
    rank: int | None = None,
    engine: Executor | None = None,
) -> Rebuilt:
    """Write the checkpoint that the plan makes of `source` to the new folder `out`.

    Killed at any moment and started again with the same arguments, it goes on where it was, and the bytes that come out
    are the same. So does an error leave what is done, unless that is worth nothing: it is not what was planned, or the
    input was changed.

    Args:
        source: what is cut; it is only read.
        found: its inventory.
        plan: checked against it before.
        sites: the matrices that the plan touches, by name.
        out: must not exist, or be empty.
        how: what the cuts need besides the matrices.
        progress: wraps the iteration over the entries.
        undo: keep what `spectrim.undo` needs, in `out`/undo.
        shape: that the result comes in; "split" and "dense" are the plan's own.
        rank: of the pairs of an adapter.
        engine: who works on many matrices at once; all must see the input and `out` under the same paths.
    """
    crew = None if engine is None else (engine, place_of(source, plan.model.fused, engine))
    if crew is not None and how.moments is not None:
        raise ValueError("a cut in the inner product of inputs is made here, one after the other: leave out the engine")
    if undo and not source.files:
        raise ValueError(f"{source.label} is no file of safetensors: undo gives back bytes of such files only")
    names = [_name(shard) for shard in source.shards]
    if len(set(names)) < len(names):
        raise ValueError(f"{source.label} keeps its tensors in files that are not called *.safetensors: rename them")
    if not source.files and (odd := [name for name, info in source.infos.items() if info.dtype not in CODES]):
        raise ValueError(f"{odd[0]} is {source.infos[odd[0]].dtype}, which a file of safetensors has no name for")
    if shape == "adapter":
        layers = {id(sites[e.name].layer): sites[e.name].layer for e in plan.touched}.values()
        why = [adapter.refusal(layer, source.infos) for layer in layers]
        if all(why):
            raise ValueError(
                f"no layer that the plan touches takes an adapter: {', '.join(dict.fromkeys(why)) or 'none'}"
            )
    units = units_of(plan.touched, sites)
    split = {sites[e.name].layer.name for e in plan.touched if e.action == "split"}
    floats = [name for name, info in source.infos.items() if info.dtype.is_floating_point]
    architecture = check_loadable(source.config, floats, split)
    asked = {"undo": undo, "shape": shape, "rank": rank}
    with _folder(Path(out), _identity(source, plan) | asked) as (journal, whole):
        if undo:
            (whole / UNDO).mkdir(exist_ok=True)
        records = _cut_all(source, units, how, journal, progress, whole / UNDO if undo else None, crew)
        done = _assemble(source, found, plan, units, records, journal, whole, architecture, undo)
        if shape in ("adapter", "packed"):
            made, pieces = journal.folder / "shaped", journal.folder / "pieces"
            for place in (made, pieces):  # of a run that was killed
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
            done = replace(done, bytes=shaped(shape, plan, whole, made, pieces, rank))
        return done


def _identity(source: Checkpoint, plan: Plan) -> dict:
    """What tells this work from another: the journal of another one is no use to it."""
    from . import __version__

    if source.files:
        given: object = stamps(list(source.files.values()))
    else:
        digest = hashlib.sha256()
        for name in source.infos:
            digest.update(f"{name} {source.infos[name]}".encode())
            digest.update(source.read(name).contiguous().reshape(-1).view(torch.uint8).numpy())
        given = digest.hexdigest()
    return {
        "input": given,
        "plan": hashlib.sha256(plan.to_json().encode()).hexdigest(),
        "spectrim": __version__,
        "torch": torch.__version__,
    }


@contextmanager
def _folder(out: Path, work: dict) -> Iterator[tuple[Journal, Path]]:
    """The journal of this work, beside `out`, and the folder that takes the name of `out` when the block ends well."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it first")
    above = [folder for folder in out.parents if not folder.exists()]  # made for `out`, the innermost first
    if os.path.ismount(out):
        raise ValueError(f"{out} is where a disk is mounted, and cannot be renamed: name a folder in it")
    place = out.parent / f".{out.name}.partial"
    journal = None
    try:
        journal = Journal(place, work)
        if journal.fresh:
            warnings.warn(
                f"{place} holds the work on another {journal.fresh}: it is thrown away, and all is done anew",
                stacklevel=6,
            )
        whole = place / "whole"
        whole.mkdir(exist_ok=True)
        (place / "pieces").mkdir(exist_ok=True)
        yield journal, whole
        if out.exists():
            out.rmdir()
        made = place / "shaped"
        (made if made.exists() else whole).rename(out)
        journal.remove()
    except BaseException as error:
        if journal is not None and not journal.done:
            journal.remove()
        elif isinstance(error, KeyboardInterrupt | OSError | MemoryError) and journal is not None:
            error.add_note(f"what is done is kept in {place}: the same command goes on from there")
        elif journal is not None:
            error.add_note(f"what is done is kept in {place}")
        raise
    finally:
        if journal is not None:
            journal.close()
        for folder in above:
            with suppress(OSError):  # it is not empty: it holds `out`, or something of somebody else's
                folder.rmdir()


def _cut_all(
    source: Checkpoint,
    units: Sequence[Unit],
    how: How,
    journal: Journal,
    progress: Progress,
    undo: Path | None,
    crew: tuple | None,
) -> dict[str, dict]:
    """The records of all units: what the journal has of an earlier run, and what is cut now."""
    place = {unit.key: journal.folder / "pieces" / f"{i:06d}.safetensors" for i, unit in enumerate(units)}
    for shard in source.shards:
        record = journal.done.get(_file_key(shard))
        same = record and (record["input"] is None or hash_file(source.files[shard]) == record["input"])
        if record and not (same and _sound(journal.folder / "whole" / _name(shard), record)):
            journal.forget(_file_key(shard))
    if undo is not None:
        for i, unit in enumerate(units):
            kept, record = undo / f"{i:06d}.z", journal.done.get(unit.key)
            if record and not (kept.is_file() and hash_file(kept) == record["undo_sha256"]):
                journal.forget(unit.key)
                journal.forget(_file_key(shard_of(source, unit)))
    written = {unit.key for unit in units if _file_key(shard_of(source, unit)) in journal.done}
    for unit in units:
        record = journal.done.get(unit.key)
        if record and unit.key not in written and not _sound(place[unit.key], record):
            journal.forget(unit.key)
    stream = iter(progress([entry for unit in units for _, entry in unit.of]))

    def took(unit: Unit) -> None:
        for _ in unit.of:
            next(stream, None)

    todo = []
    for unit in units:
        if unit.key in journal.done:
            took(unit)
        else:
            todo.append(unit)
    if crew is not None:
        engine, where = crew
        of = {unit.key: unit for unit in todo}
        work = Cuts(where, how.edge, undo)
        if where is None:
            work = lambda task: cut(source, of[task.key], how, place[task.key], undo)  # noqa: E731 - nothing to send
        for task, record in engine.run(work, cuts_of(todo, place)):
            journal.add(task.key, record)
            took(of[task.key])
        todo = []
    # Small ones side by side, a thread each; not where the moments of their inputs are in memory too.
    workers = torch.get_num_threads() if how.moments is None else 1
    small, large = [], []
    for unit in todo:
        fits = workers > 1 and all(site.rows * site.cols <= SMALL for site, _ in unit.of)
        (small if fits else large).append(unit)
    for unit, record in shared_out(small, lambda u: partial(cut, source, u, how, place[u.key], undo), workers):
        journal.add(unit.key, record)
        took(unit)
    for unit in large:
        journal.add(unit.key, cut(source, unit, how, place[unit.key], undo))
        took(unit)
    next(stream, None)  # let a progress bar see the end
    return journal.done


def _sound(file: Path, record: dict) -> bool:
    return file.is_file() and file.stat().st_size == record["bytes"] and hash_file(file) == record["sha256"]


def _file_key(shard: str) -> str:
    return f"file {shard}"


def _name(shard: str) -> str:
    return shard if shard.endswith(".safetensors") else "model.safetensors"


def _assemble(
    source: Checkpoint,
    found: Inventory,
    plan: Plan,
    units: Sequence[Unit],
    records: Mapping[str, dict],
    journal: Journal,
    whole: Path,
    architecture: str | None,
    undo: bool,
) -> Rebuilt:
    """Put the files together, of the pieces and of what stays, and hold what stands there against the plan."""
    copy_companions(source.folder, whole)
    of_shard: dict[str, list[tuple[int, Unit]]] = {shard: [] for shard in source.shards}
    for i, unit in enumerate(units):
        of_shard[shard_of(source, unit)].append((i, unit))
    gone = {name for unit in units for name in records[unit.key]["gone"]}
    shards: dict[str, list[str]] = {}
    files, inputs = {}, {}
    params = nbytes = 0
    for shard in source.shards:
        key = _file_key(shard)
        name = _name(shard)
        if key not in journal.done:
            tensors, metadata = _tensors(source, shard, of_shard[shard], records, gone, journal.folder)
            sha = write_file(whole / name, tensors, metadata)
            record = {
                "bytes": (whole / name).stat().st_size,
                "sha256": sha,
                "input": hash_file(source.files[shard]) if source.files else None,
                "names": list(tensors),
                "params": sum(t.numel for t in tensors.values()),
                "nbytes": sum(t.nbytes for t in tensors.values()),
            }
            journal.add(key, record)
        for i, _ in of_shard[shard]:
            (journal.folder / "pieces" / f"{i:06d}.safetensors").unlink(missing_ok=True)
        told = journal.done[key]
        shards[name] = told["names"]
        files[name] = {"bytes": told["bytes"], "sha256": told["sha256"]}
        inputs |= {shard: told["input"]} if told["input"] else {}
        params, nbytes = params + told["params"], nbytes + told["nbytes"]
    if source.files and _identity(source, plan)["input"] != journal.work["input"]:
        journal.clear()
        raise ValueError(f"the files of {source.label} were changed while they were read: start anew")
    # One shard of several is a model only where an index says so.
    alone = len(source.files) == 1 and NUMBERED.fullmatch(next(iter(source.files.values())).stem)
    write_index(whole, shards, nbytes, source.index or ("model.safetensors.index.json" if alone else None))
    splits = dict(source.splits)
    for unit in units:
        if records[unit.key]["spec"] is not None:
            name = unit.of[0][0].layer.name
            splits.pop(name, None)
            splits[name] = records[unit.key]["spec"]
    order = {entry.name: i for i, entry in enumerate(plan.touched)}
    known = {f.name for f in fields(Change)}
    changes = [Change(**{k: v for k, v in c.items() if k in known}) for u in units for c in records[u.key]["changes"]]
    changes = sorted((replace(c, fresh=tuple(c.fresh)) for c in changes), key=lambda c: order[c.name])
    record = {
        "plan": json.loads(plan.to_json()),
        "achieved": {
            "params_before": found.params,
            "params_after": params,
            "bytes_before": found.bytes,
            "bytes_after": nbytes,
            "changes": [{k: v for k, v in asdict(c).items() if k not in ("seconds", "fresh")} for c in changes],
        },
        "inputs": inputs,
        "files": files,
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    write_structure(whole, splits, record, architecture)
    if undo:
        data = {f"{i:06d}.z": records[unit.key]["undo"] for i, unit in enumerate(units)}
        manifest(whole, source.folder, source.files, inputs, data)
    try:
        _check_whole(source, plan, whole)
    except BaseException:
        journal.clear()
        raise
    for file in whole.rglob("*"):
        if file.is_file() and file.name not in files:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    return Rebuilt(tuple(changes), params, nbytes)


def _tensors(
    source: Checkpoint,
    shard: str,
    units: Sequence[tuple[int, Unit]],
    records: Mapping[str, dict],
    gone: set[str],
    folder: Path,
) -> tuple[dict[str, Stored], dict[str, str]]:
    """What a file of the result holds, as ranges of bytes of other files, and its metadata."""
    before = layout(source.files[shard]) if source.files else Layout({}, {}, b"")
    new: dict[str, Stored] = {}
    blocks: dict[str, dict[int, Stored]] = {}
    for i, unit in units:
        record = records[unit.key]
        piece = layout(folder / "pieces" / f"{i:06d}.safetensors").tensors
        for name, tensor in piece.items():
            if name in record["blocks"]:
                blocks.setdefault(name, {})[record["blocks"][name]] = tensor
            else:
                new[name] = tensor
    tensors: dict[str, Stored] = {}
    for name in source.shards[shard]:
        if name in gone or name in source.tied:
            continue
        own = before.tensors[name] if name in before.tensors else of_tensor(source.read(name))
        tensors[name] = spliced(own, blocks[name]) if name in blocks else own
    tensors |= new
    tied = {name: kept for name, kept in source.tied.items() if kept in tensors}
    return tensors, {"format": "pt", **before.metadata, **tied}


def _check_whole(source: Checkpoint, plan: Plan, whole: Path) -> None:
    """Open what was written as anybody would, and hold the shapes that stand there against the plan; RuntimeError."""
    found = replace(open_checkpoint(whole), config=source.config)
    sites = {site.name: site for site in inventory(found, plan.model.fused).sites}
    for entry in plan.touched:
        site = sites.get(entry.name)
        if site is None or (site.rows, site.cols) != (entry.rows, entry.cols):
            raise RuntimeError(
                f"{entry.name}: what was achieved is not what was planned: it is not in what was written"
            )
        if entry.action == "split" and site.pair_rank != entry.rank:
            raise RuntimeError(
                f"{entry.name}: what was achieved is not what was planned: {site.pair_rank} is the inner size of what "
                f"was written, not {entry.rank}"
            )
