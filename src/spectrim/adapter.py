"""A trimmed weight as a base and a LoRA pair: base + B A is the weight, and the pair holds its largest directions.

The base is a checkpoint of the same architecture; the pairs are an adapter as PEFT reads it, so its trainers go on from
there. That is the starting point of PiSSA (Meng, Wang and Zhang, arXiv:2404.02948) with a rank of our own choosing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .linalg import column_blocks, leading
from .sites import Layer
from .writing import write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the names that PEFT looks for
KERNEL_LAYERS = ("out_proj", "linear1", "linear2")  # linear layers of torch's attention that are not called
KERNEL_WEIGHTS = (
    "in_proj_weight",
    "q_proj_weight",
    "parametrizations.in_proj_weight.original0",
)  # which stand by those


def part(T: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (base, A, B) with base + B A = T, where B A is the best approximation of T at rank r; all in T's dtype.

        B = U_r sqrt(s_r),   A = sqrt(s_r) Vh_r   (rounded),   base = T - B A   (of the rounded factors, rounded once)

    So what the rounding of the factors changes, the base takes back: base + B A, in exact arithmetic, differs from an
    entry of T by half an eps of the entry of the base at most, or half a step of the smallest numbers.

    Args:
        T: rows x cols, any float type of 16 bits or more.
        r: rank of the pair, 1 to min(rows, cols). A is r x cols, B is rows x r.

    Example:
        >>> base, A, B = part(torch.diag(torch.tensor([9.0, 4.0, 1.0])), 1)
        >>> base.tolist(), (B @ A).tolist()[0]
        ([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 1.0]], [9.0, 0.0, 0.0])

    References:
        C. Eckart and G. Young, Psychometrika 1 (1936) 211; PiSSA: arXiv:2404.02948, equations 2 to 4.
    """
    left, right = leading(T, r).split()
    B, A = left.to(T.dtype).contiguous(), right.to(T.dtype).contiguous()
    base, wide = torch.empty_like(T, memory_format=torch.contiguous_format), A.to(torch.float64)
    for rows in column_blocks(T.shape[1], T.shape[0]):
        base[rows] = (T[rows].to(torch.float64) - B[rows].to(torch.float64) @ wide).to(T.dtype)
    return base, A, B


