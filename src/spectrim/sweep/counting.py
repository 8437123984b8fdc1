"""What a model holds and what it multiplies, counted on the model itself: zeros, numbers stored, multiply-adds.

Multiply-adds are those of the weights: one for each entry of a matrix and each position (token, pixel) that it is
applied to. The products inside attention have no weights; no method here changes them, and they are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.rnn import PackedSequence

from ..sites import Inventory, Site
from ..survey import inventory

Place = tuple[str, int]  # the name of a layer and the number of its row block


@dataclass
class Positions:
    """How often each matrix was applied while a model ran, and the multiply-adds of what is no matrix of a survey."""

    of: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    other: int = 0
    unseen: tuple[str, ...] = ()  # matrices that modules use by hand, where no hook sees them

    def executed(self, found: Inventory) -> int:
        """Return the multiply-adds of a model as a machine carries them out: a zero is multiplied like any number."""
        return self.other + sum(self._at(site) * site.params for site in found.sites)

    def weighted(self, found: Inventory) -> int:
        """Return the multiply-adds with entries that are not zero: what is left where zeros cost nothing."""
        return self.other + sum(self._at(site) * nonzeros(site) for site in found.sites)

    def _at(self, site: Site) -> int:
        return self.of.get((site.layer.name, site.part), 0)


@dataclass(frozen=True)
class Counts:
    """What was counted on one model.

    `entries` are those of the candidates of the dense model, `stored` the numbers that stand for them now, `zeros`
    how many of these are exactly zero, `missing` the candidates that are not to be found any more. `params` and
    `nonzeros` are of the whole model.
    """

    entries: int
    stored: int
    zeros: int
    params: int
    nonzeros: int
    macs_nonzero: int
    macs_executed: int
    missing: tuple[str, ...] = ()

    @property
    def kept(self) -> float:
        """Numbers that are not zero over entries of the dense model, in the candidates, in [0, 1]."""
        return (self.stored - self.zeros) / self.entries


def count(model: nn.Module, candidates: Iterable[tuple[str, int]], seen: Positions) -> Counts:
    """Return the `Counts` of a model.

    Args:
        model: what is counted.
        candidates: name and number of entries of each matrix that a method might change, in the dense model.
        seen: the positions from a run of the dense model.
    """
    found = inventory(model)
    sites = {site.name: site for site in found.sites}
    candidates = dict(candidates)
    there = [sites[name] for name in candidates if name in sites]
    stored = {id(p): p for p in model.parameters()}.values()
    return Counts(
        entries=sum(candidates.values()),
        stored=sum(site.params for site in there),
        zeros=sum(site.params - nonzeros(site) for site in there),
        params=sum(p.numel() for p in stored),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in stored),
        macs_nonzero=seen.weighted(found),
        macs_executed=seen.executed(found),
        missing=tuple(name for name in candidates if name not in sites),
    )


def nonzeros(site: Site) -> int:
    """Return how many of the numbers stored for a matrix are not exactly zero."""
    return sum(int(torch.count_nonzero(t)) for t in site.stored())


@contextmanager
def watched(model: nn.Module) -> Iterator[Positions]:
    """Yield the `Positions` of what runs inside the block, counted by forward hooks that are gone after it.

    Seen are linear layers and convolutions, transformers' Conv1D, pairs, `nn.MultiheadAttention` (its fused projection
    and its output) and recurrent layers.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
        >>> with watched(net) as seen:
        ...     _ = net(torch.zeros(5, 6))
        >>> seen.executed(inventory(net))
        120
    """
    seen, hooks = Positions(), []

    def watch(module: nn.Module, act: Callable) -> None:
        hooks.append(module.register_forward_hook(act, with_kwargs=True))

    layers: dict[str, list[Site]] = defaultdict(list)
    for site in inventory(model).sites:
        layers[site.layer.name].append(site)
    met, inside, weights = set(), [], {}
    for name, sites in layers.items():
        parameter = sites[0].layer.form == "parameter"
        module = model.get_submodule(name.rpartition(".")[0] if parameter else name)
        user = module if parameter or not name else model.get_submodule(name.rpartition(".")[0])
        met.add(id(module))
        if isinstance(user, nn.MultiheadAttention):  # it uses the weight of its output layer, and never calls it
            watch(user, _attended(seen, sites))
        elif isinstance(user, nn.RNNBase | nn.RNNCellBase):
            watch(user, _steps(seen, sites))
        elif parameter:
            seen.unseen = (*seen.unseen, *(site.name for site in sites))
        else:
            watch(module, _outputs(seen, sites))
            inside += [f"{name}."] if name else []  # the halves of a pair
            if isinstance(getattr(module, "weight", None), Tensor):
                weights[id(module.weight)] = sites
    for path, module in model.named_modules():
        if id(module) in met or path.startswith(tuple(inside)) or isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        if sites := weights.get(id(getattr(module, "weight", None))):  # another layer of the same weight
            watch(module, _outputs(seen, sites))
        elif isinstance(module, nn.Linear | _ConvNd):
            watch(module, _others(seen))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(seen: Positions, sites: list[Site]) -> Callable:
    rows = sum(part.rows for part in sites[0].layer.parts)

    def act(module, args, kwargs, out) -> None:
        for site in sites:
            seen.of[site.layer.name, site.part] += out.numel() // rows

    return act


def _steps(seen: Positions, sites: list[Site]) -> Callable:
    def act(module, args, kwargs, out) -> None:
        x = args[0] if args else kwargs["input"]
        steps = x.data.shape[0] if isinstance(x, PackedSequence) else x.numel() // module.input_size
        for site in sites:
            seen.of[site.layer.name, site.part] += steps

    return act


def _attended(seen: Positions, sites: list[Site]) -> Callable:
    """Queries go through q and the output projection, keys and values through k and v."""

    def act(module, args, kwargs, out) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key = given["query"], given["key"]
        queries, keys = query.numel() // query.shape[-1], key.numel() // key.shape[-1]
        for site in sites:
            label = site.layer.parts[site.part].label[:1]
            from_key = label in ("k", "v") or site.layer.name.rpartition(".")[2] in ("k_proj_weight", "v_proj_weight")
            seen.of[site.layer.name, site.part] += keys if from_key else queries

    return act


def _others(seen: Positions) -> Callable:
    def act(module, args, kwargs, out) -> None:
        weight = module.weight
        if isinstance(module, _ConvTransposeNd):
            seen.other += (args[0] if args else kwargs["input"]).numel() // module.in_channels * weight.numel()
        else:
            seen.other += out.numel() // weight.shape[0] * weight.numel()

    return act
