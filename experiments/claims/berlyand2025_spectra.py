"""Claims of arXiv 2503.01922, B.1 (regression) and E.7 (metrics); section 3 is named as not run."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiments.claims.claim import NONE, PENDING, Claim, each, graded, row, waits

REGRESSION, METRICS = "berlyand2025_regression", "berlyand2025_metrics"
ERRORS = {"none": 2.5735, "l2": 2.5627, "l1": 0.4157, "pruning": 0.1491}  # table 5, one draw
GAIN = ERRORS["none"] / ERRORS["pruning"]
# Figure 19: misfit and bulk share of a layer of ViT-B, whose shorter sides are 768, at the scripts' alpha.
BAD, BULK, ALPHA, SHORT = 0.74, 0.73, 0.25, 768

Results = dict[str, Any]


def regression(found: Results) -> list[Claim]:
    """Returns the rows on B.1."""
    rows = errors(found) if found else [row("B.1, table 5", listed(), PENDING, NONE, waits())]
    return [claim.at(REGRESSION) for claim in rows]


def listed(errors: dict[str, list[float]] | None = None) -> str:
    """Returns the errors of table 5, the paper's or ours with their half intervals."""
    return ", ".join(f"{name} {pm(errors[name]) if errors else value}" for name, value in ERRORS.items())


def pm(pair: list[float], digits: int = 3) -> str:
    """Returns a mean and half its 95 % interval."""
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def errors(found: Results) -> list[Claim]:
    """Returns the rows on table 5."""
    text, grid = found["random"]["summary"], found["grid"]["summary"]
    draws = {name: len(found[name]["draws"]) for name in ("random", "grid")}
    whole = (grid["ordered"] == draws["grid"]) + (text["ordered"] == draws["random"])
    near = sum(abs(summary["gain"][0] / GAIN - 1) < 0.25 for summary in (text, grid))
    kept = [" to ".join(map(str, sorted({min(s["kept"]), max(s["kept"])}))) for s in (text, grid)]
    zeros = [100 * np.mean([one["zero_values"]["l1"] for one in found[name]["draws"]]) for name in draws]
    entries = [100 * np.mean([one["zeros_l1"] for one in found[name]["draws"]]) for name in draws]
    return [
        row(
            "B.1, table 5: pruning < L1 < L2 < none in mean squared error",
            f"{listed()} (one draw)",
            f"samples at random places: {listed(text['mse'])} ({draws['random']} draws)",
            f"no script; samples on an even grid: {listed(grid['mse'])} ({draws['grid']} draws)",
            (
                graded(whole, 2),
                f"this order in {grid['ordered']} of {draws['grid']} draws on the grid and {text['ordered']} of "
                f"{draws['random']} at random places",
            ),
        ),
        row(
            "B.1: the gain, none over pruning",
            f"{GAIN:.1f}",
            pm(text["gain"], 1),
            f"even grid: {pm(grid['gain'], 1)}",
            (
                graded(near, 2),
                f"of 16 true directions the edge keeps {kept[1]} on the grid, {kept[0]} at random places, where the "
                f"noise of W is uneven; with that made even the error there is {pm(text['mse']['pruning, whitened'])}",
            ),
        ),
        row(
            "B.1, figure 9: L1 zeroes 40 % of the singular values",
            "40 %",
            f"{zeros[0]:.0f} % of the singular values, {entries[0]:.0f} % of the entries",
            f"even grid: {zeros[1]:.0f} and {entries[1]:.0f} %",
            (graded(sum(abs(value - 40) < 10 for value in zeros), 2), "at the penalty that predicts best"),
        ),
    ]


def metrics(found: Results) -> list[Claim]:
    """Returns the rows on E.7."""
    claim = "E.7, figure 21: the bulk share (called spike metric) falls with alpha"
    rows = shares(found, claim) if found else [row(claim, "0.938 to 0.837", PENDING, NONE, waits())]
    average = row("3.1, E.7: averages over ViT-B", "bulk share 88.55 %, misfit 0.3", NONE, NONE, waits())
    return [one.at(METRICS) for one in (*rows, bad_layer(), average)]


