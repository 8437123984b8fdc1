"""What a sweep refuses, records or points out: rates, tables that are not finite, shares that were not reached."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .counting import Counts
from .score import Score

SAME = 1e-4  # how far a score of the dense model may be from the one of an earlier run of the same sweep


def rates_of(rates: Sequence[float]) -> tuple[float, ...]:
    """Return the rates as floats, each once. ValueError where one is no share."""
    try:
        found = tuple(dict.fromkeys(float(rate) for rate in rates))
    except (TypeError, ValueError):
        raise ValueError(f"rates are shares in (0, 1), such as (.5, .6), not {rates!r}") from None
    if not found or not all(0 < rate < 1 for rate in found):
        raise ValueError(f"rates are shares in (0, 1), not {', '.join(map(str, found)) or 'none at all'}: 0.5 is half")
    return found


def scores_of(given) -> dict[str, Score]:
    """Return what `measure` gave, if it is what it should be. TypeError otherwise."""
    if not isinstance(given, Mapping) or not given or not all(isinstance(s, Score) for s in given.values()):
        raise TypeError(f"measure() returns a dict of Score by name, at least one, not {given!r:.80}")
    return {str(name): score for name, score in given.items()}


def broken(scores: Mapping[str, Score]) -> str:
    """Return why scores are none: figures that are not finite, or no statistic that is defined; else an empty text."""
    for name, score in scores.items():
        if bad := int((~np.isfinite(score.table)).sum()):
            return f"{bad} of {score.table.size} figures in the table of {name!r} are not finite"
    without = undefined(scores)
    return "; ".join(without) if len(without) == len(scores) else ""


def undefined(scores: Mapping[str, Score]) -> list[str]:
    """Return what is to be said of the scores whose statistic is not defined: outputs that are all alike, for one."""
    with np.errstate(all="ignore"):
        return [f"{name!r} is not defined for these outputs" for name, s in scores.items() if not np.isfinite(s.value)]


def same(scores: Mapping[str, Score], tables: Mapping) -> bool:
    """Return whether scores are those of the tables, up to the last digits."""
    alike = {name: table.shape for name, table in tables.items()} == {k: s.table.shape for k, s in scores.items()}
    return alike and all(
        np.isclose(s.value, replace(s, table=tables[name]).value, rtol=SAME, atol=SAME) for name, s in scores.items()
    )


def flag_of(counts: Counts, dense: Counts, rate: float, slack: int) -> str:
    """Return what is odd about a cell: nothing changed, or another share is gone than was asked for.

    `slack` are the numbers by which a share may differ: one a matrix, and where ranks were cut one step of a rank.
    """
    gone = counts.entries - counts.stored + counts.zeros
    if (counts.stored, counts.zeros) == (dense.stored, dense.zeros):
        return f"the method changed nothing: {rate:.0%} was asked for"
    if counts.missing:
        return f"{len(counts.missing)} matrices are not where they were, and count as gone: {counts.missing[0]} ..."
    if abs(gone - rate * counts.entries) > slack:
        return f"{rate:.1%} was asked for, {gone / counts.entries:.1%} is gone"
    return ""


def unmoved(scores: Mapping[str, Score], dense: Mapping[str, Score]) -> bool:
    """Return whether every figure is that of the dense model, to the bit."""
    return all(np.array_equal(score.table, dense[name].table) for name, score in scores.items())


def shapes(tables: Mapping) -> str:
    """Return the shapes of some tables in words."""
    return ", ".join(f"{name} {getattr(t, 'table', t).shape}" for name, t in tables.items())


def told(error: Exception) -> str:
    """Return an error in one line, with the place in the user's own code that it came from."""
    text = " ".join(str(error).split())[:400]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not {"site-packages", "spectrim"} & set(Path(f.filename).parts)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    return f"{type(error).__name__}: {text}{place}"
