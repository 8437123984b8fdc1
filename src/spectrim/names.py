"""The sites of a checkpoint without its model class: what each tensor is, by its name, shape and siblings."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from . import fp8
from .checkpoint import Checkpoint, Info
from .experts import expert_parts, is_bias, is_stacked
from .sites import (
    FUSED_NAMES,
    GATES,
    READ_ONLY,
    Inventory,
    Layer,
    Part,
    Skipped,
    gate_parts,
    row_parts,
    skipped_embedding,
    skipped_vector,
)

RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
EMBEDDING = re.compile(
    r"embed|embs?\d*(_|$)|^wte$|^wpe$|^shared$|relative_attention_bias|codebook|lookup_table", re.IGNORECASE
)
NOT_EMBEDDING = re.compile(r"proj|linear|dense", re.IGNORECASE)
CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")  # names under which GPT-2 and its kin keep inputs x outputs
PAIR = re.compile(r"^(.*)\.0\.weight$")
OWN = re.compile(r"(\d+\.){0,2}(weight|bias)")  # what a layer stores under its name, whole or in parts
HEADS = ("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim")


def of_checkpoint(checkpoint: Checkpoint, fused: str = "split") -> Inventory:
    """Return the inventory of a checkpoint; a site's `get` reads from the file, its `put` and `split` fill `edits`."""
    layers, skipped = layers_by_name(checkpoint, fused)
    infos = [info for name, info in checkpoint.infos.items() if name not in checkpoint.tied]
    return Inventory(
        label=checkpoint.label,
        sites=tuple(site for layer in layers for site in layer.sites()),
        skipped=tuple(skipped),
        params=sum(info.numel for info in infos),
        bytes=sum(info.nbytes for info in infos),
    )


def layers_by_name(checkpoint: Checkpoint, fused: str = "split") -> tuple[list[Layer], list[Skipped]]:
    """Return the layers of a checkpoint in its order, and the tensors that are none, with the reason."""
    infos = checkpoint.infos
    layers: dict[str, Layer] = {}  # by the stored name of the tensor that leads it
    skipped: list[Skipped] = []
    halves: set[str] = set()
    for name, spec in checkpoint.splits.items():
        if layer := _split_before(checkpoint, name, spec):
            keys = stored_tensors(checkpoint, name, spec["form"])
            halves |= set(keys)
            layers[keys[0]] = layer
    transposed = _conv1d_evidence(checkpoint)
    under = Counter(name[: dot.start()] for name in infos for dot in re.finditer(r"\.", name))  # tensors below a path
    aliases = {first: name for name, first in checkpoint.tied.items()}
    for name, info in infos.items():
        if name in halves:
            if len(info.shape) < 2:
                skipped.append(skipped_vector(name, info.shape))
            continue
        if name in checkpoint.tied:
            skipped.append(Skipped(name, "tied", info.shape, f"the same tensor as {checkpoint.tied[name]}"))
            continue
        found = _classify(checkpoint, name, info, fused, transposed)
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        if found.kind == READ_ONLY:
            layers[name] = found
            continue
        if name in aliases:
            if isinstance(_classify(checkpoint, aliases[name], info, fused, transposed), Skipped):
                skipped.append(Skipped(name, "tied", info.shape, f"the same tensor as {aliases[name]}, an embedding"))
                continue
            found = replace(found, splittable=False, note=f"its weight is shared with {aliases[name]}")
        elif found.form != "parameter" and under[found.name] > 1 + found.bias and not _foreign_pair(checkpoint, name):
            why = "more is stored with it than a weight and a bias, so its layer computes more than a product"
            found = replace(found, splittable=False, note=why)
        if not found.name and found.form != "parameter":
            found = replace(found, splittable=False, note="the model is this one layer: it has no place for two")
        if pair := _foreign_pair(checkpoint, name):
            halves |= {f"{pair}.1.weight", f"{pair}.1.bias"}
            found = _pair_layer(checkpoint, pair)
        layers[name] = found
    order = {name: i for i, name in enumerate(infos)}
    return [layers[name] for name in sorted(layers, key=order.__getitem__)], skipped


def leading_tensor(checkpoint: Checkpoint, layer: Layer) -> str:
    """Return the stored name of the first tensor of a layer: the trimmed layer is written to that tensor's file.

    ValueError where a layer is read only.
    """
    if layer.kind == READ_ONLY:
        raise ValueError(f"{layer.name} cannot be cut: {layer.note}")
    return _stored(checkpoint, layer, layer.key(0, 0 if layer.parts[0].rank is not None else None))


