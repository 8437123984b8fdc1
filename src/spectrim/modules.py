"""The sites of a live `nn.Module`: told by type, subclasses included, or by structure; never by the name of a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from . import factored
from .experts import expert_parts, is_stacked
from .sites import (
    Inventory,
    Layer,
    Part,
    Site,
    Skipped,
    gate_parts,
    row_parts,
    skipped_embedding,
    skipped_vector,
)

Found = list[tuple[Layer, list[nn.Parameter]]]  # the layers that a module holds itself, each with its parameters


def of_module(model: nn.Module, fused: str = "split") -> Inventory:
    """Return the inventory of a live module; its sites read and write the module's own parameters.

    A weight that several modules share is one site; a pair left by an earlier split is one matrix again. Every
    parameter is either part of a site or listed as skipped with its reason.
    """
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    embeddings = {id(p) for m in model.modules() if _is_embedding(m) for p in m.parameters(recurse=False)}
    met: dict[int, str] = {}  # id of a parameter -> where it was met first
    done: tuple[str, ...] = ()  # pairs: their halves are not layers of their own
    shared = _shared_weights(model)
    config = getattr(model, "config", None)
    config = config.to_dict() if hasattr(config, "to_dict") else {}
    for path, module in model.named_modules():
        if done and path.startswith(done):
            continue
        if any(isinstance(p, nn.parameter.UninitializedTensorMixin) for p in module._parameters.values()):
            raise ValueError(f"{path or 'the model'} has lazy parameters: run a batch through the model first")
        found = _layers(model, path, module, fused, config)
        if found and isinstance(module, nn.Sequential | nn.ModuleList):
            done = (*done, f"{path}." if path else "")
        for layer, parameters in found:
            shape = tuple(parameters[0].shape)
            first = next((met[id(p)] for p in parameters if id(p) in met), None)
            if first is None and any(id(p) in embeddings for p in parameters):
                first = "an embedding"
            if first is not None:
                skipped.append(Skipped(layer.name, "tied", shape, f"the same tensor as {first}"))
            elif why := _unreadable(parameters):
                skipped.append(Skipped(layer.name, "other", shape, why))
            elif layer.kind == "depthwise":
                skipped.append(Skipped(layer.name, layer.kind, shape, layer.note))
            elif shared & {id(p) for p in parameters}:
                layers.append(replace(layer, splittable=False, note="its weight is shared by several modules"))
            elif _watched(module):
                layers.append(replace(layer, splittable=False, note="its module has hooks or a forward of its own"))
            else:
                layers.append(layer)
            met |= {id(p): layer.name for p in parameters if id(p) not in met}
        for name, p in module.named_parameters(recurse=bool(done) and f"{path}.".lstrip(".") == done[-1]):
            if id(p) not in met:
                full = f"{path}.{name}".lstrip(".")
                met[id(p)] = full
                skipped.append(_skip(full, module, p))
    stored = {id(p): p for p in model.parameters()}.values()
    return Inventory(
        label=type(model).__name__,
        sites=tuple(site for layer in layers for site in layer.sites()),
        skipped=tuple(skipped),
        params=sum(p.numel() for p in stored),
        bytes=sum(p.numel() * p.element_size() for p in stored),
    )


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _shared_weights(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared = set()
    for module in model.modules():
        for p in module.parameters(recurse=False):
            (shared if id(p) in seen else seen).add(id(p))
    return shared


def _watched(module: nn.Module) -> bool:
    """Whether something hangs on this very module, or on what it holds, that others in its place would not call."""
    if "forward" in vars(module):
        return True
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = (getattr(m, name) for m in module.modules() for name in names)
    on_tensors = (p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in module.parameters())
    return any(on_modules) or any(on_tensors)


def _unreadable(parameters: list[nn.Parameter]) -> str:
    for p in parameters:
        if p.is_meta:
            return "it has no data (meta device): load the weights first"
        if not p.is_floating_point() or p.element_size() < 2:
            return (
                f"{str(p.dtype).removeprefix('torch.')} is not read: convert the weight to a float of 16 bits or more"
            )
    return ""


def _skip(full: str, module: nn.Module, p: nn.Parameter) -> Skipped:
    shape = tuple(p.shape)
    if _is_embedding(module):
        return skipped_embedding(full, shape)
    if p.ndim < 2:
        return skipped_vector(full, shape)
    if full.endswith(("weight_g", "weight_v", "weight_orig")):
        return Skipped(full, "other", shape, "its weight is made anew at each call (weight_norm, spectral_norm, prune)")
    if "parametrizations." in full:
        return Skipped(full, "other", shape, "part of a parametrised weight: remove the parametrisation first")
    return Skipped(full, "other", shape, f"{type(module).__name__} is not a layer whose weight is read as a matrix")


def _layers(model: nn.Module, path: str, module: nn.Module, fused: str, config: Mapping) -> Found:
    def layer(kind: str, form: str, parts, cols: int, weights: list[nn.Parameter], name: str = path, **more):
        owner = name.rpartition(".")[0] if form == "parameter" else name
        load = partial(_load, model, owner)
        store = partial(_store, model, name, owner)
        if not name:
            more |= {
                "splittable": False,
                "note": "the model is one layer: wrap it to split it, nn.Sequential(model)",
            }
        elif name.endswith("_orig_mod"):
            more |= {"splittable": False, "note": "torch.compile holds this very layer: compile it after the cuts"}
        elif isinstance(module, nn.Linear | nn.Conv2d) and not _bare(module):
            more |= {"splittable": False, "note": "it holds more than a weight and a bias, which a pair would lose"}
        elif not _plain_forward(module):
            note = f"{type(module).__name__} has a forward of its own: it can be rebuilt, not split"
            more |= {"splittable": False, "note": note}
        return Layer(name, kind, form, cols, tuple(parts), load, store, **more), weights

    if isinstance(module, nn.Sequential | factored.Parts):
        return _pairs(module, path, layer)
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase):
        return _parameters(module, path, fused, layer)
    if stacked := _stacked(module, path, fused, config, layer):
        return stacked
    weight = module._parameters.get("weight")
    if weight is None or _is_embedding(module):
        return []
    bias = module._parameters.get("bias") is not None
    if isinstance(module, nn.Conv2d) and not isinstance(module, nn.modules.conv._ConvTransposeNd):
        kernel, rows = tuple(weight.shape[1:]), weight.shape[0] // module.groups
        if kernel[0] == 1 and module.groups > 1:
            note = "depthwise: each channel has a kernel of its own, so there is no matrix between channels"
            return [layer("depthwise", "conv2d", (Part("", rows),), math.prod(kernel), [weight], note=note)]
        parts = [Part(str(g) if module.groups > 1 else "", rows) for g in range(module.groups)]
        return [layer("conv2d", "conv2d", parts, math.prod(kernel), [weight], bias=bias, kernel=kernel)]
    # GPT-2's Conv1D is told by its structure: a 2-d weight whose columns are the outputs, counted by `nf`.
    transposed = (
        weight.ndim == 2 and not isinstance(module, nn.Linear) and getattr(module, "nf", None) == weight.shape[1]
    )
    if transposed or isinstance(module, nn.Linear):
        rows, cols = reversed(weight.shape) if transposed else weight.shape
        parts, note = row_parts(path, rows, cols, fused, {**config, **_heads_near(model, path)})
        kind = "conv1d" if transposed else "linear"
        return [layer(kind, "linear", parts, cols, [weight], bias=bias, note=note, transposed=transposed)]
    return []


def _pairs(module: nn.Sequential | factored.Parts, path: str, layer) -> Found:
    children = list(module) if isinstance(module, factored.Parts) else [module]
    labels = module.labels if isinstance(module, factored.Parts) else [""]
    parts = []
    for label, child in zip(labels, children, strict=True):
        if len(children) > 1 and isinstance(child, nn.Linear | nn.Conv2d):
            first = last = child
            rank = None
        elif isinstance(child, factored.Pair) or _narrow(child):
            first, last = child
            rank = len(first.weight)
        else:
            return []
        parts.append(Part(label, len(last.weight), rank))
    kind = "conv2d" if isinstance(first, nn.Conv2d) else "linear"
    kernel = tuple(first.weight.shape[1:]) if kind == "conv2d" else ()
    more = {"bias": last.bias is not None, "kernel": kernel}
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
    return [layer(kind, kind, parts, first.weight[0].numel(), weights, **more)]


def _narrow(module: nn.Module) -> bool:
    """Whether this is two layers in a row that make one matrix of low rank: no bias and no activation between them."""
    if not isinstance(module, nn.Sequential) or len(module) != 2 or not all(map(_plain_forward, (module, *module))):
        return False
    first, last = module
    if isinstance(first, nn.Linear) and isinstance(last, nn.Linear):
        return first.bias is None and first.out_features < min(first.in_features, last.out_features)
    if isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d) and first.bias is None:
        plain = last.kernel_size == last.stride == (1, 1) and last.padding in ((0, 0), "valid", "same")
        narrow = first.out_channels < min(first.weight[0].numel(), last.out_channels)
        return plain and narrow and first.groups == last.groups == 1
    return False


def _plain_forward(module: nn.Module) -> bool:
    """Whether a subclass computes what torch's own class does: two layers may only take the place of that."""
    for base in (nn.Linear, nn.Conv2d, nn.Sequential):
        if isinstance(module, base):
            names = ("forward", "_conv_forward") if base is nn.Conv2d else ("forward",)
            return all(getattr(type(module), name) is getattr(base, name) for name in names)
    return True


