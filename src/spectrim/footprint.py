"""What a trimmed folder takes beside the dense model: bytes on disk and in memory, multiply-adds, measured time."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .adapter import CONFIG
from .audit import latencies
from .entries import Entry, Plan
from .shapes import ADAPTER
from .writing import read_trimmed

Stack = tuple[int, int, int | None, int | None]  # rows, cols, inner size of a pair, rank of an adapter beside it


@dataclass(frozen=True)
class Footprint:
    """What one folder takes, and the model that it was made of, which all others are compared with.

    `disk` is all safetensors of the folder, `memory` all tensors once they are loaded, both in bytes; `macs` are the
    multiply-adds of the matrices of the plan for one position (a token, a pixel of a convolution's output). `latency`
    is the time of those matrices alone, one after the other, in ms, `ratio` that to the dense ones in the same run.
    """

    name: str
    shape: str
    disk: int
    memory: int
    macs: int
    latency: float
    ratio: float


def footprints(folders: Sequence[str | os.PathLike], batch: int = 32, repeats: int = 15) -> list[Footprint]:
    """Return what the model before the cut takes, and then each folder that `trim` made of it.

    Time is measured, on the CPU with torch's threads, as products with `batch` random inputs of every matrix: dense,
    as a pair, or with an adapter beside it, all shapes in turn so that they see the same state of the machine; the
    median of the rounds counts, ratios are medians of ratios within a round. Zeros take the time of other numbers.
    What else a model does is not in it. The bytes before are those of the tensors, without the heads of the files.

    Args:
        folders: that `trim` wrote, all of one model.
        batch: positions at a time.
        repeats: rounds.
    """
    if not folders:
        raise ValueError("name the folders of one model at least once trimmed")
    records = {str(folder): read_trimmed(folder) for folder in folders}
    plans = {name: Plan.model_validate(record["plan"]) for name, record in records.items()}
    first = next(iter(plans.values()))
    if wrong := [name for name, p in plans.items() if p.model.fingerprint != first.model.fingerprint]:
        raise ValueError(f"{wrong[0]} was made of another model than {next(iter(plans))}: they cannot be compared")
    stacks = {"before": Counter((e.rows, e.cols, None, None) for e in first.entries)}
    for name, record in records.items():
        stacks[name] = _stacks(Path(name), plans[name], record.get("shape", ""))
    times = _times({key for found in stacks.values() for key in found}, batch, repeats)
    rounds = {
        name: [sum(count * times[key][i] for key, count in found.items()) for i in range(repeats)]
        for name, found in stacks.items()
    }

    def of(name: str, shape: str, disk: int, memory: int) -> Footprint:
        ratio = statistics.median(a / b for a, b in zip(rounds[name], rounds["before"], strict=True))
        macs = sum(count * _macs(key) for key, count in stacks[name].items())
        return Footprint(name, shape, disk, memory, macs, statistics.median(rounds[name]), ratio)

    found = [of("before", "dense", first.model.bytes, first.model.bytes)]
    for name, record in records.items():
        shape = record.get("shape") or ("split" if record["splits"] else "dense")
        disk = sum(file.stat().st_size for file in Path(name).rglob("*.safetensors"))
        memory = record["achieved"]["bytes_after"]
        if shape == "packed":  # dense again, once it is read
            memory = first.model.bytes + sum(e.bytes_after - e.bytes_before for e in plans[name].entries)
        found.append(of(name, shape, disk, memory))
    return found


def _stacks(folder: Path, plan: Plan, shape: str) -> Counter[Stack]:
    """The matrices of a folder by what they are stored as, and how many there are of each."""
    ranks: dict[str, int] = {}
    if shape == "adapter":
        told = json.loads((folder / ADAPTER / CONFIG).read_text())
        layers = {re.sub(r"\[[^]]*\]$", "", e.name) for e in plan.touched}
        names = told["target_modules"]
        there = layers & set(names) if isinstance(names, list) else {n for n in layers if re.fullmatch(names, n)}
        patterns = told["rank_pattern"]
        ranks = {n: next((r for p, r in patterns.items() if re.search(p + "$", n)), told["r"]) for n in there}

    def stored(e: Entry) -> Stack:
        beside = ranks.get(re.sub(r"\[[^]]*\]$", "", e.name))
        return e.rows, e.cols, e.rank if e.action == "split" else None, beside

    return Counter(map(stored, plan.entries))


def _macs(key: Stack) -> int:
    rows, cols, inner, beside = key
    return (rows * cols if inner is None else inner * (rows + cols)) + (beside or 0) * (rows + cols)


def _times(keys: set[Stack], batch: int, repeats: int) -> Mapping[Stack, list[float]]:
    """The milliseconds of every round of each kind of matrix."""
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def call(key: Stack) -> Callable[[], object]:
        rows, cols, inner, beside = key
        x = noise(batch, cols)
        maps = [noise(cols, rows)] if inner is None else [noise(cols, inner), noise(inner, rows)]
        pair = [noise(cols, beside), noise(beside, rows)] if beside else []

        def run() -> Tensor:
            y = x
            for W in maps:
                y = y @ W
            return y + x @ pair[0] @ pair[1] if pair else y

        return run

    return latencies({key: call(key) for key in sorted(keys, key=str)}, repeats)