def stored_tensors(checkpoint: Checkpoint, name: str, form: str) -> list[str]:
    """Return the names of all tensors of a layer, its bias included, in the order of the checkpoint."""
    whole = [name] if name in checkpoint.infos else []
    if form == "parameter":
        owner, _, tensor = name.rpartition(".")
        return whole + checkpoint.below.get(f"{owner}.parametrizations.{tensor}".lstrip("."), [])
    stem = f"{name}."
    return whole + [key for key in checkpoint.below.get(name, ()) if OWN.fullmatch(key.removeprefix(stem))]


def _classify(
    checkpoint: Checkpoint, name: str, info: Info, fused: str, transposed: dict[str, bool]
) -> Layer | Skipped:
    infos, shape, last = checkpoint.infos, info.shape, name.rpartition(".")[2]
    path = name.removesuffix("weight").rstrip(".") if last == "weight" else name
    if (weight := fp8.scaled_by(checkpoint, name)) is not None:
        return Skipped(name, "scale", shape, f"the scales of {weight}")
    if info.dtype in fp8.DTYPES:
        return _of_fp8(checkpoint, name, info, fused, transposed)
    if not info.dtype.is_floating_point or info.dtype.itemsize < 2:
        why = f"{str(info.dtype).removeprefix('torch.')} is not read: convert it to a float of 16 bits or more"
        return Skipped(name, "other", shape, why)
    if len(shape) < 2:
        return skipped_vector(name, shape)
    if 0 in shape:
        return Skipped(name, "other", shape, "it has no entries")
    if len(shape) == 4:
        if shape[1] == 1 and shape[0] > 1:
            why = (
                "one input channel a kernel: depthwise, or the first layer for grey images; a file does not tell which"
            )
            return Skipped(path, "depthwise", shape, why)
        bias = infos.get(f"{path}.bias".lstrip("."))
        if bias is not None and bias.shape != (shape[0],):
            return Skipped(path, "other", shape, "its bias fits no Conv2d of this shape: a transposed convolution")
        note = "the groups of a convolution do not stand in a file: taken as one"
        more = {"bias": bias is not None, "kernel": shape[1:], "note": note}
        return _layer(checkpoint, path, "conv2d", "conv2d", (Part("", shape[0]),), math.prod(shape[1:]), **more)
    if is_stacked(name, shape):
        try:
            parts, note = expert_parts(
                name, lambda key: getattr(infos.get(key), "shape", None), checkpoint.config, fused
            )
        except ValueError as error:
            return Skipped(name, "other", shape, str(error))
        return _layer(checkpoint, name, "experts", "parameter", parts, shape[2], splittable=False, note=note)
    if is_bias(name, shape):
        return Skipped(name, "bias", shape, "the biases of experts, a row each")
    if len(shape) != 2:
        return Skipped(name, "other", shape, f"{len(shape)} dimensions: not the weight of a linear layer or a Conv2d")
    rows, cols = shape
    if RECURRENT.search(last):
        hidden = infos.get(name.replace("weight_ih", "weight_hh").replace("weight_hr", "weight_hh"))
        kind, parts = gate_parts(rows, hidden.shape[1] if hidden and len(hidden.shape) == 2 else cols, fused)
        if "weight_hr" in last:
            kind, parts = "lstm", (Part("", rows),)
        elif name.replace("weight_hh", "weight_hr").replace("weight_ih", "weight_hr") in infos:
            kind, parts = "lstm", gate_parts(4, 1, fused)[1]  # with a projection weight_hh is narrower than the state
            parts = tuple(Part(part.label, rows // len(parts)) for part in parts)
        return _layer(checkpoint, name, kind, "parameter", parts, cols)
    if last in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        parts, note = row_parts(last, rows, cols, fused, _heads(checkpoint))
        return _layer(checkpoint, name, "attention", "parameter", parts, cols, note=note)
    if EMBEDDING.search(path.rpartition(".")[2]) and not NOT_EMBEDDING.search(path.rpartition(".")[2]):
        return skipped_embedding(name, shape)
    if last != "weight":
        note = "a bare tensor: the layer that uses it is not known, so it can be rebuilt, not split"
        return _layer(checkpoint, name, "linear", "linear", (Part("", rows),), cols, splittable=False, note=note)
    note = ""
    turned = transposed.get(path, False)
    if turned is None:
        turned, note = (
            False,
            "square, and nothing tells whether it is kept transposed (Conv1D): taken as outputs x inputs",
        )
    if turned:
        rows, cols = cols, rows
    parts, doubt = row_parts(path, rows, cols, fused, _heads(checkpoint))
    more = {"bias": f"{path}.bias".lstrip(".") in infos, "transposed": turned, "note": note or doubt}
    return _layer(checkpoint, path, "conv1d" if turned else "linear", "linear", parts, cols, **more)


def _of_fp8(checkpoint: Checkpoint, name: str, info: Info, fused: str, transposed: dict[str, bool]) -> Layer | Skipped:
    """What the tensor would be if it were kept in floats that can be written too."""
    found = _classify(checkpoint, name, replace(info, dtype=torch.float32), fused, transposed)
    if isinstance(found, Skipped) or len(info.shape) > 3:
        return found if isinstance(found, Skipped) else Skipped(name, "other", info.shape, "fp8 of 4 dimensions")
    try:
        fp8.check(checkpoint, name)
    except ValueError as error:
        return Skipped(name, "other", info.shape, f"fp8: {error}")
    scaled = "" if fp8.scale_of(checkpoint, name) else " and has no scales beside it"
    note = f"kept as fp8{scaled}: read only, convert it to a float of 16 bits or more to cut it"
    return replace(found, kind=READ_ONLY, splittable=False, note="; ".join(filter(None, [note, found.note])))


def _heads(checkpoint: Checkpoint) -> dict[str, int | bool]:
    """What config.json says of heads, as far as it can be: a file may say anything."""
    counts = {key: checkpoint.config.get(key) for key in HEADS}
    known: dict[str, int | bool] = {key: n for key, n in counts.items() if type(n) is int and n > 0}
    return known | {"multi_query": checkpoint.config.get("multi_query") is True}


def _conv1d_evidence(checkpoint: Checkpoint) -> dict[str, bool | None]:
    """Whether each weight under a Conv1D name is kept transposed: told by its bias, by q, k, v, or by the others.

    None where nothing tells. nanoGPT keeps plain linear layers under the same names, so names alone decide nothing.
    """
    told: dict[str, bool | None] = {}
    for name, info in checkpoint.infos.items():
        path = name.removesuffix(".weight")
        if path == name or len(info.shape) != 2 or not CONV1D.search(path):
            continue
        rows, cols = info.shape
        bias = checkpoint.infos.get(f"{path}.bias")
        told[path] = None
        if rows != cols and bias is not None:
            told[path] = bias.shape == (cols,)
        elif rows != cols and FUSED_NAMES.search(path):
            told[path] = cols == 3 * rows
    votes = {value for value in told.values() if value is not None}
    if not votes and checkpoint.config.get("model_type") in ("gpt2", "openai-gpt", "imagegpt", "decision_transformer"):
        votes = {True}
    settled = votes.pop() if len(votes) == 1 else None
    return {path: settled if value is None else value for path, value in told.items()}


def _foreign_pair(checkpoint: Checkpoint, name: str) -> str:
    """The path of two layers in a row without a bias between, or "": x.0.weight (r x n), x.1.weight (m x r)."""
    match = PAIR.match(name)
    infos = checkpoint.infos
    if not match or f"{match[1]}.0.bias" in infos or f"{match[1]}.1.weight" not in infos:
        return ""
    inner, outer = infos[name].shape, infos[f"{match[1]}.1.weight"].shape
    alone = not any(f"{match[1]}.{i}.weight" in infos for i in range(2, 4))  # not the head of a longer stack
    plain = len(outer) == len(inner) and all(size == 1 for size in outer[2:])
    kept = {infos[key].dtype for key in (name, f"{match[1]}.1.weight")}
    if not (alone and plain and len(kept) == 1 and kept.isdisjoint(fp8.DTYPES)):
        return ""
    return match[1] if inner[0] == outer[1] < min(math.prod(inner[1:]), outer[0]) else ""


def _pair_layer(checkpoint: Checkpoint, path: str) -> Layer:
    inner, outer = checkpoint.infos[f"{path}.0.weight"].shape, checkpoint.infos[f"{path}.1.weight"].shape
    form = "conv2d" if len(inner) == 4 else "linear"
    parts = (Part("", outer[0], inner[0]),)
    kernel = inner[1:] if form == "conv2d" else ()
    bias = f"{path}.1.bias" in checkpoint.infos
    note = "two layers in a row without bias between: taken as one matrix"
    return _layer(checkpoint, path, form, form, parts, math.prod(inner[1:]), bias=bias, kernel=kernel, note=note)


def _split_before(checkpoint: Checkpoint, name: str, spec: dict) -> Layer | None:
    parts = tuple(Part(part.get("label", ""), part["rows"], part["rank"]) for part in spec["parts"])
    kind = spec["form"]
    if kind == "parameter":
        kind = "attention" if "proj" in name else GATES.get(len(parts), ("rnn", ""))[0]
    layer = _layer(checkpoint, name, kind, spec["form"], parts, spec["cols"])
    if any(_stored(checkpoint, layer, layer.key(i, half)) not in checkpoint.infos for i, half in _keys(layer)):
        raise ValueError(
            f"{checkpoint.label}: spectrim.json says that {name!r:.160} was split, but its halves are not there"
        )
    last = len(parts) - 1
    bias_key = (f"{last}." if last else "") + ("bias" if parts[last].rank is None else "1.bias")
    bias = spec["form"] != "parameter" and f"{name}.{bias_key}" in checkpoint.infos
    kernel = ()
    if spec["form"] == "conv2d":
        first = layer.key(0, None if parts[0].rank is None else 0)
        kernel = checkpoint.infos[_stored(checkpoint, layer, first)].shape[1:]
    for i, half in _keys(layer):
        info, part = checkpoint.infos[_stored(checkpoint, layer, layer.key(i, half))], parts[i]
        rows = part.rank if half == 0 else part.rows
        cols = part.rank if half == 1 else spec["cols"]
        if info.shape[:1] != (rows,) or math.prod(info.shape[1:]) != cols or not info.dtype.is_floating_point:
            raise ValueError(
                f"{checkpoint.label}: spectrim.json says that {name!r:.160} was split, but what stands there is not "
                "its parts"
            )
    return replace(layer, bias=bias, kernel=kernel)


def _keys(layer: Layer) -> list[tuple[int, int | None]]:
    return [(i, half) for i, part in enumerate(layer.parts) for half in ((0, 1) if part.rank is not None else (None,))]


def _layer(checkpoint: Checkpoint, name: str, kind: str, form: str, parts, cols: int, **more) -> Layer:
    layer = Layer(name, kind, form, cols, tuple(parts), load=lambda key: None, store=lambda tensors, spec: None, **more)
    # The closures need the layer's own keys; replace() hands the finished layer to them.
    return replace(
        layer,
        load=lambda key: _load(checkpoint, layer, key),
        load_rows=lambda key, start, stop: _load(checkpoint, layer, key, start, stop),
        store=lambda tensors, spec: _store(checkpoint, layer, tensors, spec),
    )


def _stored(checkpoint: Checkpoint, layer: Layer, key: str) -> str:
    owner = layer.name.rpartition(".")[0] if layer.form == "parameter" else layer.name
    full = f"{owner}.{key}".lstrip(".")
    return layer.name if key == "weight" and full not in checkpoint.infos else full


def _load(checkpoint: Checkpoint, layer: Layer, key: str, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a tensor, or all of it; that of stacked experts, E x a x b, as (E a) x b."""
    name = _stored(checkpoint, layer, key)
    info = checkpoint.infos.get(name)
    if info is not None and info.dtype in fp8.DTYPES:
        return fp8.dequantised(checkpoint, name, start, math.prod(info.shape[:-1]) if stop is None else stop)
    edited = (checkpoint.edits.get(name) or {}).get(name)
    if edited is None and stop is not None:
        return checkpoint.read_rows(name, start, stop)
    tensor = checkpoint.read(name) if edited is None else edited
    return (tensor.flatten(0, -2) if tensor.ndim == 3 else tensor)[start:stop]


def _store(checkpoint: Checkpoint, layer: Layer, tensors: dict[str, Tensor], spec: dict | None) -> None:
    name, lead = layer.name, leading_tensor(checkpoint, layer)
    owner = name.rpartition(".")[0] if layer.form == "parameter" else name
    full = {f"{owner}.{key}".lstrip("."): value for key, value in tensors.items()}
    if spec is None:
        for key, value in full.items():
            key = name if key not in checkpoint.infos else key
            info = checkpoint.infos[key]
            checkpoint.edits[key] = {key: value.to(info.dtype).reshape(info.shape)}
        return
    for key in stored_tensors(checkpoint, name, layer.form):
        checkpoint.edits[key] = {}
    dtype = checkpoint.infos[lead].dtype  # of the weight; a bias may be kept in another
    checkpoint.edits[lead] = {key: value if key.endswith("bias") else value.to(dtype) for key, value in full.items()}
    checkpoint.splits.pop(name, None)
    checkpoint.splits[name] = spec
