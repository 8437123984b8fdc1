"""The spectrum from products against the exact one, its quadrature against moments, and when it gives up."""

import numpy as np
import pytest
import torch

from spectrim import lanczos, reading
from spectrim.edges import Bema, Known
from spectrim.haar import departures
from spectrim.lanczos import approximate
from spectrim.linalg import svd
from spectrim.planted import critical, noise, planted
from spectrim.reading import read_equalised, read_spectrum
from spectrim.spectrum import Spectrum

ROWS, COLS = 480, 700
STRENGTHS = np.linspace(1.6, 8, 6) * critical(ROWS, COLS)


def matrix(seed: int = 0, **more) -> torch.Tensor:
    made = planted(ROWS, COLS, STRENGTHS, **more, generator=np.random.default_rng(seed))
    return torch.from_numpy(made.W).float()


@pytest.fixture
def few(monkeypatch):
    """Blocks and first looks that suit matrices of a few hundred rows."""
    monkeypatch.setattr(lanczos, "PROBES", 8)
    monkeypatch.setattr(lanczos, "START", 10)
    monkeypatch.setattr(lanczos, "FROM", 300)


@pytest.mark.parametrize("turned", (False, True))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_spikes_are_those_of_the_decomposition_and_the_edge_is_near(dtype, turned):
    W = (matrix().T if turned else matrix()).to(dtype)
    exact, found = svd(W), approximate(W, limit=1.0)
    spectrum, k = found.spectrum, found.spectrum.measured
    wanted, fit = Bema()(Spectrum(exact.s.numpy(), *W.shape)), Bema()(spectrum)
    assert fit.spikes == wanted.spikes == 6 < k
    np.testing.assert_allclose(spectrum.s[:k], exact.s[:k], rtol=2e-6)  # TOL squared, over the gap to the next value
    # Three standard errors of sigma are seldom passed; a quadrature gone wrong is off by tens.
    assert abs(fit.sigma / wanted.sigma - 1) < 4 * found.error < 0.02
    assert spectrum.s @ spectrum.s == pytest.approx(float(exact.s @ exact.s), rel=1e-3)
    short = exact.Vh.T if turned else exact.U
    overlap = (short[:, :6] * found.vectors[:, :6]).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)


def test_levels_are_right_to_a_hundredth():
    W = matrix()
    exact = np.sort(svd(W).s.numpy())
    found = approximate(W, limit=1.0)
    levels = np.searchsorted(exact, np.sort(found.spectrum.s)) / ROWS - (np.arange(ROWS) + 0.5) / ROWS
    assert np.max(np.abs(levels)) < 0.02  # .03 or more with the nodes of one rule alone at this size
    assert np.sqrt(np.mean(levels**2)) < 0.006


@pytest.mark.parametrize("scaled", (False, True))
def test_the_quadrature_is_exact_for_polynomials(monkeypatch, scaled):
    """The moments of the literal matrix power, for every probe, up to the degree that two rules share."""
    monkeypatch.setattr(lanczos, "PROBES", 4)
    monkeypatch.setattr(lanczos, "TOL", 0.0)  # nothing counts as converged
    generator, steps = np.random.default_rng(1), 5
    W = torch.from_numpy(noise(60, 700, generator=generator))  # far from zero, where nodes are held
    r = torch.from_numpy(generator.uniform(0.8, 1.2, 60)) if scaled else None
    c = torch.from_numpy(generator.uniform(0.8, 1.2, 700)) if scaled else None
    X = W if r is None else r[:, None] * W * c
    unit = lanczos._mean_eigenvalue(W, r, c)
    assert unit == pytest.approx(float(X.square().sum()) / 60)
    basis = lanczos._Basis(W, r, c, unit, 0, 40)
    assert basis.grow(steps)
    start, look = basis.Q[:4], basis.look()
    assert len(look.top) == 0
    power = start.T
    for degree in range(2 * steps - 2):
        expected = (start.T * power).sum(0)
        np.testing.assert_allclose(look.weights @ look.nodes**degree, expected, rtol=1e-9)
        power = X @ (X.T @ power) / unit
    assert not np.allclose(look.weights @ look.nodes ** (2 * steps + 2), (start.T * power).sum(0), rtol=1e-9)


def test_the_error_it_states_is_the_error_it_makes(few):
    W = matrix().double()
    exact = Bema()(Spectrum(svd(W).s.numpy(), ROWS, COLS)).sigma
    found = [approximate(W, seed=seed, limit=0.5) for seed in range(16)]
    off = np.array([Bema()(one.spectrum).sigma / exact - 1 for one in found])
    # The standard error of a standard deviation from 16 draws is 18 %; seen are ratios of .9 to 1.2.
    assert 0.6 < np.sqrt(np.mean(off**2)) / np.mean([one.error for one in found]) < 1.6


def test_more_probes_make_it_smaller(monkeypatch):
    W, errors = matrix(), []
    for probes in (4, 16):
        monkeypatch.setattr(lanczos, "PROBES", probes)
        errors.append(np.mean([approximate(W, seed=seed, limit=1.0).error for seed in range(3)]))
    assert 1.4 < errors[0] / errors[1] < 2.9  # sqrt(4), the estimate from four of them being rough


def test_the_seed_decides():
    W = matrix()
    first, again, other = (approximate(W, seed=seed, limit=1.0).spectrum for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.s, again.s)
    assert abs(first.s - other.s)[200:300].max() > 1e-4 * first.s[200]


