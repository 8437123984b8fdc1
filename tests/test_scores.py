"""Scores of a threshold: against literal twins, the spiked model by simulation, and planted signal that is known."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from spectrim.edges import Bema
from spectrim.laws import cosines, critical_strength, hard_threshold, strength
from spectrim.metrics import alignment
from spectrim.planted import critical, frame, noise, planted
from spectrim.scores import (
    SIDES,
    WEIGHTS,
    alignments,
    average,
    averaged,
    gain,
    knee,
    known_alignments,
    peak,
    reach,
    weigh,
)
from spectrim.spectrum import Spectrum

LADDERS = {"linear": np.linspace(1.3, 6, 30), "geometric": np.geomspace(1.3, 6, 30)}


def ladder(rows, cols, spacing, seed):
    """Thirty planted values from 1.3 times the transition up: the truth, the vectors seen, the spectrum, its fit."""
    strengths = LADDERS[spacing] * critical(rows, cols)
    made = planted(rows, cols, strengths, generator=np.random.default_rng([30, rows, cols, seed]))
    U, s, Vh = np.linalg.svd(made.W, full_matrices=False)
    spectrum = Spectrum(s, rows, cols)
    return made, U, Vh, spectrum, Bema()(spectrum)


def literal_phi(s, p, n, sigma, side, squared):
    """One value by the formulas of Benaych-Georges and Nadakuditi, the strength found by bisection of their map."""
    c, y = p / n, s / (sigma * sqrt(n))
    if y <= 1 + sqrt(c):
        return 0.0
    low, high = c**0.25, y
    for _ in range(200):
        theta = (low + high) / 2
        if sqrt((1 + theta**2) * (c + theta**2)) / theta > y:
            high = theta
        else:
            low = theta
    long = 1 - (c + theta**2) / (theta**2 * (theta**2 + 1))
    short = 1 - c * (1 + theta**2) / (theta**2 * (theta**2 + c))
    if not squared:
        long, short = sqrt(max(long, 0)), sqrt(max(short, 0))
    return {
        "product": long * short,
        "mean": (long + short) / 2,
        "long": long,
        "short": short,
        "either": max(long, short),
    }[side]


@pytest.mark.parametrize("squared", (False, True))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(40, 40), (40, 100), (100, 40)])
def test_alignments_and_average_are_their_formulas(shape, side, squared):
    sigma, n = 0.3, max(shape)
    top = sigma * sqrt(n) * (1 + sqrt(40 / n))
    s = np.r_[top * np.array([4.0, 2.0, 1.2, 1.01]), np.linspace(0.99, 0.1, 36) * top]
    spectrum = Spectrum(s, *shape)
    phi = [literal_phi(v, 40, n, sigma, side, squared) for v in s]
    np.testing.assert_allclose(alignments(spectrum, sigma, side, squared), phi, atol=1e-7)
    for weights in WEIGHTS:
        theta = strength(s / (sigma * sqrt(n)), 40 / n) * sigma * sqrt(n)
        w = {"s": s, "theta": theta, "s**2": s**2}[weights]
        by_hand = [sum(w[i] * phi[i] for i in range(k)) / sum(w[:k]) for k in range(1, 41)]
        np.testing.assert_allclose(average(spectrum, sigma, side, squared, weights), by_hand, atol=1e-7)


def test_an_edge_takes_out_what_lies_below_it():
    spectrum = Spectrum(np.r_[60.0, 25.0, np.linspace(19, 1, 98)], 100, 100)
    free = alignments(spectrum, 1.0)
    assert reach(free) == 2 and reach(alignments(spectrum, 1.0, edge=25.0)) == 1  # a spike is above its edge, not at it
    np.testing.assert_array_equal(alignments(spectrum, 1.0, edge=25.0)[:1], free[:1])
    assert reach(np.zeros(3)) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=40), st.floats(0.05, 3), st.sampled_from(SIDES), st.booleans()
)
def test_properties(values, sigma, side, squared):
    p = len(values)
    spectrum, turned = Spectrum(values, p, 2 * p), Spectrum(values, 2 * p, p)
    phi = alignments(spectrum, sigma, side, squared)
    assert np.all((phi >= 0) & (phi < 1)) and np.all(np.diff(phi) <= 1e-12)
    np.testing.assert_array_equal(phi, alignments(turned, sigma, side, squared))
    for weights in WEIGHTS:
        curve = average(spectrum, sigma, side, squared, weights)
        assert np.all(np.diff(curve) <= 1e-12)  # the better known directions come first, so the mean can only fall
        scaled = Spectrum(7 * np.array(values), p, 2 * p)
        np.testing.assert_allclose(average(scaled, 7 * sigma, side, squared, weights), curve, atol=1e-6)
    assert peak(gain(spectrum, sigma)) <= reach(alignments(spectrum, sigma))


def assert_near_the_truth(rows, cols, spacing, seed):
    """The claim of the page on scores; returns the largest error, for whoever wants the figure."""
    made, U, Vh, spectrum, fit = ladder(rows, cols, spacing, seed)
    estimated = average(spectrum, fit.sigma)
    true = averaged(known_alignments(U, Vh, made.U, made.Vh), spectrum.s)
    error = float(np.max(np.abs(estimated - true)[:60]))
    assert error < 0.02
    assert abs(reach(alignments(spectrum, fit.sigma)) - 30) <= 2
    assert 26 <= knee(estimated) <= 30  # the last directions have small cosines and count little
    assert 25 <= peak(gain(spectrum, fit.sigma)) <= 30
    return error


@pytest.mark.parametrize("spacing", LADDERS)
@pytest.mark.parametrize("seed", range(2))
def test_the_average_is_that_of_the_planted_vectors(spacing, seed):
    # Largest error over twenty seeds: .010 and .017; over ranks up to 60.
    assert_near_the_truth(1000, 784, spacing, seed)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", LADDERS)
def test_the_average_is_that_of_the_planted_vectors_twenty_seeds(spacing):
    assert max(assert_near_the_truth(1000, 784, spacing, seed) for seed in range(20)) < 0.02


def test_single_pairs_are_no_truth_where_strengths_lie_close():
    """Why `known_alignments` projects: the seen vectors of neighbours are a rotation of the planted ones."""
    made, U, Vh, spectrum, fit = ladder(1000, 784, "linear", 0)
    pairs = np.zeros(784)
    pairs[:30] = np.abs(np.sum(made.U * U[:, :30], axis=0) * np.sum(made.Vh * Vh[:30], axis=1))
    estimated = average(spectrum, fit.sigma)
    assert np.max(np.abs(averaged(pairs, spectrum.s) - estimated)[:60]) > 0.04  # .05 to .14 over twenty seeds


def squared_cosines(rows, cols, draws, seed):
    """Mean squared cosines (long, short) between planted and seen vectors of strengths 3, 2, 1.5 x critical."""
    total = np.zeros((2, 3))
    for draw in range(draws):
        generator = np.random.default_rng([seed, rows, cols, draw])
        made = planted(rows, cols, np.array([3, 2, 1.5]) * critical(rows, cols), generator=generator)
        # Only the three strongest are wanted: from the Gram matrix of the short side, and W carries them over.
        W, left, right = (made.W, made.U, made.Vh.T) if rows < cols else (made.W.T, made.Vh.T, made.U)
        size = min(rows, cols)
        short = eigh(W @ W.T, subset_by_index=[size - 3, size - 1])[1][:, ::-1]
        long = W.T @ short
        total += alignment(long, right), alignment(short, left)
    return total / draws


def assert_cosines(rows, cols, draws):
    n, p = max(rows, cols), min(rows, cols)
    theta = np.array([3, 2, 1.5]) * critical_strength(p / n)
    np.testing.assert_allclose(squared_cosines(rows, cols, draws, 4), cosines(theta, p / n), atol=0.02)


@pytest.mark.parametrize("shape", [(500, 200), (200, 500), (350, 350)])
def test_squared_cosines_follow_the_spiked_model(shape):
    # Standard deviation of the weakest of them, one draw: about .045; of the mean of 80: .005, beside a
    # bias of finite size of .01. The sides of the rectangles differ by .15 at 1.5 x critical, so a swap cannot pass.
    n, p = max(shape), min(shape)
    long, short = cosines(1.5 * critical_strength(p / n), p / n)
    assert n == p or short - long > 0.04
    assert_cosines(*shape, 80)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2000, 800), (800, 2000), (2000, 2000)])
def test_squared_cosines_at_two_thousand(shape):
    assert_cosines(*shape, 50)


def test_the_second_gain_is_the_squared_error_saved():
    made, U, Vh, spectrum, fit = ladder(1000, 784, "linear", 1)
    signal = (made.U * made.strengths) @ made.Vh
    inner = np.einsum("ij,ij->j", U, signal @ Vh.T)
    saved = np.cumsum(spectrum.s * (2 * inner - spectrum.s))  # ||S||**2 - ||S - W_k||**2, exactly
    expected = gain(spectrum, fit.sigma, by="theta")
    # A share of the whole: single directions scatter, and the spiked model is a limit.
    assert np.max(np.abs(saved - expected)[:60]) < 0.04 * saved.max()


@pytest.mark.parametrize("shape", [(200, 200), (100, 400), (784, 1000)])
def test_its_peak_is_the_optimal_hard_threshold(shape):
    p, n = sorted(shape)
    s = np.linspace(0.2, 3.5, p) * sqrt(n)
    cut = hard_threshold(p / n) * sqrt(n)
    assert peak(gain(Spectrum(s, *shape), 1.0, by="theta")) == np.count_nonzero(s > cut)


def test_noise_scores_nothing():
    s = np.linalg.svd(noise(60, 90, generator=np.random.default_rng(3)), compute_uv=False)
    spectrum = Spectrum(s, 60, 90)
    assert s[0] < sqrt(60) + sqrt(90)  # this draw; about one in six is above
    curve = average(spectrum, 1.0)
    assert np.all(curve == 0) and knee(curve) == 0 and peak(gain(spectrum, 1.0)) == 0
    assert np.all(average(spectrum, 1.0, weights="theta") == 0)


def test_the_knee_is_a_bend_and_not_a_matter_of_units_or_of_the_end():
    k = np.arange(1.0, 500)
    bent = np.where(k <= 20, 1.0, 20 / k)
    for end in (40, 100, 499):
        assert knee(bent[:end]) == 20 and knee(1e-9 * bent[:end]) == 20
    assert knee(1 / k) == 1  # one direction, and the denominator grows from there on
    assert knee([0.5]) == 1 and knee([0.0, 0.0]) == 0
    assert knee([1.0, 0.98, 0.95, 0.5, 0.3, 0.0, 0.0]) == 3  # a logarithm ends where the zeros begin


def test_known_alignments_know_the_sides():
    generator = np.random.default_rng(5)
    A, B = frame(30, 3, generator=generator), frame(20, 3, generator=generator).T
    U, Vh = np.eye(30)[:, :20], np.eye(20)
    left, right = np.sum(A**2, axis=1)[:20], np.sum(B**2, axis=0)
    np.testing.assert_allclose(known_alignments(U, Vh, A, B, "long", squared=True), left, atol=1e-12)
    np.testing.assert_allclose(known_alignments(U, Vh, A, B, "short", squared=True), right, atol=1e-12)
    np.testing.assert_allclose(known_alignments(Vh.T, U.T, B.T, A.T, "long", squared=True), left, atol=1e-12)
    np.testing.assert_allclose(known_alignments(U, Vh, A, B), np.sqrt(left * right), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda x: alignments(x, 1.0, side="left"), "side must be one of product, mean"),
        (lambda x: average(x, 1.0, weights="g"), "weights must be one of s, theta"),
        (lambda x: gain(x, 1.0, by="g"), "by must be one of s, theta"),
        (lambda x: alignments(x, 0.0), "sigma must be positive"),
        (lambda x: weigh(x, float("nan"), "theta"), "sigma must be positive"),
        (lambda x: knee([0.5, float("nan")]), "finite"),
    ],
)
def test_refusals(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(Spectrum(np.arange(1.0, 13), 12, 12))
