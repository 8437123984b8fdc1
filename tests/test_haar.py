"""Lower edge and randomness of vectors: exact laws, simulation, and structure that was planted."""

from dataclasses import replace
from functools import cache
from math import exp, log, sqrt

import numpy as np
import pytest
from scipy.stats import binom, norm

from spectrim.edges import Bema, Known
from spectrim.haar import SOFT_FROM, _absolute_moments, _free, bottom, departures, lower_edge, randomness, structured
from spectrim.laws import TracyWidom
from spectrim.planted import critical, frame, noise, planted, scales
from spectrim.reading import equalize, read_equalised
from spectrim.spectrum import NoiseFit, Spectrum


def vectors(d, count, seed=0):
    return np.random.default_rng([seed, d]).standard_normal((d, count))


@pytest.mark.parametrize(("d", "count"), [(10, 20_000), (64, 8_000), (384, 3_000), (1536, 800)])
def test_random_vectors_pass(d, count):
    odds = randomness(vectors(d, count))
    assert odds.shape == (count,) and np.all((odds > 0) & (odds <= 1))
    for alpha in (0.1, 0.01, 0.001):
        # At most alpha, and not much less: the four tests share some of their false finds. Either bound fails by
        # chance with probability 1e-4.
        found = int(np.sum(odds < alpha))
        assert found <= binom.isf(1e-4, count, alpha)
        assert found >= binom.ppf(1e-4, count, 0.5 * alpha)