def _bare(module: nn.Module) -> bool:
    return set(module._parameters) <= {"weight", "bias"} and not module._buffers and not module._modules


def _parameters(module: nn.Module, path: str, fused: str, layer) -> Found:
    """The weights that attention and recurrent modules hold themselves and hand to one fused kernel."""
    weights: dict[str, tuple[list[nn.Parameter], list[Part] | None, int, int]] = {}
    for name, p in module._parameters.items():
        if p is not None and p.ndim == 2 and "weight" in name:
            weights[name] = ([p], None, *p.shape)
    for name, chain in getattr(module, "parametrizations", {}).items():
        if isinstance(chain[0], factored.Composed):  # left by an earlier split
            parts = [Part(part.get("label", ""), part["rows"], part["rank"]) for part in chain[0].parts]
            weights[name] = (list(chain.parameters()), parts, sum(part.rows for part in parts), chain[0].cols)
    found = []
    for name, (tensors, parts, rows, cols) in weights.items():
        if isinstance(module, nn.MultiheadAttention):
            kind, labelled = "attention", row_parts(name, rows, cols, fused, {"num_heads": module.num_heads})[0]
        elif "weight_hr" in name:  # the projection of an LSTM with proj_size: no gates
            kind, labelled = "lstm", (Part("", rows),)
        else:
            kind, labelled = gate_parts(rows, module.hidden_size, fused)
        found.append(layer(kind, "parameter", parts or labelled, cols, tensors, name=f"{path}.{name}".lstrip(".")))
    return found


