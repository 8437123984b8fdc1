"""Reads weights whose zeros were packed, with torch and safetensors alone.

This file imports nothing of the package that wrote it. It is copied beside the weights as `unpack_spectrim.py`:

    from unpack_spectrim import load
    model.load_state_dict(load("OUT/"))

A tensor NAME with many zeros is stored as two. `NAME.mask` (uint8) has one bit an entry, in row-major order, the lowest
bit of a byte first: 1 where the entry is stored, 0 where it is +0.0; the bits that fill the last byte are 0.
`NAME.values` has the stored entries, in that order. The metadata of the file tells the shapes, as JSON, under SCHEMA.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open

SCHEMA = "spectrim.packed/1"
BLOCK = 1 << 15  # bytes of a mask at a time, eight entries each
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bits are moved, so NaN and -0.0 stay


def unpack(mask, values, shape):
    """Return the tensor of that shape with `values` at the set bits of `mask`, in order, and zeros elsewhere."""
    bits = values.view(WHOLE[values.element_size()])
    flat = torch.zeros(torch.Size(shape).numel(), dtype=bits.dtype)
    eight, taken, fits = 2 ** torch.arange(8, dtype=torch.uint8), 0, len(mask) == -(-flat.numel() // 8)
    for start in range(0, len(mask) if fits else 0, BLOCK):
        here = flat[8 * start : 8 * (start + BLOCK)]
        stored = (mask[start : start + BLOCK, None] & eight).bool().flatten()
        count = int(stored.sum())
        fits &= not stored[len(here) :].any() and taken + count <= len(bits)
        if fits:
            here.masked_scatter_(stored[: len(here)], bits[taken : taken + count])
        taken += count
    if not fits or taken != len(bits):
        raise ValueError(f"a mask does not fit its values or its shape {tuple(shape)}: the file is damaged")
    return flat.view(values.dtype).view(shape)


def read(folder):
    """Yield (name, tensor) for every tensor of a folder, one at a time; names that share a tensor come in a row."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors")
    for file in files:
        with safe_open(file, framework="pt") as handle:
            metadata, names = handle.metadata() or {}, list(handle.keys())
            shapes = json.loads(metadata.get(SCHEMA, "{}"))
            pieces = {f"{name}.{piece}" for name in shapes for piece in ("mask", "values")}
            for name in (*shapes, *(name for name in names if name not in pieces)):
                if name in shapes:
                    mask, values = (handle.get_tensor(f"{name}.{piece}") for piece in ("mask", "values"))
                    tensor = unpack(mask, values, shapes[name])
                else:
                    tensor = handle.get_tensor(name)
                yield name, tensor
                for other, first in sorted(metadata.items()):  # what is tied is stored once
                    if first == name and other not in (*names, "format"):
                        yield other, tensor


def load(folder):
    """Return the state dict of a folder: every tensor whole, as it was before its zeros were packed."""
    return dict(read(folder))
