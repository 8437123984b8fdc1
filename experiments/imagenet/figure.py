"""Draws results.json and fills the tables of the README, ours beside what the papers print; empty cells stay empty.

python -m experiments.imagenet.figure
"""

from __future__ import annotations

from math import hypot
from pathlib import Path
from typing import Any

from experiments import drawing, records
from experiments.imagenet.published import DEIT, MODELS, VIT_BASE_TUNED, VIT_LARGE

HERE = Path(__file__).parent
CYCLES = "classical cycles"
TUNED = ", tuned"


def curves(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Returns the measured points of a course by method, the dense model first in each."""
    start = {"share": 0.0} | found["dense"]
    out = {CYCLES: [start, *(row for row in found["cycles"] if "top1" in row)]}
    return out | {name: [start, *rows] for name, rows in found["methods"].items() if rows and "top1" in rows[0]}


def saved(row: dict[str, Any]) -> float:
    """Returns the share of the multiply-adds whose weight is zero, in %."""
    return 100 * (1 - row["macs_nonzero"] / row["macs"])


def removed(row: dict[str, Any]) -> float:
    """Returns the share of the parameters that are zero, in %."""
    return 100 * (1 - row["nonzeros"] / row["params"])


def title(name: str) -> str:
    """Returns how a model is called in the tables."""
    return MODELS[name].title if name in MODELS else name


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README."""
    return {
        "models": _models(results),
        "kept": _kept(results),
        "vit": _vit(results),
        "deit": _deit(results),
    }


def _models(results: dict[str, Any]) -> list[list[str]]:
    rows = [
        ["model", "parameters, M", "multiply-adds, G", "top-1 %", "the paper's", "misfit", "bulk share %", "command"]
    ]
    for name in dict.fromkeys([*MODELS, *_own(results)]):
        found, known = results.get(name), MODELS.get(name)
        paper = f"{known.top1:.2f}" if known else ""
        if found is None:
            rows.append([title(name), f"{known.params:.1f}", "", "", paper, "", "", f"`--model {name}=WHERE`"])
            continue
        dense, first = found["dense"], found["cycles"][0]
        top1 = f"{100 * dense['top1']:.1f} ± {100 * dense['error']:.1f}" if "top1" in dense else "(random start)"
        sizes = [f"{dense['params'] / 1e6:.1f}", f"{dense['macs'] / 1e9:.2f}"]
        rows.append([title(name), *sizes, top1, paper, f"{first['misfit']:.3f}", f"{100 * first['bulk']:.1f}", ""])
    return rows


def _own(results: dict[str, Any]) -> list[str]:
    return [name for name in results if not name.endswith(TUNED)]


def _kept(results: dict[str, Any]) -> list[list[str]]:
    head = ["model", "cycle", "weights zero %", "parameters zero %", "multiply-adds saved %", "cycles, top-1 %"]
    rows = [[*head, "magnitude at the same share", "difference"]]
    for name in _own(results):
        lines = curves(results[name])
        control = {row["cycle"]: row for row in lines.get("global magnitude", [])[1:]}
        for row in results[name]["cycles"]:
            if "params" not in row:
                continue
            cells = [
                title(name),
                str(row["cycle"]),
                f"{100 * row['share']:.1f}",
                f"{removed(row):.1f}",
                f"{saved(row):.1f}",
            ]
            other = control.get(row["cycle"])
            if "top1" in row and other is not None:
                gap, error = 100 * (row["top1"] - other["top1"]), 100 * hypot(row["error"], other["error"])
                cells += [f"{100 * row['top1']:.1f}", f"{100 * other['top1']:.1f}", f"{gap:+.1f} ± {error:.1f}"]
            else:
                cells += [f"{100 * row['top1']:.1f}" if "top1" in row else "", "", ""]
            rows.append(cells)
    return rows


def near(found: dict[str, Any] | None, share: float, by: Any = removed) -> str:
    """Returns our top-1 in % at the measured point within two points of a share in %, or nothing."""
    points = [row for row in (found["cycles"] if found else ()) if "top1" in row and abs(by(row) - share) <= 2]
    best = min(points, key=lambda row: abs(by(row) - share), default=None)
    return "" if best is None else f"{100 * best['top1']:.2f} (at {by(best):.1f})"


def _tuned(results: dict[str, Any], name: str, share: float, by: Any = removed) -> str:
    """Returns the top-1 in % of a fine-tuned model whose name begins with this one, at a share, or nothing."""
    for label, row in results.items():
        if label.startswith(f"{name}-") and label.endswith(TUNED) and abs(by(row) - share) <= 2:
            return f"{100 * row['top1']:.2f} (at {by(row):.1f})"
    return ""


def _vit(results: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "removed %", "published, not tuned", "here", "published, one epoch", "here, tuned"]]
    for share, top1 in VIT_LARGE:
        rows.append([title("vit-large"), f"{share:.1f}", f"{top1:.2f}", near(results.get("vit-large"), share), "", ""])
    for share, top1 in VIT_BASE_TUNED["classical procedure"]:
        magnitude = dict(VIT_BASE_TUNED["magnitude"])[share]
        said = f"{top1:.2f}, magnitude {magnitude:.2f}"
        ours = [near(results.get("vit-base"), share), said, _tuned(results, "vit-base", share)]
        rows.append([title("vit-base"), f"{share:.1f}", "", *ours])
    return rows