@pytest.mark.parametrize("factor", [1e-22, 1e15])
def test_edges_scale_with_the_matrix(factor, few):
    W = matrix()
    plain, scaled = (Bema()(approximate(x, limit=0.5).spectrum) for x in (W, W * factor))
    assert scaled.spikes == plain.spikes
    assert scaled.edge / factor == pytest.approx(plain.edge, rel=1e-5)  # float32 rounds W * factor


def test_the_estimator_decides_what_is_measured(few):
    W = matrix()
    for sigma in (1.0, 0.9):
        found = approximate(W, Known(sigma), limit=1.0)
        wanted = int((svd(W).s > Known(sigma)(found.spectrum).edge).sum())
        assert Known(sigma)(found.spectrum).spikes == wanted < found.spectrum.measured


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def refusing(spectrum):
    raise ValueError("not this one")


@pytest.mark.parametrize(
    ("W", "edge", "reason"),
    [
        (torch.ones(100, 200), Bema(), "100 rows are too few"),
        (torch.eye(400), Bema(), "as of a matrix of low rank"),
        (torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) @ torch.ones(30, 500), Bema(), "low rank"),
        (
            torch.randn(400, 500, generator=torch.Generator().manual_seed(0)),
            Known(0.5),
            "of its 400 values stand above",
        ),
        (torch.randn(400, 500, generator=torch.Generator().manual_seed(0)), refusing, "not this one"),
    ],
)
def test_what_it_cannot_do_is_said(W, edge, reason, monkeypatch):
    monkeypatch.setattr(lanczos, "START", 4)
    notes: list[str] = []
    assert approximate(W, edge, notes=notes) is None
    assert len(notes) == 1 and reason in notes[0]
    assert approximate(W, edge) is None


def test_readings_go_without_a_gram_matrix(monkeypatch):
    monkeypatch.setattr(lanczos, "FROM", 300)
    monkeypatch.setitem(lanczos.approximate.__kwdefaults__, "limit", 1.0)
    W = matrix(1, row_log_sd=0.3, col_log_sd=0.3)
    notes: list[str] = []
    wanted, scales = read_equalised(W, Bema())
    plain = read_spectrum(W / torch.from_numpy(scales.rows).reciprocal()[:, None] * torch.from_numpy(scales.cols))

    def never(*args):
        raise AssertionError("a Gram matrix")

    monkeypatch.setattr(reading, "gram_of", never)
    spectrum, even = read_equalised(W, Bema(), notes=notes, approximate=True)
    fit, exact = Bema()(spectrum), Bema()(wanted)
    assert spectrum.equalised and spectrum.measured > fit.spikes == exact.spikes == 6
    assert even.rounds >= 1
    assert fit.sigma == pytest.approx(exact.sigma, rel=0.02)
    assert len(notes) == 1 and notes[0].startswith("approximate: ")
    # The scales come from the spikes' vectors, which are exact.
    np.testing.assert_allclose(even.rows, scales.rows, rtol=5e-3)
    np.testing.assert_allclose(even.cols, scales.cols, rtol=5e-3)
    assert np.linalg.norm(spectrum.s) == pytest.approx(np.linalg.norm(W), rel=1e-3)
    again = read_spectrum(even.apply(W), approximate=True)
    assert Bema()(again).spikes == Bema()(plain).spikes


def test_a_matrix_it_cannot_do_is_read_exactly_and_said_so(few):
    W = noise(400, 500, generator=np.random.default_rng(0))
    for reader in (
        lambda **how: read_spectrum(W, edge=Known(0.5), **how),
        lambda **how: read_equalised(W, Known(0.5), **how)[0],
    ):
        notes: list[str] = []
        found = reader(approximate=True, notes=notes)
        assert found.measured is None and len(notes) == 1
        assert "stand above the edge, too many; read exactly" in notes[0]
        np.testing.assert_array_equal(found.s, reader().s)
    notes = []
    assert read_spectrum(W[:200], approximate=True, notes=notes).measured is None
    assert notes == ["read exactly: under 300 rows an approximation saves no time"]


def test_weights_are_not_written_to():
    for W in (matrix(), matrix().double()):
        before = W.clone()
        approximate(W, limit=1.0)
        assert torch.equal(W, before)


def test_zero_lines_do_not_count(few):
    W = matrix()
    W[[3, 17]] = 0
    W[:, 5] = 0
    spectrum = read_spectrum(W, approximate=True)
    assert (spectrum.rows, spectrum.cols) == (ROWS - 2, COLS - 1) and spectrum.measured


def test_a_spectrum_says_what_was_measured():
    spectrum = Spectrum([3.0, 2.0, 1.0], 3, 4, measured=1)
    assert repr(spectrum) == "Spectrum(3 x 4, 3 values, largest 3, 1 of them measured)"
    with pytest.raises(ValueError, match="not 4"):
        Spectrum([3.0, 2.0, 1.0], 3, 4, measured=4)
    s = np.r_[np.linspace(49, 11, 397), 8.0, 7.0, 0.0]
    known, quantiles = Spectrum(s, 400, 900), Spectrum(s, 400, 900, measured=1)
    assert departures(known, Known(1.0)(known)) == 2
    assert departures(quantiles, Known(1.0)(quantiles)) == 0  # the small end was not looked at
