"""One claim of a paper: what is printed, what came out here, and a verdict that follows from the numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
from experiments import records

# The verdicts, and what each says.
WORDS = {
    "confirmed": "what is claimed came out",
    "confirmed in part": "it came out in some of the settings or starts, or in kind and not in size",
    "artefact": "the figure is seen, and something else than what the paper names makes it",
    "not reproduced": "it was looked for and did not come out",
    "not run at full size": "the claim hangs on a size that was not run; what a smaller net did stands beside it",
    "not run": "there is no result, or not yet",
}
PENDING = "not run yet"
NONE = "–"
SOME = re.compile(r"\((?:[^()]*, )?(\d+ of \d+ starts)\)")  # as `measured` says that some are missing


@dataclass(frozen=True)
class Claim:
    """A row: the claim with its place, its number in the paper, ours by text and by script, the verdict, the folder."""

    claim: str
    printed: str
    text: str
    executed: str
    word: str
    why: str = ""
    folder: str = ""

    def at(self, folder: str) -> Claim:
        """Returns the claim with the folder whose figure shows it."""
        return replace(self, folder=folder)

    def judged(self, word: str, why: str = "") -> Claim:
        """Returns the claim with its verdict."""
        if word not in WORDS:
            raise ValueError(f"the verdicts are {', '.join(WORDS)}, got {word!r}")
        return replace(self, word=word, why=why)


def row(claim: str, printed: str, text: str, executed: str, verdict: tuple[str, str]) -> Claim:
    """Returns a claim with its verdict, which is checked to be one of `WORDS`; none before all its starts are there."""
    found = Claim(claim, printed, text, executed, "not run").judged(*verdict)
    waiting = SOME.search(f"{text} {executed}")
    if waiting is None or found.word == "not run":
        return found
    return found.judged("not run", f"{waiting[1]} so far, and no verdict before all are there")


def graded(good: int, total: int) -> str:
    """Returns the word for a claim that was found in so many of all cases."""
    return "confirmed" if good == total else "confirmed in part" if good else "not reproduced"


def waits(why: str = "") -> tuple[str, str]:
    """Returns the verdict on what has no result yet."""
    return "not run", why


def measured(values: Sequence[float], digits: int = 1, planned: int = 3, unit: str = "") -> str:
    """Returns mean ± standard error and, in brackets, the range and the number of starts, of those planned if fewer.

    Example:
        >>> measured([97.0, 98.0, 99.0], unit=" %")
        '98.0 ± 0.6 % (97.0 to 99.0, 3 starts)'
        >>> measured([97.0])
        '97.0 (1 of 3 starts)'
    """
    n = len(values)
    if not n:
        return PENDING
    count = f"{n} start{'s' if n > 1 else ''}" if n >= planned else f"{n} of {planned} starts"
    mean = f"{np.mean(values):.{digits}f}"
    if n == 1:
        return f"{mean}{unit} ({count})"
    error = np.std(values, ddof=1) / sqrt(n)
    return f"{mean} ± {error:.{digits}f}{unit} ({min(values):.{digits}f} to {max(values):.{digits}f}, {count})"


def percents(values: Sequence[float], digits: int = 1, planned: int = 3) -> str:
    """Returns `measured` of values in %."""
    return measured(values, digits, planned, " %")


def differences(
    one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], key: str = "test_accuracy"
) -> list[float]:
    """Returns one less the other, start by start, in points, of the starts that both have."""
    there = {run["seed"]: run[key] for run in other}
    return [100 * (run[key] - there[run["seed"]]) for run in one if run["seed"] in there]


def gain(values: Sequence[float], digits: int = 2, planned: int = 0) -> str:
    """Returns the mean difference in points with half its 95 % interval, or a single one as it is.

    Where fewer starts are there than were planned it says so, and `row` gives no verdict.
    """
    if not values:
        return PENDING
    mean, half = records.interval(values)
    some = f" ({len(values)} of {planned} starts)" if len(values) < planned else ""
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else "" if some else " (one start)"
    return f"{mean:+.{digits}f}{spread}{some}"


def each(values: Sequence[float], digits: int = 1) -> str:
    """Returns the values one by one."""
    return ", ".join(f"{value:.{digits}f}" for value in values) if len(values) else PENDING


def percent(runs: Sequence[dict[str, Any]], key: str = "test_accuracy") -> list[float]:
    """Returns an accuracy of every run in %."""
    return [100 * run[key] for run in runs]


def dead(runs: Sequence[dict[str, Any]]) -> list[int]:
    """Returns the number of dead classes of every run, whose record lists or counts them."""
    return [run["dead"] if isinstance(run["dead"], int) else len(run["dead"]) for run in runs]


def lost(runs: Sequence[dict[str, Any]]) -> str:
    """Returns how many of the runs lost a class."""
    counts = dead(runs)
    return f"{sum(map(bool, counts))} of {len(counts)}"
