"""Draws results.json and fills the tables of the README and of docs/budgets.md.

python -m experiments.data_free_zeros.figure
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import drawing, records
from experiments.data_free_zeros.run import RULE

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
MODELS = {
    "minilm": "MiniLM-L6",
    "vit_s14": "ViT-S/14",
    "efficientnet": "EfficientNet-Lite0",
    "whisper": "Whisper tiny.en",
    "vit_cifar": "small ViT",
}
NEW = ("whisper", "vit_cifar")  # the rule was not chosen on these
CONTROLS = ("uniform", "global magnitude", "random")
# A score that is a share is shown in %, the others as they are.
SHARES = ("accuracy", "top1", "wer")
NO_EDGE = ("layer normalised", "least damage, Frobenius norm", "least damage, spectral norm", "least damage, top tenth")


def sets(results: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """Returns the records of one set by model, in the order of the page."""
    return {name: results[f"{name} {kind}"] for name in MODELS if f"{name} {kind}" in results}


def cells(record: dict[str, Any]) -> dict[tuple[str, float], dict[str, Any]]:
    """Returns the cells of a sweep by method and share."""
    whole = (cell for cell in record["sweep"]["cells"] if cell["scores"] and not cell.get("flag"))
    return {(cell["method"], cell["rate"]): cell for cell in whole}


def scores_of(record: dict[str, Any]) -> list[str]:
    """Returns the names of the scores, the headline first."""
    return list(record["sweep"]["scores"])


def shown(score: str, value: float, error: float | None = None, signed: bool = False) -> str:
    """Returns a figure as the page shows it, with its standard error."""
    times, digits = (100, 1) if score in SHARES else (1, 3)
    sign = "+" if signed else ""
    text = f"{times * value:{sign}.{digits}f}"
    return text if error is None else f"{text} ± {times * error:.{digits}f}"


def figure_of(cell: dict[str, Any] | None, score: str, half: str = "all") -> tuple[float, float] | None:
    """Returns (value, standard error) of a cell, None where it has none."""
    if cell is None or score not in cell["scores"]:
        return None
    found = cell["scores"][score][half]
    return None if found["value"] is None else (found["value"], found["error"])


def counts(record: dict[str, Any], score: str, rate: float) -> bool:
    """Returns whether some method is two standard errors better than chance, or the score has no chance level."""
    chance = record["sweep"]["scores"][score]["chance"]
    if chance is None:
        return True
    sign = 1 if record["sweep"]["scores"][score]["better"] == "higher" else -1
    found = [figure_of(cell, score) for (_, at), cell in cells(record).items() if at == rate]
    return any(f is not None and sign * (f[0] - chance) > 2 * f[1] for f in found)


def table(record: dict[str, Any], score: str) -> list[list[str]]:
    """Returns one score of one model, method by share; what no method is above chance at stands in brackets."""
    found, rates = cells(record), record["sweep"]["rates"]
    rows = [[score if score not in SHARES else f"{score}, %", *(f"{rate:.0%}" for rate in rates)]]
    for method in dict.fromkeys(method for method, _ in found):
        row = [f"**{method}**" if method == RULE else method]
        for rate in rates:
            figure = figure_of(found.get((method, rate)), score)
            text = "" if figure is None else shown(score, *figure)
            row.append(text if counts(record, score, rate) or not text else f"({text})")
        rows.append(row)
    dense = record["sweep"]["dense"]["scores"][score]["all"]
    rows.append(["dense", *([shown(score, dense["value"], dense["error"])] + [""] * (len(rates) - 1))])
    return rows


def gains(records_: dict[str, dict[str, Any]], others: tuple[str, ...], half: str = "all") -> list[list[str]]:
    """Returns by how much least damage is better than other ways, with standard error and interval, where it counts."""
    rows = [["model", "score", "share", *(f"over {other}" for other in others)]]
    for name, record in records_.items():
        for score in scores_of(record):
            for rate in record["sweep"]["rates"]:
                row = []
                for other in others:
                    gain = record["gains"][score].get(other, {}).get(str(rate), {}).get(half)
                    row.append("" if gain is None else interval(score, gain))
                if any(row) and counts(record, score, rate):
                    rows.append([MODELS[name], score, f"{rate:.0%}", *row])
    return rows


def interval(score: str, gain: dict[str, float]) -> str:
    """Returns a difference with its 95 % interval, in bold where that lies on one side of zero."""
    if any(part is None or part != part for part in gain.values()):
        return "·"
    body = f"{shown(score, gain['value'], signed=True)} [{shown(score, gain['low'])}, {shown(score, gain['high'])}]"
    return f"**{body}**" if gain["low"] > 0 or gain["high"] < 0 else body


def verdicts(records_: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns, by other way and share, at how many models the headline of least damage is ahead, behind, or neither."""
    rates = sorted({rate for record in records_.values() for rate in record["sweep"]["rates"]})
    others = list(dict.fromkeys(o for record in records_.values() for o in next(iter(record["gains"].values()))))
    rows = [["over", *(f"{rate:.0%}" for rate in rates)]]
    for other in others:
        row = [other]
        for rate in rates:
            better = worse = clear = fell = all_ = 0
            for record in records_.values():
                score = scores_of(record)[0]
                gain = record["gains"][score].get(other, {}).get(str(rate), {}).get("all")
                if gain is None or not counts(record, score, rate) or gain["value"] is None:
                    continue
                all_ += 1
                better, worse = better + (gain["value"] > 0), worse + (gain["value"] < 0)
                clear, fell = clear + (gain["low"] > 0), fell + (gain["high"] < 0)
            row.append(f"{better} : {worse} ({clear} : {fell})" if all_ else "")
        rows.append(row)
    return rows


