"""Figures of spectra and vectors, on cases that can be worked out by hand."""

import numpy as np
import pytest

from spectrim.laws import MarchenkoPastur
from spectrim.metrics import alignment, bulk_share, entropy_rank, misfit, participation_rank, stable_rank, window
from spectrim.planted import critical, noise, planted
from spectrim.reading import read_spectrum
from spectrim.spectrum import Spectrum


def test_misfit_of_the_law_itself_is_half_a_step():
    for p, n in ((50, 100), (64, 64)):
        ideal = Spectrum(np.sqrt(n * MarchenkoPastur(p / n).ppf((np.arange(p) + 0.5) / p)), p, n)
        assert misfit(ideal, 1.0) == pytest.approx(0.5 / p, abs=1e-9)


def test_misfit_agrees_with_its_literal_twin():
    spectrum = read_spectrum(noise(40, 70, generator=np.random.default_rng(0)))
    law, worst = MarchenkoPastur(38 / 68, 1.1), 0.0
    for i, s in enumerate(sorted(spectrum.s)[:38]):
        if 0.25 <= (i + 0.5) / 38 <= 0.75:
            F = float(law.cdf(s**2 / 68))
            worst = max(worst, abs(F - i / 38), abs(F - (i + 1) / 38))
    assert misfit(spectrum, 1.1, alpha=0.25, spikes=2) == pytest.approx(worst, abs=1e-12)


def test_misfit_tells_noise_from_what_is_none():
    generator = np.random.default_rng(1)
    # Gaussian noise of this size shows .003 to .006; rows of very different scales .15 and more.
    assert misfit(read_spectrum(noise(384, 384, generator=generator)), 1.0) < 0.01
    rough = planted(384, 384, [], row_log_sd=1.0, generator=generator)
    assert misfit(read_spectrum(rough.W), 1.0) > 0.1


@pytest.mark.parametrize("missing", [0, 1, 5, 9, 11])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.49])
@pytest.mark.parametrize("m", [12, 13])
def test_the_window_is_never_empty_and_holds_half_of_what_is_left(m, alpha, missing):
    inside = window(m, alpha, missing)
    assert inside.shape == (m - missing,) and inside.any()
    levels = [(i + 0.5) / m for i in range(missing, m)]
    if missing / m > alpha:
        assert inside.sum() == max((m - missing + 1) // 2, sum(level <= 1 - alpha for level in levels))
    if not missing and alpha < 0.4:
        assert inside.tolist() == [alpha <= level <= 1 - alpha for level in levels]


def test_the_misfit_of_what_is_left_is_that_of_the_conditional_law():
    made = noise(60, 90, generator=np.random.default_rng(3))
    s = np.linalg.svd(made, compute_uv=False)
    left = Spectrum(s[:20], 60, 90, complete=False)
    law, lost, worst = MarchenkoPastur(60 / 90, 1.1), 40 / 60, 0.0
    for i in range(20):  # from the smallest value that is left
        level = (i + 0.5) / 20
        if i < 10 or 40 / 60 + level / 3 <= 0.8:
            F = max(law.cdf(s[19 - i] ** 2 / 90), lost)
            worst = max(worst, abs((F - lost) / (1 - lost) - i / 20), abs((F - lost) / (1 - lost) - (i + 1) / 20))
    assert misfit(left, 1.1) == pytest.approx(worst, abs=1e-12)


def test_spikes_do_not_spoil_the_misfit():
    made = planted(200, 300, np.linspace(4, 9, 30) * critical(200, 300), generator=np.random.default_rng(2))
    spectrum = read_spectrum(made.W)
    assert misfit(spectrum, 1.0, spikes=30) < 0.03 < misfit(spectrum, 1.0)


def test_bulk_share():
    spectrum = Spectrum([4.0, 2.0, 1.0, 1.0], 4, 6)
    assert bulk_share(spectrum, 3.0) == 0.75
    assert bulk_share(spectrum, 4.0) == 1.0  # a spike is a value above the edge
    assert bulk_share(spectrum, 0.5) == 0.0
    assert bulk_share(Spectrum([4.0], 4, 6, complete=False), 3.0) == 0.75


@pytest.mark.parametrize("rank", (stable_rank, entropy_rank, participation_rank))
@pytest.mark.parametrize("unit", (1.0, 1e-200, 1e200))
def test_ranks(rank, unit):
    assert rank(unit * np.ones(7)) == pytest.approx(7)
    assert rank([unit, 0, 0]) == pytest.approx(1)
    assert rank(np.zeros(3)) == 0
    uneven = rank(unit * np.array([3.0, 2.0, 1.0]))
    assert 1 < uneven < 3


def test_ranks_by_hand():
    assert stable_rank([2, 1]) == pytest.approx(1.25)
    assert participation_rank([2, 1]) == pytest.approx(25 / 17)
    assert entropy_rank([3, 1]) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_alignment():
    a = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    b = np.array([[-3.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(alignment(a, b), [1.0, 0.5])
    with pytest.raises(ValueError, match="column by column"):
        alignment(a, b[:, :1])
