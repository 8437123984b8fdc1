"""Finite-size corrections of the Marchenko-Pastur law against exact moments, and against matrices."""

from functools import cache

import numpy as np
import pytest
from scipy.integrate import quad

from spectrim.laws import MarchenkoPastur, mean_shift, spectral_shift, strength, sum_variance
from spectrim.planted import critical, noise, planted
from spectrim.spectrum import Spectrum


@pytest.mark.parametrize("gamma", (0.1, 0.5, 1.0))
@pytest.mark.parametrize("power", (1, 2, 3))
def test_mean_shift_gives_the_exact_moments_of_real_noise(gamma, power):
    # E tr S**k = p m_k + excess + O(1 / n) for real Wishart matrices: excess 0, g and 3 g (1 + g) for k = 1, 2, 3.
    law = MarchenkoPastur(gamma)
    excess = -quad(lambda x: power * x ** (power - 1) * mean_shift(x, gamma), law.lower, law.upper, epsabs=1e-12)[0]
    assert excess == pytest.approx({1: 0.0, 2: gamma, 3: 3 * gamma * (1 + gamma)}[power], abs=1e-8)


@pytest.mark.parametrize("gamma", (0.1, 0.5, 1.0))
def test_sum_variance_of_moments(gamma):
    # Exact for real Wishart matrices: Var tr S = 2 g; Var tr S**2 = 8 g (1 + g)**2 + 4 g**2 + O(1 / n).
    assert sum_variance(lambda x: x, gamma) == pytest.approx(2 * gamma, rel=1e-12)
    assert sum_variance(lambda x: x**2, gamma) == pytest.approx(8 * gamma * (1 + gamma) ** 2 + 4 * gamma**2, rel=1e-12)
    assert sum_variance(lambda x: 0 * x + 3.0, gamma) == pytest.approx(0, abs=1e-20)


def test_sum_variance_of_a_function_with_kinks():
    generator = np.random.default_rng(0)

    def clipped(x):
        return np.clip(x, 0.5, 1.5) ** 2

    sums = []
    for _ in range(600):
        x = np.linalg.svd(noise(60, 120, generator=generator), compute_uv=False) ** 2 / 120
        sums.append(clipped(x).sum())
    # The standard error of a variance over 600 draws is six per cent; four of them.
    assert np.var(sums) == pytest.approx(sum_variance(clipped, 0.5), rel=0.24)


def test_spectral_shift_at_its_ends_and_in_its_limits():
    law = MarchenkoPastur(0.3)
    x = np.linspace(law.lower, law.upper, 9)
    assert spectral_shift(x, 0.0, 0.3).tolist() == [0.0] * 9
    assert spectral_shift(law.upper, 0.3**0.25 * 1.01, 0.3) == pytest.approx(1)
    assert spectral_shift(law.upper, 0.3**0.25 * 0.99, 0.3) == pytest.approx(0, abs=1e-6)
    alone = 1 - np.arccos(np.clip((x - 1.3) / (2 * 0.3**0.5), -1, 1)) / np.pi
    np.testing.assert_allclose(spectral_shift(x, 1e6, 0.3), alone, atol=1e-9)
    np.testing.assert_allclose(spectral_shift(x[:-1], 0.3**0.25, 0.3), alone[:-1] / 2, atol=1e-12)
    with pytest.raises(ValueError, match="gamma"):
        spectral_shift(1.0, 1.0, 3.0)


def test_a_very_strong_signal_takes_one_row_and_one_column():
    # p F_{p/n} - (p - 1) F_{(p-1)/(n-1)} in the unit of s**2 tends to xi, at the rate 1 / p.
    p, n = 20_000, 40_000
    x = np.linspace(0.15, 2.8, 12)
    moved = p * MarchenkoPastur(p / n).cdf(x) - (p - 1) * MarchenkoPastur((p - 1) / (n - 1)).cdf(x * n / (n - 1))
    np.testing.assert_allclose(spectral_shift(x, 1e6, p / n), moved, atol=1e-3)


@cache
def counts(multiple: float, draws: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues below each of some points, mean and standard error, over draws of 60 x 120 with one signal."""
    points = np.quantile(MarchenkoPastur(0.5).ppf(np.linspace(0.02, 0.98, 50)), [0.1, 0.3, 0.5, 0.7, 0.9])
    generator, below = np.random.default_rng([int(10 * multiple), 3]), []
    for _ in range(draws):
        W = planted(60, 120, [multiple * critical(60, 120)] if multiple else [], generator=generator).W
        below.append((np.linalg.svd(W, compute_uv=False)[:, None] ** 2 / 120 < points).sum(0))
    return points, np.mean(below, 0), np.std(below, 0) / draws**0.5


@pytest.mark.parametrize("multiple", (0.0, 0.7, 1.3, 2.0, 6.0))
def test_counts_below_a_point_beside_one_signal(multiple):
    points, seen, error = counts(multiple)
    expected = 60 * MarchenkoPastur(0.5).cdf(points) + mean_shift(points, 0.5)
    expected = expected - spectral_shift(points, multiple * 0.5**0.25, 0.5)
    # Four standard errors, .015 each, and .02 for the next order in 1 / p; the shift itself is .05 to .9.
    assert np.all(np.abs(seen - expected) < 4 * error + 0.02)


def test_noise_quantiles_solve_their_equation():
    s = np.concatenate([[60.0, 45.0], np.linspace(30, 3, 48)])
    spectrum = Spectrum(s, 50, 100)
    for spikes, sigma in ((0, None), (2, None), (2, 1.5)):
        q = spectrum.noise_quantiles(spikes, sigma)
        p, n = 50 - spikes, 100 - spikes
        alone = 1 - np.arccos((q - 1 - p / n) / (2 * (p / n) ** 0.5)) / np.pi
        below = p * MarchenkoPastur(p / n).cdf(q) + mean_shift(q, p / n)
        if sigma:
            for y in s[:spikes] / (sigma * 10):
                below += alone - spectral_shift(q, float(strength(y, 0.5)), p / n)
        # Interpolated on 513 nodes.
        np.testing.assert_allclose(below, np.arange(p) + 0.5, atol=2e-3)


def test_bulk_values_beside_spikes_lie_where_they_are_expected():
    generator = np.random.default_rng(8)
    ladder = np.linspace(1.5, 4, 20) * critical(200, 400)
    seen, shown = [], None
    for _ in range(60):
        s = np.linalg.svd(planted(200, 400, ladder, generator=generator).W, compute_uv=False)
        shown = Spectrum(s, 200, 400)
        seen.append(s[20:][::-1] ** 2 / 380)
    mean = np.mean(seen, 0)[20:160]
    finite, strong = shown.noise_quantiles(20, 1.0)[20:160], shown.noise_quantiles(20)[20:160]
    # Mean relative distance: .1 per cent with the strengths, 1.1 without.
    assert abs(np.mean(mean / finite - 1)) < 0.003
    assert np.mean(strong / mean - 1) > 0.006