def _stacked(module: nn.Module, path: str, fused: str, config: Mapping, layer) -> Found:
    """The weights of a mixture of experts that are kept as one parameter, E x a x b."""
    found = []
    own = {f"{path}.{name}".lstrip("."): p for name, p in module._parameters.items() if p is not None}
    for full, p in own.items():
        if not is_stacked(full, p.shape):
            continue
        try:
            parts, note = expert_parts(full, lambda name: getattr(own.get(name), "shape", None), config, fused)
        except ValueError:
            continue
        more = {"name": full, "splittable": False, "note": note}
        found.append(layer("experts", "parameter", parts, p.shape[2], [p], **more))
    return found


def _heads_near(model: nn.Module, path: str) -> dict[str, int]:
    """The head count of the attention module that holds this projection, from its own attributes."""
    holder = model.get_submodule(path.rpartition(".")[0])
    for name in ("num_attention_heads", "num_heads", "n_head", "n_heads"):
        value = getattr(holder, name, None)
        if isinstance(value, int) and value > 0:
            return {"num_attention_heads": value}
    return {}


def _tensor(model: nn.Module, owner: str, key: str) -> Tensor:
    place, _, name = key.rpartition(".")
    return getattr(model.get_submodule(".".join(part for part in (owner, place) if part)), name)


def _load(model: nn.Module, owner: str, key: str) -> Tensor:
    tensor = _tensor(model, owner, key).detach()
    return tensor.flatten(0, -2) if tensor.ndim == 3 else tensor  # stacked experts: E x a x b as (E a) x b


def _store(model: nn.Module, name: str, owner: str, tensors: dict[str, Tensor], spec: dict | None) -> None:
    if spec is not None:
        if not name:
            raise ValueError("a model that is itself one layer has no place for two: wrap it, nn.Sequential(model)")
        factored.restructure(model, {name: spec})
    with torch.no_grad():
        for key, value in tensors.items():
            place = _tensor(model, owner, key)
            if value.data_ptr() != place.data_ptr():  # what stays where it is was handed on from there
                place.copy_(value.reshape(place.shape))


def prunable(
    model: nn.Module, fused: str = "split", only: Callable[[str], bool] | None = None
) -> tuple[list[Site], dict[str, str]]:
    """Return the matrices of a live model that may be pruned, and what is not read as one, by name, with the reason.

    ValueError where there is none, and for a model that is compiled, wrapped for several processes, or sharded.
    """
    if hasattr(model, "_orig_mod"):  # where torch.compile keeps the model that it was given
        raise ValueError("the model is compiled: prune the module that it was made of, and compile it afterwards")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError("the model is wrapped for several processes or devices: prune its .module, and wrap it anew")
    if any(hasattr(p, "placements") for p in model.parameters()):
        raise ValueError("the model is sharded over several processes (DTensor): prune it before it is sharded")
    found = of_module(model, fused)
    # Vectors and embeddings are no matrices; what would be one, and is not read as one, is told with its reason.
    skipped = {s.name: s.reason for s in found.skipped if len(s.shape) > 1 and s.kind != "embedding"}
    chosen = [site for site in found.sites if only is None or only(site.name)]
    if not chosen:
        why = "it has no linear or convolutional layer"
        if found.sites:
            why = "only= lets none of them through"
        elif skipped:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:2])
        raise ValueError(f"{type(model).__name__} has no matrix that could be pruned: {why}")
    return chosen, skipped