def tables(results: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Returns all tables of the README."""
    curves, ablation = sets(results, "curves"), sets(results, "ablation")
    out = {f"{name} {score}": table(record, score) for name, record in curves.items() for score in scores_of(record)}
    out |= {
        f"ablation {name} {score}": table(record, score)
        for name, record in ablation.items()
        for score in scores_of(record)
    }
    new, seen = ({n: r for n, r in curves.items() if (n in NEW) is there} for there in (True, False))
    out["verdicts new"], out["verdicts seen"] = verdicts(new), verdicts(seen)
    out["gains"] = gains(curves, ("global magnitude", "uniform", "lamp", "layer normalised"))
    if ablation:
        out["edge"] = gains(ablation, NO_EDGE[1:])
        out["verdicts ablation"] = verdicts(ablation)
    return out


def summary(results: dict[str, Any], rate: float = 0.6) -> list[list[str]]:
    """Returns the headline scores and cosines of all models at one share, way by way: the table of docs/budgets.md."""
    curves = sets(results, "curves")
    heads = [(name, score) for name, record in curves.items() for score in (scores_of(record)[0], "cosine")]
    rows = [["", *(f"{MODELS[name]}, {score}{' %' if score in SHARES else ''}" for name, score in heads)]]
    found = {name: cells(record) for name, record in curves.items()}
    for method in dict.fromkeys(method for record in found.values() for method, _ in record):
        row = [f"**{method}**" if method == RULE else method]
        for name, score in heads:
            figure = figure_of(found[name].get((method, rate)), score)
            row.append("" if figure is None else shown(score, *(figure if score != "cosine" else figure[:1])))
        rows.append(row)
    dense = {name: record["sweep"]["dense"]["scores"] for name, record in curves.items()}
    rows.append(["dense", *(shown(score, dense[name][score]["all"]["value"]) for name, score in heads)])
    return rows


def draw(results: dict[str, Any]) -> None:
    """Writes figure.svg: the headline score and the cosine of every model against the share of zeros."""
    curves = sets(results, "curves")
    figure, axes = drawing.panels(2, len(curves), (3.2 * len(curves), 5.6))
    for column, (name, record) in enumerate(curves.items()):
        found, rates = cells(record), record["sweep"]["rates"]
        for row, score in enumerate((scores_of(record)[0], "cosine")):
            axis = axes[row, column]
            for method in dict.fromkeys(method for method, _ in found):
                points = [(r, figure_of(found.get((method, r)), score)) for r in rates]
                points = [(r, *f) for r, f in points if f is not None]
                style = {"linewidth": 2.2} if method == RULE else {"linewidth": 1}
                style |= {"linestyle": "--"} if method in CONTROLS else {}
                x, y, e = zip(*points, strict=True)
                axis.errorbar(x, y, e, label=method, **style)
            axis.axhline(record["sweep"]["dense"]["scores"][score]["all"]["value"], color="#999999", linewidth=0.8)
            axis.set(title=MODELS[name] if row == 0 else "", ylabel=score, xlabel="share of zeros" if row else "")
    axes[0, 0].legend(fontsize=6)
    drawing.save(figure, HERE)


def main() -> None:
    """Fills the tables, and draws."""
    results = records.read(HERE / "results.json")["results"]
    drawing.fill(HERE, tables(results))
    drawing.fill(DOCS, {"budgets at 60 %": summary(results)}, "budgets.md")
    draw(results)


if __name__ == "__main__":
    main()
