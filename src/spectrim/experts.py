"""Stacked experts: one stored tensor of E matrices, E x a x b, as a mixture of experts keeps them.

Libraries keep the same weights in four ways: each expert outputs x inputs (Mixtral, Qwen3-MoE, DeepSeek) or inputs x
outputs (gpt-oss, Llama 4), and gate and up apart, one above the other, side by side or with rows in turn. What shapes
do not tell is asked of config.json, and said in the note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from .sites import Part

STACKED = re.compile(r"experts?(\.(?!\d+\.)|_|$)|(^|[._])moe([._]|$)", re.IGNORECASE)  # experts.3.w1 is one of a list
FUSED, DOWN = "gate_up_proj", "down_proj"
TURNED = ("gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter")  # inputs x outputs
INTERLEAVED = ("gpt_oss",)
LEAST = 16  # rows and columns of an expert, fewer are none
MOST = 4096  # experts in a tensor: each is a matrix, and a file may claim any number


def is_stacked(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor of this name and shape holds one matrix an expert.

    Example:
        >>> is_stacked("layers.0.mlp.experts.down_proj", (8, 64, 32)), is_stacked("experts.3.conv.weight", (64, 32, 3))
        (True, False)
    """
    return len(shape) == 3 and STACKED.search(name) is not None


def is_bias(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor of two dimensions holds the biases of stacked experts, a row each.

    Example:
        >>> is_bias("mlp.experts.gate_up_proj_bias", (8, 128)), is_bias("mlp.gate.weight", (8, 64))
        (True, False)
    """
    return len(shape) == 2 and name.endswith("bias") and STACKED.search(name) is not None


def expert_parts(
    name: str, shape_of: Callable[[str], Sequence[int] | None], config: Mapping, fused: str = "split"
) -> tuple[tuple[Part, ...], str]:
    """Return the row blocks of stacked experts, seen as a matrix of (E a) x b, and a note on how they are kept.

    One block an expert, or two, its gate and its up, where these are known to lie one above the other. Matrices that
    are kept inputs x outputs are read as they lie: rank, spectrum and zeros of a transpose are the same. ValueError
    where the shape is none of experts.

    Args:
        name: of the tensor.
        shape_of: of a tensor by its name, E x a x b, or None where there is none. A `gate_up_proj` and a `down_proj`
            side by side tell how both are kept.
        config: config.json, or what a live model has of it.
        fused: "whole" leaves gate and up together.

    Example:
        >>> shapes = {"experts.gate_up_proj": (2, 64, 40), "experts.down_proj": (2, 40, 32)}
        >>> parts, note = expert_parts("experts.gate_up_proj", shapes.get, {})
        >>> [(part.label, part.rows) for part in parts]
        [('0.gate', 32), ('0.up', 32), ('1.gate', 32), ('1.up', 32)]
    """
    count, rows, cols = shape_of(name)
    if min(rows, cols) < LEAST or not 0 < count <= MOST:
        raise ValueError(f"{count} matrices of {rows} x {cols} are no experts")
    types = _types(config)
    turned = _turned(shape_of(name.replace(DOWN, FUSED)), shape_of(name.replace(FUSED, DOWN)))
    turned = True if turned is None and types & set(TURNED) else turned
    notes = ["one of the experts in its tensor, which can be rebuilt and not split"]
    if turned:
        notes.append("kept inputs x outputs, and read so: rank, spectrum and zeros are those of its transpose")
    if FUSED in name and fused != "whole":
        if turned is False and rows % 2 == 0:
            halves = [Part(f"{e}.{half}", rows // 2) for e in range(count) for half in ("gate", "up")]
            return tuple(halves), "; ".join(notes)
        how = "interleaved" if types & set(INTERLEAVED) else "side by side" if turned else "kept nobody tells how"
        notes.append(f"gate and up are {how}: judged as one matrix")
    return tuple(Part(str(e), rows) for e in range(count)), "; ".join(notes)


def _types(config: Mapping) -> set[str]:
    """The model types that a config names, that of the text part of a larger model included."""
    inner = config.get("text_config")
    found = [part.get("model_type") for part in (config, inner) if isinstance(part, Mapping)]
    return {kind for kind in found if isinstance(kind, str)}


def _turned(gate_up: Sequence[int] | None, down: Sequence[int] | None) -> bool | None:
    """Whether gate_up and down are kept inputs x outputs, told by their shapes; None where these do not tell."""
    if gate_up is None or down is None or len(gate_up) != 3 or len(down) != 3:
        return None
    (_, rows, cols), (_, top, side) = gate_up, down
    if (rows, cols) == (2 * side, top):
        return False
    return True if (rows, cols) == (side, 2 * top) else None