def _deit(results: dict[str, Any]) -> list[list[str]]:
    rows = [["model", "method", "top-1 %, not tuned", "FLOPs saved %", "top-1 %, tuned", "FLOPs saved %"]]
    for name, methods in DEIT.items():
        rows.append([title(name), "baseline", f"{MODELS[name].top1:.2f}", "-", f"{MODELS[name].top1:.2f}", "-"])
        for method, *figures in methods:
            rows.append([title(name), method, *("" if f is None else f"{f:.2f}" for f in figures)])
        _, _, few, _, many = methods[-1]
        ours = near(results.get(name), few, saved), _tuned(results, name, many, saved) if many else ""
        rows.append([title(name), "here", ours[0], "", ours[1], ""])
    return rows


def draw(results: dict[str, Any]) -> Any:
    """Returns the figure: accuracy against parameters kept, and accuracy lost against multiply-adds saved."""
    figure, axes = drawing.panels(1, 2, (8, 3.2))
    left, right = axes[0]
    i = 0
    for name in _own(results):
        for method, rows in curves(results[name]).items():
            if len(rows) < 2:
                continue
            style = {"ls": "-" if method == CYCLES else "--", "color": drawing.INK[i % len(drawing.INK)]}
            label = f"{title(name)}, {method}"
            kept, top1 = [100 - removed(row) for row in rows], [100 * row["top1"] for row in rows]
            left.errorbar(
                kept, top1, [100 * row["error"] for row in rows], marker="o", ms=3, lw=1, label=label, **style
            )
            right.plot(
                [saved(row) for row in rows], [a - top1[0] for a in top1], marker="o", ms=3, label=label, **style
            )
            i += 1
    share, top1 = zip(*VIT_LARGE, strict=True)
    left.plot([100 - s for s in share], top1, ":", color="black", lw=1, label="ViT-L/16, published")
    left.set(xlabel="parameters that are not zero, %", ylabel="top-1, %", ylim=(0, 100))
    left.invert_xaxis()
    for k, (name, methods) in enumerate(DEIT.items()):
        for method, plain, few, *_ in methods:
            if method in ("P25", "CP-ViT"):
                mark = {"marker": "*" if method == "P25" else "x", "color": drawing.INK[3 + k], "ls": "none"}
                base = MODELS[name].top1
                right.plot([few], [plain - base], label=f"{title(name)}, {method}, not tuned", **mark)
    right.set(xlabel="multiply-adds saved, %", ylabel="top-1 lost, points")
    left.legend(fontsize=7)
    right.legend(fontsize=6)
    return figure


def main() -> None:
    """Draws the figure and fills the tables."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    drawing.save(draw(results), HERE)


if __name__ == "__main__":
    main()
