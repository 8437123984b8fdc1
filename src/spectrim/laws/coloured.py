"""Noise whose rows and columns differ in variance by known factors: where its singular values end."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

NEAR, FAR = -80.0, -1e-14  # logarithms of the distance of r and t to their first pole, in units of the pole


def coloured_top(rows: ArrayLike, cols: ArrayLike) -> tuple[float, float]:
    """Returns where the largest squared singular value of uneven noise lies, and the unit in which it strays.

    The entries are independent with variance a_i b_j. Outside the bulk the resolvent of the matrix knows two numbers,
    r and t, bound by

        z = B(r) / t = A(t) / r,   A(t) = sum of a_i / (1 - a_i t),   B(r) = sum of b_j / (1 - b_j r)

    and the bulk ends at the least z on that curve. There z'' tells how the density sets in, like a square root, and so
    the unit u in which (s_1**2 - z) / u follows the Tracy-Widom law:

        u**(-3/2) = sqrt(2 / z'') t' / z  sum of a_i / (1 - a_i t)**2,   derivatives in r

    With even variances, z = (sqrt(n) + sqrt(p))**2. A law for many variances of like size: where one of them stands far
    above all others, that row or column makes a value of its own beyond the bulk, near z, that strays by more than u.

    Args:
        rows: factors a_i, 1-d, >= 0, not all zero.
        cols: factors b_j, 1-d, >= 0, not all zero; a_i b_j in units of the matrix squared.

    Example:
        >>> top, unit = coloured_top(np.ones(400), np.ones(100))
        >>> round(top), round(unit, 2)  # (20 + 10)**2, and 30 (1 / 20 + 1 / 10)**(1 / 3)
        (900, 15.94)

    References:
        R. Couillet and W. Hachem, Random Matrices Theory Appl. 3 (2014) 1450016, for the curve; N. El Karoui, Ann.
        Probab. 35 (2007) 663, and J. O. Lee and K. Schnelli, Ann. Appl. Probab. 26 (2016) 3786, for the law on it with
        even rows. Formulas derived here.
    """
    a, b = _factors(rows, "rows"), _factors(cols, "cols")
    unit = float(a.max() * b.max())
    a, b = a / a.max(), b / b.max()

    def on_curve(x: float) -> tuple[NDArray, NDArray, float]:
        """1 - b r, 1 - a t, and t, where r is exp(x) from its pole at 1; no difference loses digits."""
        wanted = _pull(b, x)
        y = brentq(lambda y: _pull(a, y) - wanted, NEAR, FAR, xtol=1e-13)
        return (1 - b) + b * exp(x), (1 - a) + a * exp(y), -np.expm1(y)

    def slope(x: float) -> float:
        """z' / z, up to a factor above zero."""
        left, right, t = on_curve(x)
        turn = np.sum(b / left**2) / np.sum(a / right**2)
        return float(t * np.sum((b / left) ** 2) / np.sum(b / left) - turn)

    x = brentq(slope, NEAR / 2, FAR * 1e5, xtol=1e-13)
    left, right, t = on_curve(x)
    B, B1, B2 = np.sum(b / left), np.sum((b / left) ** 2), 2 * np.sum((b / left) ** 3)
    pulls, turned = np.sum(b / left**2), np.sum(a / right**2)
    t1 = pulls / turned
    t2 = 2 * (np.sum(b**2 / left**3) - np.sum(a**2 / right**3) * t1**2) / turned
    z = B / t
    bend = z * (B2 / B - (B1 / B) ** 2 - t2 / t + (t1 / t) ** 2)
    return float(unit * z), float(unit * (sqrt(2 / bend) * t1 / z * turned) ** (-2 / 3))


def _factors(values: ArrayLike, what: str) -> NDArray[np.float64]:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not np.all(np.isfinite(found)) or np.any(found < 0) or not np.any(found > 0):
        raise ValueError(f"the factors of the {what} are one row of finite numbers >= 0, one of them > 0 at least")
    return found


def _pull(v: NDArray[np.float64], x: float) -> float:
    """Logarithm of the sum of v r / (1 - v r), r = 1 - exp(x): climbs from -inf at x = 0 as x falls."""
    return float(np.log(-np.expm1(x)) + np.log(np.sum(v / ((1 - v) + v * exp(x)))))
