"""What the page shows of several estimators side by side: their figures, their edges by setting, scores by rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from spectrim.report.figures import number, numbers, percent, plural

KINDS = ("spiked", "noise-like", "heavy-tailed", "no fit")  # in the order in which the table sorts them
# Headings narrow enough for a table of many columns; any other name stands as it is.
SHORT = {"bema": "Bema", "median": "Median", "broadening": "Broad.", "gavish-donoho": "G–D", "screenot": "ScreeNOT",
         "bema-gamma": "Bema Γ", "shuffled": "Shuffled"}  # fmt: skip
LONG = {"bema": "Bema", "median": "Median", "broadening": "Broadening", "gavish-donoho": "Gavish–Donoho",
        "screenot": "ScreeNOT", "bema-gamma": "Bema Γ", "shuffled": "Shuffled"}  # fmt: skip


def verdict(told: Any) -> dict[str, Any] | None:
    """Returns kind, reason and figures of a verdict, None where there is none.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> verdict(Record(kind="spiked", reason="three", agreement=0.9, misfit=0.02, gate=0.1, tail=None))["kind"]
        'spiked'
    """
    if told is None:
        return None
    tail = getattr(told, "tail", None)
    return {
        "kind": str(told.kind),
        "order": KINDS.index(told.kind) if told.kind in KINDS else len(KINDS),
        "reason": str(told.reason or ""),
        "agreement": number(told.agreement),
        "misfit": number(told.misfit),
        "gate": number(told.gate),
        "tail": None if tail is None else {"exponent": number(tail.exponent, 4), "count": number(tail.count)},
    }


def estimators(names: tuple[str, ...]) -> list[dict[str, str]]:
    """Returns each estimator's name with the words for it in the table and in the charts.

    Example:
        >>> estimators(("bema", "mine"))[1]
        {'name': 'mine', 'short': 'mine', 'long': 'mine'}
    """
    return [{"name": name, "short": SHORT.get(name, name), "long": LONG.get(name, name)} for name in names]


def figures(row: Any) -> dict[str, dict[str, Any]]:
    """Returns by name what each estimator says of one matrix, or why it says nothing.

    Args:
        row: `fits` and `refused`, mappings from names.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> figures(Record(fits={}, refused={"median": "all zero"}))["median"]["refused"]
        'all zero'
    """
    out: dict[str, dict[str, Any]] = {}
    for name, fit in row.fits.items():
        pair = fit.edge_interval
        out[name] = {
            "sigma": number(fit.sigma),
            "edge": number(fit.edge, 8),
            "edge_interval": None if pair is None else [number(x) for x in pair],
            "spikes": int(fit.spikes),
            "misfit": number(fit.misfit),
            "method": fit.method,
            "refused": "",
        }
    none = dict.fromkeys(("sigma", "edge", "edge_interval", "spikes", "misfit", "method"))
    return out | {name: {**none, "refused": str(reason)} for name, reason in row.refused.items()}


def curves(told: Any) -> dict[str, Any] | None:
    """Returns the edge by setting and the scores by rank as lists that a chart takes, None where there are none.

    Args:
        told: `alpha` and `beta`, each rows of (setting, edge, spikes); `chosen`; `ranks`, `average`, `gain`, `peak`,
            `knee`.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> none = {"ranks": (), "average": (), "gain": (), "peak": None, "knee": None}
        >>> curves(Record(alpha=((0.2, 6.5, 3),), beta=(), chosen=(0.2, 0.1), **none))["alpha"]
        {'x': [0.2], 'edge': [6.5], 'spikes': [3]}
    """
    if told is None:
        return None

    def scan(rows: Any) -> dict[str, Any]:
        x, edge, spikes = zip(*rows, strict=True) if rows else ((), (), ())
        return {"x": numbers(x), "edge": numbers(edge, 6), "spikes": [int(k) for k in spikes]}

    return {
        "alpha": scan(told.alpha),
        "beta": scan(told.beta),
        "chosen": {"alpha": number(told.chosen[0]), "beta": number(told.chosen[1])},
        "ranks": [int(k) for k in told.ranks],
        "average": numbers(told.average, 4),
        "gain": numbers(told.gain, 4),
        "peak": told.peak,
        "knee": told.knee,
    }


def kinds(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Returns how many matrices got which verdict, in the order of `KINDS`.

    Example:
        >>> kinds([{"verdict": {"kind": "no fit"}}, {"verdict": None}, {"verdict": {"kind": "spiked"}}])
        {'spiked': 1, 'no fit': 1}
    """
    seen = Counter(x["verdict"]["kind"] for x in layers if x["verdict"])
    return {kind: seen[kind] for kind in (*KINDS, *sorted(set(seen) - set(KINDS))) if seen[kind]}


def sentence(told: Mapping[str, Any]) -> str:
    """Returns in words how far the estimators agree: the range of their counts, who has none, who stands apart.

    Args:
        told: the totals of a comparison.

    Example:
        >>> told = {"judged": 9, "compared": 8, "agreement": 0.91, "refused": {}, "apart": {}}
        >>> sentence(told | {"spikes": {"bema": 30, "median": 27}}).partition(", their")[0]
        'Over the 8 of 9 judged matrices for which all estimators have an edge'
    """
    text, spikes = "", told["spikes"]
    if spikes:
        low, high = min(spikes, key=spikes.get), max(spikes, key=spikes.get)
        if told["compared"] == told["judged"]:
            text = "By estimator their number"
        else:
            text = f"Over the {told['compared']:,} of {plural(told['judged'], 'judged matrix', 'judged matrices')} "
            text += "for which all estimators have an edge, their number"
        text += f" runs from {spikes[low]:,} ({LONG.get(low, low)}) to {spikes[high]:,} ({LONG.get(high, high)})"
        text += (
            "."
            if told["agreement"] is None
            else f"; median agreement on where noise ends: {percent(number(told['agreement']))}."
        )
    elif told["judged"]:
        text = "There is no matrix for which all estimators have an edge."
    for name, k in told["refused"].items():
        text += f" {LONG.get(name, name)} has none for {'any' if k == told['judged'] else f'{k:,}'} of them."
    if told["apart"]:
        name, k = next(iter(told["apart"].items()))
        text += f" {LONG.get(name, name)} most often stands apart, in {plural(k, 'matrix', 'matrices')}."
    return text
