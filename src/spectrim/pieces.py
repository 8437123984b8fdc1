"""The pieces of a checkpoint that is cut: what is cut together, and how one piece is cut, written and verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .checkpoint import Checkpoint, Info
from .engines import Task
from .entries import Entry
from .names import leading_tensor, stored_tensors
from .readings import Edge
from .sites import Layer, Site
from .stored import CODES, Range, hash_file, layout
from .survey import inventory
from .tasks import Place, cost_of
from .undo import kept
from .work import How, Work
from .writing import write_tensors


@dataclass(frozen=True)
class Unit:
    """What is cut and written together: rows of one tensor, or, where `whole`, a layer whose tensors are replaced."""

    key: str
    of: tuple[tuple[Site, Entry], ...]
    whole: bool


def units_of(entries: Sequence[Entry], sites: Mapping[str, Site]) -> list[Unit]:
    """Return what is cut together, for some entries of a plan, in their order."""
    layers: dict[str, list[Entry]] = {}
    for entry in entries:
        layers.setdefault(sites[entry.name].layer.name, []).append(entry)
    units = []
    for name, group in layers.items():
        layer = sites[group[0].name].layer
        scattered = layer.transposed and len(layer.parts) > 1  # the rows of a matrix are no range of bytes
        if layer.stored_as_parts or scattered or any(e.action == "split" for e in group):
            units.append(Unit(name, tuple((sites[e.name], e) for e in group), True))
        else:
            units += [Unit(e.name, ((sites[e.name], e),), False) for e in group]
    return units


def shard_of(source: Checkpoint, unit: Unit) -> str:
    """Return the file of the input that a unit stands in: what takes its place goes into the same one."""
    return source.infos[leading_tensor(source, unit.of[0][0].layer)].shard


def cut(source: Checkpoint, unit: Unit, how: How, file: Path, undo: Path | None) -> dict:
    """Cut the matrices of a unit, write what takes the place of their tensors to `file`, and say what that is.

    What it takes to have the old ones again goes into the folder `undo`.
    """
    works = [Work(site, entry, how) for site, entry in unit.of]
    layer = works[0].site.layer
    record: dict = {"gone": [], "blocks": {}, "spec": None}
    if unit.whole:
        layer.replace({work.site.part: work.piece for work in works})
        edited = [key for key in dict.fromkeys([*_own(source, layer), layer.name]) if key in source.edits]
        new = {key: tensor for name in edited for key, tensor in source.edits.pop(name).items()}
        record["gone"] = edited
        if any(entry.action == "split" for _, entry in unit.of):
            record["spec"] = source.splits[layer.name]
    else:
        site = works[0].site
        lead = leading_tensor(source, layer)
        info = source.infos[lead]
        before = sum(part.rows for part in layer.parts[: site.part])
        new = {lead: layer._as_stored(works[0].piece, dense=True).to(info.dtype)}
        row = info.nbytes // sum(part.rows for part in layer.parts)
        record |= {"blocks": {lead: before * row}, "block": site.rows * row}
    part = file.with_suffix(".part")
    write_tensors(new, part)
    with open(part, "rb") as handle:
        os.fsync(handle.fileno())
    part.rename(file)
    with safe_open(file, framework="pt") as handle:
        after = _after(source, unit, record, handle.get_tensor, set(new))
        record["changes"] = [asdict(work.verify(after[work.entry.name])) for work in works]
    if undo is not None:
        old, piece = _old(source, record), layout(file).tensors
        codes = {name: CODES[source.infos[name].dtype] for name, _ in old}
        place = undo / f"{file.stem}.z"
        record |= {"undo": kept(old, piece, codes, place), "undo_sha256": hash_file(place)}
    return record | {"bytes": file.stat().st_size, "sha256": hash_file(file)}


def _old(source: Checkpoint, record: dict) -> dict[tuple[str, int], Range]:
    """Where the bytes that a unit changes stand in the input, by name of the tensor and offset in it."""
    found = {}
    for name in [*record["gone"], *record["blocks"]]:
        own: Range = layout(source.files[source.infos[name].shard]).tensors[name].pieces[0]
        start = record["blocks"].get(name, 0)
        length = record["block"] if name in record["blocks"] else own.stop - own.start
        found[name, start] = Range(own.file, own.start + start, own.start + start + length)
    return found


def _own(source: Checkpoint, layer: Layer) -> list[str]:
    return stored_tensors(source, layer.name, layer.form)


def _after(
    source: Checkpoint, unit: Unit, record: dict, read: Callable[[str], Tensor], new: set[str]
) -> dict[str, Site]:
    """The matrices of a unit as what was written has them, read by the names and shapes that stand there."""
    layer = unit.of[0][0].layer
    if record["spec"] is not None:
        tensors = {name: read(name) for name in new}
        infos = {name: Info(tuple(t.shape), t.dtype, "") for name, t in tensors.items()}
        alone = replace(source, infos=infos, read=tensors.__getitem__, splits={layer.name: record["spec"]}, edits={})
        return {site.name: site for site in inventory(replace(alone, tied={}), "split").sites}
    if unit.whole:
        owner = layer.name.rpartition(".")[0] if layer.form == "parameter" else layer.name

        def load(key: str) -> Tensor:
            full = f"{owner}.{key}".lstrip(".")
            full = layer.name if key == "weight" and full not in source.infos else full
            return read(full) if full in new else source.read(full)

        return {site.name: site for site in replace(layer, load=load).sites()}
    site = unit.of[0][0]
    return {site.name: replace(site, get=lambda: layer._as_matrix(read(next(iter(new)))))}


@dataclass(frozen=True)
class Cuts:
    """The cut of what a task names: its payload is the file that takes the piece, and the entries of the plan."""

    place: Place
    edge: Edge | None
    undo: Path | None

    def __call__(self, task: Task) -> dict:
        """Return the record of the piece."""
        source, sites = self.place.opened()
        file, entries = task.payload
        [unit] = units_of(entries, sites)
        return cut(source, unit, How(self.edge, None), Path(file), self.undo)


def cuts_of(units: Sequence[Unit], files: dict[str, Path]) -> list[Task]:
    """Return a task for each unit: its matrices one after the other, each in float64 with its factors.

    Bytes: 52 rows cols + 64 p^2 of the largest, measured at 1024 x 3072 and rounded up, and all that is ready.
    """
    tasks = []
    for unit in units:
        sites = [site for site, _ in unit.of]
        hold = max(52 * s.rows * s.cols + 64 * min(s.rows, s.cols) ** 2 for s in sites)
        hold += sum(4 * s.rows * s.cols for s in sites)
        payload = (str(files[unit.key]), [entry for _, entry in unit.of])
        tasks.append(Task(unit.key, sum(map(cost_of, sites)), hold, payload))
    return tasks
