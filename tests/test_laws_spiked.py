"""The spiked-model maps against published values and against planted matrices."""

import numpy as np
import pytest

from spectrim.laws import (
    SHRINKERS,
    MarchenkoPastur,
    cosines,
    critical_strength,
    hard_threshold,
    observed,
    shrink,
    strength,
)
from spectrim.metrics import alignment
from spectrim.planted import planted

GAMMAS = (0.05, 0.25, 0.4, 1.0)


def test_observed_values():
    square = ((1.2, 1.0, 2.0333), (1.8, 1.0, 2.3556), (3.0, 1.0, 3.3333))
    long = ((0.954, 0.4, 1.658), (1.472, 0.4, 1.937), (3.0, 0.4, 3.232))
    for theta, gamma, seen in square + long:
        assert float(observed(theta, gamma)) == pytest.approx(seen, abs=1e-3)
    assert float(observed(0.3, 0.4)) == pytest.approx(1 + 0.4**0.5)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_strength_undoes_observed(gamma):
    theta = critical_strength(gamma) * np.array([1.0001, 1.01, 1.3, 2, 10, 1e4])
    # At a relative distance d above the transition the map is flat, so digits are lost like sqrt(eps) / d.
    np.testing.assert_allclose(strength(observed(theta, gamma), gamma), theta, rtol=1e-9)
    edge = 1 + gamma**0.5
    np.testing.assert_array_equal(strength([0.0, 0.5 * edge, edge], gamma), 0)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_everything_is_continuous_at_the_edge(gamma):
    at, edge = critical_strength(gamma), 1 + gamma**0.5
    assert float(observed(at * (1 + 1e-7), gamma)) == pytest.approx(edge, abs=1e-9)
    assert float(strength(edge * (1 + 1e-12), gamma)) == pytest.approx(at, rel=1e-5)
    for side in cosines(at * (1 + 1e-9), gamma):
        assert 0 <= side < 1e-7
    for loss in ("frobenius", "nuclear"):
        assert 0 <= shrink(edge * (1 + 1e-12), gamma, loss) < 1e-4
    # The operator norm keeps a spike at its strength: it jumps, as it must.
    assert float(shrink(edge * (1 + 1e-12), gamma, "operator")) == pytest.approx(at, rel=1e-5)


def test_square_cosines():
    for side in cosines(2.0, 1.0):  # 1 - theta**-2
        assert float(side) == pytest.approx(0.75)


def test_known_cosines_and_their_sides():
    # n = 1500, p = 600: theory .2468 and .3597 at theta = .954, .8956 and .9527 at theta = 3.
    for theta, long, short in ((0.954, 0.2468, 0.3597), (3.0, 0.8956, 0.9527)):
        found = cosines(theta, 0.4)
        assert float(found[0]) == pytest.approx(long, abs=6e-4)
        assert float(found[1]) == pytest.approx(short, abs=6e-4)


@pytest.mark.parametrize("shape", [(120, 480), (480, 120)])
def test_planted_vectors_have_the_expected_cosines(shape):
    # Twelve draws of one spike; the mean square cosine has a standard error under .01 (seeded), so .04 is 4 of them.
    n, p, theta = max(shape), min(shape), 1.2
    found = []
    for draw in range(12):
        made = planted(*shape, [theta * n**0.5], generator=np.random.default_rng(draw))
        U, _, Vh = np.linalg.svd(made.W, full_matrices=False)
        left, right = alignment(U[:, :1], made.U)[0], alignment(Vh[:1].T, made.Vh.T)[0]
        found.append((left, right) if shape[0] > shape[1] else (right, left))
    np.testing.assert_allclose(np.mean(found, axis=0), cosines(theta, p / n), atol=0.04)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_shrinkers_from_their_definitions(gamma):
    theta = critical_strength(gamma) * np.array([1.05, 1.5, 4.0])
    y = observed(theta, gamma)
    long, short = cosines(theta, gamma)
    # Frobenius: eta = theta cos cos; and in order operator > Frobenius > nuclear, none above y.
    np.testing.assert_allclose(shrink(y, gamma, "frobenius"), theta * np.sqrt(long * short), rtol=1e-9)
    np.testing.assert_allclose(
        shrink(y, gamma, "frobenius"), np.sqrt((y**2 - gamma - 1) ** 2 - 4 * gamma) / y, rtol=1e-6
    )
    np.testing.assert_allclose(shrink(y, gamma, "operator"), theta, rtol=1e-9)
    assert np.all(shrink(y, gamma, "nuclear") <= shrink(y, gamma, "frobenius"))
    assert np.all(shrink(y, gamma, "frobenius") <= shrink(y, gamma, "operator"))
    for loss in SHRINKERS:
        np.testing.assert_array_equal(shrink([0.0, 1 + gamma**0.5], gamma, loss), 0)


def test_hard_thresholds():
    known = {0.05: 1.506607, 0.1: 1.581648, 0.25: 1.758029, 0.5: 1.978599, 0.75: 2.156094, 1.0: 4 / 3**0.5}
    unknown = {0.05: 1.519341, 0.1: 1.608772, 0.25: 1.836866, 0.5: 2.171185, 0.75: 2.501430, 1.0: 2.858362}
    for gamma in known:
        assert hard_threshold(gamma) == pytest.approx(known[gamma], abs=1e-6)
        median = float(MarchenkoPastur(gamma).ppf(0.5))
        assert hard_threshold(gamma, median) == pytest.approx(unknown[gamma], abs=1e-6)


def test_shrinkage_loses_less_than_truncation():
    made = planted(400, 200, np.linspace(1.05, 4, 8) * (400 * 200) ** 0.25, generator=np.random.default_rng(3))
    U, s, Vh = np.linalg.svd(made.W, full_matrices=False)
    signal, y, edge = (made.U * made.strengths) @ made.Vh, s / 400**0.5, 1 + 0.5**0.5

    def loss(values):
        return np.linalg.norm((U * values) @ Vh - signal) ** 2

    best = loss(400**0.5 * shrink(y, 0.5))
    assert best < 0.9 * loss(np.where(y > edge, s, 0))
    assert best < loss(np.where(y > hard_threshold(0.5), s, 0))


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="loss must be one of"):
        shrink(3.0, 0.5, "l1")
    with pytest.raises(ValueError, match="gamma"):
        observed(1.0, 2.0)
