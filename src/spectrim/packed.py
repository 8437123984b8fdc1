"""Zeros that take no room on disk: a tensor as a bit mask and its other entries, where that is smaller.

It saves bytes of a file and nothing else: once read, the tensor is dense again, and as slow as it was. What is written
here, `unpacking.py` reads; the format stands there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from .unpacking import SCHEMA, WHOLE

READER = "unpack_spectrim.py"  # what a folder calls its copy of unpacking.py
HEAD = 256  # bytes: what a second entry, its name and a shape in the metadata add to the head of a file, generously
BLOCK = 1 << 18  # entries that are looked at at a time


def packed_nbytes(numel: int, nonzeros: int, itemsize: int) -> int:
    """Return the bytes of a packed tensor: ceil(numel / 8) of the mask and nonzeros * itemsize of the values.

    Args:
        numel: entries.
        nonzeros: those that are stored, see `kept`.
        itemsize: bytes of an entry.

    Example:
        >>> packed_nbytes(1000, 500, 4), packed_nbytes(1000, 500, 2)
        (2125, 1125)
    """
    return -(-numel // 8) + nonzeros * itemsize


def smaller(numel: int, nonzeros: int, itemsize: int) -> bool:
    """Return whether a file is smaller with this tensor packed, what that adds to its head included.

    Example:
        >>> smaller(1 << 20, 1 << 19, 4), smaller(1 << 20, 1 << 20, 4), smaller(64, 32, 4)
        (True, False, False)
    """
    return packed_nbytes(numel, nonzeros, itemsize) + HEAD < numel * itemsize


def kept(tensor: Tensor) -> int:
    """Return how many entries packing has to store: all but +0.0; a -0.0 is an entry like any other.

    Example:
        >>> kept(torch.tensor([0.0, -0.0, 1.0]))
        2
    """
    return sum(int(block.count_nonzero()) for block in _bits(tensor).split(BLOCK))


def pack(tensor: Tensor) -> dict[str, Tensor] | None:
    """Return {"mask", "values"}, from which `unpack` makes the tensor again bit for bit; None where that saves nothing.

        mask    uint8, ceil(numel / 8): bit i % 8 of byte i // 8 is 1 where entry i, row-major, is other than +0.0
        values  the dtype of the tensor, one dimension: those entries, in order

    Beside the result it takes a few MiB, whatever the size of the tensor. One that is not contiguous, or not on the
    CPU, is copied first.

    Args:
        tensor: any shape, entries of 1, 2, 4 or 8 bytes; others are never packed.

    Example:
        >>> W = torch.zeros(64, 64)
        >>> W[3, 5] = 2.0
        >>> {name: (t.numel(), t.dtype) for name, t in pack(W).items()}
        {'mask': (512, torch.uint8), 'values': (1, torch.float32)}
        >>> from spectrim.unpacking import unpack
        >>> torch.equal(unpack(**pack(W), shape=W.shape), W)
        True
        >>> pack(torch.ones(64, 64)) is None
        True
    """
    size = tensor.element_size()
    if size not in WHOLE or not smaller(tensor.numel(), 0, size):
        return None
    bits = _bits(tensor)
    count = kept(bits)
    if not smaller(bits.numel(), count, size):
        return None
    mask = torch.empty(-(-bits.numel() // 8), dtype=torch.uint8)
    values = torch.empty(count, dtype=bits.dtype)
    taken = 0
    for i, block in enumerate(bits.split(BLOCK)):
        stays = block != 0
        here = block[stays]
        values[taken : taken + len(here)] = here
        taken += len(here)
        packed = np.packbits(stays.numpy(), bitorder="little")
        mask[i * BLOCK // 8 :][: len(packed)] = torch.from_numpy(packed)
    return {"mask": mask, "values": values.view(tensor.dtype)}


def pieces(name: str) -> tuple[str, str]:
    """Return the names under which a packed tensor is stored.

    Example:
        >>> pieces("fc.weight")
        ('fc.weight.mask', 'fc.weight.values')
    """
    return f"{name}.mask", f"{name}.values"


def metadata(shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return what the metadata of a file says of the tensors that are packed in it: their shapes, by name.

    Example:
        >>> metadata({"fc.weight": (2, 3)})
        {'spectrim.packed/1': '{"fc.weight":[2,3]}'}
    """
    told = {name: list(shape) for name, shape in shapes.items()}
    return {SCHEMA: json.dumps(told, separators=(",", ":"))} if told else {}


def file_name(shard: str) -> str:
    """Return the name of a packed file, one that no other reader takes for a file of whole weights.

    Example:
        >>> file_name("model-00001-of-00002.safetensors")
        'packed-model-00001-of-00002.safetensors'
    """
    return f"packed-{shard}"


def pack_all(tensors: Mapping[str, Tensor], names: Iterable[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return (tensors, metadata) of a file in which each tensor is packed that is smaller so.

    Args:
        tensors: by name.
        names: further names of the model, which no mask and no values may take.

    Example:
        >>> found, told = pack_all({"a": torch.zeros(64, 64), "b": torch.ones(3)})
        >>> list(found), told
        (['a.mask', 'a.values', 'b'], {'spectrim.packed/1': '{"a":[64,64]}'})
    """
    taken = {*tensors, *names}
    found: dict[str, Tensor] = {}
    shapes: dict[str, Sequence[int]] = {}
    for name, tensor in tensors.items():
        packed = None if taken.intersection(pieces(name)) else pack(tensor)
        if packed is None:
            found[name] = tensor
        else:
            found |= dict(zip(pieces(name), (packed["mask"], packed["values"]), strict=True))
            shapes[name] = tensor.shape
    return found, metadata(shapes)


def _bits(tensor: Tensor) -> Tensor:
    """The entries in a row, as whole numbers of their size: -0.0 is not 0 there, and NaN keeps its payload."""
    return tensor.detach().cpu().contiguous().view(-1).view(WHOLE[tensor.element_size()])
