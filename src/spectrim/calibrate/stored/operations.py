"""Which rule belongs to which operation of torch.

One function an operation (or a few alike): it takes the arguments apart, looks up what is known of them, and hands that
to `rules` or `maps`. None: nothing is known of what comes out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import maps, rules
from .law import Law, Spread, population, spread_of, vector
from .maps import Convolution
from .rules import Known, Scores, Unknown, shape_of
from .run import tensors_of
from .sums import SUMS, each_of, first_of

if TYPE_CHECKING:
    from .memory import Memory

aten = torch.ops.aten
POINTWISE = {
    "relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "elu", "leaky_relu",
    "selu", "celu", "mish", "softplus", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "abs", "neg",
    "erf", "erfc", "sin", "cos", "square", "pow", "clamp", "clamp_min", "clamp_max", "threshold", "logit",
    "log_sigmoid_forward", "atan", "softshrink", "hardshrink", "sign", "round", "floor",
}  # fmt: skip
MOVES = {
    "view", "_unsafe_view", "reshape", "expand", "transpose", "t", "permute", "slice", "select", "squeeze",
    "unsqueeze", "split", "split_with_sizes", "chunk", "unbind", "roll", "flip", "repeat", "narrow", "unfold",
    "index_select", "index", "gather", "diagonal", "swapaxes", "movedim",
}  # fmt: skip
SAME = {
    "alias", "detach", "clone", "contiguous", "_to_copy", "lift_fresh", "dropout", "to",
}  # fmt: skip
ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "scaled_dot_product_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
}  # fmt: skip


def known_of(memory: Memory, name: str, overload: str, args: tuple, kwargs: dict, out: Any) -> Known | list[Known]:
    """Returns what is known of the output of one operation, None where nothing is; of several outputs, a list."""
    first = memory.look(args[0]) if args else None
    if name in POINTWISE and isinstance(first, Spread) and not tensors_of((args[1:], kwargs)):
        packet = getattr(aten, name)
        function = getattr(packet, overload if overload in packet.overloads() else "default")
        return first.pointwise(lambda x: first_of(function(x, *args[1:], **kwargs)).to(torch.float64))
    if name in SAME:
        return first
    if name in MOVES:
        return _moved(memory, name, overload, args, kwargs, out)
    if name in ATTENTION:
        q, k, v = (memory.look(t) for t in args[:3])
        scale = kwargs.get("scale") or args[0].shape[-1] ** -0.5
        return maps.attention(q, k, v, scale, shape_of(first_of(out)))
    rule = RULES.get(name)
    return rule(memory, args, kwargs, out) if rule is not None else None


# ------------------------------------------------------------ entries that are moved


def _moved(memory, name, overload, args, kwargs, out):
    first = memory.look(args[0])
    if isinstance(first, Scores):
        return first if isinstance(out, Tensor) and out.shape[-1:] == args[0].shape[-1:] else None
    if not isinstance(first, Spread) or any(memory.get(t) is not None for t in tensors_of((args[1:], kwargs))):
        return None
    if name in ("view", "_unsafe_view", "reshape"):
        return replace(first, index=first.index.reshape(shape_of(out)))
    cpu = torch.utils._pytree.tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, args[1:])
    moved = getattr(getattr(aten, name), overload)(first.index, *cpu, **kwargs)
    return [replace(first, index=i) for i in tensors_of(moved)]


def _cat(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    parts = list(args[0])
    states = [memory.get(p) for p in parts]
    kept = [(p, s) for p, s in zip(parts, states, strict=True) if p.numel()]
    if any(isinstance(s, Unknown | Scores) for _, s in kept):
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return rules.joined([s if isinstance(s, Spread) else p.detach().cpu() for p, s in kept], dim)


def _stack(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim
    parts = [memory.get(p) for p in args[0]]
    if any(isinstance(s, Unknown | Scores) for s in parts):
        return None
    whole = [
        replace(s, index=s.index.unsqueeze(dim)) if isinstance(s, Spread) else p.detach().cpu().unsqueeze(dim)
        for p, s in zip(args[0], parts, strict=True)
    ]
    return rules.joined(whole, dim)


def _constant_pad_nd(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    first = memory.look(args[0])
    if not isinstance(first, Spread):
        return None
    value = float(args[2]) if len(args) > 2 else 0.0
    first = first.settled()
    law = _with_constant_feature(first.base, value)
    index = torch.nn.functional.pad(first.index, list(args[1]), value=law.size - 1)
    return Spread(index, law)


# ------------------------------------------------------------ matrices


def _product(memory, x, weight: Tensor, A: Tensor, bias, out) -> Known:
    state = memory.get(x)
    if isinstance(state, Unknown):
        memory.unseen.append((weight, state.reason))
    if not isinstance(state, Spread):
        return None
    memory.met(weight, lambda group: vector(state))
    bias = bias.detach().cpu() if isinstance(bias, Tensor) else None
    return maps.linear(state, A.detach().cpu(), bias, shape_of(out))


def _mm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, w = args[:2]
    if memory.get(w) is None:
        return _product(memory, x, w, w.T, None, out)
    if memory.get(x) is None and isinstance(state := memory.look(w), Spread):  # A x, x standing upright
        turned = Spread(state.index.T, state.base, state.values)
        found = maps.linear(turned, x.detach().cpu(), None, shape_of(out.T))
        return replace(found, index=found.index.T)
    return None


def _addmm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    bias, x, w = args[:3]
    if memory.get(w) is None and memory.get(bias) is None and kwargs.get("alpha", 1) == kwargs.get("beta", 1) == 1:
        return _product(memory, x, w, w.T, bias if bias.ndim == 1 else bias[0], out)
    return None


def _linear(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, w = args[:2]
    return _product(memory, x, w, w, args[2] if len(args) > 2 else kwargs.get("bias"), out)


def _bmm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, y = (memory.look(t) for t in args[:2])
    if isinstance(x, Scores) and isinstance(y, Spread):
        q, k = (None if t is None else _heads(t, y) for t in (x.queries, x.keys))
        return maps.attention(q, k, y, x.scale, shape_of(out))
    if isinstance(x, Spread) and memory.get(args[1]) is None:
        w = args[1]
        if w.shape[0] == 1 or w.stride(0) == 0:
            return _product(memory, args[0], w[0], w[0].T, None, out)
        return None
    if isinstance(x, Spread) and isinstance(y, Spread):
        return Scores(x, replace(y, index=y.index.transpose(-1, -2)))
    return None


def _baddbmm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    found = _bmm(memory, args[1:3], {}, out)
    if isinstance(found, Scores):
        return replace(found, scale=found.scale * kwargs.get("alpha", 1))
    return found if memory.get(args[0]) is None and not bool(args[0].any()) else None


def _softmax(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    known = memory.look(args[0])
    if args[1] % out.ndim != out.ndim - 1:
        return None
    return known if isinstance(known, Scores) else Scores()


def _convolution(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    state = memory.get(x)
    if isinstance(state, Unknown):
        memory.unseen.append((weight, state.reason))
    if not isinstance(state, Spread) or transposed or memory.get(weight) is not None:
        return None
    how = Convolution(*(each_of(v, out.ndim - 2) for v in (stride, padding, dilation)), groups)
    kernel = shape_of(weight)[2:]
    memory.met(weight, lambda group: maps.patches(state, kernel, how, group if groups > 1 else None))
    bias = None if bias is None else bias.detach().cpu()
    return maps.convolution(state, weight.detach().cpu(), bias, how, shape_of(out))


def _mkldnn_rnn_layer(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    state = memory.get(args[0])
    if isinstance(state, Spread):
        memory.met(args[1], lambda group: vector(state))
    return None


# ------------------------------------------------------------ normalisation and tables


def _native_batch_norm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, weight, bias, mean, var, training, _, eps = args
    return rules.batch_norm(x, memory.look(x), *_cpu(weight, bias, mean, None if training else var), eps)


def _native_batch_norm_legit_no_training(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, weight, bias, mean, var, _, eps = args
    return rules.batch_norm(x, memory.look(x), *_cpu(weight, bias, mean, var), eps)


def _native_batch_norm_legit(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, weight, bias, *_, eps = args
    return rules.batch_norm(x, memory.look(x), *_cpu(weight, bias), None, None, eps)


def _native_layer_norm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, shape, weight, bias, eps = args
    return rules.layer_norm(x, memory.look(x), tuple(shape), *_cpu(weight, bias), eps)


def _fused_rms_norm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, shape, weight, eps = args
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return rules.layer_norm(x, memory.look(x), tuple(shape), *_cpu(weight), None, eps, centre=False)


def _native_group_norm(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    x, weight, bias, _, _, _, groups, eps = args
    return rules.group_norm(x, memory.look(x), *_cpu(weight, bias), groups, eps)


def _embedding(memory: Memory, args: tuple, kwargs: dict, out: Any) -> Known:
    table, ids = args[:2]
    if memory.get(table) is not None or memory.get(ids) is None:
        return None
    return spread_of(population(table.detach().cpu()), shape_of(out))


def _with_constant_feature(law: Law, value: float) -> Law:
    mean = torch.cat([law.mean, law.mean.new_tensor([value])])
    if law.cov.ndim == 1:
        return replace(law, mean=mean, cov=torch.cat([law.cov, law.cov.new_zeros(1)]), origin=None)
    return replace(law, mean=mean, cov=torch.nn.functional.pad(law.cov, (0, 1, 0, 1)), origin=None)


def _heads(t: Spread, like: Spread) -> Spread:
    """Returns a tensor of queries or keys with its leading dimensions as those of the values have them."""
    lead = like.index.shape[:-2]
    return replace(t, index=t.index.reshape(*lead, *t.index.shape[-2:]))


def _cpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().cpu() for t in tensors]


RULES = {
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _constant_pad_nd,
    "mm": _mm,
    "addmm": _addmm,
    "linear": _linear,
    "bmm": _bmm,
    "baddbmm": _baddbmm,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "convolution": _convolution,
    "mkldnn_rnn_layer": _mkldnn_rnn_layer,
    "native_batch_norm": _native_batch_norm,
    "cudnn_batch_norm": _native_batch_norm,
    "_native_batch_norm_legit_no_training": _native_batch_norm_legit_no_training,
    "_native_batch_norm_legit": _native_batch_norm_legit,
    "native_layer_norm": _native_layer_norm,
    "_fused_rms_norm": _fused_rms_norm,
    "native_group_norm": _native_group_norm,
    "embedding": _embedding,
} | SUMS
