"""What was measured before and after: pairs of figures, their ratio, and under which conditions they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectrim.report.figures import THIN, number, plain, short, size

# Key, words for it, and how its figures are printed.
MEASURES = (
    ("params", "Parameters", short),
    ("bytes", "Bytes on disk", size),
    ("macs", "Multiply-adds a batch", short),
    ("macs_position", "Multiply-adds a position", short),
    ("latency_ms", "Latency", lambda x: f"{plain(x)}{THIN}ms"),
)


def compare(audit: Any) -> dict[str, Any] | None:
    """Returns the measures that both sides have, with their ratio after / before, and the conditions in words.

    Args:
        audit: ``{"before": {...}, "after": {...}}`` or a pair of such dictionaries (`params`, `bytes`, `macs`,
            `latency_ms`, `latency_spread`, `device`, `threads`, `batch`, `note`), or None.

    Example:
        >>> compare(({"params": 10}, {"params": 5}))["measures"][0]["ratio"]
        0.5
    """
    if not audit:
        return None
    before, after = (audit["before"], audit["after"]) if isinstance(audit, Mapping) else audit
    measures = []
    for key, label, text in MEASURES:
        b, a = number(before.get(key), 9), number(after.get(key), 9)
        if b is None or a is None:
            continue
        # Where every round was paired, the median of its ratios says more than the ratio of two medians.
        paired = number(after.get("latency_ratio")) if key == "latency_ms" else None
        measures.append({
            "key": key,
            "label": label,
            "before": b,
            "after": a,
            "before_text": text(b),
            "after_text": text(a),
            "detail": _spreads(before, after) if key == "latency_ms" else "",
            "ratio": paired or (number(a / b) if b else None),
        })  # fmt: skip
    conditions = [_conditions(x) for x in (before, after)]
    if conditions[0] != conditions[1] and all(conditions):
        where = [f"before: {conditions[0]}", f"after: {conditions[1]}"]
    else:
        where = [conditions[0] or conditions[1]]
    notes = list(dict.fromkeys(str(x["note"]) for x in (before, after) if x.get("note")))
    return {"measures": measures, "conditions": [w for w in where if w], "notes": notes}


def _spreads(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Medians are worth what their spread allows: two that overlap have not been told apart."""
    pairs = [side.get("latency_spread") for side in (before, after)]
    if any(not pair or any(number(x) is None for x in pair) for pair in pairs):
        return ""
    (a, b), (c, d) = pairs
    overlap = ": they overlap" if max(a, c) <= min(b, d) else ""
    return f"Spread {plain(a)} to {plain(b)}, then {plain(c)} to {plain(d)}{THIN}ms{overlap}."


def _conditions(side: Mapping[str, Any]) -> str:
    """Device, threads and batch: without them a latency is no figure."""
    if side.get("latency_ms") is None:
        return ""
    words = [str(side["device"])] if side.get("device") else []
    if side.get("threads"):
        words.append(f"{side['threads']} thread{'' if side['threads'] == 1 else 's'}")
    if side.get("batch"):
        words.append(f"batch {side['batch']}")
    return ", ".join(words)
