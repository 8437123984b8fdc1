"""Spectrum keeps its promises about order, unit and completeness."""

import numpy as np
import pytest

from spectrim.edges import Bema
from spectrim.laws import MarchenkoPastur, evened, top_eigenvalue
from spectrim.planted import noise
from spectrim.reading import read_spectrum
from spectrim.spectrum import SMALLEST, Spectrum, check_measurable


def test_order_type_and_sides():
    given = np.array([1, 3, 2], np.float32)
    found = Spectrum(given, rows=3, cols=12)
    assert found.s.tolist() == [3.0, 2.0, 1.0]
    assert found.s.dtype == np.float64
    assert (found.p, found.n, found.gamma) == (3, 12, 0.25)
    np.testing.assert_allclose(found.eigenvalues, [9 / 12, 4 / 12, 1 / 12])
    turned = Spectrum(given, rows=12, cols=3)
    assert (turned.p, turned.n, turned.gamma) == (3, 12, 0.25)
    with pytest.raises(ValueError, match="read-only"):
        found.s[0] = 1.0
    given[0] = 99.0
    assert found.s[0] == 3.0


def test_unit_rule_on_noise():
    # Eigenvalues s**2 / n of noise of standard deviation sigma follow MarchenkoPastur(gamma, sigma): mean sigma**2.
    for shape in ((200, 800), (800, 200)):
        found = read_spectrum(noise(*shape, sigma=0.7, generator=np.random.default_rng(2)))
        assert found.eigenvalues.mean() == pytest.approx(0.49, rel=0.02)  # standard error .0035
        assert np.median(found.eigenvalues) == pytest.approx(float(MarchenkoPastur(0.25, 0.7).ppf(0.5)), rel=0.03)


@pytest.mark.parametrize(
    ("s", "rows", "cols", "message"),
    [
        ([1.0, np.nan], 2, 3, "1 of 2 singular values are not finite"),
        ([np.inf, 1.0], 2, 3, "not finite"),
        ([1.0, -1.0], 2, 3, "negative"),
        ([1.0], 2, 3, "has 2 singular values, got 1"),
        ([1.0, 1.0, 1.0], 2, 3, "has 2 singular values, got 3"),
        ([[1.0, 2.0]], 2, 3, "one row"),
        ([], 0, 3, "rows and columns"),
    ],
)
def test_what_is_no_spectrum_is_refused(s, rows, cols, message):
    with pytest.raises(ValueError, match=message):
        Spectrum(s, rows, cols)


def test_incomplete_spectra_are_told_apart():
    found = Spectrum([5.0, 4.0], 10, 20, complete=False)
    assert "incomplete" in repr(found)
    with pytest.raises(ValueError, match="has 10 singular values"):
        Spectrum(np.ones(11), 10, 20, complete=False)


def test_noise_edge_and_quantiles():
    plain, even = Spectrum(np.ones(100), 100, 300), Spectrum(np.ones(100), 300, 100, equalised=True)
    top = top_eigenvalue(100, 300, 0.1)
    assert plain.noise_edge(0.1) == pytest.approx((300 * top) ** 0.5, rel=1e-14)
    assert even.noise_edge(0.1) == pytest.approx((300 * float(evened(top, 100, 300))) ** 0.5, rel=1e-14)
    # The equation behind the quantiles is tested in test_laws_finite.py; the law alone is within a quarter of a level.
    law = MarchenkoPastur(80 / 280)
    assert np.all(law.ppf((np.arange(80) + 0.2) / 80) < plain.noise_quantiles(20))
    assert np.all(plain.noise_quantiles(20) < law.ppf((np.arange(80) + 0.8) / 80))
    np.testing.assert_allclose(even.noise_quantiles(20), evened(plain.noise_quantiles(20), 80, 280))


@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (SMALLEST - 1, 500), (500, 1)])
def test_small_matrices_are_refused(rows, cols):
    with pytest.raises(ValueError, match=f"{rows} x {cols} matrix is too small"):
        check_measurable(read_spectrum(noise(rows, cols, generator=np.random.default_rng(0))))


def test_the_smallest_size_still_has_its_false_spike_rate():
    # The choice of ten: 1000 draws at beta = .1; .13 is three standard errors above.
    generator = np.random.default_rng(5)
    for n in (SMALLEST, 4 * SMALLEST):
        found = [Bema()(read_spectrum(noise(SMALLEST, n, generator=generator))).spikes > 0 for _ in range(1000)]
        assert 0.04 < np.mean(found) < 0.13


def test_low_rank_without_noise_is_refused():
    check_measurable(Spectrum([1.0] * 11 + [0.0] * 9, 20, 30))
    with pytest.raises(ValueError, match="rank 10"):
        check_measurable(Spectrum([1.0] * 10 + [0.0] * 10, 20, 30))