def shares(found: Results, claim: str) -> list[Claim]:
    """Returns the rows on figure 21, query, key and value taken as one matrix as in the scripts."""
    alphas, paper = found["config"]["alphas"], found["config"]["paper"]
    models = {name.partition(",")[0]: kept for name, kept in found["results"].items() if "as one" in name}

    def at(variant: str, key: str, alpha: float) -> np.ndarray:
        return np.array([kept["means"][variant][key]["mean"][alphas.index(alpha)] for kept in models.values()])

    ends = {v: (at(v, "bulk_share", 0.01), at(v, "bulk_share", 0.49)) for v in ("text", "as executed")}
    words = {v: ", ".join(f"{a:.3f} to {b:.3f}" for a, b in zip(*pair, strict=True)) for v, pair in ends.items()}
    fell = paper["bulk_share"]["0.01"] - paper["bulk_share"]["0.49"]
    falls = np.array([first - last for first, last in ends.values()]) / fell
    wrong, right = at("as executed", "misfit", 0.01), at("text", "misfit", 0.01)
    late = np.abs(at("as executed", "misfit", 0.35) - at("text", "misfit", 0.35)).max()
    word = "confirmed in part" if falls.min() > 0.5 and falls.max() < 1.5 else "not reproduced"
    seen = "artefact" if wrong.min() > 0.8 and right.max() < 0.3 else "not reproduced"
    why = f"the scripts' distribution function falls back to 0 above the edge; at .35 both agree within {late:.4f}"
    return [
        row(
            claim,
            f"ViT-B: {paper['bulk_share']['0.01']:.3f} at .01 to {paper['bulk_share']['0.49']:.3f} at .49 (read off)",
            f"{' and '.join(models)}: {words['text']}",
            words["as executed"],
            (word, "the shape, on other models; ViT-B was not at hand"),
        ),
        row(
            "E.7, figure 21: the misfit at alpha = .01",
            f"ViT-B: {paper['misfit']['0.01']:.2f} (read off)",
            f"{' and '.join(models)}: {each(list(right), 2)}",
            each(list(wrong), 2),
            (seen, why),
        ),
    ]


def bad_layer() -> Claim:
    """Returns the row on figure 19.

    The scripts' window ends at the share 1 - alpha of the values. If the bulk ends before it, their distribution
    function is 0 at the last of the window, and its own level, alpha + (1 - 2 alpha) (m - 1) / m for m values in
    the window, is the figure, whatever the spectrum looks like.
    """
    m = int((1 - ALPHA) * SHORT) - int(ALPHA * SHORT)
    figure = ALPHA + (1 - 2 * ALPHA) * (m - 1) / m
    made = BULK < 1 - ALPHA and abs(figure - BAD) < 0.01
    return row(
        "E.7, figure 19: a layer that fits badly",
        f"misfit {BAD}, bulk share {100 * BULK:.0f} % (caption: arXiv 2606.02608)",
        "its weights were not at hand",
        f"a bulk of {100 * BULK:.0f} % ends inside a window that reaches to {100 * (1 - ALPHA):.0f} %, which gives "
        f"{figure:.4f} for every spectrum",
        ("artefact", "of its value; the layer may fit badly as well") if made else ("not reproduced", ""),
    )


def transformers() -> list[Claim]:
    """Returns the rows on section 3, for which ImageNet would be needed."""
    vision = "3.3, 3.4, figures 1 to 3: ViT-B and ViT-L with 30 to 50 % of the parameters pruned"
    deit = "3.6, table 1: DeiT-Ti, -S, -B, not fine-tuned"
    return [
        row(vision, "less than 1 % of accuracy lost", NONE, NONE, waits("ImageNet was not at hand")),
        row(deit, "71.09, 78.91, 81.44 % at 24.83, 23.72, 21.38 % of FLOPs saved", NONE, NONE, waits("the same")),
    ]
