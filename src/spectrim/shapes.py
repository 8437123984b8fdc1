"""The shapes that a trimmed folder comes in: as the plan cuts it, rebuilt dense, with an adapter, or packed.

`adapter` and `packed` are made of the finished folder, a tensor in memory at a time.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from torch import Tensor

from . import adapter, packed
from .checkpoint import open_checkpoint
from .entries import Plan
from .names import layers_by_name, leading_tensor
from .stored import CODES, Stored, layout, write_file
from .writing import write_index, write_tensors

Shape = Literal["split", "dense", "adapter", "packed"]
COUNT = itertools.count()
ADAPTER = "adapter"  # the folder of the pairs: beside the base, transformers would load them on its own


def rebuilt(plan: Plan) -> Plan:
    """Return the plan with every split rebuilt dense at the same rank: the size of a matrix stays what it was."""
    entries = []
    for e in plan.entries:
        if e.action == "split":
            same = {"params_after": e.params_before, "bytes_after": e.bytes_before, "macs_after": e.macs_before}
            e = e.model_copy(update={"action": "dense"} | same)
            e = e.model_copy(update={"decided": e.decision})
        entries.append(e)
    return plan.model_copy(update={"entries": tuple(entries)})


def shaped(shape: Shape, plan: Plan, whole: Path, out: Path, work: Path, rank: int | None) -> int:
    """Move a finished folder to another one, in another shape, and return the bytes of the tensors that stand there.

    Args:
        shape: "adapter" or "packed".
        plan: that was carried out.
        whole: the finished folder; what stands in it is moved.
        out: an empty folder.
        work: an empty folder for pieces.
        rank: of the pairs of an adapter; the number of spikes of each matrix unless given.
    """
    tensors = {file.name: _packed(file, work) for file in _files(whole)} if shape == "packed" else None
    nbytes = 0
    if tensors is None:
        tensors, pairs, others, transposed = _parted(plan, whole, work, rank)
        (out / ADAPTER).mkdir()
        stored = {key: t for name, (_, *pair) in pairs.items() for key, t in zip(adapter.keys(name), pair, strict=True)}
        write_file(out / ADAPTER / adapter.WEIGHTS, stored, {"format": "pt"})
        settings = adapter.config({name: r for name, (r, *_) in pairs.items()}, others, transposed)
        (out / ADAPTER / adapter.CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        nbytes = sum(t.nbytes for t in stored.values())
    written, names = {}, {}
    for file, (found, metadata) in tensors.items():
        name = packed.file_name(file) if shape == "packed" else file
        written[name] = {"sha256": write_file(out / name, found, metadata), "bytes": (out / name).stat().st_size}
        names[name] = list(found)
        nbytes += sum(t.nbytes for t in found.values())
    if shape == "packed":
        (out / packed.READER).write_text((files("spectrim") / "unpacking.py").read_text())
    else:
        index = next((file.name for file in whole.glob("*.index.json")), None)
        write_index(out, names, nbytes, index)
    for file in whole.iterdir():
        if file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.move(file, out / file.name)
    record = json.loads((out / "spectrim.json").read_text())
    record |= {"shape": shape, "files": written}
    record["achieved"]["bytes_after"] = nbytes
    (out / "spectrim.json").write_text(json.dumps(record, indent=1) + "\n")
    return nbytes


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _read(file: Path) -> Iterator[tuple[str, Tensor | None]]:
    """The tensors of a file one by one, none of its pages kept; None for one of a type that torch does not have."""
    source = open_checkpoint(file)
    for name, stored in layout(file).tensors.items():
        yield name, source.read(name) if stored.dtype in CODES.values() else None


def _piece(tensors: Mapping[str, Tensor], work: Path) -> dict[str, Stored]:
    """Some tensors, on disk now."""
    file = work / f"{next(COUNT)}.safetensors"
    write_tensors(tensors, file)
    return layout(file).tensors


def _packed(file: Path, work: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    before = layout(file)
    found: dict[str, Stored] = {}
    shapes = {}
    for name, tensor in _read(file):
        taken = tensor is None or {*packed.pieces(name)} & {*before.tensors}
        made = None if taken else packed.pack(tensor)
        if made is None:
            found[name] = before.tensors[name]
        else:
            shapes[name] = tuple(tensor.shape)
            found |= _piece(dict(zip(packed.pieces(name), (made["mask"], made["values"]), strict=True)), work)
    return found, before.metadata | packed.metadata(shapes)


def _parted(
    plan: Plan, whole: Path, work: Path, rank: int | None
) -> tuple[dict[str, tuple[dict[str, Stored], dict[str, str]]], dict[str, tuple], Iterable[str], bool]:
    """The files of the base, the pairs by layer with their ranks, the other layers, and whether they are transposed."""
    source = open_checkpoint(whole)
    layers, _ = layers_by_name(source, plan.model.fused)
    wanted: dict[str, int] = {}
    entries = {e.name: e for e in plan.touched}
    for layer in layers:
        mine = [(site, entries[site.name]) for site in layer.sites() if site.name in entries]
        if mine and not adapter.refusal(layer, source.infos):
            asked = rank if rank is not None else sum(max(1, e.spikes or 0) for _, e in mine)
            wanted[layer.name] = min(asked, layer.cols, sum(part.rows for part in layer.parts))
    if not wanted:
        raise ValueError("no layer that the plan touches takes an adapter: write it --as dense instead")
    found = {file.name: (dict(layout(file).tensors), layout(file).metadata) for file in _files(whole)}
    pairs: dict[str, tuple] = {}
    turned = set()
    for layer in layers:
        if layer.name in wanted:
            name = leading_tensor(source, layer)
            base, A, B = adapter.of_weight(source.read(name), wanted[layer.name], layer.transposed)
            made = _piece({name: base, "A": A, "B": B}, work)
            found[source.infos[name].shard][0][name] = made[name]
            pairs[layer.name] = (wanted[layer.name], made["A"], made["B"])
            turned.add(layer.transposed)
    return found, pairs, [layer.name for layer in layers], turned == {True}