def of_weight(weight: Tensor, r: int, transposed: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return (base, lora_A, lora_B) in the shapes in which a layer and its PEFT adapter are stored.

        Linear   base out x in              lora_A r x in           lora_B out x r
        Conv1D   base in x out, transposed  lora_A r x in           lora_B out x r   (the delta is transposed by PEFT)
        Conv2d   base out x in x k x k      lora_A r x in x k x k   lora_B out x r x 1 x 1

    Args:
        weight: as it is stored, two dimensions or four.
        r: rank of the pair.
        transposed: GPT-2's Conv1D keeps inputs x outputs.

    Example:
        >>> [tuple(t.shape) for t in of_weight(torch.ones(6, 4, 3, 3), 2)]
        [(6, 4, 3, 3), (2, 4, 3, 3), (6, 2, 1, 1)]
    """
    if weight.ndim == 4:
        base, A, B = part(weight.flatten(1), r)
        return base.reshape(weight.shape), A.reshape(r, *weight.shape[1:]), B[:, :, None, None]
    base, A, B = part(weight.T if transposed else weight, r)
    return (base.T.contiguous() if transposed else base), A, B


def refusal(layer: Layer, names: Container[str], plain: bool = False) -> str:
    """Return why an adapter of PEFT would not do on a layer, in words, or "" where it would: others stay dense.

    PEFT adapts the whole weight of a module that is called: q, k and v of one fused projection share one pair. It has
    no place beside a weight that a module hands to a kernel: torch's attention, LSTM and GRU layers. Some of those lie
    in plain linear layers: `out_proj` of `nn.MultiheadAttention`, `linear1` and `linear2` of
    `nn.TransformerEncoderLayer`. PEFT puts a pair beside these, and the kernel never asks it: the model is then the
    base, without a word. So is one with a pair beside a convolution with dilation, groups or another padding than
    zeros, of which PEFT's own convolution takes no notice.

    Args:
        layer: of `modules` or `names`.
        names: of the stored tensors of the model.
        plain: whether its k x k convolutions are known to have none of those; a file does not tell.
    """
    owner, _, last = layer.name.rpartition(".")
    inside = (f"{owner}.", f"{owner}.self_attn.") if owner else ("", "self_attn.")
    kernel = any(f"{place}{weight}" in names for place in inside for weight in KERNEL_WEIGHTS)
    if layer.form == "parameter":
        return "its module hands this weight to a kernel: there is no layer that a pair could stand beside"
    if layer.stored_as_parts:
        return "it is stored as a pair already"
    if not layer.splittable:
        return layer.note
    if last in KERNEL_LAYERS and kernel:
        return "torch's attention hands its weight to a kernel, which would not ask a pair beside it"
    if layer.form == "conv2d" and (len(layer.parts) > 1 or (max(layer.kernel[1:]) > 1 and not plain)):
        return "PEFT leaves out the dilation, groups and padding of a convolution, and it is not known to have none"
    return ""


def keys(name: str) -> tuple[str, str]:
    """Return the names of lora_A and lora_B of a module in an adapter file of PEFT.

    Args:
        name: of the module in the model that the adapter will be loaded on.

    Example:
        >>> keys("h.0.mlp.c_fc")[0]
        'base_model.model.h.0.mlp.c_fc.lora_A.weight'
    """
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def config(
    ranks: Mapping[str, int], others: Iterable[str] = (), transposed: bool = False, base: str | None = None
) -> dict:
    """Return what adapter_config.json holds: PEFT's own fields, with lora_alpha = r so that the scaling is 1.

    `target_modules` names the modules in full. PEFT takes a name for the end of one too, so where a name ends another
    module's that has no pair, all of them stand as one regular expression, which PEFT matches in full.

    Args:
        ranks: module name -> rank of its pair, >= 1.
        others: further modules of the model, those without a pair.
        transposed: whether the weights are those of GPT-2's Conv1D; PEFT finds out itself where both kinds are met.
        base: name or path of the base model, for `AutoPeftModel`; `PeftModel` is given the model.

    Example:
        >>> found = config({"a.fc": 3, "b.fc": 3, "c.fc": 5})
        >>> found["r"], found["rank_pattern"], found["target_modules"]
        (3, {'^c\\\\.fc': 5}, ['a.fc', 'b.fc', 'c.fc'])
        >>> config({"fc": 3}, others=["b.fc"])["target_modules"]
        'fc'
    """
    if wrong := [name for name, r in ranks.items() if not (type(r) is int and r >= 1)]:
        raise ValueError(f"{wrong[0]}: the rank of a pair is a whole number of 1 or more, not {ranks[wrong[0]]!r}")
    if not ranks:
        raise ValueError("no layer takes an adapter: PEFT loads none without layers; write the model dense instead")
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {f"^{re.escape(name)}": r for name, r in ranks.items() if r != usual}
    bare = set(others) - set(ranks)
    ends = {name[at + 1 :] for name in bare for at in (i for i, c in enumerate(name) if c == ".")}
    exact = "|".join(re.escape(name) for name in ranks) if ends & set(ranks) else list(ranks)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "target_modules": exact,
        "rank_pattern": unusual,
        "alpha_pattern": dict(unusual),
        "fan_in_fan_out": transposed,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


def write(folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], settings: Mapping) -> None:
    """Write the two files of an adapter, which `PeftModel.from_pretrained(base, folder)` reads.

    Args:
        folder: there already; not that of the base, where transformers would load the pairs on its own.
        pairs: module name -> (lora_A, lora_B).
        settings: of `config`.
    """
    tensors = {key: t for name, pair in pairs.items() for key, t in zip(keys(name), pair, strict=True)}
    write_tensors(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dict(settings), indent=2) + "\n")
