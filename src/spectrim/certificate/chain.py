"""A model as a list of steps that a bound can be taken through, each with its weights before and after the cut.

Both models are read as torch.fx sees them. Nothing is run here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..linalg import singular_values
from .curves import Curve, curve_of
from .weights import both, of_layer, of_norm, overlap

SAFE = 1 + 1e-8  # a computed singular value is right to 1e-14 or so


@dataclass(eq=False)
class Affine:
    """x -> op(x, W) + bias, with `op` linear in both; float64, of the dense model and of the cut one.

    Args:
        op: the map; op(|x|, |W|) bounds it.
        dense: (W, bias or None).
        cut: the same of the cut model.
        size: what stands behind an entry of the cut W before sums: |left| |right| of a pair, else |W|.
        offset: the same for the bias, or None.
        terms: numbers summed for one output; 0: as many as there are inputs to one.
        spread: in how many windows one input can stand; the norm is at most sqrt(spread) that of the matrix.
        bound: an upper bound of the norm where it is known without a decomposition.
        squares: whether op(x, W^2) sums the squares of the entries of a row, times x.
    """

    name: str
    op: Callable[[Tensor, Tensor], Tensor]
    dense: tuple[Tensor, Tensor | None]
    cut: tuple[Tensor, Tensor | None]
    size: Tensor
    offset: Tensor | None = None
    terms: int = 0
    spread: int = 1
    bound: float | None = None
    squares: bool = True
    before: int = 0

    @cached_property
    def norm(self) -> float:
        """An upper bound of the operator norm of the cut map."""
        if self.bound is not None:
            return self.bound * SAFE
        if float(self.cut[0].abs().max()) > 1e100:  # whose squares overflow
            return math.inf
        values = singular_values(self.cut[0].flatten(1))
        return float(values[0]) * math.sqrt(self.spread) * SAFE if len(values) else 0.0


@dataclass(eq=False)
class Bend:
    """x -> f(x), entry by entry."""

    name: str
    curve: Curve
    before: int = 0


@dataclass(eq=False)
class Largest:
    """Max pooling over windows of an image."""

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    before: int = 0


@dataclass(eq=False)
class Shape:
    """The same numbers in another shape, sample by sample."""

    name: str
    to: Callable[[Tensor], Tensor]
    before: int = 0


@dataclass(eq=False)
class Sum:
    """The sum of two earlier results."""

    name: str
    befores: tuple[int, int]


Step = Affine | Bend | Largest | Shape | Sum


@dataclass(eq=False)
class Chain:
    """Steps in the order they run; `before` of a step is the result that it takes: 0 the input, i that of step i - 1.

    `soft`: the model ends in a softmax or its logarithm, which is left out here: it keeps the order of the outputs.
    """

    steps: list[Step] = field(default_factory=list)
    soft: bool = False


def read_chain(dense: nn.Module, cut: nn.Module) -> Chain:
    """Return the steps of two models of one architecture, both in evaluation mode; their weights in float64.

    ValueError names the first thing that no bound is known for.
    """
    graph = _traced(dense, set())
    leaves = {node.target for node in graph.nodes if node.op == "call_module"}
    for model in (dense, cut):
        for name, module in model.named_modules():
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                raise ValueError(f"{name or 'the model'} has hooks or a forward of its own: take them off first")
    if str(graph) != str(_traced(cut, leaves)):
        raise ValueError("the cut model does not run the same layers as the model: cut a copy of the model itself")
    chain, known = Chain(), {}
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.users and known:
                raise _refused(node.name, "the model takes more than one input")
            if node.users:
                known[node] = 0
        elif node.op == "output":
            if not isinstance(result, fx.Node) or not isinstance(known.get(result), int):
                raise ValueError("a certificate is of one table of scores, samples x classes; the model returns more")
        elif not node.users:
            continue
        elif _is_softmax(node, dense) and node is result:
            chain.soft, known[node] = True, known[node.args[0]]
        elif _asks_size(node, known):
            known[node] = "size"
        else:
            chain.steps.append(_step(node, dense, cut, known))
            known[node] = len(chain.steps)
    if known[result] != len(chain.steps) or not chain.steps:
        raise ValueError("the model computes something after its result: a certificate is of one chain of layers")
    return chain


class _Tracer(fx.Tracer):
    """Torch's own layers are leaves, and what stands in their place in a cut model; what holds them is looked into."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves:
            return True
        return type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential | nn.ModuleList)


def _traced(model: nn.Module, leaves: set[str]) -> fx.Graph:
    # Inside a holder, so that a model that is one layer is a call of it too.
    try:
        return _Tracer(leaves).trace(nn.Sequential(model))
    except Exception as error:  # a forward may raise anything when it meets a symbol
        why = str(error).strip().splitlines()
        raise ValueError(
            f"the forward of {type(model).__name__} cannot be followed layer by layer"
            f"{f' ({why[0][:160]})' if why else ''}: a certificate takes chains of layers, and sums of branches, whose "
            "path does not depend on the data"
        ) from None


def _refused(name: str, what: str) -> ValueError:
    return ValueError(
        f"no bound is known for {name or 'the model'}: {what}. There are bounds for Linear, Conv2d, BatchNorm, average "
        "and max pooling, activations entry by entry, flatten, dropout (off) and sums of branches"
    )


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("0").removeprefix(".") if node.op == "call_module" else node.name


