"""Reads the model files of CTranslate2 (model.bin) without that package: tensors by name, as numpy arrays.

Little endian throughout. u32 version; the specification's name, a string (u16 length, bytes, a NUL among them); u32
revision; u32 number of tensors; of each the name, u8 rank, u32 sizes, u8 type, u32 bytes, the data; u32 number of
aliases; of each the alias and the name it stands for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
VERSIONS = (4, 5, 6)


@dataclass
class _Reader:
    raw: bytes
    file: Path
    at: int = 0

    def number(self, kind: str) -> int:
        (value,) = struct.unpack("<" + kind, self.bytes(struct.calcsize("<" + kind)))
        return value

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self.raw):
            raise ValueError(f"{self.file} is cut short or is no model of CTranslate2: it ends within byte {self.at}")
        self.at += count
        return self.raw[self.at - count : self.at]

    def text(self) -> str:
        return self.bytes(self.number("H")).rstrip(b"\0").decode()


def read(file: Path) -> tuple[str, dict[str, NDArray[np.generic]]]:
    """Returns the name of the specification and the tensors, aliases among them."""
    of = _Reader(file.read_bytes(), file)
    version = of.number("I")
    if version not in VERSIONS:
        raise ValueError(
            f"{file} is no model of CTranslate2 of version {VERSIONS[0]} to {VERSIONS[-1]}: it says {version}"
        )
    specification, _revision = of.text(), of.number("I")
    tensors: dict[str, NDArray[np.generic]] = {}
    for _ in range(of.number("I")):
        name, rank = of.text(), of.number("B")
        shape = tuple(of.number("I") for _ in range(rank))
        kind, size = of.number("B"), of.number("I")
        if kind not in TYPES:
            raise ValueError(
                f"{file}: {name} has the type {kind}, which is not read: convert the model to float16 or float32"
            )
        tensors[name] = np.frombuffer(of.bytes(size), TYPES[kind]).reshape(shape)
    if of.at < len(of.raw):
        tensors |= {of.text(): tensors[of.text()] for _ in range(of.number("I"))}
    return specification, tensors
