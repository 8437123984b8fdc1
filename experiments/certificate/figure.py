"""Draws figure.svg from results.json and fills the tables of the README and of docs/certificate.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import drawing, records

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
WAYS = ("global magnitude", "least damage", "surgeon")
METHODS = ("norms", "response", "enclosure")
NETS = {"mlp": "784-300-100-10", "cnn": "convolutional"}


def share(part: int, whole: int) -> str:
    """Returns a share in percent; 100.0 only where it is all of them."""
    if not whole:
        return "-"
    if part < whole and round(100 * part / whole, 1) == 100:
        return f"{100 * part / whole:.2f}"
    return f"{100 * part / whole:.1f}"


def cell(result: dict[str, Any], method: str, radius: float, refine: bool = False) -> dict[str, Any] | None:
    """Returns what one method said at one radius, None where it was not asked."""
    same = (c for c in result["cells"] if (c["method"], c["radius"], c["refine"]) == (method, radius, refine))
    return next(same, None)


def rows_of(results: dict[str, Any], net: str, ways: tuple[str, ...] = WAYS) -> list[dict[str, Any]]:
    """Returns the cuts of one network, the one without any first, in the order of the ways and rates."""
    found = [r for r in results.values() if r["net"] == net and (r["way"] in ways or not r["rate"])]
    return sorted(found, key=lambda r: (bool(r["rate"]), WAYS.index(r["way"]), r["rate"]))


def name_of(result: dict[str, Any]) -> str:
    """Returns the way and the share of zeros of a cut, in words."""
    return f"{result['way']}, {result['rate']:.0%}" if result["rate"] else "no cut"


def at_the_samples(results: dict[str, Any], net: str) -> list[list[str]]:
    """Returns the table of radius 0: certified by each method, and the truth."""
    rows = [["cut", "accuracy %", "do not change %", *(f"{m} %" for m in METHODS), "violations"]]
    for r in rows_of(results, net):
        found = [cell(r, method, 0.0) for method in METHODS]
        rows.append(
            [
                *(name_of(r), f"{100 * r['accuracy']['cut']:.2f}", share(r["unchanged"], r["images"])),
                *(share(c["certified"], c["images"]) for c in found),
                str(sum(c["violations"] for c in found)),
            ]
        )
    return rows


def in_a_ball(results: dict[str, Any], net: str) -> list[list[str]]:
    """Returns the table of the balls: certified by each method, and what stands the attack."""
    radii = sorted({c["radius"] for r in results.values() for c in r["cells"]} - {0.0})
    refined = any(c["refine"] for r in rows_of(results, net) for c in r["cells"])
    head = ["cut", "radius", "stands the attack %", *(f"{m} %" for m in METHODS)]
    rows = [[*head, *([f"{m}, refined %" for m in METHODS[1:]] if refined else []), "violations"]]
    for r in rows_of(results, net, WAYS[:1] + WAYS[2:]):
        for radius in radii:
            asked = [*((m, False) for m in METHODS), *((m, True) for m in METHODS[1:] if refined)]
            found = [cell(r, method, radius, refine) for method, refine in asked]
            rows.append(
                [
                    *(name_of(r), f"{radius:g}", share(found[0]["stands"], found[0]["images"])),
                    *(share(c["certified"], c["images"]) for c in found),
                    str(sum(c["violations"] for c in found)),
                ]
            )
    return rows


def layers(results: dict[str, Any]) -> list[list[str]]:
    """Returns what each layer of the first network takes off the margin, by global magnitude, means over the images."""
    chosen = [r for r in rows_of(results, "mlp", WAYS[:1]) if r["rate"]]
    names = list(cell(chosen[0], "response", 0.0)["layers"])
    rows = [["zeros", "median margin", "its bound", *names, "rounding"]]
    for r in chosen:
        c = cell(r, "response", 0.0)
        parts = []
        for name in names:
            told = c["layers"][name]
            kept = f"; {100 * c['fixed'][name]:.1f} % keep their piece" if name in c["fixed"] else ""
            parts.append(f"{told['damage']:+.3f} ∓ {told['remainder']:.3f}{kept}" if kept else f"{told['damage']:+.3f}")
        rows.append(
            [
                f"{r['rate']:.0%}",
                f"{c['median_margin']:.2f}",
                f"{c['median_bound']:.2f}",
                *parts,
                f"{c['rounding']:.4f}",
            ]
        )
    return rows


def summary(results: dict[str, Any]) -> list[list[str]]:
    """Returns the table of the document: the first network at radius 0 and .1, by global magnitude and the surgeon."""
    rows = [["zeros", "way", "do not change %", "response %", "norms %", "radius .1: stand the attack %", "response %"]]
    for r in rows_of(results, "mlp", (WAYS[0], WAYS[2])):
        zero, ball = cell(r, "response", 0.0), cell(r, "response", 0.1)
        norms = cell(r, "norms", 0.0)
        rows.append(
            [
                *(f"{r['rate']:.0%}", r["way"] if r["rate"] else "no cut", share(r["unchanged"], r["images"])),
                *(share(c["certified"], c["images"]) for c in (zero, norms)),
                *(share(ball["stands"], ball["images"]), share(ball["certified"], ball["images"])),
            ]
        )
    return rows


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the README."""
    found = {}
    for net in NETS:
        found[f"{net} at the samples"] = at_the_samples(results, net)
        found[f"{net} in a ball"] = in_a_ball(results, net)
    return {**found, "layers": layers(results)}


def main() -> None:
    """Fills the tables, and draws."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    drawing.fill(DOCS, {"certified": summary(results)}, "certificate.md")
    figure, axes = drawing.panels(1, 3, (12.0, 3.9))
    panels = (
        ("mlp", "response", 0.0, "at the samples"),
        ("mlp", "response", 0.1, "within .1 of the samples"),
        ("mlp", "response", 0.3, "within .3 of the samples"),
    )
    for axis, (net, sharp, radius, title) in zip(axes[0], panels, strict=True):
        for colour, way in zip(drawing.INK, (WAYS[0], WAYS[2]), strict=False):
            cuts = rows_of(results, net, (way,))
            for method, style in ((sharp, "-"), ("norms", ":")):
                found = [cell(r, method, radius) for r in cuts]
                y = [100 * c["certified"] / c["images"] for c in found]
                axis.plot([100 * r["rate"] for r in cuts], y, style, color=colour, marker=".", label=f"{way}: {method}")
            y = [100 * c["stands"] / c["images"] for c in found]
            axis.plot([100 * r["rate"] for r in cuts], y, "--", color=colour, alpha=0.6, label=f"{way}: truth")
        what = "do not change" if not radius else "stand the attack"
        axis.set(title=f"{NETS[net]}, {title}", xlabel="% zeros", ylabel=f"% certified; dashed: % that {what}")
        axis.set_ylim(-3, 103)
    axes[0][0].legend(fontsize=7)
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
