"""A safetensors file as bytes: where its tensors lie, and a new file put together from ranges of others.

Tensors that stay as they are pass through unread, whatever their type, and no file is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 23  # bytes copied at a time
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.bool: "BOOL",
    **{getattr(torch, f"int{n}"): f"I{n}" for n in (8, 16, 32, 64)},
    **{getattr(torch, f"uint{n}"): f"U{n}" for n in (8, 16, 32, 64)},
}


class Range(NamedTuple):
    """Bytes start to stop of a file."""

    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Stored:
    """One tensor of a file to be: its type as the format names it, its shape, and the pieces that its bytes come in."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Range | Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return sum(p.nbytes if isinstance(p, Tensor) else p.stop - p.start for p in self.pieces)

    @property
    def numel(self) -> int:
        """Number of entries."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """A file's tensors by name, in the order of their bytes, its metadata, and its header as it stands there."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]
    header: bytes


def layout(file: Path) -> Layout:
    """Return the layout of a safetensors file that safetensors has opened before, so that its header is known to hold.

    The header: 8 bytes, the length of what follows, little-endian; a JSON object of that length; then the tensors.
    """
    told = file.stat()
    return _layout(file, told.st_ino, told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=2)  # it is asked for anew for every tensor of a file
def _layout(file: Path, *state: int) -> Layout:
    with open(file, "rb") as handle:
        length = handle.read(8)
        text = handle.read(int.from_bytes(length, "little"))
    found = json.loads(text)
    metadata, start = found.pop("__metadata__", None) or {}, 8 + len(text)
    tensors = {
        name: Stored(told["dtype"], tuple(told["shape"]), (Range(file, *(start + at for at in told["data_offsets"])),))
        for name, told in sorted(found.items(), key=lambda item: item[1]["data_offsets"])
    }
    return Layout(tensors, metadata, length + text)


def of_tensor(tensor: Tensor) -> Stored:
    """Return a tensor in memory as one to be written."""
    return Stored(CODES[tensor.dtype], tuple(tensor.shape), (tensor,))


def spliced(whole: Stored, blocks: Mapping[int, Stored]) -> Stored:
    """Return a tensor with other bytes from the given offsets on, each block as long as it is.

    Args:
        whole: in one range of a file, or in memory.
        blocks: by the offset of their first byte in the tensor; they do not overlap.
    """
    pieces: list[Range | Tensor] = []
    at, (own,) = 0, whole.pieces
    for offset in sorted(blocks):
        pieces += [_cut(own, at, offset), *blocks[offset].pieces]
        at = offset + blocks[offset].nbytes
    pieces.append(_cut(own, at, whole.nbytes))
    return Stored(whole.dtype, whole.shape, tuple(p for p in pieces if isinstance(p, Tensor) or p.stop > p.start))


def _cut(piece: Range | Tensor, start: int, stop: int) -> Range | Tensor:
    if isinstance(piece, Tensor):
        return piece.contiguous().reshape(-1).view(torch.uint8)[start:stop]
    return Range(piece.file, piece.start + start, piece.start + stop)


def write_file(file: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> str:
    """Write one safetensors file and return its SHA-256, once the disk has it and it reads back the same.

    The widest types come first, so that every tensor lies at a multiple of its width; then names in order.

    Raises OSError where the disk does not take it, or gives back something else.
    """
    order = sorted(tensors, key=lambda name: (-_bits(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        t = tensors[name]
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    chunks = _bytes(len(text).to_bytes(8, "little") + text, (tensors[name] for name in order))
    with open(file, "wb", buffering=0) as out:
        for chunk in chunks:
            digest.update(chunk)
            try:
                _write(out, chunk)
            except OSError as error:
                raise OSError(f"{file} could not be written: {error.strerror}") from None
        os.fsync(out.fileno())
    if hash_file(file) != digest.hexdigest():
        raise OSError(f"{file} does not read back as it was written: is the disk sound?")
    return digest.hexdigest()


def _write(out: BinaryIO, chunk: bytes | memoryview) -> None:
    """Write all of a chunk: without a buffer a write may take less, and says how much."""
    left = memoryview(chunk)
    while left:
        left = left[out.write(left) :]


def _bytes(head: bytes, tensors: Iterable[Stored]) -> Iterable[bytes | memoryview]:
    yield head
    for tensor in tensors:
        for piece in tensor.pieces:
            if isinstance(piece, Tensor):
                flat = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                yield from (memoryview(part.numpy()) for part in flat.split(CHUNK) if part.numel())
            else:
                yield from read_range(piece)


def read_range(piece: Range) -> Iterable[bytes]:
    """Yield the bytes of a range, a chunk at a time; OSError where the file has become shorter."""
    with open(piece.file, "rb") as handle:
        handle.seek(piece.start)
        left = piece.stop - piece.start
        while left:
            chunk = handle.read(min(CHUNK, left))
            if not chunk:
                raise OSError(f"{piece.file} has become shorter while it was read")
            left -= len(chunk)
            yield chunk


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stamps(files: Sequence[Path]) -> list[list]:
    """Return name, size and time of the last change of each file: what tells in a moment that one was changed."""
    return [[f.name, (s := f.stat()).st_size, s.st_mtime_ns] for f in files]


def _bits(dtype: str) -> int:
    return int(found[0]) if (found := re.search(r"\d+", dtype)) else 8
