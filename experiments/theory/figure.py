"""Draws results.json and fills the tables of the README.

python -m experiments.theory.figure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from experiments import drawing, records
from experiments.theory.approximation import STRENGTHS
from experiments.theory.claims import all_claims
from experiments.theory.wording import Rows, pm, power

HERE = Path(__file__).parent


def spike_rows(results: dict[str, Any]) -> Rows:
    """Returns one row a law: the third signal, where the noise matters most, at the largest size."""
    rows = [
        ["noise", "c", "g", "p", "seen at", "map", "by D", "cos² short", "map", "by D", "cos² long", "map", "by D",
         "rate of error of values, map", "by D"]
    ]  # fmt: skip
    i = 2
    for name, found in results.items():
        if name.startswith("spikes"):
            last, limit = found["sizes"][-1], found["limit"]
            rows.append(
                [
                    *(found["law"], f"{found['c']:g}", f"{found['g']:g}", str(last["p"])),
                    pm([part[i] for part in last["values"]], 3),
                    *(f"{limit['values'][i]:.3f}", f"{last['from noise'][0][i]:.3f}"),
                    *(pm([part[i] for part in last["short"]], 3), f"{limit['short'][i]:.3f}"),
                    f"{last['short from noise'][0][i]:.3f}",
                    *(pm([part[i] for part in last["long"]], 3), f"{limit['long'][i]:.3f}"),
                    f"{last['long from noise'][0][i]:.3f}",
                    *(
                        power(found[f"rate of {key}"][i], found[f"error of rate of {key}"][i])
                        for key in ("rms error", "rms error, own")
                    ),
                ]
            )
    return rows


def approximation_rows(results: dict[str, Any]) -> Rows:
    """Returns one row a law and strength: squared lengths at the largest size."""
    rows = [
        ["noise", "c", "theta / critical", "(W' - S) v, squared", "its limit", "(W - S) v, squared", "shrunk",
         "(W' - S) z, random z", "(W - S) z, random z", "values kept, of 3"]
    ]  # fmt: skip
    for name, found in results.items():
        if name.startswith("approximation"):
            last = found["sizes"][-1]
            for i, strength in enumerate(STRENGTHS):
                rows.append(
                    [
                        *(found["law"], f"{found['c']:g}", f"{strength:g}"),
                        pm([part[i] for part in last["cut, along"]], 3),
                        f"{found['limit along'][i]:.3f}",
                        *(pm([part[i] for part in last[f"{k}, along"]], 3) for k in ("whole", "shrunk")),
                        *(pm(last[f"{k}, random"], 4) for k in ("cut", "whole")),
                        pm(last["kept"], 2),
                    ]
                )
    return rows


def removal_rows(results: dict[str, Any]) -> Rows:
    """Returns one row a widening, law and width."""
    rows = [
        ["units used", "noise", "N", "lambda ‖R‖²", "rms of the rest", "of it cross term", "of it entropy",
         "largest a(N, s)", "outputs change by, mean", "share of the bound (later), mean",
         "worst sample", "accuracy", "open to change"]
    ]  # fmt: skip
    for name, found in results.items():
        if name.startswith("removal"):
            for t in found["widths"]:
                rows.append(
                    [
                        f"{found['spread']}, {t['used']}" + (", weak S" if name.endswith("weak S") else ""),
                        *(found["law"], str(t["N"])),
                        pm(t["penalty"]),
                        *(f"{t[f'rms {key}']:.4f}" for key in ("residual", "cross term", "change of entropy")),
                        f"{t['a']:.1f}",
                        pm(t["mean change"], 3),
                        f"{t['share of later'][0]:.3f}",
                        f"{t['worst share of later, any draw']:.3f}",
                        pm([100 * x for x in t["accuracy"]], 2),
                        f"{100 * t['open to change'][0]:.0f} %",
                    ]
                )
    return rows


def decay_rows(results: dict[str, Any]) -> Rows:
    """Returns one row a training: what is left at its end; no sigma where no bulk could be fitted."""
    rows = [
        ["training", "mu2", "sigma left", "closed form", "their ratio", "misfit, start to end", "values over the edge",
         "median left", "tail left", "start kept", "norm left", "test accuracy"]
    ]  # fmt: skip
    for name, found in results.items():
        if name.startswith(("decay", "settled")):
            fits = found["misfit"][-1] is not None
            rows.append(
                [
                    *(name, f"{found['l2']:g}", f"{found['sigma'][-1]:.4f}" if fits else "no fit"),
                    f"{found['expected'][-1]:.4f}",
                    f"{found['sigma'][-1] / found['expected'][-1]:.3f}" if fits else "-",
                    " to ".join("-" if found["misfit"][k] is None else f"{found['misfit'][k]:.3f}" for k in (0, -1)),
                    " to ".join(str(found["spikes"][k]) for k in (0, -1)),
                    *(f"{found[key][-1]:.4f}" for key in ("median", "tail", "start kept", "norm")),
                    f"{100 * found['test_accuracy']:.2f}",
                ]
            )
    return rows


def tables(found: dict[str, Any]) -> dict[str, Rows]:
    """Returns the tables of the README."""
    results = found["results"]
    return {
        "claims": all_claims(found),
        **{"spikes": spike_rows(results), "approximation": approximation_rows(results)},
        **{"removal": removal_rows(results), "decay": decay_rows(results)},
    }


def main() -> None:
    """Writes figure.svg beside the results, and the tables into the README."""
    found = records.read(HERE / "results.json")
    drawing.fill(HERE, tables(found))
    draw(found["results"])


def draw(results: dict[str, Any]) -> None:
    """Draws the four panels."""
    figure, axes = drawing.panels(2, 2, (10, 7.4))
    (decay, rest), (bound, spikes) = axes
    ink = dict(zip((0.0, 5e-4, 2e-3), drawing.INK, strict=False))
    for name, course in results.items():
        if name.startswith("decay l2"):
            first = name.endswith("seed=0")
            t = np.array(course["epoch"]) + 1
            decay.plot(t, course["sigma"], "o", markersize=3, color=ink[course["l2"]])
            label = f"mu2 = {course['l2']:g}" if first else None
            decay.plot(t, course["expected"], color=ink[course["l2"]], label=label)
    decay.set(
        xlabel="epoch", ylabel="bulk sigma of fc2 / start", title="theorem 4.1: points by Bema, lines closed form"
    )
    decay.set_ylim(0, 1.1)
    decay.legend()

    styles = {"fixed": ("o-", "64 units used"), "root": ("^-", "about 8 sqrt(N) used"), "all": ("s-", "all used")}
    for colour, (spread, (style, label)) in zip(drawing.INK, styles.items(), strict=False):
        cell = results[f"removal {spread} gaussian"]
        N = [t["N"] for t in cell["widths"]]
        rest.plot(N, [t["rms residual"] for t in cell["widths"]], style, color=colour, label=label)
        bound.plot(N, [t["mean change"][0] for t in cell["widths"]], style, color=colour, label=f"measured, {label}")
        late = [t["mean change"][0] / t["share of later"][0] for t in cell["widths"]]
        bound.plot(N, late, style[0] + ":", color=colour, markerfacecolor="none", label="bound, later form")
    along = results["removal fixed along"]["widths"]
    rest.plot([t["N"] for t in along], [t["rms residual"] for t in along], "x--", color="#555555", label="control")
    cell = results["removal all gaussian, weak S"]["widths"]
    N = [t["N"] for t in cell]
    rest.plot(N, [t["rms residual"] for t in cell], "s--", color=drawing.INK[3], label="all used, weak S")
    rest.axhline(cell[-1]["mean field, change of entropy"], color=drawing.INK[3], linewidth=0.8)
    cell = results["removal fixed gaussian"]["widths"]
    rest.plot([t["N"] for t in cell], [t["penalty"][0] for t in cell], "k:", label="lambda ‖R‖² itself")
    rest.set(xscale="log", yscale="log", xlabel="N", ylabel="rms of L(W) - L(S) - lambda ‖R‖²", title="theorem 4.2")
    rest.legend(fontsize=7)
    mean = results["removal fixed gaussian"]["outputs"]
    bound.axhline(mean, color="#555555", linewidth=0.8, label="mean output")
    bound.set(xscale="log", yscale="log", xlabel="N", ylabel="largest change of an output", title="lemma 4.4")
    bound.legend(fontsize=6)

    for colour, law in zip(
        drawing.INK, ("gaussian", "student5", "student3", "haar", "product", "uneven"), strict=False
    ):
        v = results[f"spikes {law} c=0.5 g=1.0"]
        ps = [t["p"] for t in v["sizes"]]
        spikes.plot(ps, [t["rms error"][2] for t in v["sizes"]], "x--", color=colour)
        spikes.plot(ps, [t["rms error, own"][2] for t in v["sizes"]], "o-", color=colour, label=law)
    spikes.set(xscale="log", yscale="log", xlabel="p", ylabel="relative rms error of the value seen, third signal")
    spikes.set_title("eq. 77, c = 1/2: by D; dashed: by the map")
    spikes.legend(fontsize=7)
    drawing.save(figure, HERE)


if __name__ == "__main__":
    main()
