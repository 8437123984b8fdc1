"""Numbers as a person reads them: one place decides digits, units and the sign for "no figure"."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import numpy as np

MISSING = "–"
THIN = "\u00a0"  # between a number and its unit; it does not break


def number(x: object, digits: int = 6) -> float | int | None:
    """Returns x as a plain int or float of so many significant digits, None where it is missing or not finite.

    Args:
        x: any real scalar of Python, numpy or torch, or None.
        digits: significant digits that a float keeps.

    Example:
        >>> number(3.14159265, 3), number(float("nan")), number(7)
        (3.14, None, 7)
    """
    if x is None:
        return None
    value = float(x)
    if not isfinite(value):
        return None
    if isinstance(x, int) or (hasattr(x, "dtype") and "int" in str(x.dtype)):
        return int(x)
    return float(f"{value:.{digits}g}")


def numbers(values: Iterable[float], digits: int = 6) -> list[float]:
    """Returns finite numbers as plain floats of so many significant digits; their JSON is as short as it looks.

    Args:
        values: finite numbers, 1-d.
        digits: significant digits kept.

    Example:
        >>> numbers([0.1 + 0.2, 1234.5678], 4)
        [0.3, 1235.0]
    """
    return [float(f"{x:.{digits}g}") for x in np.asarray(values, float).tolist()]


def count(x: float | None) -> str:
    """Returns a count in full with thousands commas, a dash where there is none.

    Example:
        >>> count(13824), count(None)
        ('13,824', '–')
    """
    return MISSING if x is None else f"{int(x):,}"


def short(x: float | None) -> str:
    r"""Returns a count in three digits with k, M or B; small ones stay whole.

    Example:
        >>> short(22713216), short(384), short(10_600_000)
        ('22.7\xa0M', '384', '10.6\xa0M')
    """
    return _scaled(x, 1000.0, ("", "k", "M", "B", "T"))


def size(x: float | None) -> str:
    r"""Returns a number of bytes in decimal units, as disks are sold and files are listed.

    Example:
        >>> size(90_868_376), size(512)
        ('90.9\xa0MB', '512\xa0B')
    """
    return _scaled(x, 1000.0, ("B", "kB", "MB", "GB", "TB"))


def percent(x: float | None, digits: int = 0) -> str:
    r"""Returns a share in [0, 1] in percent; a share that is neither 0 nor 1 is never rounded to either.

    Example:
        >>> percent(0.1234), percent(0.999999), percent(0.0), percent(0.0004, 1)
        ('12\xa0%', '> 99\xa0%', '0\xa0%', '< 0.1\xa0%')
    """
    if x is None:
        return MISSING
    step = 10.0**-digits
    if 0 < x < 1 and not step / 2 <= 100 * x < 100 - step / 2:
        return f"< {step:.{digits}f}{THIN}%" if x < 0.5 else f"> {100 - step:.{digits}f}{THIN}%"
    return f"{100 * x:.{digits}f}{THIN}%"


def plain(x: float | None, digits: int = 3) -> str:
    """Returns a measured figure with so many significant digits.

    Example:
        >>> plain(0.034567), plain(1234.5), plain(None)
        ('0.0346', '1,234', '–')
    """
    if x is None:
        return MISSING
    return f"{x:,.0f}" if abs(x) >= 10**digits else f"{x:#.{digits}g}".rstrip(".")


def plural(k: int, noun: str, nouns: str | None = None) -> str:
    """Returns the count with its noun in the right number.

    Example:
        >>> plural(1, "spike"), plural(0, "spike"), plural(2, "matrix", "matrices")
        ('1 spike', '0 spikes', '2 matrices')
    """
    return f"{k:,} {noun if k == 1 else nouns or noun + 's'}"


def _scaled(x: float | None, base: float, units: tuple[str, ...]) -> str:
    if x is None:
        return MISSING
    value, unit = float(x), 0
    while abs(value) >= base * 0.9995 and unit < len(units) - 1:
        value, unit = value / base, unit + 1
    text = (
        f"{value:.0f}"
        if unit == 0 or abs(value) >= 99.95
        else f"{value:.1f}"
        if abs(value) >= 9.995
        else f"{value:.2f}"
    )
    return f"{text}{THIN}{units[unit]}".rstrip(THIN)
