"""The two hard thresholds: Gavish and Donoho for white noise, ScreeNOT for noise of any law."""

from math import sqrt

import numpy as np
import pytest

from spectrim.edges import GavishDonoho, ScreeNot
from spectrim.laws import MarchenkoPastur
from spectrim.planted import critical, noise, planted
from spectrim.spectrum import Spectrum


def ideal(p, n):
    """The quantiles of the law of unit noise as a spectrum."""
    return Spectrum(np.sqrt(n * MarchenkoPastur(p / n).ppf((np.arange(p) + 0.5) / p)), p, n)


# lambda* and omega of the paper's tables, from 50-digit arithmetic.
@pytest.mark.parametrize(
    ("gamma", "told", "blind"),
    [(0.1, 1.581648, 1.608772), (0.25, 1.758029, 1.836866), (0.5, 1.978599, 2.171185), (1.0, 2.309401, 2.858362)],
)
def test_the_cuts_of_gavish_and_donoho(gamma, told, blind):
    spectrum = ideal(round(1000 * gamma), 1000)
    assert GavishDonoho(sigma=1.0)(spectrum).edge / sqrt(1000) == pytest.approx(told, abs=1e-6)
    # The median of the law is taken with its correction for size, of order 1 / p.
    assert GavishDonoho()(spectrum).edge / np.median(spectrum.s) == pytest.approx(blind, rel=3 / spectrum.p)


@pytest.mark.parametrize("sigma", (0.0, -1.0, np.inf, np.nan))
def test_an_impossible_level_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must"):
        GavishDonoho(sigma)


def uneven(p, n):
    generator = np.random.default_rng([p, n])
    W = planted(p, n, np.linspace(1.5, 5, 5) * critical(p, n), row_log_sd=0.3, generator=generator).W
    return Spectrum(np.linalg.svd(W, compute_uv=False), p, n)


# computeOptThreshold(createPseudoNoise(s, k, strategy), p / n) of the package screenot 0.0.2, which stops its search
# at 1e-5; strategies "i", "w" and "0".
REFERENCE = [
    (60, 90, 7, "impute", 23.843213),
    (60, 90, 7, "clip", 20.664808),
    (60, 90, 7, "zero", 18.613774),
    (100, 100, 12, "impute", 25.165907),
    (100, 100, 12, "clip", 21.519643),
    (100, 100, 12, "zero", 19.109447),
    (50, 300, 5, "impute", 38.375080),
    (50, 300, 5, "clip", 33.972065),
    (50, 300, 5, "zero", 31.518480),
]


@pytest.mark.parametrize(("p", "n", "k", "fill", "expected"), REFERENCE)
def test_screenot_agrees_with_the_authors(p, n, k, fill, expected):
    assert ScreeNot(k, fill)(uneven(p, n)).edge == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("k", (1, 5, 20))
def test_screenot_agrees_with_the_authors_package(k):
    module = pytest.importorskip("screenot.ScreeNOT")
    for p, n in ((60, 90), (90, 60), (50, 300)):
        W = noise(p, n, generator=np.random.default_rng([k, p, n])) * np.linspace(0.5, 2, n)
        _, expected, rank = module.adaptiveHardThresholding(W, k)
        found = ScreeNot(k)(Spectrum(np.linalg.svd(W, compute_uv=False), p, n))
        assert found.edge == pytest.approx(expected, abs=2e-5)
        assert found.spikes == rank


def test_the_cut_solves_its_equation():
    spectrum = uneven(60, 90)
    y, g = ScreeNot(7, "zero")(spectrum).edge, 60 / 90
    z = np.concatenate([np.zeros(7), spectrum.s[7:]])

    def product(at):
        phi = np.mean(at / (at**2 - z**2))
        return np.log(phi * (g * phi + (1 - g) / at))

    # y (log D)' by a central difference, good to about 1e-8.
    h = 1e-4 * y
    assert y * (product(y + h) - product(y - h)) / (2 * h) == pytest.approx(-4, abs=1e-5)


@pytest.mark.parametrize(("p", "n"), [(2000, 2000), (1000, 4000)])
def test_white_noise_has_the_cut_of_gavish_and_donoho(p, n):
    # Few values imputed of many: the law is nearly whole, and what is missing is of order (k / p)**(2/3).
    found = ScreeNot(rank_bound=5)(ideal(p, n)).edge
    assert found == pytest.approx(GavishDonoho(sigma=1.0)(ideal(p, n)).edge, rel=2e-3)


def test_screenot_cuts_well_where_the_noise_is_not_white():
    # Half of the rows are three times as loud: the cut for white noise keeps dozens of noise values, the best cut none.
    generator, p, n = np.random.default_rng(2), 150, 300
    made = planted(p, n, np.linspace(5, 9, 4) * critical(p, n), sigma=1e-9, generator=generator)
    W = made.W + np.repeat([0.45, 1.35], p // 2)[:, None] * noise(p, n, generator=generator)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    signal = (made.U * made.strengths) @ made.Vh
    errors = [np.sum(((U[:, :k] * s[:k]) @ Vh[:k] - signal) ** 2) for k in range(60)]
    spectrum = Spectrum(s, p, n)
    assert errors[ScreeNot(rank_bound=20)(spectrum).spikes] <= 1.02 * min(errors)
    assert errors[GavishDonoho()(spectrum).spikes] > 1.5 * min(errors)


@pytest.mark.parametrize("bound", (0, 0.0, -1, 1.5, np.inf, np.nan, True))
def test_an_impossible_bound_is_refused(bound):
    with pytest.raises(ValueError, match="rank_bound must"):
        ScreeNot(bound)


def test_a_bound_that_leaves_no_noise_is_refused():
    spectrum = ideal(20, 30)
    assert ScreeNot(9)(spectrum).edge > 0
    for bound in (10, 0.5):
        with pytest.raises(ValueError, match="9 at most"):
            ScreeNot(bound)(spectrum)
    with pytest.raises(ValueError, match="fill must"):
        ScreeNot(3, "mean")
    assert ScreeNot(0.01)(spectrum).edge == ScreeNot(1)(spectrum).edge  # a share of less than one value is one
