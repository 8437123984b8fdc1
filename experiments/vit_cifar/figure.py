"""Draws results.json and fills the tables of the README.

python -m experiments.vit_cifar.figure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records
from experiments.vit_cifar.run import CLASSICAL, DENSE, unpacked

HERE = Path(__file__).parent
STAGES = ("pruned", "tuned")


def arms(results: dict[str, Any]) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Returns the records of the seeds by (method, share in %), the dense arm as (dense, 0)."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for name, record in results.items():
        arm = name.rpartition(", seed ")[0]
        method, _, share = arm.rpartition(" ") if arm != DENSE else (DENSE, " ", "0%")
        found.setdefault((method, float(share.rstrip("%"))), []).append(record)
    return found


def accuracy(found: list[dict[str, Any]], stage: str) -> float:
    """Returns the mean accuracy over the seeds, in %."""
    return 100 * float(np.mean([record[stage]["accuracy"] for record in found]))


def against(one: list[dict[str, Any]], other: list[dict[str, Any]], stage: str) -> tuple[float, float]:
    """Returns the difference of two arms in points, and its standard error over the images, image by image.

    Of several seeds the hits of an image are averaged first.
    """
    a, b = (
        np.mean([unpacked(record[stage]["hits"])[: record["images"]] for record in found], axis=0)
        for found in (one, other)
    )
    apart = 100 * (a - b)
    return float(apart.mean()), float(apart.std(ddof=1) / np.sqrt(len(apart)))


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README."""
    found = arms(results)
    dense = found[DENSE, 0.0]
    methods = list(dict.fromkeys(method for method, _ in found if method != DENSE))
    shares = sorted({share for _, share in found if share})
    out = {}
    for stage, said in zip(STAGES, ("pruned", "pruned, one epoch"), strict=True):
        rows = [["method", *(f"{share:.0f} % zero" for share in shares)]]
        for method in methods:
            rows.append(
                [method, *(f"{accuracy(found[method, s], stage):.1f}" if (method, s) in found else "" for s in shares)]
            )
        rows.append(
            [f"dense{', one epoch' if stage == 'tuned' else ''}", *(f"{accuracy(dense, stage):.1f}" for _ in shares)]
        )
        out[said] = rows
    rows = [["share", "method", "against global magnitude, pruned", "one epoch", "against the dense net, one epoch"]]
    for share in shares:
        for method in methods:
            one, other = found.get((method, share)), found.get(("global magnitude", share))
            if one is None or other is None:
                continue
            gains = [pair(against(one, other, stage)) if method != "global magnitude" else "" for stage in STAGES]
            rows.append([f"{share:.0f} %", method, *gains, pair(against(one, dense, "tuned"))])
    out["differences"] = rows
    lost = sum(record["zeros_lost"] for record in results.values())
    frozen = [record["frozen"] for (_, share), many in found.items() if share for record in many]
    cycles = {s: found[CLASSICAL, s][0]["cut"]["cycles"] for s in shares if (CLASSICAL, s) in found}
    out["zeros"] = [
        ["arms", "zeros frozen in an arm", "zeros that moved, all arms", "classical cycles run for the share"],
        [
            str(len(results)),
            f"{min(frozen)} to {max(frozen)}",
            str(lost),
            ", ".join(f"{s:.0f} %: {c}" for s, c in cycles.items()),
        ],
    ]
    return out


def pair(value: tuple[float, float]) -> str:
    """Returns a difference and its standard error."""
    return f"{value[0]:+.1f} ± {value[1]:.1f}"


def draw(results: dict[str, Any]) -> Any:
    """Returns the figure: accuracy against the share of zeros, before and after the epoch."""
    found = arms(results)
    methods = list(dict.fromkeys(method for method, _ in found if method != DENSE))
    figure, axes = drawing.panels(1, 2, (8, 3.2))
    for axis, stage, title in zip(axes[0], STAGES, ("pruned", "pruned, one epoch with frozen zeros"), strict=True):
        level = accuracy(found[DENSE, 0.0], stage)
        for i, method in enumerate(methods):
            shares = sorted(share for name, share in found if name == method)
            values = [accuracy(found[method, share], stage) for share in shares]
            axis.plot(shares, values, "o-", ms=3, color=drawing.INK[i % len(drawing.INK)], label=method)
        axis.axhline(level, color="black", lw=0.8, ls="--")
        axis.set(title=title, xlabel="entries that are zero, %", ylabel="test accuracy, %", ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    return figure


def main() -> None:
    """Draws the figure and fills the tables."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    drawing.save(draw(results), HERE)


if __name__ == "__main__":
    main()
