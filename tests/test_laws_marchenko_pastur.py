"""The Marchenko-Pastur law against quadrature, a published table of quantiles, and itself."""

import warnings

import mpmath as mp
import numpy as np
import pytest

from spectrim.laws import MarchenkoPastur

GAMMAS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.784, 0.9, 0.99, 1.0)
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
# Quantiles at sigma = 1 from an independent computation, eight digits.
QUANTILES = {
    0.1: (0.54589109, 0.59774376, 0.7353205, 0.96656515, 1.2415279, 1.4616621, 1.5606195),
    0.25: (0.33619951, 0.39788076, 0.57662855, 0.91600407, 1.36548068, 1.75142283, 1.93090226),
    0.5: (0.15297075, 0.20888989, 0.39825377, 0.83046588, 1.48592161, 2.09269484, 2.38434221),
    0.784: (0.04583603, 0.08316908, 0.24874426, 0.73086012, 1.56948299, 2.39617674, 2.80348281),
    1.0: (0.00617168, 0.02472498, 0.15625253, 0.65277594, 1.61139969, 2.59457121, 3.08592074),
}


def quadrature(gamma: float, x: float) -> float:
    """The distribution function by 30-digit quadrature of the density, in x = lower + (upper - lower) sin(t)**2."""
    with mp.workdps(30):
        g, x = mp.mpf(gamma), mp.mpf(x)
        low, high = (1 - mp.sqrt(g)) ** 2, (1 + mp.sqrt(g)) ** 2

        def slope(t):
            at = low + (high - low) * mp.sin(t) ** 2
            if at == 0:
                return mp.mpf(4) / mp.pi  # the limit at gamma = 1, t = 0
            return mp.sqrt((high - at) * (at - low)) / (2 * mp.pi * g * at) * (high - low) * mp.sin(2 * t)

        top = mp.asin(mp.sqrt((x - low) / (high - low)))
        return float(mp.quad(slope, mp.linspace(0, top, 5)))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_cdf_agrees_with_quadrature(gamma):
    law = MarchenkoPastur(gamma)
    # From next to one end to next to the other.
    x = law.lower + (law.upper - law.lower) * np.array([1e-6, 0.01, 0.1, 0.3, 0.5, 0.77, 0.95, 0.9999])
    expected = np.array([quadrature(gamma, v) for v in x])
    # The closed form loses at most 1e-16 / sqrt(gamma) to cancellation; 1e-12 is what the library promises.
    np.testing.assert_allclose(law.cdf(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", QUANTILES)
def test_ppf_agrees_with_the_table(gamma):
    np.testing.assert_allclose(MarchenkoPastur(gamma).ppf(LEVELS), QUANTILES[gamma], rtol=0, atol=6e-9)


@pytest.mark.parametrize("sigma", (1.0, 0.37, 1e-8, 1e8))
@pytest.mark.parametrize("gamma", (1e-4, 0.01, 0.25, 0.784, 0.9999, 1.0))
def test_ppf_and_cdf_undo_each_other_up_to_the_tails(gamma, sigma):
    law = MarchenkoPastur(gamma, sigma)
    levels = np.concatenate([[1e-15, 1e-12, 1e-9, 1e-6], (np.arange(768) + 0.5) / 768, 1 - np.logspace(-3, -15, 7)])
    x = law.ppf(levels)
    # F itself is known to about 1e-16 / sqrt(gamma).
    np.testing.assert_allclose(law.cdf(x), levels, rtol=0, atol=1e-15 + 2e-16 / gamma**0.5)
    inside = law.ppf(law.cdf(x))
    # Next to an end F grows like the 3/2 power, so an error of 1e-16 in F moves x by at most (1e-16)**(2/3) widths.
    np.testing.assert_allclose(inside, x, rtol=0, atol=1e-10 * (law.upper - law.lower))
    middle = (levels > 0.01) & (levels < 0.99)
    np.testing.assert_allclose(inside[middle], x[middle], rtol=1e-12)
    assert np.all(np.diff(law.ppf(np.sort(levels))) >= 0)


def test_ends_are_exact_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for gamma in (*GAMMAS, 1e-6):
            law = MarchenkoPastur(gamma, 1.7)
            x = np.array([-np.inf, -1.0, 0.0, law.lower, law.upper, law.upper * 1.01, np.inf])
            np.testing.assert_array_equal(law.cdf(x), [0, 0, 0, 0, 1, 1, 1])
            np.testing.assert_array_equal(law.pdf(x), np.zeros(7))
            np.testing.assert_array_equal(law.ppf([0.0, 1.0]), [law.lower, law.upper])
    assert np.isnan(MarchenkoPastur(0.5).cdf(np.nan))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_moments(gamma):
    # Mean sigma^2, second moment sigma^4 (1 + gamma), by mid-point quantiles: their error falls like 1 / count.
    x = MarchenkoPastur(gamma, 2.0).ppf((np.arange(20000) + 0.5) / 20000)
    assert x.mean() == pytest.approx(4.0, rel=1e-4)
    assert np.mean(x**2) == pytest.approx(16 * (1 + gamma), rel=1e-4)


@pytest.mark.parametrize("gamma", (0.01, 0.3, 1.0))
def test_pdf_is_the_slope_of_cdf(gamma):
    law = MarchenkoPastur(gamma, 0.5)
    x = np.linspace(law.lower, law.upper, 52)[2:-2]
    step = 1e-6 * (law.upper - law.lower)
    # Central differences: rounding 1e-16 / 1e-6 against truncation 1e-12.
    np.testing.assert_allclose((law.cdf(x + step) - law.cdf(x - step)) / (2 * step), law.pdf(x), rtol=1e-6)


def test_ppf_keeps_the_shape():
    law = MarchenkoPastur(0.5)
    assert law.ppf(0.3).shape == ()
    assert law.ppf(np.full((2, 3), 0.3)).shape == (2, 3)
    assert law.ppf([]).shape == (0,)


@pytest.mark.parametrize(
    "bad", [dict(gamma=0.0), dict(gamma=1.5), dict(gamma=0.5, sigma=0.0), dict(gamma=float("nan"))]
)
def test_impossible_laws_are_refused(bad):
    with pytest.raises(ValueError, match=r"gamma|sigma"):
        MarchenkoPastur(**bad)


@pytest.mark.parametrize("q", (-0.1, 1.1, np.nan, 50.0))
def test_impossible_levels_are_refused(q):
    with pytest.raises(ValueError, match="levels in"):
        MarchenkoPastur(0.5).ppf(q)
