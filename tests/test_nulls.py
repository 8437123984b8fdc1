"""The shuffled null: what it keeps, what it destroys, and how often noise beats it."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from spectrim import nulls
from spectrim.edges import Bema, ScreeNot
from spectrim.planted import critical, noise, planted, scales
from spectrim.reading import equalize, read_spectrum
from spectrim.spectrum import Spectrum


def test_the_entries_are_those_of_the_matrix():
    W = noise(20, 30, generator=np.random.default_rng(0))
    null = nulls.shuffled(W, np.random.default_rng(1))
    assert (null.rows, null.cols, null.equalised) == (20, 30, False)
    # The sum of squares is all that both spectra share.
    assert np.sum(null.s**2) == pytest.approx(np.sum(W**2), rel=1e-9)
    assert not np.allclose(null.s, read_spectrum(W).s)


def test_a_seed_gives_one_null_and_another_seed_another():
    W = torch.arange(600.0).reshape(20, 30)
    first, again, other = (nulls.shuffled(W, np.random.default_rng(seed)).s for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_zero_rows_and_columns_are_left_out():
    W = noise(20, 30, generator=np.random.default_rng(0))
    W[3], W[:, [4, 5]] = 0, 0
    null = nulls.shuffled(W, np.random.default_rng(1))
    assert (null.rows, null.cols) == (19, 28)
    with pytest.raises(ValueError, match="all zero"):
        nulls.shuffled(np.zeros((20, 30)), np.random.default_rng(0))


def test_the_null_of_an_equalised_matrix_is_equalised():
    generator = np.random.default_rng(2)
    W = scales(60, 0.5, generator=generator)[:, None] * noise(60, 90, generator=generator)
    null = nulls.shuffled(W, generator, equalize=True)
    assert null.equalised
    assert np.sum(null.s**2) == pytest.approx(float(equalize(W).apply(W).square().sum()), rel=1e-6)


def test_signal_inflates_the_null():
    """Why this null is no default: the stronger the signal, the more of it is missed."""
    made = planted(100, 200, np.linspace(1.5, 12, 30) * critical(100, 200), generator=np.random.default_rng(3))
    spectrum = read_spectrum(made.W)
    fit = nulls.against(spectrum, nulls.shuffled(made.W, np.random.default_rng(4)), Bema())
    # The mean square of all entries, with sum of squares of the signal in it.
    assert fit.sigma**2 == pytest.approx(1 + np.sum(made.strengths**2) / 20000, rel=0.05)
    assert fit.spikes < Bema()(spectrum).spikes - 5
    assert fit.spikes == np.count_nonzero(spectrum.s > fit.edge)
    assert fit.misfit > 0.1


def test_the_edge_is_that_of_the_null():
    W = planted(60, 90, [5 * critical(60, 90)], generator=np.random.default_rng(0)).W
    spectrum, null = read_spectrum(W), nulls.shuffled(W, np.random.default_rng(1))
    for edge in (Bema(), ScreeNot()):
        fit, alone = nulls.against(spectrum, null, edge), edge(null)
        assert (fit.sigma, fit.edge) == (alone.sigma, alone.edge)
        assert (fit.misfit is None) == (fit.sigma is None)
        assert fit.spikes == 1
        assert fit.method == f"against(shuffled, {edge!r})"


def test_a_null_of_another_shape_is_refused():
    W = noise(20, 30, generator=np.random.default_rng(0))
    for other in (Spectrum(np.ones(20), 20, 40), read_spectrum(W, equalize=True)):
        with pytest.raises(ValueError, match="shape and treatment"):
            nulls.against(read_spectrum(W), other, Bema())


@pytest.mark.slow
@pytest.mark.parametrize("way", ("plain", "equalised"))
def test_false_spikes_on_noise(way):
    # The edge of one shuffle: as often as the edge itself. More than eleven of forty: one run in a thousand.
    found, even = 0, way == "equalised"
    for draw in range(40):
        generator = np.random.default_rng([9, draw])
        W = noise(100, 200, generator=generator)
        null = nulls.shuffled(W, generator, equalize=even)
        found += nulls.against(read_spectrum(W, equalize=even), null, Bema()).spikes > 0
    assert found <= binom.ppf(0.999, 40, 0.1)


@pytest.mark.slow
def test_the_null_shows_what_heavy_tails_do_by_themselves():
    """Shuffling is no protection against heavy tails, but it tells them: the null has spikes as often as the matrix."""
    found = alone = 0
    for draw in range(40):
        generator = np.random.default_rng([9, draw])
        W = generator.standard_t(4.5, (100, 200))
        null = nulls.shuffled(W, generator)
        found += nulls.against(read_spectrum(W), null, Bema()).spikes > 0
        alone += Bema()(null).spikes > 0
    # Two counts at about .6 of forty: four standard deviations of their difference are 18.
    assert alone >= 12
    assert abs(found - alone) <= 18
