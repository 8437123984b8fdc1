"""What a model weighs and how fast it runs, measured: parameters, bytes, multiply-adds, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from .plan import Plan


def weigh(model: nn.Module) -> dict:
    """Return {"params", "bytes"}: numbers stored and the memory they take, tied weights once."""
    stored = {id(p): p for p in model.parameters()}.values()
    return {"params": sum(p.numel() for p in stored), "bytes": sum(p.numel() * p.element_size() for p in stored)}


def multiply_adds(call: Callable[[], object]) -> int:
    """Return the multiply-adds of one call, as torch's own counter sees them (half its operations)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def latencies(calls: Mapping[str, Callable[[], object]], repeats: int = 15, warmup: int = 3) -> dict[str, list[float]]:
    """Return the milliseconds of each repeat of each call, taken in turn so that all see the same state of the machine.

    Args:
        calls: what is timed, by name.
        repeats: counted rounds.
        warmup: rounds before them, not counted.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(warmup + repeats):
            for name, call in calls.items():
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                start = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn >= warmup:
                    spent[name].append(1e3 * (time.perf_counter() - start))
    return spent


def audit(models: Mapping[str, nn.Module], call: Callable[[nn.Module], object], batch: str, repeats: int = 15) -> dict:
    """Return for each model what it weighs, its multiply-adds and its latency on one batch, measured side by side.

    Args:
        models: by name; the first is what the others are compared with.
        call: runs a model on the batch.
        batch: the batch in words, for the reader.
        repeats: timed rounds; the median is quoted, with the quartiles beside it. "latency_ratio" is the median of the
            ratios to the first model, round by round.
    """
    spent = latencies({name: lambda m=model: call(m) for name, model in models.items()}, repeats)
    first = next(iter(spent.values()))
    found = {}
    for name, model in models.items():
        times = spent[name]
        low, _, high = statistics.quantiles(times, n=4)
        found[name] = weigh(model) | {
            "macs": multiply_adds(lambda m=model: call(m)),
            "latency_ms": statistics.median(times),
            "latency_spread": [low, high],
            "latency_ratio": statistics.median(a / b for a, b in zip(times, first, strict=True)),
            "device": str(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
            "batch": batch,
            "note": f"median of {repeats} rounds, models in turn",
        }
    return found


def matrices_latency(plan: Plan, repeats: int = 7, work: float = 2e11) -> dict[str, dict]:
    """Return {"before", "after"}: the measured time of the plan's matrices alone, as dense products and as planned.

    For a checkpoint whose model class is not at hand. Every matrix is multiplied with random inputs, as one product
    or as two, in turn; the times of all matrices add up. What else a model does is not in it.

    Args:
        plan: tells the shapes and ranks.
        repeats: rounds; the median is taken matrix by matrix.
        work: multiply-adds spent on it altogether, at most; it sets the batch.
    """
    total = sum(e.macs_before for e in plan.entries)
    batch = int(max(1, min(256, work / (2 * total * (repeats + 1)))))
    generator = torch.Generator().manual_seed(0)
    sums = {"before": 0.0, "after": 0.0}
    known: dict[tuple, dict[str, float]] = {}
    for e in plan.entries:
        shape = (e.rows, e.cols, e.rank if e.action == "split" else None)
        if shape not in known:
            x, W = (torch.randn(size, e.cols, generator=generator) for size in (batch, e.rows))
            calls = {"before": lambda x=x, W=W: x @ W.T}
            if shape[2]:
                right, left = (torch.randn(*size, generator=generator) for size in ((e.rank, e.cols), (e.rows, e.rank)))
                calls["after"] = lambda x=x, left=left, right=right: (x @ right.T) @ left.T
            spent = {name: statistics.median(times) for name, times in latencies(calls, repeats, warmup=1).items()}
            known[shape] = {"after": spent["before"], **spent}
        for name in sums:
            sums[name] += known[shape][name]
    conditions = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "batch": f"{batch} random inputs a matrix",
        "note": "latency: the matrices of the plan alone, measured one by one; the rest of the model is not in it",
    }
    return {name: {"latency_ms": value, **conditions} for name, value in sums.items()}
