"""Records of this package as lines of JSON and back, bit for bit: what a journal holds, and what one machine sends."""

from __future__ import annotations

import base64
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def to_line(record: Any) -> Any:
    """Return a frozen dataclass, and all in it, as JSON takes it: numbers, texts, lists, None, and objects of those.

    Arrays keep their bits, tuples and nested records their kind. What a class computes from its fields is left out.

    Example:
        >>> from spectrim import NoiseFit
        >>> fit = NoiseFit(sigma=0.1, edge=1 / 3, edge_interval=(0.3, 0.4), misfit=None, spikes=2, method="Bema()")
        >>> from_line(to_line(fit), NoiseFit) == fit
        True
    """
    if is_dataclass(record):
        told = {f.name: to_line(getattr(record, f.name)) for f in fields(record) if f.init}
        return {"is": type(record).__name__, "fields": told}
    if isinstance(record, np.ndarray):
        raw = base64.b85encode(np.ascontiguousarray(record).tobytes()).decode()
        return {"array": raw, "dtype": record.dtype.str, "shape": list(record.shape)}
    if isinstance(record, tuple):
        return {"tuple": [to_line(value) for value in record]}
    if isinstance(record, np.generic):
        return record.item()
    if record is None or isinstance(record, bool | int | float | str):
        return record
    raise TypeError(f"a {type(record).__name__} is no part of a record")


def from_line(line: Any, *kinds: type) -> Any:
    """Return what `to_line` was given. ValueError where the line holds something else.

    Args:
        line: as JSON gave it back.
        kinds: the dataclasses that may stand in it: nothing else is ever made from a line.
    """
    if not isinstance(line, dict):
        return line
    if "array" in line:
        raw = np.frombuffer(base64.b85decode(line["array"]), np.dtype(line["dtype"]))
        return raw.reshape(line["shape"])
    if "tuple" in line:
        return tuple(from_line(value, *kinds) for value in line["tuple"])
    kind = next((kind for kind in kinds if kind.__name__ == line.get("is")), None)
    if kind is None:
        raise ValueError(
            f"a line of a journal holds {line.get('is')!r}, which is none of {[k.__name__ for k in kinds]}"
        )
    return kind(**{name: from_line(value, *kinds) for name, value in line["fields"].items()})
