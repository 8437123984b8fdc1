"""Planted matrices are what they say they are, and come from the generator alone."""

import numpy as np
import pytest

from spectrim.planted import critical, frame, noise, planted, scales


def test_everything_comes_from_the_generator():
    state = np.random.get_state()[1].copy()
    twins = [planted(20, 30, [9.0], row_log_sd=0.3, col_log_sd=0.2, generator=np.random.default_rng(7)) for _ in "ab"]
    np.testing.assert_array_equal(twins[0].W, twins[1].W)
    other = planted(20, 30, [9.0], row_log_sd=0.3, col_log_sd=0.2, generator=np.random.default_rng(8))
    assert not np.array_equal(twins[0].W, other.W)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_the_parts_make_the_whole():
    made = planted(20, 30, [50.0, 70.0], sigma=1e-9, row_log_sd=0.3, col_log_sd=0.3, generator=np.random.default_rng(0))
    assert made.strengths.tolist() == [70.0, 50.0]
    signal = (made.U * made.strengths) @ made.Vh
    np.testing.assert_allclose(made.W, made.row_scales[:, None] * signal * made.col_scales, atol=1e-7)
    np.testing.assert_allclose(made.U.T @ made.U, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(made.Vh @ made.Vh.T, np.eye(2), atol=1e-12)


def test_noise_level():
    # Standard error of a standard deviation from 40,000 entries: .0035 of it.
    assert noise(200, 200, sigma=3.0, generator=np.random.default_rng(1)).std() == pytest.approx(3.0, rel=0.015)
    assert planted(5, 6, [], generator=np.random.default_rng(1)).W.shape == (5, 6)


def test_scales_have_mean_square_one():
    drawn = scales(100_000, 0.3, generator=np.random.default_rng(2))
    assert np.mean(drawn**2) == pytest.approx(1.0, abs=0.01)  # standard error .002
    assert np.std(np.log(drawn)) == pytest.approx(0.3, rel=0.02)
    np.testing.assert_array_equal(scales(4, 0.0, generator=np.random.default_rng(2)), np.ones(4))


def test_frames_are_uniform():
    # The first entry of a Haar column has mean 0 and mean square 1/size; QR without a sign rule fails the first.
    generator = np.random.default_rng(3)
    first = np.array([frame(6, 2, generator=generator)[0] for _ in range(3000)])
    np.testing.assert_allclose(first.mean(0), 0, atol=0.03)  # four standard errors
    np.testing.assert_allclose((first**2).mean(0), 1 / 6, atol=0.015)


def test_critical_strength_is_where_a_spike_leaves_the_bulk():
    p, n = 200, 400
    edge = np.sqrt(n) + np.sqrt(p)
    for times, out in ((0.5, False), (2.0, True)):
        made = planted(p, n, [times * critical(p, n)], generator=np.random.default_rng(4))
        assert (np.linalg.norm(made.W, 2) > 1.03 * edge) == out
