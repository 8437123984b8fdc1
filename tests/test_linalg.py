"""Decompositions against numpy's, and what happens when a driver fails."""

import numpy as np
import pytest
import torch

from spectrim import drivers, linalg
from spectrim.edges import Bema
from spectrim.linalg import leading, singular_values, svd
from spectrim.planted import noise, planted
from spectrim.reading import equalize, read_equalised, read_spectrum

SHAPES = [(7, 5), (5, 7), (40, 40), (1, 6), (6, 1), (300, 520), (520, 300)]


@pytest.fixture
def generator():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_those_of_numpy(shape, generator):
    W = noise(*shape, generator=generator)
    expected = np.linalg.svd(W, compute_uv=False)
    found = singular_values(W)
    assert found.dtype == np.float64
    # A Gram matrix squares the condition number: errors of eps (s_max / s_min), here under 1e-9.
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(singular_values(torch.from_numpy(W).T), expected, rtol=1e-9)


def test_gram_keeps_small_values(generator):
    made = planted(80, 120, [], sigma=1.0, generator=generator)
    U, _, Vh = np.linalg.svd(made.W, full_matrices=False)
    wanted = np.logspace(0, -7, 80)
    found = singular_values((U * wanted) @ Vh)
    np.testing.assert_allclose(found, wanted, rtol=2e-2)  # the smallest is three times the floor of 3e-8
    assert singular_values(np.outer(np.ones(20), np.ones(30)))[1:].max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_comes_up(dtype, generator):
    W = torch.from_numpy(noise(30, 50, generator=generator)).to(dtype)
    exact = np.linalg.svd(W.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(singular_values(W), exact, rtol=1e-9)
    found = svd(W)
    assert found.s.dtype == found.U.dtype == torch.float64
    assert read_equalised(W, Bema())[0].equalised


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,)])
def test_only_matrices_are_taken(shape):
    with pytest.raises(ValueError, match="two dimensions"):
        singular_values(torch.zeros(shape))


@pytest.mark.parametrize("W", [np.arange(6).reshape(2, 3), torch.ones(2, 3, dtype=torch.complex64)])
def test_only_real_numbers_are_taken(W):
    with pytest.raises(ValueError, match="floating-point"):
        singular_values(W)


@pytest.mark.parametrize("bad", (np.nan, np.inf))
@pytest.mark.parametrize("reader", [singular_values, svd, equalize, read_spectrum, read_equalised])
def test_what_is_not_finite_is_refused(reader, bad):
    W = np.ones((12, 15))
    W[3, 4] = bad
    with pytest.raises(ValueError, match="1 of 180 entries are not finite"):
        reader(W)


def test_read_only_and_gradient_inputs_are_left_alone(generator):
    W = noise(12, 15, generator=generator)
    W.setflags(write=False)
    before = W.copy()
    for reader in (singular_values, equalize, read_equalised):
        reader(W)
    np.testing.assert_array_equal(W, before)
    parameter = torch.nn.Parameter(torch.ones(12, 15) + torch.eye(12, 15))
    held = parameter.detach().clone()
    for reader in (singular_values, svd, read_equalised):
        reader(parameter)
    assert torch.equal(parameter.detach(), held)
    assert parameter.grad is None


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_factors(shape, generator):
    W = torch.from_numpy(noise(*shape, generator=generator))
    found = svd(W)
    torch.testing.assert_close(found.dense(), W)
    left, right = found.split()
    torch.testing.assert_close(left @ right, W)
    # Balanced: both factors carry sqrt(s).
    torch.testing.assert_close(left.norm(), right.norm())
    k = min(2, found.rank)
    cut = found.truncate(k)
    assert cut.rank == k
    # Eckart and Young: the error is the norm of what was cut.
    assert float((cut.dense() - W).norm()) == pytest.approx(float(found.s[k:].norm()), abs=1e-9)
    with pytest.raises(ValueError, match="must lie in"):
        found.truncate(found.rank + 1)


