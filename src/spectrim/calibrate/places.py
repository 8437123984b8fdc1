"""Where a constant can be added to the outputs of a matrix, exactly, without a new parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..sites import Site
from .gather import Batch, chosen_sites
from .stored.run import Weights, run, stand_in, tensors_of

NORMS = {"native_batch_norm": 3, "cudnn_batch_norm": 3, "_native_batch_norm_legit_no_training": 3}
MAPS = ("addmm", "mm", "linear", "convolution")


@dataclass(frozen=True)
class Place:
    """A stretch of a model's tensor that is added to the outputs of one matrix, or subtracted from them.

    Args:
        site: name of the matrix.
        kind: "bias", of the layer itself, or "running_mean", of the batch normalisation that directly follows it.
        tensor: name of the parameter or buffer.
        start, rows: where the outputs of this matrix stand in it.
    """

    site: str
    kind: str
    tensor: str
    start: int
    rows: int

    def sign(self) -> float:
        """Return 1 where the tensor is added to the outputs, -1 where it is subtracted."""
        return -1.0 if self.kind == "running_mean" else 1.0

    def target(self, model: nn.Module) -> Tensor:
        """Return the stretch itself, (rows,), of a live model."""
        owner, _, name = self.tensor.rpartition(".")
        return getattr(model.get_submodule(owner), name).detach()[self.start : self.start + self.rows]


def shift_places(
    model: nn.Module,
    example: Batch | None = None,
    *,
    sites: Sequence[Site] | None = None,
    only: Callable[[str], bool] | None = None,
) -> dict[str, Place]:
    """Return where a constant can be added to the outputs of each matrix; one that has no such place is absent.

    It is the layer's own bias; or, where it has none, the running mean of the batch normalisation that is the only one
    to read its output, of which the constant is taken away: in evaluation that is the same as a bias behind the layer,
    exactly. A tensor that several modules share is no place, nor is a normalisation of several layers.

    Args:
        model: a live module.
        example: one batch as the model takes it; only its shapes count. None: made from the model's signature.
        sites: matrices that a place is wanted for; all that the model has, if not given.
        only: a function of a name, that lets a matrix take part.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> {name: (place.kind, place.tensor) for name, place in shift_places(net).items()}
        {'0': ('running_mean', '1.running_mean'), '3': ('bias', '3.bias')}
    """
    chosen = chosen_sites(model, sites, only)
    weights = Weights(chosen)
    met: set[str] = set()
    outputs: dict[str, list[Tensor]] = {}
    readers: dict[int, list[tuple[str, tuple, Any]]] = {}
    normed: Counter[int] = Counter()
    held: list[Any] = []  # a tensor that is let go could hand its id to another one

    def seen(func, args, kwargs, out):
        held.append((args, kwargs, out))
        name = func.overloadpacket.__name__
        for tensor in tensors_of((args, kwargs)):
            readers.setdefault(id(tensor), []).append((name, args, out))
            for site, _ in weights.used(tensor):
                met.add(site.name)
                if name in MAPS and isinstance(out, Tensor):
                    outputs.setdefault(site.name, []).append(out)
        if name in NORMS and isinstance(args[3], Tensor):
            normed[args[3].untyped_storage().data_ptr()] += 1

    returned = {id(tensor) for tensor in tensors_of(run(model, stand_in(model, example), seen))}
    biases = _biases(model)
    buffers = {id(buffer): name for name, buffer in model.named_buffers()}
    found = {}
    for site in chosen:
        if site.name not in met:
            continue
        place = _own_bias(model, site, biases) or _norm(site, outputs, readers, returned, buffers, normed)
        if place is not None:
            found[site.name] = place
    return found


def _biases(model: nn.Module) -> Counter[int]:
    """Returns how many modules hold each parameter."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)


def _own_bias(model: nn.Module, site: Site, holders: Counter[int]) -> Place | None:
    layer = site.layer
    start = sum(part.rows for part in layer.parts[: site.part])
    if layer.form == "parameter":
        owner, _, name = layer.name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, nn.MultiheadAttention):
            name = "in_proj_bias"
            thirds = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            last = layer.name.rpartition(".")[2]
            start += thirds.index(last) * module.embed_dim if last in thirds else 0
        elif "weight_hr" in name:
            return None
        else:
            name = name.replace("weight", "bias", 1)
        full = f"{owner}.{name}".lstrip(".")
    elif not layer.bias:
        return None
    else:
        key = "bias"
        if layer.stored_as_parts:
            key, start = layer._bias_keys()[site.part], 0
        full = f"{layer.name}.{key}".lstrip(".")
    owner, _, name = full.rpartition(".")
    bias = model.get_submodule(owner)._parameters.get(name)
    if bias is None or bias.ndim != 1 or holders[id(bias)] > 1 or bias.numel() < start + site.rows:
        return None
    return Place(site.name, "bias", full, start, site.rows)


def _norm(site: Site, outputs, readers, returned, buffers, normed) -> Place | None:
    layer = site.layer
    outs = outputs.get(site.name, [])
    if layer.stored_as_parts or len(outs) != 1 or id(outs[0]) in returned:
        return None
    out = outs[0]
    followers = readers.get(id(out), [])
    if len(followers) != 1 or followers[0][0] not in NORMS or followers[0][1][0] is not out:
        return None
    mean = followers[0][1][3]
    once = isinstance(mean, Tensor) and normed[mean.untyped_storage().data_ptr()] == 1
    if not once or id(mean) not in buffers or followers[0][1][5] is True:
        return None
    start = sum(part.rows for part in layer.parts[: site.part])
    return Place(site.name, "running_mean", buffers[id(mean)], start, site.rows)
