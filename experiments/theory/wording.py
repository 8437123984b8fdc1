"""How the claims are put into words: figures with their errors, and a verdict that a check supports."""

from __future__ import annotations

from typing import Any

Rows = list[list[str]]
Found = dict[str, Any]


def pm(pair: list[float], digits: int = 4) -> str:
    """Returns mean ± standard error."""
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def spans(values: list[float], digits: int = 2) -> str:
    """Returns the least and the largest."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def power(rate: float, error: float) -> str:
    """Returns an exponent with its standard error."""
    return f"{rate:.2f} ± {error:.2f}"


def judged(holds: bool, words: str = "holds") -> str:
    """Returns the verdict where the check supports it."""
    return words if holds else "not seen here"