def test_factors_rescale_into_the_basis_of_the_matrix(generator):
    made = planted(30, 40, [90.0, 70.0], row_log_sd=0.5, col_log_sd=0.5, generator=generator)
    even = equalize(made.W)
    factors = svd(even.apply(made.W))
    torch.testing.assert_close(factors.rescale(even.rows, even.cols).dense(), torch.from_numpy(made.W))
    assert np.linalg.matrix_rank(factors.truncate(2).rescale(even.rows, even.cols).dense().numpy()) == 2


def test_a_driver_that_fails_is_replaced_and_recorded(generator, monkeypatch):
    W = noise(30, 40, generator=generator)
    expected = np.linalg.svd(W, compute_uv=False)

    def fails(*args, **kwargs):
        raise torch.linalg.LinAlgError("linalg.eigh: failed to converge")

    monkeypatch.setattr(np.linalg, "eigvalsh", fails)
    notes: list[str] = []
    np.testing.assert_allclose(singular_values(W, notes), expected, rtol=1e-6)
    assert notes == ["numpy's eigvalsh failed (linalg.eigh: failed to converge); used torch's eigvalsh instead"]
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    np.testing.assert_allclose(singular_values(W, notes), expected, rtol=1e-12)
    assert notes[-1] == "torch's eigvalsh failed (linalg.eigh: failed to converge); used LAPACK gesvd instead"
    even = read_equalised(W, notes=notes)[1]
    assert len(notes) == 5
    np.testing.assert_allclose(
        read_equalised(W)[0].s, np.linalg.svd(even.apply(W).numpy(), compute_uv=False), rtol=1e-12
    )
    monkeypatch.setattr(torch.linalg, "svd", fails)
    np.testing.assert_allclose(svd(W, notes).s.numpy(), expected, rtol=1e-12)
    assert notes[-1].startswith("svd failed")


def test_both_drivers_agree_on_either_side_of_the_switch(generator, monkeypatch):
    W = noise(90, 140, generator=generator)
    by_numpy = singular_values(W)
    monkeypatch.setattr(drivers, "TORCH_FROM", 50)
    np.testing.assert_allclose(singular_values(W), by_numpy, rtol=1e-10)


def test_one_thread_puts_the_setting_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), linalg.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


def test_a_failure_of_the_last_driver_is_raised(generator, monkeypatch):
    def fails(*args, **kwargs):
        raise np.linalg.LinAlgError("no")

    monkeypatch.setattr(np.linalg, "eigvalsh", fails)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    monkeypatch.setattr(drivers, "dense_svd", fails)
    with pytest.raises(np.linalg.LinAlgError):
        singular_values(noise(12, 15, generator=generator))


def test_vectors_survive_a_failing_driver(generator, monkeypatch):
    made = planted(60, 90, [60.0, 50.0], generator=generator)
    whole, real = read_equalised(made.W, Bema())[0].s, drivers.eigh

    def evr_fails(*args, driver, **kwargs):
        if driver == "evr":
            raise np.linalg.LinAlgError("no")
        return real(*args, driver=driver, **kwargs)

    monkeypatch.setattr(drivers, "eigh", evr_fails)
    notes: list[str] = []
    np.testing.assert_allclose(read_equalised(made.W, Bema(), notes=notes)[0].s, whole, rtol=1e-6)
    assert "eigh (evx)" in notes[0]


def test_leading_asks_for_what_is_there():
    W = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    for k in (0, 31, -1):
        with pytest.raises(ValueError, match="1 to 30 values"):
            leading(W, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50)])
def test_leading_is_the_truncated_decomposition(shape, dtype):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    for k in (1, 7, 25, min(shape)):
        found, best = leading(W, k), svd(W).truncate(k)
        torch.testing.assert_close(found.s, best.s, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(found.dense(), best.dense(), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.U.T @ found.U, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)


def test_leading_of_a_matrix_of_lower_rank():
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(40, 5, generator=generator) @ torch.randn(5, 60, generator=generator)
    found = leading(W.double(), 20)
    assert found.dense().isfinite().all()
    torch.testing.assert_close(found.dense(), W.double(), rtol=0, atol=1e-6)
