"""The words of the page that depend on its figures: the answer in a sentence, the cards, what happens to a layer."""

from __future__ import annotations

from typing import Any

from spectrim.report.figures import MISSING, count, percent, plain, plural, short, size


def headline(summary: dict[str, Any]) -> str:
    """Returns the answer in plain words: how much stands above the noise, and what the plan does about the rest.

    Args:
        summary: the dictionary of `summarise`, with its totals and plan filled in.

    Example:
        >>> headline({"totals": {"matrices": 0, "judged": 0}, "plan": None})
        'This model has no matrix that a survey can judge.'
    """
    t, p = summary["totals"], summary["plan"]
    if not t["judged"]:
        noun = "no matrix that a survey can judge" if not t["matrices"] else "matrices, but none with a verdict"
        return f"This model has {noun}."
    share, rest = percent(t["spikes"] / t["values"]), t["matrices"] - t["judged"]
    of = f"{plural(t['matrices'], 'matrix', 'matrices')}"
    text = f"{share} of the directions in {of} stand above the noise: {count(t['spikes'])} of {count(t['values'])}."
    if rest:
        text += f" {plural(rest, 'matrix has', 'matrices have')} no verdict."
    return text + (f" {_plan_sentence(p)}" if p else "")


def cards(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the figures at the top of the page: label, value and one line of detail each.

    Args:
        summary: the dictionary of `summarise`, with its totals and plan filled in.

    Example:
        >>> totals = {"matrices": 1, "judged": 1, "skipped": 0, "matrix_params": 16, "params": 16, "bytes": 64,
        ...           "values": 4, "spikes": 1, "plain_spikes": None, "bulk_share": 0.75, "misfit": 0.02}
        >>> [c["label"] for c in cards({"totals": totals, "plan": None})]
        ['Matrices', 'Parameters', 'Spikes', 'Bulk share', 'Mean misfit']
    """
    t, p = summary["totals"], summary["plan"]
    skipped = f", {plural(t['skipped'], 'tensor')} skipped" if t["skipped"] else ""
    judged = f"{t['judged']} judged{skipped}"
    plain_spikes = f"{count(t['plain_spikes'])} without equalisation"
    share = percent(t["matrix_params"] / t["params"]) if t["params"] else MISSING
    out = [
        _card("Matrices", count(t["matrices"]), judged),
        _card("Parameters", short(t["params"]), f"{share} in these matrices"),
        _card("Spikes", count(t["spikes"]), plain_spikes if t["plain_spikes"] is not None else "", "signal"),
        _card("Bulk share", percent(t["bulk_share"]), "of the values, below the edge"),
        _card("Mean misfit", plain(t["misfit"], 2), "0 is the noise law itself"),
    ]
    if p:
        goal = p["model_params"]
        if p["goal"] == "zeros":
            text = f"{short(p['zeros'])} of the matrices’ entries"
            out.append(_card("Zeros", percent(p["zero_share"]), text, "plan"))
            of = percent(p["zeros"] / goal["before"]) if goal["before"] else MISSING
            out.append(_card("Zeros, whole model", of, "of all its parameters", "plan"))
        else:
            text = f"{short(p['params']['before'])} → {short(p['params']['after'])}"
            out.append(_card("Matrices after", percent(p["params"]["share"]), text, "plan"))
            text = f"{short(goal['before'])} → {short(goal['after'])}"
            out.append(_card("Whole model after", percent(goal["share"]), text, "plan"))
        b = p["bytes"]
        if b["before"] is not None and t["bytes"]:
            after = t["bytes"] - b["before"] + b["after"]
            out.append(_card("Bytes after", size(after), f"from {size(t['bytes'])}", "plan"))
    return out


def action(entry: dict[str, Any], rows: int, cols: int) -> str:
    """Returns what the plan does to one matrix, in a sentence.

    Args:
        entry: action, rank, zeros, zero_share of the plan's entry.
        rows: outputs of the matrix.
        cols: its inputs.

    Example:
        >>> action({"action": "split", "rank": 8}, 64, 32)
        'Becomes two layers, 32 → 8 → 64.'
    """
    if entry["action"] == "split":
        return f"Becomes two layers, {cols:,} → {entry['rank']:,} → {rows:,}."
    if entry["action"] == "dense":
        return f"Keeps its shape at rank {entry['rank']:,}: no parameter is saved."
    if entry["action"] == "zeros":
        return f"{percent(entry['zero_share'], 1)} of its entries become zero: {count(entry['zeros'])}."
    return "Stays as it is."


def _plan_sentence(p: dict[str, Any]) -> str:
    if p["goal"] == "zeros":
        whole = p["model_params"]["before"]
        of = f", {percent(p['zeros'] / whole)} of the whole model’s parameters" if whole else ""
        return f"The plan sets {percent(p['zero_share'])} of their entries to zero{of}."
    kept, model = percent(p["params"]["share"]), percent(p["model_params"]["share"])
    text = f"The plan keeps {kept} of their parameters, {model} of the whole model’s"
    if p["spikes_cut"] is not None:
        text += f", and cuts {plural(p['spikes_cut'], 'spike')}" if p["spikes_cut"] else ", and cuts no spike"
    if p["elsewhere"]:
        return f"{text}. It cuts the matrices as they are; the verdicts speak of them with rows and columns evened out."
    return text + "."


def _card(label: str, value: str, detail: str, tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail, "tone": tone}