LOOKS = {
    "one entry": lambda d, g: np.eye(d)[3],
    "few entries": lambda d, g: np.r_[np.ones(5), np.zeros(d - 5)],
    "a tenth of the entries": lambda d, g: np.where(np.arange(d) < d // 10, g.standard_normal(d), 0),
    "constant": lambda d, g: np.ones(d),
    "equal size, either sign": lambda d, g: g.choice([-1.0, 1.0], d),
    "sinusoid": lambda d, g: np.cos(2 * np.pi * 7 * (np.arange(d) + 0.3) / d),
    "one sign": lambda d, g: np.abs(g.standard_normal(d)),
    "two levels": lambda d, g: np.where(np.arange(d) < d // 5, 2.0, -0.5),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(("d", "share"), [(64, 0.0), (384, 0.3)])
def test_structure_is_seen_under_noise(look, d, share):
    """`share` of the squared length is noise. Twenty draws, all found at .001, so a bulk of fifty could hold them."""
    if look == "sinusoid":  # its entries are spread too much like normal ones; it takes 384 of them, and no noise
        d, share = 384, 0.0
    generator = np.random.default_rng([1, d])
    for _ in range(20):
        v, e = LOOKS[look](d, generator), generator.standard_normal(d)
        mixed = sqrt(1 - share) * v / np.linalg.norm(v) + sqrt(share) * e / np.linalg.norm(e)
        assert randomness(mixed[:, None])[0] < 0.001


def test_each_statistic_sees_what_the_others_hardly_do():
    """Quantiles of the normal law with one outlier; with a small common shift; with sizes a little too even."""
    z = norm.ppf((np.arange(384) + 0.5) / 384)
    outlier, shifted = z.copy(), z + 0.2
    outlier[7] = 7.0
    even = np.sign(z) * np.abs(z) ** 0.7
    others = {"outlier": outlier, "shifted": shifted, "even": even, "random": z}
    odds = dict(zip(others, randomness(np.stack(list(others.values()), axis=1)), strict=True))
    assert max(odds["outlier"], odds["shifted"], odds["even"]) < 1e-3 < 0.05 < odds["random"]


def test_neither_length_nor_sign_nor_order_matters():
    X = vectors(50, 6)
    odds = randomness(X)
    np.testing.assert_allclose(randomness(-1e-150 * X), odds, rtol=1e-9)
    np.testing.assert_allclose(randomness(X[::-1]), odds, rtol=1e-9)
    np.testing.assert_array_equal(randomness(X[:, [2]]), odds[[2]])
    assert randomness(np.zeros((20, 0))).shape == (0,)


def test_blocks_of_columns_are_put_together(monkeypatch):
    X = vectors(40, 23)
    whole = randomness(X)
    monkeypatch.setattr("spectrim.haar.BLOCK", 40 * 5)
    np.testing.assert_array_equal(randomness(X), whole)


@pytest.mark.parametrize("bad", [np.ones(20), np.ones((9, 2)), np.zeros((20, 1)), np.full((20, 1), np.nan)])
def test_what_has_no_direction_is_refused(bad):
    with pytest.raises(ValueError, match=r"ten components|no direction"):
        randomness(bad)


def test_moments_of_the_absolute_components():
    for d in (10, 200, 6000):
        mean, sd, skew = _absolute_moments(d)
        X = vectors(d, 200_000 if d == 10 else 20_000 if d == 200 else 1_500, seed=2)
        total = np.abs(X).sum(0) / np.linalg.norm(X, axis=0)
        count = total.size
        assert total.mean() == pytest.approx(mean, abs=5 * sd / sqrt(count))
        assert total.std() == pytest.approx(sd, rel=5 / sqrt(2 * count))
        assert np.mean((total - mean) ** 3) / sd**3 == pytest.approx(skew, abs=5 * sqrt(15 / count))


def test_the_hard_edge_where_it_is_known():
    for root in (0.1, 1.0, 4.0):
        assert _free(root, 0.0) == pytest.approx(exp(-(root**2) / 8 - root / 2), abs=1e-13)  # n = p, Edelman
        assert _free(root, 1.0) == pytest.approx(exp(-(root**2) / 8), abs=1e-13)  # n = p + 1, exact at every size
    for p in (10, 80):
        assert bottom(p, p + 1, 0.1) == pytest.approx(-2 * log(0.9) / p, rel=2 / p**2)
    e = sqrt(1 - 2 * log(0.7)) - 1
    assert sqrt(400 * bottom(400, 400, 0.3)) == pytest.approx(e, rel=2 / 400)


def test_the_soft_edge_is_the_logarithmic_form():
    P, N = 383.5, 1535.5  # Ma (2012), in his own letters
    mu = (sqrt(N) - sqrt(P)) ** 2
    spread = (sqrt(N) - sqrt(P)) * (1 / sqrt(P) - 1 / sqrt(N)) ** (1 / 3)
    tau = spread / mu
    expected = exp(log(mu) + tau**2 / 8 - tau * TracyWidom().ppf(0.9))
    assert bottom(384, 1536, 0.1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", (0.01, 0.1, 0.5))
def test_the_two_forms_meet(beta, monkeypatch):
    monkeypatch.setattr("spectrim.haar.SOFT_FROM", 1.0)
    for p, n in ((200, 220), (50, 71)):  # both of order 20
        bottom.cache_clear()
        soft = bottom(p, n, beta)
        monkeypatch.setattr("spectrim.haar.SOFT_FROM", 1e9)
        bottom.cache_clear()
        # A hundredth of the eigenvalue moves the probability by less than a tenth of itself.
        # One or two per cent of the smallest eigenvalue, which itself scatters by a quarter.
        assert soft == pytest.approx(bottom(p, n, beta), rel=0.015)
        monkeypatch.setattr("spectrim.haar.SOFT_FROM", 1.0)
    bottom.cache_clear()
    assert SOFT_FROM == 20.0


SHAPES = [(20, 20), (20, 21), (20, 24), (40, 60), (30, 120)]


@cache
def smallest(p, n, draws=4000):
    """The smallest singular values of Gaussian noise, from Gram matrices in one batch."""
    X = np.random.default_rng([3, p, n]).standard_normal((draws, p, n))
    return np.linalg.svd(X, compute_uv=False)[:, -1]


@pytest.mark.parametrize(("p", "n"), SHAPES)
def test_noise_falls_below_with_probability_beta(p, n):
    for beta in (0.01, 0.1, 0.3):
        below = np.mean(smallest(p, n) < lower_edge(Spectrum(np.ones(p), p, n), 1.0, beta))
        # Four standard deviations of 4,000 draws, and a twentieth of beta for the limit.
        assert below == pytest.approx(beta, abs=4 * sqrt(beta * (1 - beta) / 4000) + 0.05 * beta)


def test_properties_of_the_lower_edge():
    even = Spectrum(np.ones(60), 60, 90, equalised=True)
    plain, turned = Spectrum(np.ones(60), 60, 90), Spectrum(np.ones(60), 90, 60)
    assert lower_edge(plain, 2.0) == pytest.approx(2 * lower_edge(plain, 1.0), rel=1e-12)
    assert lower_edge(turned, 1.0) == lower_edge(plain, 1.0)
    assert lower_edge(plain, 1.0, 0.01) < lower_edge(plain, 1.0, 0.1) < lower_edge(plain, 1.0, 0.9)
    assert lower_edge(even, 1.0) > lower_edge(plain, 1.0)  # evening narrows the law from both sides
    assert lower_edge(plain, 1.0, spikes=5) == lower_edge(Spectrum(np.ones(55), 55, 85), 1.0)
    for wrong in ({"beta": 0.0}, {"beta": 1.0}, {"spikes": 60}, {"spikes": -1}):
        with pytest.raises(ValueError, match=r"beta must lie|spikes must lie"):
            lower_edge(plain, 1.0, **wrong)


@pytest.mark.parametrize("way", ("plain", "equalised"))
@pytest.mark.parametrize(("p", "n", "spikes", "draws"), [(40, 40, 0, 300), (50, 150, 0, 250), (60, 180, 5, 200)])
def test_false_departures_happen_at_the_rate_beta(p, n, spikes, draws, way):
    found = 0
    for draw in range(draws):
        generator = np.random.default_rng([4, p, n, spikes, draw])
        W = planted(p, n, np.linspace(2, 6, spikes) * critical(p, n), generator=generator).W
        if way == "plain":
            spectrum = Spectrum(np.linalg.svd(W, compute_uv=False), p, n)
        else:
            W = scales(p, 0.3, generator=generator)[:, None] * W * scales(n, 0.3, generator=generator)
            spectrum = read_equalised(W, Bema())[0]
        found += departures(spectrum, Bema()(spectrum)) > 0
    # At most 1.3 beta, for sigma is estimated; measured: .05 to .13 over a dozen sizes. By chance one in 1,000.
    assert binom.ppf(1e-3, draws, 0.04) <= found <= binom.isf(1e-3, draws, 0.13)


def test_departures_are_counted_and_zeros_are_none():
    W = noise(60, 120, generator=np.random.default_rng(5))
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    low = lower_edge(Spectrum(s, 60, 120), 1.0)
    s[-3:] = low * np.array([0.9, 0.5, 1e-3])
    seen = Spectrum(s, 60, 120)
    assert departures(seen, Known(1.0)(seen)) == 3
    s[-1] = 1e-9 * s[0]  # what rounding leaves of a zero
    seen = Spectrum(s, 60, 120)
    assert departures(seen, Known(1.0)(seen)) == 2
    assert structured(seen, Known(1.0)(seen), U, np.where(np.arange(60)[:, None] == 59, np.eye(1, 120), Vh)) == ()


def test_where_there_is_no_level_there_is_no_departure():
    s = np.r_[np.linspace(17, 4, 58), 0.5, 0.1]
    seen = Spectrum(s, 60, 120)
    fit = Known(1.0)(seen)
    assert departures(seen, fit) == 2
    assert departures(seen, replace(fit, sigma=None)) == 0
    assert departures(seen, replace(fit, spikes=31)) == 0
    assert departures(Spectrum(s[:30], 60, 120, complete=False), fit) == 0


def with_pair(W, u, v, value):
    """W with u and v made an exact pair of singular vectors of the given value, and all else orthogonal to them."""
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    left, right = W - np.outer(u, u @ W), None
    right = left - np.outer(left @ v, v)
    return right + value * np.outer(u, v)


@pytest.mark.parametrize("look", ("few entries", "constant"))
@pytest.mark.parametrize("where", ("below", "inside"))
def test_a_small_direction_with_structure_is_found(look, where):
    p, n = 80, 160
    for seed in range(5):
        generator = np.random.default_rng([6, seed])
        base = noise(p, n, generator=generator)
        value = 0.2 * (sqrt(n) - sqrt(p)) if where == "below" else sqrt(n)
        W = with_pair(base, LOOKS[look](p, generator), LOOKS[look](n, generator), value)
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        seen = Spectrum(s, p, n)
        fit = Bema()(seen)
        (position,) = np.nonzero(np.isclose(s, value))[0]
        assert position in structured(seen, fit, U, Vh)
        assert departures(seen, fit) >= (where == "below")
        # And a pair without structure is below the edge, but not found.
        W = with_pair(base, generator.standard_normal(p), generator.standard_normal(n), value)
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        assert position not in structured(Spectrum(s, p, n), fit, U, Vh)


@pytest.mark.parametrize("way", ("plain", "equalised"))
def test_false_finds_on_noise_stay_within_the_level(way):
    found, draws = 0, 150
    for draw in range(draws):
        generator = np.random.default_rng([7, draw])
        W = noise(40, 80, generator=generator)
        if way == "equalised":
            W = scales(40, 0.3, generator=generator)[:, None] * W
            W = equalize(W).apply(W).numpy()
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        spectrum = Spectrum(s, 40, 80, equalised=way == "equalised")
        found += bool(structured(spectrum, Bema()(spectrum), U, Vh, level=0.1))
    assert found <= binom.isf(1e-3, draws, 0.1)  # measured: .03 to .06 at a level of .05


def test_holms_correction_is_the_textbook_one():
    """Positions that pass are those of the literal step-down rule, on vectors of graded structure."""
    generator = np.random.default_rng(8)
    U, Vh = frame(60, 30, generator=generator), frame(90, 30, generator=generator).T
    for i, share in enumerate(np.linspace(0, 0.6, 30)):
        U[:, i] = sqrt(share) * np.ones(60) / sqrt(60) + sqrt(1 - share) * U[:, i]
    spectrum = Spectrum(np.linspace(9, 1, 30), 60, 90, complete=False)
    fit = NoiseFit(1.0, 8.0, None, None, 4, "by hand")
    bulk = [i for i in range(30) if spectrum.s[i] <= 8.0]
    odds = {i: min(1.0, 2 * min(randomness(U[:, [i]])[0], randomness(Vh[[i]].T)[0])) for i in bulk}
    expected = []
    for rank, i in enumerate(sorted(bulk, key=lambda i: odds[i])):
        if odds[i] > 0.05 / (len(bulk) - rank):
            break
        expected.append(i)
    found = structured(spectrum, fit, U, Vh, level=0.05)
    assert found == tuple(sorted(expected)) and len(found) < len(bulk)
    assert len(found) > sum(odds[i] <= 0.05 / len(bulk) for i in bulk) > 0  # where plain Bonferroni would find fewer
    assert not set(found) & {0, 1, 2, 3}  # spikes are not asked


def test_vectors_of_another_matrix_are_refused():
    seen = Spectrum(np.linspace(9, 1, 12), 12, 20)
    with pytest.raises(ValueError, match=r"have vectors of shape \(12, 12\) and \(12, 20\), got \(20, 12\)"):
        structured(seen, Known(1.0)(seen), np.ones((20, 12)), np.ones((12, 12)))
