"""The Tracy-Widom law against a table and against Painleve's equation, and the formula for the top of noise."""

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import airy

from spectrim.laws import TracyWidom, evened, top_eigenvalue

# Ten digits, from a determinant with another quadrature on the shorter interval (s, s + 16). That interval is too short
# far in the left tail, so levels under .05 are held against Painleve's equation below instead.
QUANTILES = {
    0.05: -3.1803799818,
    0.1: -2.7824279063,
    0.2: -2.2831633203,
    0.3: -1.9103797462,
    0.5: -1.2685746166,
    0.7: -0.5922871910,
    0.8: -0.1653134252,
    0.9: 0.4501432891,
    0.95: 0.9793160535,
    0.975: 1.4537713519,
    0.99: 2.0234492814,
    0.995: 2.4223265859,
    0.999: 3.2721960590,
}


@pytest.fixture(scope="module")
def painleve():
    """log F1(s) = -(1/2) int_s^inf [q + (x - s) q**2] dx with q'' = s q + 2 q**3, q ~ Ai: another road to the law."""
    start = 8.0

    def slope(s, y):
        q, dq, energy, *_ = y
        return [dq, s * q + 2 * q**3, -q * q, -energy, -q]

    tails = [
        quad(f, start, 40, epsabs=0, epsrel=1e-12)[0]
        for f in (lambda s: airy(s)[0] ** 2, lambda s: (s - start) * airy(s)[0] ** 2, lambda s: airy(s)[0])
    ]
    first = [airy(start)[0], airy(start)[1], *tails]
    path = solve_ivp(slope, (start, -6), first, method="DOP853", rtol=1e-13, atol=1e-26, dense_output=True).sol
    return lambda s: np.exp(-0.5 * (path(s)[4] + path(s)[3]))


def test_quantiles_agree_with_the_table():
    found = TracyWidom().ppf(list(QUANTILES))
    np.testing.assert_allclose(found, list(QUANTILES.values()), rtol=0, atol=1e-8)


def test_cdf_agrees_with_painleve(painleve):
    s = np.linspace(-5, 4, 46)
    # The separatrix is unstable: from 8 down to -5 the integration loses five of its fifteen digits.
    np.testing.assert_allclose(TracyWidom().cdf(s), painleve(s), rtol=0, atol=1e-10)


@pytest.mark.parametrize("q", (0.001, 0.005, 0.01, 0.025, 0.5, 0.999))
def test_tail_quantiles_agree_with_painleve(painleve, q):
    s = TracyWidom().ppf(q)
    slope = (painleve(s + 1e-4) - painleve(s - 1e-4)) / 2e-4
    assert abs(painleve(s) - q) / slope < 1e-8


def test_moments():
    s = np.linspace(-9, 8, 401)
    mass, middle = np.diff(TracyWidom().cdf(s)), 0.5 * (s[1:] + s[:-1])
    mean = mass @ middle
    # Putting the mass of a cell of width h into its middle costs at most h**2 / 12 = 1.5e-4 in either.
    assert mean == pytest.approx(-1.20653357, abs=2e-4)
    assert mass @ (middle - mean) ** 2 == pytest.approx(1.60778103, abs=4e-4)


def test_shapes_and_ends():
    law = TracyWidom()
    assert isinstance(law.ppf(0.9), float)
    assert law.ppf([[0.1], [0.9]]).shape == (2, 1)
    assert law.cdf(0.0).shape == ()
    np.testing.assert_array_equal(law.cdf([-np.inf, -50, 50, np.inf]), [0, 0, 1, 1])
    assert np.isnan(law.cdf(np.nan))
    assert law.cdf(law.ppf(0.123)) == pytest.approx(0.123, abs=1e-11)
    values = law.cdf(np.linspace(-11, 13, 120))
    assert np.all(np.diff(values) > -1e-12)  # the determinant is rounding noise of this size in the far tails


@pytest.mark.parametrize("q", (0.0, 1.0, -1.0, 2.0, np.nan))
def test_impossible_probabilities_are_refused(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        TracyWidom().ppf(q)


def test_top_of_square_noise():
    # 4 + 2**(4/3) t N**(-2/3)
    for beta, edge in ((0.05, 4.025), (0.9, 3.930), (0.95, 3.920)):
        assert top_eigenvalue(1000, 1000, beta) == pytest.approx(edge, abs=5e-4)


def test_top_is_the_johnstone_form():
    # The same centre and scale, written as the paper writes them for s**2.
    p, n, beta = 250, 1000, 0.1
    centre = (np.sqrt(n) + np.sqrt(p)) ** 2
    scale = (np.sqrt(n) + np.sqrt(p)) * (1 / np.sqrt(n) + 1 / np.sqrt(p)) ** (1 / 3)
    assert top_eigenvalue(p, n, beta) * n == pytest.approx(centre + TracyWidom().ppf(0.9) * scale, rel=1e-12)


@pytest.mark.parametrize(("p", "n"), [(10, 10), (10, 40), (100, 100), (100, 1000), (384, 384)])
def test_evened_keeps_the_order_and_the_mean(p, n):
    from spectrim.laws import MarchenkoPastur

    x = MarchenkoPastur(p / n).ppf((np.arange(4000) + 0.5) / 4000)
    moved = evened(x, p, n)
    assert np.all(np.diff(moved) > 0)
    # The second moment of the law is 1 + gamma, which is why nothing is left of the first-order change of the mean.
    assert moved.mean() == pytest.approx(1.0, abs=5e-4)
    assert np.ptp(moved) < np.ptp(x)
