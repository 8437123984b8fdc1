"""Survey, plan, changes, audit and scores as one dictionary: everything the page shows, and nothing it must compute."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from statistics import median
from typing import Any

from spectrim.report import audit as audits
from spectrim.report import compared, sentences
from spectrim.report.figures import number
from spectrim.report.labels import block, halves, short_names
from spectrim.report.view import CELLS, view

SCHEMA = "spectrim.report/1"

CUTS = ("split", "dense")  # the actions that cut ranks, and so belong to a basis
ENTRY = ("params_before", "params_after", "bytes_before", "bytes_after", "macs_before", "macs_after", "damage")


def summarise(
    survey: Any,
    plan: Any = None,
    changes: Iterable[Any] | None = None,
    audit: Any = None,
    scores: Mapping[str, Any] | None = None,
    title: str | None = None,
    created: datetime | None = None,
    comparison: Any = None,
    curves: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns all that the report shows, as a dictionary that `json.dumps(..., allow_nan=False)` takes.

    Figures that are missing or not finite are None. A spectrum becomes at most 80 bars, all its spikes and at most
    250 points of its bulk, so the size of a report grows with the number of matrices, hardly with their width.

    Args:
        survey: the `Survey`.
        plan: the `Plan` made from it, or None.
        changes: the `Change`s that `trim` returned, or None.
        audit: measured figures before and after, ``{"before": {...}, "after": {...}}`` or a pair, or None.
        scores: a table of task scores ``{"columns": [...], "rows": [[...], ...], "caption": "..."}``, or None.
        title: heading of the page; the model's name unless told.
        created: time stamp of the page; now unless told.
        comparison: the `Comparison` made from the survey, or None.
        curves: its curves by name of the matrix, or None.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> empty = Record(model="none", readings=(), params=0, bytes=0, edge="Bema()", seconds=0.0, version="0.1")
        >>> summarise(empty)["schema"]
        'spectrim.report/1'
    """
    entries = {e.name: e for e in plan.entries} if plan is not None else {}
    done = {c.name: c for c in changes or ()}
    told = {row.reading.name: row for row in comparison.rows} if comparison is not None else {}
    layers = []
    for r in (r for r in survey.readings if not r.skipped):
        layer = _layer(len(layers), r, entries.get(r.name), done.get(r.name))
        row = told.get(r.name)
        layer["verdict"] = compared.verdict(row.verdict if row else getattr(r, "verdict", None))
        layer["estimators"] = compared.figures(row) if row else {}
        layer["curves"] = compared.curves((curves or {}).get(r.name))
        layers.append(layer)
    for layer, short in zip(layers, short_names([x["name"] for x in layers]), strict=True):
        layer["short"] = short
        layer["path"], layer["own"] = halves(short)
    skipped = [
        {"name": str(r.name), "kind": r.kind, "rows": _int(r.rows), "cols": _int(r.cols), "params": _int(r.params),
         "note": r.note or ""}
        for r in survey.readings
        if r.skipped
    ]  # fmt: skip
    out = {
        "schema": SCHEMA,
        "title": title or str(survey.model),
        "model": str(survey.model),
        "totals": _totals(survey, layers, skipped),
        "plan": _plan(plan, layers) if plan is not None else None,
        "estimators": compared.estimators(comparison.estimators) if comparison is not None else [],
        "layers": layers,
        "skipped": skipped,
        "map": {"cells": CELLS},
        "audit": audits.compare(audit),
        "scores": _scores(scores),
        "changed": len(done) if changes is not None else None,
        "provenance": {
            "version": str(getattr(survey, "version", "") or _version()),
            "edge": str(survey.edge),
            "seconds": number(survey.seconds, 3),
            "created": (created or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M %Z").strip(),
            "python": platform.python_version(),
        },
    }
    out["sentence"] = sentences.headline(out)
    if comparison is not None:
        out["compared"] = compared.sentence(comparison.totals)
    else:
        out["compared"] = ""
    out["cards"] = sentences.cards(out)
    return out


def _layer(index: int, r: Any, entry: Any, change: Any) -> dict[str, Any]:
    cut = entry is not None and entry.action in CUTS
    kept, also = (entry.kept, entry.also) if cut else (None, ())
    views = []
    plain = (getattr(r, "plain_spectrum", None), r.plain, None)
    for spectrum, fit, odd in ((r.spectrum, r.fit, getattr(r, "structured", None)), plain):
        if spectrum is not None and len(spectrum.s):
            shown = view(spectrum, fit, kept, also)
            shown["structured"] = None if odd is None else [[int(i) + 1, number(float(spectrum.s[i]))] for i in odd]
            # Without equalisation both verdicts are the same spectrum; one view is enough.
            if shown["basis"] not in [v["basis"] for v in views]:
                views.append(shown)
    fit = r.fit
    layer = {
        "index": index,
        "name": str(r.name),
        "role": re.sub(r"\d+", "*", str(r.name)),
        "block": block(str(r.name)),
        "kind": str(r.kind),
        "rows": _int(r.rows),
        "cols": _int(r.cols),
        "params": _int(r.params),
        "zero_rows": _int(r.zero_rows) or 0,
        "zero_cols": _int(r.zero_cols) or 0,
        "note": r.note or "",
        "spikes": _int(getattr(fit, "spikes", None)),
        "plain_spikes": _int(getattr(r.plain, "spikes", None)),
        "values": views[0]["values"] if views else None,
        "bulk_share": number(r.bulk_share) if fit is not None else None,
        "sigma": number(getattr(fit, "sigma", None)),
        "edge": number(getattr(fit, "edge", None)),
        "misfit": number(getattr(fit, "misfit", None)),
        "low": _int(r.low) if fit is not None and getattr(r, "structured", None) is not None else None,
        "views": views,
        "plan": _entry(entry, views) if entry is not None else None,
        "change": None,
    }
    if change is not None:
        layer["change"] = {
            "action": change.action,
            "rank": _int(change.rank),
            "params_before": _int(change.params_before),
            "params_after": _int(change.params_after),
            "zeros": _int(change.zeros),
            "relative_error": number(change.relative_error, 4),
            "seconds": number(change.seconds, 3),
        }
    return layer


def _entry(e: Any, views: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {key: number(getattr(e, key, None)) for key in ENTRY}
    # Counts stay whole; `number` would round a large one to six digits only if it were a float.
    out.update({key: _int(getattr(e, key, None)) for key in ENTRY if key != "damage"})
    out.update(action=e.action, rank=_int(e.rank), zeros=_int(e.zeros), basis=e.basis, reason=e.reason or "")
    out["spikes_cut"] = _int(getattr(e, "spikes_cut", None))
    before, after = out["params_before"], out["params_after"]
    out["share"] = number(after / before) if before and after is not None else None
    numbers = int(e.rows) * int(e.cols)
    out["zero_share"] = number(out["zeros"] / numbers) if out["zeros"] is not None and numbers else None
    basis = next((v for v in views if v["basis"] == e.basis), views[0] if views else None)
    out["directions"] = basis["kept"] if basis else None
    # The verdict is that of the first view.
    out["elsewhere"] = bool(e.action in CUTS and views and views[0]["basis"] != e.basis)
    out["text"] = sentences.action(out, int(e.rows), int(e.cols))
    return out


def _totals(survey: Any, layers: list[dict[str, Any]], skipped: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [x for x in layers if x["spikes"] is not None and x["values"]]
    values, spikes = sum(x["values"] for x in judged), sum(x["spikes"] for x in judged)
    misfits = [x["misfit"] for x in judged if x["misfit"] is not None]
    agreements = [x["verdict"]["agreement"] for x in judged if x["verdict"] and x["verdict"]["agreement"] is not None]
    plains = [x["plain_spikes"] for x in judged if x["plain_spikes"] is not None]
    return {
        "matrices": len(layers),
        "judged": len(judged),
        "skipped": len(skipped),
        "kinds": dict(Counter(x["kind"] for x in layers)),
        "params": _int(survey.params),
        "bytes": _int(survey.bytes),
        "matrix_params": sum(x["params"] or 0 for x in layers),
        "values": values,
        "spikes": spikes,
        "plain_spikes": sum(plains) if plains else None,
        "bulk_share": number(1 - spikes / values) if values else None,
        "misfit": number(sum(misfits) / len(misfits)) if misfits else None,
        "kinds_of_verdict": compared.kinds(layers),
        "agreement": number(median(agreements)) if agreements else None,
    }


def _plan(plan: Any, layers: list[dict[str, Any]]) -> dict[str, Any]:
    entries = [x["plan"] for x in layers if x["plan"]]
    goal, value = next(iter(plan.target.items())) if plan.target else (None, None)
    cut = [e["spikes_cut"] for e in entries if e["spikes_cut"] is not None]
    zeros = sum(e["zeros"] or 0 for e in entries)

    def both(key: str) -> dict[str, Any]:
        pairs = [(e[f"{key}_before"], e[f"{key}_after"]) for e in entries]
        known = [(b, a) for b, a in pairs if b is not None and a is not None]
        # A sum over some of the matrices would be read as one over all of them.
        if not known or len(known) < len(pairs):
            return {"before": None, "after": None, "share": None}
        before, after = sum(b for b, _ in known), sum(a for _, a in known)
        return {"before": before, "after": after, "share": number(after / before) if before else None}

    def pair(before: Any, after: Any) -> dict[str, Any]:
        b, a = _int(before), _int(after)
        return {"before": b, "after": a, "share": number(a / b) if b and a is not None else None}

    return {
        "goal": goal,
        "target": number(value),
        "params": pair(plan.params_before, plan.params_after),
        "model_params": pair(plan.model_params_before, plan.model_params_after),
        "bytes": both("bytes"),
        "macs": both("macs"),
        "zeros": zeros,
        "zero_share": number(zeros / plan.params_before) if goal == "zeros" and plan.params_before else None,
        "actions": dict(Counter(e["action"] for e in entries)),
        "spikes_cut": sum(cut) if cut else None,
        "elsewhere": any(e["elsewhere"] for e in entries),
        "notes": [str(n) for n in plan.notes or ()],
    }


def _scores(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not scores:
        return None

    def cell(x: Any) -> Any:
        return x if isinstance(x, str) else number(x)

    rows = [[cell(x) for x in row] for row in scores["rows"]]
    return {"columns": [str(c) for c in scores["columns"]], "rows": rows, "caption": scores.get("caption", "")}


def _version() -> str:
    from spectrim import __version__  # inside: the package's __init__ may be what imports us

    return __version__


def _int(x: Any) -> int | None:
    return None if x is None else int(x)
