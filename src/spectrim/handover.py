"""What an optimiser holds while a model changes under it: parameters leave their groups, others take their place."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from .sites import Layer, listed

Optimizers = Optimizer | Sequence[Optimizer] | None


def as_tuple(optimizers: Optimizers) -> tuple[Optimizer, ...]:
    """Return the optimisers as a tuple. TypeError for what has no parameter groups and no state."""
    if optimizers is None:
        return ()
    found = tuple(optimizers) if isinstance(optimizers, Sequence) else (optimizers,)
    for optimizer in found:
        if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise TypeError(f"expected a torch optimiser, or a list of them, not {type(optimizer).__name__}")
    return found


def check_trained(optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]) -> None:
    """Return nothing; ValueError where a parameter that takes a gradient is in no group of any of the optimisers.

    Were it replaced, the optimiser that trains it would go on with the old one, and nobody would train the new.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if any(not isinstance(group["params"], list) for optimizer in optimizers for group in optimizer.param_groups):
        raise TypeError("the parameters of an optimiser's group are a list; these cannot be exchanged in place")
    astray = [name for name, p in parameters.items() if p.requires_grad and id(p) not in held]
    if not astray:
        return
    if len(astray) == sum(p.requires_grad for p in parameters.values()):
        raise ValueError(
            "the optimiser holds none of the model's weights: it belongs to another model, or to an older copy"
        )
    raise ValueError(
        f"no optimiser given holds {listed(astray)}: give all optimisers of the model as a list, freeze "
        "these weights (requires_grad_(False)), or leave them out with only="
    )


def hand_over(
    optimizers: Sequence[Optimizer], replaced: Iterable[tuple[Sequence[nn.Parameter], Mapping[str, nn.Parameter]]]
) -> None:
    """Put new parameters where old ones stood, in the same group and place; their state starts anew.

    A group's list is changed in place, for schedulers and wrappers look at it too. Parameters that are not replaced
    keep place and state.

    Args:
        optimizers: those that may hold the old parameters.
        replaced: (old parameters, new ones by name) of each layer; the new ones go to where the first old one stood.

    Example:
        >>> old, new = nn.Parameter(torch.ones(2, 2)), {"a": nn.Parameter(torch.ones(2, 1))}
        >>> sgd = torch.optim.SGD([old])
        >>> hand_over([sgd], [([old], new)])
        >>> sgd.param_groups[0]["params"][0] is new["a"]
        True
    """
    replaced = list(replaced)
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    first = {id(next((p for p in old if id(p) in held), old[0])): new for old, new in replaced if old}
    gone = {id(p) for old, _ in replaced for p in old}
    for optimizer in optimizers:
        touched = False
        for group in optimizer.param_groups:
            params, names = [], []
            known = group.get("param_names") or [""] * len(group["params"])
            for p, name in zip(group["params"], known, strict=True):
                if id(p) not in gone:
                    params.append(p)
                    names.append(name)
                    continue
                touched = True
                optimizer.state.pop(p, None)
                for successor, value in first.get(id(p), {}).items():
                    params.append(value)
                    names.append(successor)
                    # torch's fused kernel wants a buffer for all parameters or for none; zeros are a start anew.
                    if group.get("fused") and group.get("momentum"):
                        optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
            group["params"][:] = params
            if group.get("param_names"):
                group["param_names"][:] = names
        inner = getattr(optimizer, "optimizer", optimizer)  # wrappers keep their optimiser under this name
        if touched and isinstance(inner, torch.optim.LBFGS):  # its history is of all parameters in one vector
            inner.state.clear()
            inner._numel_cache = None


class Handover:
    """While it is open layers may be replaced; at the end the optimisers hold what stands there then.

    After an error, an interrupt included, the model is put back as it was. `fresh` names, by layer, the parameters that
    took the place of others, and `gone` refers weakly to those.
    """

    def __init__(self, model: nn.Module, layers: Iterable[Layer], optimizers: Sequence[Optimizer]) -> None:
        self.model, self.optimizers = model, optimizers
        self.before = {layer.name: (layer, parameters_of(model, layer)) for layer in layers}
        self.fresh: dict[str, tuple[str, ...]] = {}
        self.gone: dict[str, weakref.ref[nn.Parameter]] = {}

    def __enter__(self) -> Handover:
        self.tree = [(m, type(m), dict(m._modules), dict(m._parameters)) for m in self.model.modules()]
        self.values = [(p, p.detach().clone()) for _, old in self.before.values() for p in old.values()]
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._put_back()
            return
        hand_over(self.optimizers, self._replaced())
        names = {id(p): name for name, p in self.model.named_parameters()}
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if group.get("param_names"):  # a bias stays, one module further down
                known = zip(group["params"], group["param_names"], strict=True)
                group["param_names"][:] = [names.get(id(p), name) for p, name in known]
        del self.tree, self.values

    def _put_back(self) -> None:
        for module, kind, modules, parameters in self.tree:
            module.__class__ = kind
            for held, before in ((module._modules, modules), (module._parameters, parameters)):
                held.clear()
                held.update(before)
        with torch.no_grad():
            for p, value in self.values:
                p.copy_(value)

    def _replaced(self) -> Iterator[tuple[list[nn.Parameter], dict[str, nn.Parameter]]]:
        for name, (layer, old) in self.before.items():
            now = parameters_of(self.model, layer)
            kept = {id(p) for p in old.values()} & {id(p) for p in now.values()}
            fresh = {key: p for key, p in now.items() if id(p) not in kept}
            self.fresh[name] = tuple(fresh)
            self.gone |= {key: weakref.ref(p) for key, p in old.items() if id(p) not in kept and p.requires_grad}
            for vectors in (False, True):  # a bias that was cut into pieces goes where the bias was
                gone = [p for p in old.values() if id(p) not in kept and (p.ndim == 1) is vectors]
                new = {key: p for key, p in fresh.items() if (p.ndim == 1) is vectors}
                if gone:
                    yield gone, new


def parameters_of(model: nn.Module, layer: Layer) -> dict[str, nn.Parameter]:
    """Return the parameters of a layer as it stands in the model now, by their full names."""
    if layer.form != "parameter":
        return {f"{layer.name}.{key}": p for key, p in model.get_submodule(layer.name).named_parameters()}
    owner, _, tensor = layer.name.rpartition(".")
    module = model.get_submodule(owner)
    place = f"{owner}." if owner else ""
    if tensor in module._parameters:
        return {layer.name: module._parameters[tensor]}
    chain = module.parametrizations[tensor]
    return {f"{place}parametrizations.{tensor}.{key}": p for key, p in chain.named_parameters()}
