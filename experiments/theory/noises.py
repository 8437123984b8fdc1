"""Noise of several laws, all in one unit: p x n, entries of mean square 1 / n, so that the Frobenius norm squared is p.

`gaussian`, `uniform` and `student` have independent entries, whose singular values follow the Marchenko-Pastur law, as
long as four moments are finite. `haar` (even singular values between Haar vectors) and `product` (of two square-ish
Gaussian matrices) are bi-unitarily invariant with another law; every other row of `uneven` is loud.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrim.planted import frame

Array = NDArray[np.float64]

HAAR = (0.5, 1.5)  # ends of the singular values of `haar`, before they are scaled
UNEVEN = (1.6, 0.4)  # variances of the rows in turn


def draw(law: str, p: int, n: int, generator: np.random.Generator) -> Array:
    """Returns one p x n matrix, p <= n, of the law named; Student's with its degrees of freedom, "student3"."""
    if law == "gaussian":
        return generator.standard_normal((p, n)) / sqrt(n)
    if law == "uniform":
        return generator.uniform(-sqrt(3 / n), sqrt(3 / n), (p, n))
    if law.startswith("student"):
        freedom = float(law.removeprefix("student"))
        if freedom <= 2:
            raise ValueError(f"Student's law has no variance with {freedom} degrees of freedom")
        return generator.standard_t(freedom, (p, n)) / sqrt(n * freedom / (freedom - 2))
    if law == "haar":
        low, high = HAAR
        s = generator.uniform(low, high, p) / sqrt((high**3 - low**3) / (3 * (high - low)))
        return frame(p, p, generator=generator) * s @ frame(n, p, generator=generator).T
    if law == "product":
        return generator.standard_normal((p, p)) @ generator.standard_normal((p, n)) / sqrt(p * n)
    if law == "uneven":
        return np.sqrt(np.resize(UNEVEN, p) / n)[:, None] * generator.standard_normal((p, n))
    raise ValueError(f"no such noise: {law!r}")


def rms(x: ArrayLike) -> tuple[Array, Array]:
    """Returns the root mean square over the draws, the first axis, and its standard error."""
    squares = np.asarray(x, np.float64) ** 2
    root = np.sqrt(squares.mean(0))
    return root, squares.std(0, ddof=1) / sqrt(len(squares)) / (2 * np.maximum(root, 1e-300))


def rate(sizes: list[int], values: list[float]) -> float:
    """Returns the exponent b of the power law size**b through the values, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-300)), 1)[0])


def rate_error(sizes: list[int], values: list[float], errors: list[float]) -> float:
    """Returns the standard error of that exponent, from the standard errors of the values, each drawn by itself."""
    x = np.log(sizes) - np.log(sizes).mean()
    return float(np.linalg.norm(x / np.sum(x**2) * np.array(errors) / np.maximum(values, 1e-300)))
