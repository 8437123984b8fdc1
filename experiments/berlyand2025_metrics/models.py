"""The weight matrices of two pretrained transformers, read from the files of packages, rows = outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

Matrices = dict[str, NDArray[np.float32]]


def minilm(file: Path) -> Matrices:
    """Returns the 36 matrices of the encoder of MiniLM-L6 and the pooler, from its model.safetensors."""
    with safe_open(file, "np") as weights:
        names = [name for name in weights.keys() if name.startswith(("encoder.", "pooler."))]  # noqa: SIM118
        found = {name.removesuffix(".weight"): weights.get_tensor(name) for name in names if name.endswith(".weight")}
    return {name: W for name, W in found.items() if W.ndim == 2}


def vit(file: Path) -> Matrices:
    """Returns the 72 matrices of the blocks of a ViT-S/14 and its patch embedding as a matrix, from an ONNX file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found: Matrices = {}
    for node in graph.node:
        # The export drops the names of matrices that are multiplied from the right; the node that uses one has a name.
        if node.op_type not in ("MatMul", "Conv") or not node.name.startswith("/backbone/") or len(node.input) < 2:
            continue
        if node.input[1] in tensors:
            W = numpy_helper.to_array(tensors[node.input[1]])
            name = node.name.removeprefix("/backbone/").removesuffix(f"/{node.op_type}").replace("/", ".")
            found[name.removeprefix("encoder.")] = W.T if node.op_type == "MatMul" else W.reshape(len(W), -1)
    return found


def fused(matrices: Matrices) -> Matrices:
    """Returns the matrices with query, key and value of a layer stacked into one, as the models of timm hold them."""
    out: Matrices = {}
    for name, W in matrices.items():
        stem, _, last = name.rpartition(".")
        if last not in ("query", "key", "value"):
            out[name] = W
        elif last == "query":
            out[f"{stem}.qkv"] = np.concatenate([matrices[f"{stem}.{part}"] for part in ("query", "key", "value")])
    return out