def _is_softmax(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(_name(node))
        return type(module) in (nn.Softmax, nn.LogSoftmax) and module.dim in (1, -1)
    if node.target in (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"):
        return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None) in (1, -1)
    return False


def _asks_size(node: fx.Node, known: dict) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    if node.target is getattr:
        return node.args[1] == "shape"
    return node.target is operator.getitem and known.get(node.args[0]) == "size"


def _step(node: fx.Node, dense: nn.Module, cut: nn.Module, known: dict) -> Step:
    name, args = _name(node), node.args
    if node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
        if node.kwargs or len(args) != 2 or not all(isinstance(a, fx.Node) and a in known for a in args):
            raise _refused(name, "a sum with something else than another result")
        return Sum(name, (known[args[0]], known[args[1]]))
    if node.op == "get_attr" or not args or not isinstance(args[0], fx.Node) or not isinstance(known.get(args[0]), int):
        raise _refused(name, f"it takes something else than a result of the layers before ({node.target})")
    if node.op == "call_module":
        if len(args) > 1 or node.kwargs:
            raise _refused(name, "it is called with more than one input")
        step = _of_module(name, dense.get_submodule(name), cut.get_submodule(name))
    elif (to := _reshapes(node, known)) is not None:
        step = Shape(name, to)
    elif node.target == "mean" or node.target is torch.mean:
        dims = node.kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(dims, tuple | list) or {d % 4 for d in dims} != {2, 3}:
            raise _refused(name, "a mean over something else than the pixels, mean((2, 3))")
        step = _average(name, lambda x: x.mean((2, 3)), 1.0)
    elif (module := _as_module(node)) is not None:
        step = _of_module(name, module, module)
    else:
        raise _refused(name, f"it calls {getattr(node.target, '__name__', node.target)}")
    step.before = known[args[0]]
    return step


def _reshapes(node: fx.Node, known: dict) -> Callable[[Tensor], Tensor] | None:
    if node.target == "contiguous":
        return lambda x: x
    args = node.args[1:]
    if node.target in (torch.flatten, "flatten"):
        start = args[0] if args else node.kwargs.get("start_dim", 0)
        end = args[1] if len(args) > 1 else node.kwargs.get("end_dim", -1)
        if start != 1 or end != -1:
            raise _refused(node.name, "it flattens something else than each sample, flatten(1)")
        return partial(torch.flatten, start_dim=1)
    if node.target in ("view", "reshape", torch.reshape):
        first, *rest = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        apart = (isinstance(first, fx.Node) and known.get(first) == "size") or (first == -1 and -1 not in rest)
        if not apart or not all(isinstance(size, int) for size in rest):
            raise _refused(node.name, "it is not seen that the samples stay apart, as in view(x.size(0), ...)")
        return lambda x: x.reshape(len(x), *rest)
    return None


def _as_module(node: fx.Node) -> nn.Module | None:
    """The module that a call of a function stands for."""
    kinds: dict[Any, Callable[..., nn.Module]] = {
        **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU),
        **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
        **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid),
        **{F.relu6: nn.ReLU6, F.gelu: nn.GELU, F.silu: nn.SiLU, F.leaky_relu: nn.LeakyReLU},
        **{F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d, F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d},
    }
    if node.target in kinds:
        return kinds[node.target](*node.args[1:], **node.kwargs)
    if node.target is F.dropout:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        return None if training else nn.Identity()
    return None


def _of_module(name: str, one: nn.Module, other: nn.Module) -> Step:
    kind = type(one)
    if isinstance(one, nn.Linear | nn.Conv2d):
        (W, bias, _, _), (new, new_bias, size, more) = of_layer(name, one), of_layer(name, other)
        if new.shape != W.shape:
            raise ValueError(f"{name} is {tuple(W.shape)} in the model and {tuple(new.shape)} in the cut one")
        offset = None if new_bias is None else new_bias.abs()
        told = {"size": size, "offset": offset, "terms": W[0].numel() + 1 + more}
        if isinstance(one, nn.Linear):
            return Affine(name, F.linear, (W, bias), (new, new_bias), **told)
        if one.padding_mode != "zeros":
            raise _refused(name, f"it pads with {one.padding_mode}")
        how = {key: getattr(one, key) for key in ("stride", "padding", "dilation", "groups")}
        spread = overlap(one.kernel_size, one.stride, one.dilation)
        return Affine(name, partial(F.conv2d, **how), (W, bias), (new, new_bias), spread=spread, **told)
    if type(other) is not kind:
        raise ValueError(f"{name} is {kind.__name__} in the model and {type(other).__name__} in the cut one")
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        (s, t, _), (new, shift, offset) = of_norm(name, one), of_norm(name, other)
        largest = float(new.abs().max())
        return Affine(name, torch.mul, (s, t), (new, shift), new.abs(), offset, terms=12, bound=largest)
    if (curve := curve_of(one)) is not None:
        return Bend(name, curve)
    if kind in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout):
        return Shape(name, lambda x: x)
    if kind is nn.Flatten and one.start_dim == 1 and one.end_dim == -1:
        return Shape(name, partial(torch.flatten, start_dim=1))
    if kind is nn.MaxPool2d and both(one.dilation) == (1, 1) and not (one.ceil_mode or one.return_indices):
        return Largest(name, both(one.kernel_size), both(one.stride), both(one.padding))
    if kind is nn.AvgPool2d and one.divisor_override is None:
        return _average(name, one, overlap(both(one.kernel_size), both(one.stride), (1, 1)) ** 0.5)
    if kind is nn.AdaptiveAvgPool2d and both(one.output_size) == (1, 1):
        return _average(name, one, 1.0)
    raise _refused(name, str(one))


def _average(name: str, pool: Callable[[Tensor], Tensor], bound: float) -> Affine:
    """Averages over windows: no longer than what goes in, times in how many windows that stands, as a square."""
    unit = torch.ones((), dtype=torch.float64)
    return Affine(name, lambda x, w: pool(x) * w, (unit, None), (unit, None), unit, bound=bound, squares=False)
