"""Equalisation against its definition, its literal twin and planted truth."""

import numpy as np
import pytest
import torch

from spectrim import reading
from spectrim.edges import Bema
from spectrim.planted import critical, noise, planted, scales
from spectrim.reading import equalize, read_equalised, read_spectrum
from spectrim.spectrum import NoiseFit


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (64, 64), (12, 400)])
@pytest.mark.parametrize("log_sd", (0.0, 0.3, 1.5))
def test_biwhitening_evens_out_and_keeps_the_norm(shape, log_sd, generator):
    W = planted(*shape, [20.0], row_log_sd=log_sd, col_log_sd=log_sd, generator=generator).W.astype(np.float32)
    even = equalize(W)
    squares = even.apply(W).square()
    for axis in (0, 1):
        assert float((squares.mean(axis) / squares.mean() - 1).abs().max()) < 1e-3
    assert float(squares.sum().sqrt()) == pytest.approx(np.linalg.norm(W.astype(float)), rel=1e-6)
    assert even.uneven < 1e-3
    assert np.all(even.rows > 0)
    spectrum = read_spectrum(W, equalize=True)
    np.testing.assert_allclose(spectrum.s, np.linalg.svd(even.apply(W).numpy(), compute_uv=False), rtol=1e-9)
    # A looser tolerance is heeded too.
    assert equalize(W, tol=0.1).uneven < 0.1


def test_equalised_noise_does_not_depend_on_the_scales(generator):
    N = noise(60, 90, generator=generator)
    W = scales(60, 0.6, generator=generator)[:, None] * N * scales(90, 0.6, generator=generator)
    first, second = read_spectrum(N, equalize=True).s, read_spectrum(W, equalize=True).s
    np.testing.assert_allclose(first / np.linalg.norm(first), second / np.linalg.norm(second), rtol=1e-3)


def test_zero_rows_and_columns_are_dropped_and_reported(generator):
    W = noise(40, 60, generator=generator)
    W[[3, 17]] = 0
    W[:, [0, 59, 8]] = 0
    small = np.delete(np.delete(W, [3, 17], 0), [0, 8, 59], 1)
    for equalise in (False, True):
        spectrum = read_spectrum(W, equalize=equalise)
        assert (spectrum.rows, spectrum.cols) == (38, 57)
        np.testing.assert_allclose(spectrum.s, read_spectrum(small, equalize=equalise).s, rtol=1e-9)
    for even in (equalize(W), equalize(W, edge=Bema())):
        assert even.zero_rows.tolist() == [3, 17]
        assert even.zero_cols.tolist() == [0, 8, 59]
        assert even.rows.shape == (40,)
        assert even.cols.shape == (60,)
        assert np.all(even.rows[[3, 17]] == 1)
        assert np.all(even.cols[[0, 8, 59]] == 1)
        assert np.all(np.isfinite(even.rows))
    with pytest.raises(ValueError, match="all zero"):
        read_equalised(np.zeros((20, 30)))


def test_matrices_that_cannot_be_evened_out_say_so():
    # A triangle has no support for it: the corner carries everything. It ends, and reports what is left.
    even = equalize(np.triu(np.ones((30, 30))))
    assert np.all(np.isfinite(even.rows))
    assert np.all(np.isfinite(even.cols))
    assert even.uneven > 1e-3
    wild = np.ones((20, 30))
    wild[4] = 1e-25
    assert np.all(np.isfinite(equalize(wild.astype(np.float32)).rows))


def test_a_row_that_the_spikes_explain_altogether_stays_finite(generator):
    W = noise(80, 120, generator=generator)
    W[5] *= 1e-9
    W[5, 7] = 1e3
    spectrum, even = read_equalised(W, Bema())
    assert np.all(np.isfinite(spectrum.s))
    assert np.all(np.isfinite(even.rows))
    assert even.rounds <= reading.ROUNDS


