"""What the page of a sweep shows, as one dictionary: cells, the choice on one half of the items, words for both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from spectrim.report.figures import MISSING, number, percent, plural, short

SCHEMA = "spectrim.sweep-report/1"
HALVES = ("all", "choose", "report")
AGAINST = ("global magnitude", "uniform", "random", "dense")  # what a method is compared with, the first by default


def summarise_sweep(sweep: Any, title: str | None = None, created: datetime | None = None) -> dict[str, Any]:
    """Returns all that the page of a sweep shows, as a dictionary that `json.dumps(..., allow_nan=False)` takes.

    Args:
        sweep: the `Sweep`.
        title: heading of the page; the task's name unless told.
        created: time stamp of the page; now unless told.
    """
    names = list(sweep.scores)
    cells = [_cell(cell, sweep.items) for cell in sweep.cells]
    methods: dict[str, dict] = {}
    for cell in sweep.cells:
        methods.setdefault(cell.method, {"name": cell.method, "config": cell.config, "control": cell.control})
    dense = _cell(sweep.dense, sweep.items)
    scores = [
        {
            "name": name,
            "better": info.better,
            "chance": number(info.chance),
            "items": info.items,
            "square": info.square,
            "text": dense["scores"][name]["all"]["text"],
            "best": [_best(sweep, rate, name) for rate in sweep.rates],
        }
        for name, info in sweep.scores.items()
    ]
    met = {key for cell in cells for halves in cell["scores"].values() for key in halves["all"]["gains"]}
    out = {
        "schema": SCHEMA,
        "title": title or str(sweep.task),
        "task": str(sweep.task),
        "scores": scores,
        "headline": names[0],
        "rates": [number(rate) for rate in sweep.rates],
        "methods": list(methods.values()),
        "against": [name for name in AGAINST if name in met],
        "dense": dense,
        "cells": cells,
        "failed": [{"name": cell.name, "why": cell.failed} for cell in sweep.failed],
        "flagged": [{"name": cell.name, "why": cell.flag} for cell in sweep.cells if cell.flag],
        "notes": [str(note) for note in sweep.notes] + _notes(cells),
        "provenance": _provenance(sweep, created),
    }
    return out | {"sentence": _sentence(sweep, scores[0]), "cards": _cards(out)}


def with_error(value: float | None, error: float | None) -> str:
    """Returns a figure with its standard error, in as many decimals as two digits of the error need.

    Example:
        >>> with_error(0.81234, 0.0123), with_error(0.5, None), with_error(12.3, 0)
        ('0.812 ± 0.012', '0.5', '12.3 ± 0')
    """
    value, error = number(value), number(error, 2)
    if value is None:
        return MISSING
    if not error:
        return f"{value:.4g}" + (" ± 0" if error == 0 else "")
    places = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:.{places}f} ± {error:.{places}f}"


def interval(gain: Mapping[str, Any] | None) -> str:
    """Returns a difference with its 95 % interval, signs included.

    Example:
        >>> interval({"value": 0.0512, "error": 0.01, "low": 0.031, "high": 0.072})
        '+0.051 [+0.031, +0.072]'
    """
    if not gain or gain["value"] is None:
        return MISSING
    if gain["low"] is None or gain["high"] is None:
        return f"{gain['value']:+.3g}"
    wide = gain["high"] - gain["low"]
    places = min(max(2 - math.floor(math.log10(wide / 2)) - 1, 0), 6) if wide > 0 else 3
    return "{:+.{p}f} [{:+.{p}f}, {:+.{p}f}]".format(gain["value"], gain["low"], gain["high"], p=places)


def _cell(cell: Any, items: int) -> dict[str, Any]:
    scores = {}
    for name, halves in cell.scores.items():
        scores[name] = {half: _figure(halves[half]) for half in HALVES if half in halves}
    c = cell.counts
    return {
        "method": cell.method,
        "control": cell.control,
        "rate": number(cell.rate),
        "kept": None if c is None else number(c.kept, 8),
        "gone": number(cell.achieved, 8),
        "params": c and c.params,
        "nonzeros": c and c.nonzeros,
        "macs_nonzero": None if c is None else number(c.macs_nonzero / items, 8),
        "macs_executed": None if c is None else number(c.macs_executed / items, 8),
        "seconds": [number(x, 3) for x in cell.seconds],
        "flag": cell.flag,
        "failed": cell.failed,
        "notes": [str(note) for note in cell.notes],
        "scores": scores,
    }


def _notes(cells: list[dict[str, Any]]) -> list[str]:
    """What methods said of their cells, once a method however many rates it holds for."""
    met: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        for note in cell["notes"]:
            met.setdefault((cell["method"], note), []).append(cell["rate"])
    return [f"{name} at {', '.join(map(percent, rates))}: {note}" for (name, note), rates in met.items()]


def _figure(found: Any) -> dict[str, Any]:
    gains = {}
    for key, gain in found.gains.items():
        known = {part: number(getattr(gain, part)) for part in ("value", "error", "low", "high")}
        gains[key] = known | {"text": interval(known), "side": gain.clear}
    value, error = number(found.value), number(found.error, 4)
    return {"value": value, "error": error, "text": with_error(value, error), "gains": gains}


def _best(sweep: Any, rate: float, name: str) -> dict[str, Any]:
    """What was chosen on one half of the items, with its figures on the other."""
    out = {"rate": number(rate), "counts": sweep.counts_at(rate, name), "method": None}
    try:
        cell = sweep.best(rate, name)
    except ValueError:
        return out
    halves = {half: _figure(cell.scores[name][half]) for half in HALVES}
    return out | {"method": cell.method, "control": cell.control, **halves}


def _sentence(sweep: Any, headline: Mapping[str, Any]) -> str:
    """At the largest rate where the score tells methods apart: what was chosen, and how it did on the other half."""
    text = f"The dense model’s {headline['name']} is {headline['text']}."
    told = [b for b in headline["best"] if b["method"] and b["counts"]]
    if not told:
        return text + " At no rate is any method two standard errors above chance: nothing here tells them apart."
    best = max(told, key=lambda b: b["rate"])
    text += (
        f" At {percent(best['rate'])} the best method on one half of the items is {best['method']}; "
        f"on the other half it scores {best['report']['text']}"
    )
    gain = best["report"]["gains"].get("global magnitude")
    if best["method"] == "global magnitude":
        return text + ", and it is the control itself."
    if not gain or gain["low"] is None:
        return text + "."
    verdict = {1: "ahead of", -1: "behind", 0: "not apart from"}[gain["side"]]
    return text + f": {verdict} global magnitude, by {gain['text']}."


def _cards(out: Mapping[str, Any]) -> list[dict[str, str]]:
    where, dense = out["provenance"], out["dense"]
    head = next(s for s in out["scores"] if s["name"] == out["headline"])
    chance = "" if head["chance"] is None else f", chance {head['chance']:g}"
    cells = [cell for cell in out["cells"] if not cell["failed"]]
    fails = plural(len(out["failed"]), "cell") + " failed" if out["failed"] else "none failed"
    if out["flagged"]:
        fails += f", {len(out['flagged'])} flagged"
    return [
        {"label": f"Dense {head['name']}", "value": head["text"], "detail": f"{head['better']} is better{chance}"},
        {
            "label": "Items",
            "value": f"{head['items']:,}",
            "detail": f"errors from {where['bootstrap']:,} draws of them",
        },
        {"label": "Cells", "value": f"{len(cells)}", "detail": f"{plural(len(out['methods']), 'method')}; {fails}"},
        {"label": "Parameters", "value": short(dense["params"]), "detail": f"{short(where['entries'])} may be touched"},
        {"label": "Multiply-adds", "value": short(dense["macs_executed"]), "detail": "of the weights, an item, dense"},
    ]


def _provenance(sweep: Any, created: datetime | None) -> dict[str, Any]:
    from spectrim import __version__  # inside: the package's __init__ may be what imports us

    c = sweep.conditions
    options = "; ".join(f"{key} {value}" for key, value in (c.get("options") or {}).items() if value)
    return {
        "version": __version__,
        "model": str(c.get("model", "")),
        "fingerprint": sweep.fingerprint[:16],
        "options": options,
        "edge": str(c.get("edge", "")),
        "entries": c.get("entries"),
        "matrices": c.get("matrices"),
        "left_out": len(c.get("left_out") or ()),
        "machine": ", ".join(str(c[key]) for key in ("machine", "device", "dtype") if c.get(key)),
        "libraries": ", ".join(f"{key} {c[key]}" for key in ("python", "torch", "numpy") if c.get(key)),
        "seed": sweep.seed,
        "bootstrap": sweep.bootstrap,
        "created": (created or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M %Z").strip(),
    }
