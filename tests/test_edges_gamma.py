"""The general model by simulation: its laws at a small cost, and the published algorithm written out beside it.

The conformance suite runs the estimator in full, marked slow.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from spectrim.edges import Bema, BemaGamma
from spectrim.planted import critical, noise, planted
from spectrim.spectrum import Spectrum

SMALL = BemaGamma(draws=3, tops=20)


def spectrum_of(W):
    return Spectrum(np.linalg.svd(W, compute_uv=False), *W.shape)


def uneven_rows(p, n, theta, generator):
    """Noise whose rows have Gamma variances of mean one."""
    return np.sqrt(generator.gamma(theta, 1 / theta, (p, 1))) * noise(p, n, generator=generator)


def test_the_same_verdict_for_another_unit_and_for_the_transpose():
    W = uneven_rows(40, 60, 3.0, np.random.default_rng(0))
    spectrum, turned = spectrum_of(W), spectrum_of(W.T)
    fit, other = SMALL(spectrum), SMALL(turned)
    assert other.edge == pytest.approx(fit.edge, rel=1e-9)
    for factor in (1e-120, 7.0, 1e120):
        scaled = SMALL(replace(spectrum, s=factor * spectrum.s))
        assert scaled.sigma == pytest.approx(factor * fit.sigma, rel=1e-9)
        assert scaled.edge == pytest.approx(factor * fit.edge, rel=1e-9)
        assert scaled.spikes == fit.spikes
    assert SMALL(spectrum) == fit  # nothing is left over from one call to the next
    assert replace(SMALL, seed=1)(spectrum).edge != fit.edge


def test_rows_of_unequal_variance_are_no_signal():
    # Exponential variances, more or less: without them in the model, every matrix shows spikes by the dozen. Ten draws
    # at a rate of .15 (the one documented for so small a theta) exceed 6 once in eight hundred runs.
    shown, plain = [], []
    for draw in range(10):
        spectrum = spectrum_of(uneven_rows(60, 90, 1.5, np.random.default_rng([7, draw])))
        shown.append(SMALL(spectrum).spikes)
        plain.append(Bema()(spectrum).spikes)
    assert np.count_nonzero(shown) <= binom.ppf(0.999, 10, 0.15)
    assert np.mean(plain) > 5


def test_spikes_stand_out_of_uneven_noise():
    generator = np.random.default_rng(3)
    signal = planted(60, 90, np.array([6, 8, 10]) * critical(60, 90), sigma=1e-9, generator=generator).W
    assert SMALL(spectrum_of(signal + uneven_rows(60, 90, 3.0, generator))).spikes == 3


@pytest.mark.parametrize("side", ("short", "long"))
def test_the_simulated_law_is_the_one_of_full_matrices(side):
    # The short side is simulated by triangular roots. Over 2000 draws of each the ratio of two means has a standard
    # error of .011 on the short side, .02 for the smallest value.
    p, n, theta, count = 8, 20, 2.0, 2000
    spectrum = Spectrum(np.ones(p), p, n)
    edge = BemaGamma(side=side)
    found = np.mean([edge._null(spectrum, theta, draw) for draw in range(count)], axis=0)
    generator = np.random.default_rng(1)
    variances = generator.gamma(theta, 1 / theta, (count, p, 1) if side == "short" else (count, 1, n))
    X = np.sqrt(variances) * generator.standard_normal((count, p, n))
    expected = np.linalg.eigvalsh(X @ X.transpose(0, 2, 1) / n).mean(0)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0.045)
    assert found[0] == pytest.approx(expected[0], rel=0.08)
    assert edge._null(spectrum, theta, 5, top=True)[-1] == pytest.approx(edge._null(spectrum, theta, 5)[-1], rel=1e-9)


def literal_algorithm_2(values, p, n, alpha, beta, draws, tops, generator):
    """Algorithm 2 of Ke, Ma and Lin as it is printed: a grid of theta, full matrices, eigenvalues descending."""
    levels = range(int(np.ceil(alpha * p)), int(np.floor((1 - alpha) * p)) + 1)

    def simulate(theta):
        variances = [generator.gamma(theta, 1 / theta) for _ in range(p)]
        X = np.array([np.sqrt(v) * generator.standard_normal(n) for v in variances])
        return sorted(np.linalg.eigvalsh(X @ X.T / n), reverse=True)

    best = None
    for theta in np.geomspace(0.5, 60, 14):
        law = np.mean([simulate(theta) for _ in range(draws)], axis=0)
        top = sum(law[k - 1] * values[k - 1] for k in levels)
        bottom = sum(law[k - 1] ** 2 for k in levels)
        variance = top / bottom
        distance = sum((values[k - 1] - variance * law[k - 1]) ** 2 for k in levels)
        if best is None or distance < best[0]:
            best = (distance, variance, theta)
    _, variance, theta = best
    largest = sorted(variance * simulate(theta)[0] for _ in range(tops))
    return variance, theta, largest[int(np.ceil((1 - beta) * tops)) - 1]


def test_the_verdict_is_that_of_the_published_algorithm():
    p, n = 60, 120
    spectrum = spectrum_of(uneven_rows(p, n, 3.0, np.random.default_rng(5)))
    variance, _, top = literal_algorithm_2(spectrum.eigenvalues, p, n, 0.2, 0.1, 20, 100, np.random.default_rng(6))
    fit = BemaGamma(draws=20)(spectrum)
    # Two independent simulations: a few per cent of scatter in theta, which at the edge is about as much.
    assert fit.sigma**2 == pytest.approx(variance, rel=0.05)
    assert fit.edge**2 / n == pytest.approx(top, rel=0.12)


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 0.5}, {"beta": 0.0}, {"draws": 0}, {"tops": 1.5}, {"seed": -1}, {"side": "left"}, {"draws": True}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        BemaGamma(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(("theta", "rate"), [(1.5, 0.15), (4.0, 0.15), (20.0, 0.15)])
def test_false_spikes_beside_uneven_rows(theta, rate):
    # Sigma and theta are fitted in the middle and used at the end, so the rate is a little over beta = .1.
    found = sum(
        BemaGamma()(spectrum_of(uneven_rows(60, 90, theta, np.random.default_rng([8, draw])))).spikes > 0
        for draw in range(40)
    )
    assert found <= binom.ppf(0.999, 40, rate)
