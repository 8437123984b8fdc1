"""The blocks of a model that are trained one after another, and their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import Tensor, nn

from ..calibrate.gather import Batch, quiet
from ..calibrate.gather import run as run_batch
from ..modules import of_module
from ..sites import listed


def units_of(
    model: nn.Module,
    dense: nn.Module,
    held: list[Batch],
    named: Sequence[str] | None,
    only: Callable[[str], bool] | None,
    biases: bool,
    norms: bool,
) -> dict[str, list[nn.Parameter]]:
    """Return the blocks to train, in the order in which they run, with the parameters that are trained in each."""
    modules, others = dict(model.named_modules()), dict(dense.named_modules())
    chosen = _blocks(model) if named is None else list(named)
    if unknown := [name for name in chosen if name not in modules or name not in others]:
        raise ValueError(f"{listed(unknown)} is no module of both models")
    order: list[str] = []
    with ExitStack() as hooks:
        for name in chosen:
            hook = modules[name].register_forward_pre_hook(lambda *_, name=name: order.append(name))
            hooks.callback(hook.remove)
        with quiet(model):
            run_batch(model, held[0], 0)
    matrices = {site.layer.name for site in of_module(model).sites if only is None or only(site.name)}
    units = {}
    for name in dict.fromkeys(order):
        if order.count(name) > 1 and named is None:
            continue  # a block that is called several times a run has no one input and output
        units[name] = _parameters(name, modules[name], matrices, biases, norms)
    wrong = [p.dtype for ps in units.values() for p in ps if p.is_floating_point() and p.element_size() < 4]
    if wrong:
        told = str(wrong[0]).removeprefix("torch.")
        raise ValueError(
            f"{told} weights are too coarse for steps of an optimiser: recover a model.float() and cast it back, or "
            "train=False for the least squares alone"
        )
    return {name: parameters for name, parameters in units.items() if parameters}


def _blocks(model: nn.Module) -> list[str]:
    """The items of the outermost stacks that hold more than a layer each; the whole model if there are none."""
    found: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{inside}.") or name == inside for inside in found) or not isinstance(
            module, nn.ModuleList | nn.Sequential
        ):
            continue
        items = [(key, child) for key, child in module.named_children() if _holds(child)]
        # Layers one after another are one block: what is between them is where they meet.
        if len(items) > 1 and all(any(True for _ in child.children()) for _, child in items):
            found += [f"{name}.{key}".lstrip(".") for key, _ in items]
    return found or [""]


def _holds(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters())


def _parameters(name: str, block: nn.Module, matrices: set[str], biases: bool, norms: bool) -> list[nn.Parameter]:
    found: dict[int, nn.Parameter] = {}
    for path, module in block.named_modules(prefix=name):
        own = {m.rpartition(".")[2] for m in matrices if m.rpartition(".")[0] == path}  # weights of attention, of gates
        whole = path in matrices or any(isinstance(getattr(module, key, None), Tensor) for key in own)
        inside = any(path.startswith(f"{m}.") for m in matrices)  # halves of a pair
        table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for key, p in module.named_parameters(recurse=False):
            matrix = p.ndim > 1 and not table and (whole or inside)
            bias = p.ndim == 1 and biases and (whole or inside)
            norm = p.ndim == 1 and norms and not (whole or inside) and not table
            if p.is_floating_point() and (matrix or bias or norm) and key != "num_batches_tracked":
                found[id(p)] = p
    return list(found.values())
