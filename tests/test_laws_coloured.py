"""The end of uneven noise: even noise is the closed form, random matrices obey it, and the curve is what it is said."""

from __future__ import annotations

import numpy as np
import pytest

from spectrim.laws import TracyWidom, coloured_top


@pytest.mark.parametrize(("rows", "cols"), [(400, 100), (100, 400), (300, 300), (2000, 7), (1, 50)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e7])
def test_even_noise_is_the_law_of_johnstone(rows, cols, scale):
    top, unit = coloured_top(np.full(rows, scale), np.full(cols, 2.0))
    root = rows**0.5 + cols**0.5
    assert top == pytest.approx(2 * scale * root**2, rel=1e-9)
    assert unit == pytest.approx(2 * scale * root * (rows**-0.5 + cols**-0.5) ** (1 / 3), rel=1e-6)


def test_one_side_uneven_is_the_law_of_el_karoui():
    """El Karoui (2007), eq. (4) and Theorem 1, written out for n even rows: a twin by another road."""
    generator, n = np.random.default_rng(0), 200
    v = np.exp(generator.normal(0, 0.8, 300))
    low, high = 0.0, 1 / v.max()
    for _ in range(200):  # c with the mean of (v c / (1 - v c))**2 = n / p
        c = (low + high) / 2
        low, high = (c, high) if np.sum((v * c / (1 - v * c)) ** 2) < n else (low, c)
    mu = (1 + np.sum(v * c / (1 - v * c)) / n) / c
    sigma = (1 + np.sum((v * c / (1 - v * c)) ** 3) / n) ** (1 / 3) / c
    for top, unit in (coloured_top(np.ones(n), v), coloured_top(v, np.ones(n))):  # and the transpose has the same
        assert top == pytest.approx(n * mu, rel=1e-9)
        assert unit == pytest.approx(n ** (1 / 3) * sigma, rel=1e-6)


@pytest.mark.parametrize("spread", [0.4, 1.0])
def test_random_matrices_end_where_it_says(spread):
    """Both sides uneven: the largest value strays about the place said, by the unit said."""
    generator = np.random.default_rng(1)
    a, b = generator.gamma(4, 1 / 4, 200), np.exp(generator.normal(0, spread, 250))
    top, unit = coloured_top(a, b)
    tops = []
    for _ in range(80):
        X = np.sqrt(a)[:, None] * generator.standard_normal((200, 250)) * np.sqrt(b)
        tops.append(np.linalg.norm(X, 2) ** 2)
    seen = (np.array(tops) - top) / unit
    # Tracy-Widom: mean -1.21, standard deviation 1.27; at this size the mean lies a little lower.
    assert -2.1 < seen.mean() < -1.0
    assert 0.85 < seen.std() < 1.5
    assert (seen > TracyWidom().ppf(0.9)).mean() < 0.15


def test_it_lies_above_every_row_and_column_alone():
    """No smaller than the least even noise around it, and at least what its loudest column makes by itself."""
    generator = np.random.default_rng(2)
    a, b = np.ones(50), np.append(generator.random(99), 500.0)
    top, _ = coloured_top(a, b)
    assert top > 500 * 50
    assert top == pytest.approx(coloured_top(b, a)[0], rel=1e-9)
    assert coloured_top(a, np.append(b, np.zeros(30)))[0] == pytest.approx(top, rel=1e-9)  # dead inputs are not there


@pytest.mark.parametrize("bad", [np.zeros(4), np.array([1.0, -1.0]), np.array([1.0, np.nan]), np.ones((2, 2)), []])
def test_what_is_no_row_of_variances_is_refused(bad):
    with pytest.raises(ValueError, match=r"one row of finite numbers >= 0"):
        coloured_top(bad, np.ones(3))
    with pytest.raises(ValueError, match=r"factors of the cols"):
        coloured_top(np.ones(3), bad)
