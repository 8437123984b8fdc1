"""The broadened density against its formula written out, the published sizes of its bias, and what a refit mends."""

from math import exp, pi, sqrt

import numpy as np
import pytest

from spectrim.edges import Broadening
from spectrim.edges.broadening import _broadened, _law
from spectrim.laws import MarchenkoPastur, evened
from spectrim.linalg import singular_values
from spectrim.planted import critical, noise, planted
from spectrim.spectrum import Spectrum


def spectrum_of(p, n, strengths=(), seed=0):
    W = planted(p, n, np.asarray(strengths) * critical(p, n), generator=np.random.default_rng([seed, p, n])).W
    return Spectrum(singular_values(W), p, n)


def literal_density(values, window):
    g, m = sorted(values), len(values)
    out = []
    for x in g:
        total = 0.0
        for k in range(m):
            width = (g[min(k + window, m - 1)] - g[max(k - window, 0)]) / 2
            total += exp(-((x - g[k]) ** 2) / (2 * width**2)) / (sqrt(2 * pi) * width)
        out.append(total / m)
    return np.array(out)


def test_the_density_is_the_sum_of_gaussians():
    # Values cut off eight widths out, 1e-14 of a height; the block size does not divide 90.
    s = spectrum_of(90, 150, [3, 5]).s[::-1]
    np.testing.assert_allclose(_broadened(s, 15), literal_density(s, 15), rtol=1e-10)


def test_the_fit_is_the_least_squares_one():
    spectrum = spectrum_of(250, 400, [2, 4])
    s, seen = spectrum.s[::-1], literal_density(spectrum.s, 15)

    def distance(sigma):
        x = s**2 / spectrum.n
        f = MarchenkoPastur(spectrum.gamma, sigma).pdf(x) * 2 * s / spectrum.n
        return float(np.sum((seen - f) ** 2))

    found = Broadening(refit=False)(spectrum)
    grid = np.linspace(0.3, 2.0, 3401)
    best = grid[np.argmin([distance(v) for v in grid])]
    # Half a grid step, and a little for the dents that the sharp end makes.
    assert found.sigma == pytest.approx(best, abs=5e-4)
    assert distance(found.sigma) <= distance(best) * (1 + 1e-6)
    assert found.edge == pytest.approx(found.sigma * (sqrt(400) + sqrt(250)), rel=1e-12)


@pytest.mark.parametrize("equalised", (False, True))
@pytest.mark.parametrize(("p", "n"), [(100, 100), (100, 300), (20, 400)])
def test_the_law_is_that_of_the_noise(p, n, equalised):
    nodes, heights = _law(Spectrum(np.ones(p), p, n, equalised=equalised))
    assert np.trapezoid(heights, nodes) == pytest.approx(1, abs=1e-5)
    x = np.linspace(0.05, 0.95, 7) * (1 + sqrt(p / n)) ** 2 + 0.05 * (1 - sqrt(p / n)) ** 2
    law = MarchenkoPastur(p / n)
    y, step = x, 1e-6
    share = law.cdf
    if equalised:
        y = evened(x, p, n)
        # The density by differences of the distribution function, at the place where an x has gone to.
        low, high = evened(x - step, p, n), evened(x + step, p, n)
        expected = (law.cdf(x + step) - law.cdf(x - step)) / (np.sqrt(high) - np.sqrt(low))
    else:
        expected = (share(x + step) - share(x - step)) / (np.sqrt(x + step) - np.sqrt(x - step))
    np.testing.assert_allclose(np.interp(np.sqrt(y), nodes, heights), expected, rtol=1e-4, atol=1e-4)


# Mean of sigma**2 over five draws, truth 1: strengths evenly from 1.05 times critical up; window 15, no refit. A draw
# scatters by .005, so the mean of two lies within .015 of the mean of five in all but one run of a thousand.
BIAS = [(500, 1000, 20, 3, 0.991), (256, 1024, 40, 2, 1.063)]


@pytest.mark.parametrize(("p", "n", "rank", "top", "expected"), BIAS)
def test_the_bias_of_the_fit_without_refit(p, n, rank, top, expected):
    found = [
        Broadening(refit=False)(spectrum_of(p, n, np.linspace(1.05, top, rank), seed)).sigma ** 2 for seed in range(2)
    ]
    assert np.mean(found) == pytest.approx(expected, abs=0.015)


def test_the_refit_brings_the_end_of_the_bulk_back():
    spectrum = spectrum_of(384, 768, np.linspace(3, 8, 5))
    before, after = Broadening(refit=False)(spectrum), Broadening()(spectrum)
    assert before.sigma < 0.985
    assert before.spikes > 5
    assert after.sigma == pytest.approx(1, abs=0.01)
    assert after.spikes == 5


def test_runs_of_equal_values():
    s = np.sort(np.linalg.svd(noise(60, 90, generator=np.random.default_rng(0)), compute_uv=False))
    tied = s.copy()
    tied[20:28] = s[24]  # over more than the window of 3 that 60 values have
    assert Broadening()(Spectrum(tied, 60, 90)).sigma == pytest.approx(Broadening()(Spectrum(s, 60, 90)).sigma, rel=0.1)
    with pytest.raises(ValueError, match="equal"):
        Broadening()(Spectrum(np.ones(60), 60, 90))


@pytest.mark.parametrize("window", (0, -1, 1.5, True, np.nan))
def test_an_impossible_window_is_refused(window):
    with pytest.raises(ValueError):
        Broadening(window=window)