@pytest.mark.parametrize("turned", (False, True))
def test_spikes_do_not_make_the_noise_uneven(turned, generator):
    # Signal that is not scaled with the noise: biwhitening alone shows five to ten values too many.
    made = planted(150, 240, np.linspace(1.8, 6, 20) * critical(150, 240), generator=generator)
    signal = (made.U * made.strengths) @ made.Vh
    d1, d2 = scales(150, 0.3, generator=generator)[:, None], scales(240, 0.3, generator=generator)
    W = signal + d1 * (made.W - signal) * d2
    W = W.T if turned else W
    assert Bema()(read_equalised(W)[0]).spikes > 22
    spectrum, even = read_equalised(W, Bema())
    assert 19 <= Bema()(spectrum).spikes <= 21
    assert even.rounds >= 1
    np.testing.assert_allclose(spectrum.s, np.linalg.svd(even.apply(W).numpy(), compute_uv=False), rtol=1e-8)
    assert np.linalg.norm(spectrum.s) == pytest.approx(np.linalg.norm(W), rel=1e-9)
    noisy = even.apply(made.W.T if turned else made.W)  # the scales of the noise, found beside the signal
    found = np.log(even.rows if not turned else even.cols)
    assert np.corrcoef(found, -np.log(d1[:, 0]))[0, 1] > 0.95
    assert noisy.shape == W.shape


def test_rest_is_evened_as_its_literal_twin_does(generator):
    made = planted(60, 90, np.linspace(3, 6, 5) * critical(60, 90), row_log_sd=0.3, col_log_sd=0.3, generator=generator)

    even = equalize(made.W)
    X = even.apply(made.W).numpy()
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    k = 5
    rest = (X - (U[:, :k] * s[:k]) @ Vh[:k]) ** 2
    rest = rest + 0.01 * rest.sum() / ((60 - k) * (90 - k))
    r, c = np.ones(60), np.ones(90)
    for _ in range(60):
        r = 90 / (rest @ c)
        c = 60 / (r @ rest)
    rows = even.rows * np.sqrt(r * (1.01 - (U[:, :k] ** 2).sum(1)))
    found = equalize(made.W, edge=lambda spectrum: NoiseFit(1.0, 1.0, None, None, k, "five, always"))
    assert found.rounds == 1
    ratio = rows / found.rows
    np.testing.assert_allclose(ratio / ratio[0], 1, rtol=2e-3)  # tol = 1e-3 on mean squares, twice


def test_an_edge_that_refuses_leaves_biwhitening(generator):
    W = noise(5, 8, generator=generator)
    spectrum, even = read_equalised(W, Bema())
    assert spectrum.p == 5
    assert even.rounds == 0


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e15])
def test_float32_of_any_size_gives_the_same_verdict(factor, generator):
    made = planted(100, 160, np.linspace(3, 6, 8) * critical(100, 160), row_log_sd=0.3, generator=generator)
    W = torch.from_numpy(made.W).float()
    plain, _ = read_equalised(W, Bema())
    scaled, _ = read_equalised(W * factor, Bema())
    assert Bema()(scaled).spikes == Bema()(plain).spikes == 8
    np.testing.assert_allclose(scaled.s / factor, plain.s, rtol=1e-4)  # float32 rounds W * factor


@pytest.mark.parametrize("blocks", [((50, 100), (70, 100)), ((30, 150), (90, 50))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_that_cannot_be_evened_out_are_said_so(blocks, dtype, generator):
    """The total of a block is shared by its rows and by its columns: unless it is square-like, both cannot be even."""
    W = torch.block_diag(*(torch.from_numpy(noise(*shape, generator=generator)) for shape in blocks)).to(dtype)
    spectrum, even = read_equalised(W, Bema())
    assert even.uneven > 0.05 and even.rounds == 0
    assert np.all(np.isfinite(spectrum.s)) and np.all(np.isfinite(even.rows)) and np.all(np.isfinite(even.cols))
    squares = even.apply(W).square()
    means = [squares.mean(0), squares.mean(1)]
    worst = max(float((m / m.mean() - 1).abs().max()) for m in means)
    assert even.uneven == pytest.approx(worst, rel=0.2)  # what is reported is what is left


def test_the_kurtosis_of_the_entries_sets_the_correction(generator):
    for draw, spread in (
        (lambda: generator.normal(size=(200, 300)), 2.0),
        (lambda: generator.uniform(-1, 1, (200, 300)), 0.8),
        (lambda: generator.choice([-1.0, 1.0], (200, 300)), 0.0),
        (lambda: generator.laplace(size=(200, 300)), 2.0),
    ):
        assert read_equalised(draw())[0].spread == pytest.approx(spread, abs=0.06)
