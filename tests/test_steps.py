"""What is done to one matrix: against literal twins, the best approximation, planted truth, and exact counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.edges import Bema
from spectrim.laws import SHRINKERS
from spectrim.linalg import svd
from spectrim.planted import critical, planted
from spectrim.reading import equalize, read_equalised, read_spectrum
from spectrim.steps import magnitude_counts, shrink, smallest_to_zero, truncate


def naive_counts(matrices, zeros):
    """All magnitudes in one list, sorted stably: what `magnitude_counts` finds without ever holding them together."""
    flat = torch.cat([W.reshape(-1).double().abs() for W in matrices])
    owner = torch.cat([torch.full((W.numel(),), i) for i, W in enumerate(matrices)])
    chosen = owner[torch.sort(flat, stable=True).indices[:zeros]]
    return torch.bincount(chosen, minlength=len(matrices)).tolist()


KINDS = {
    "gaussian": lambda g, shape: torch.randn(shape, generator=g),
    "many zeros": lambda g, shape: torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.3),
    "all zero but one": lambda g, shape: torch.zeros(shape).index_put_(
        (torch.tensor(0), torch.tensor(0)), torch.tensor(1.0)
    ),
    "few levels": lambda g, shape: torch.randint(-3, 4, shape, generator=g).float(),
    "tiny": lambda g, shape: torch.randn(shape, generator=g) * 1e-40,
    "wide": lambda g, shape: torch.exp(20 * torch.randn(shape, generator=g)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_one_sorted_list(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    matrices = [KINDS[kind](generator, shape).to(dtype) for shape in ((7, 9), (12, 5), (3, 40))]
    matrices = [torch.nan_to_num(W, posinf=6e4) for W in matrices]
    for zeros in (0, 1, 50, 121, 242, 243):
        counts = [count for count, _ in magnitude_counts([lambda W=W: W for W in matrices], zeros)]
        assert sum(counts) == zeros
        assert counts == naive_counts(matrices, zeros)


def test_float64_is_told_apart_below_float32():
    """Neighbours in float64 are equal in float32; the order must still be theirs."""
    first = torch.tensor([[1.0 + 2e-12, 1.0 + 4e-12]], dtype=torch.float64)
    second = torch.tensor([[1.0 + 1e-12, 1.0 + 3e-12]], dtype=torch.float64)
    assert [count for count, _ in magnitude_counts([lambda: first, lambda: second], 1)] == [0, 1]
    assert [count for count, _ in magnitude_counts([lambda: first, lambda: second], 3)] == [1, 2]


def test_the_error_is_that_of_the_entries_that_go():
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(20, 30, generator=generator), 3 * torch.randn(10, 15, generator=generator)]
    for W, (count, error) in zip(matrices, magnitude_counts([lambda W=W: W for W in matrices], 300), strict=True):
        cut = smallest_to_zero(W, count)
        expected = torch.linalg.norm((W - cut).double()) / torch.linalg.norm(W.double())
        assert error == pytest.approx(float(expected), rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 64), st.integers(0, 2**31))
def test_exactly_so_many_entries_go_and_the_rest_stay(rows, cols, zeros, seed):
    W = torch.randint(-5, 6, (rows, cols), generator=torch.Generator().manual_seed(seed)).float()
    zeros = min(zeros, W.numel())
    before = W.clone()
    cut = smallest_to_zero(W, zeros)
    assert torch.equal(W, before)
    assert int((cut == 0).sum()) == max(zeros, int((W == 0).sum()))
    assert torch.equal(cut[cut != 0], W[cut != 0])
    if (cut != 0).any() and zeros:
        assert W[cut == 0].abs().max() <= cut[cut != 0].abs().min()


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (20, 20)])
def test_truncation_is_the_best_of_its_rank(shape):
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    s = torch.linalg.svdvals(W)
    for rank in (1, 7, min(shape)):
        cut = truncate(W, rank).dense()
        assert int(torch.linalg.matrix_rank(cut)) == rank
        assert float(torch.linalg.norm(W - cut)) == pytest.approx(float(s[rank:].square().sum().sqrt()), abs=1e-10)


def test_in_the_equalised_basis_it_is_the_best_there():
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(30, 40, generator=generator, dtype=torch.float64)
    W *= torch.exp(torch.randn(30, 1, generator=generator, dtype=torch.float64))
    W *= torch.exp(torch.randn(1, 40, generator=generator, dtype=torch.float64))
    even = equalize(W)
    cut = truncate(W, 5, even).dense()
    assert int(torch.linalg.matrix_rank(cut)) == 5
    there = float(torch.linalg.norm(even.apply(W - cut)))
    tail = np.linalg.svd(even.apply(W).numpy(), compute_uv=False)[5:]
    assert there == pytest.approx(np.sqrt(np.sum(tail**2)), rel=1e-10)
    # And no better there is the plain cut, nor this one in the plain norm.
    assert there < float(torch.linalg.norm(even.apply(W - truncate(W, 5).dense())))
    assert float(torch.linalg.norm(W - truncate(W, 5).dense())) < float(torch.linalg.norm(W - cut))


def planted_fifteen(seed, log_sd=0.0):
    """1000 x 500, noise of variance 1/1000, fifteen values from 1.05 to 4 times the transition: W and the signal."""
    sigma = 1000**-0.5
    strengths = np.linspace(1.05, 4, 15) * critical(1000, 500, sigma)
    generator = np.random.default_rng([15, seed])
    made = planted(1000, 500, strengths, sigma, log_sd, log_sd, generator=generator)
    signal = made.row_scales[:, None] * ((made.U * made.strengths) @ made.Vh) * made.col_scales
    return torch.from_numpy(made.W), torch.from_numpy(signal)


def squared_errors(seed, log_sd=0.0):
    """Squared errors of truncation at the edge, the three shrinkers, and the best shrinkage that knows the signal."""
    W, S = planted_fifteen(seed, log_sd)
    if log_sd:
        spectrum, scales = read_equalised(W, Bema())
        W_even, S_even = scales.apply(W), scales.apply(S)
    else:
        spectrum, scales, W_even, S_even = read_spectrum(W), None, W, S
    fit = Bema()(spectrum)

    def error(found):  # in the norm that the scales are even in
        there = found.dense() if scales is None else scales.apply(found.dense())
        return float((there - S_even).square().sum())

    seen = svd(W_even)
    best = torch.einsum("ij,ij->j", seen.U, S_even @ seen.Vh.T).clamp_min(0)
    oracle = float(S_even.square().sum() - best.square().sum())
    cut = error(truncate(W, fit.spikes, scales))
    return cut, *(error(shrink(W, fit.sigma, loss, scales)) for loss in SHRINKERS), oracle


def assert_shrinkage_is_near_the_oracle(log_sd, seeds):
    # Over twenty seeds: truncation 27.3, Frobenius 19.05 (at most 1.3 % over the oracle), operator 20.9, nuclear 21.0,
    # oracle 18.94; after uneven scales 27.5, 18.9, 20.9, 20.8 and 18.85, the largest excess .5 %.
    cut, frobenius, operator, nuclear, oracle = np.mean([squared_errors(seed, log_sd) for seed in seeds], axis=0)
    assert oracle <= frobenius <= 1.03 * oracle
    assert frobenius < min(operator, nuclear) and max(operator, nuclear) < 0.85 * cut
    assert frobenius < 0.75 * cut


@pytest.mark.parametrize("log_sd", (0.0, 0.3))
def test_shrinkage_is_within_three_per_cent_of_what_knows_the_signal(log_sd):
    assert_shrinkage_is_near_the_oracle(log_sd, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("log_sd", (0.0, 0.3))
def test_shrinkage_is_within_three_per_cent_of_what_knows_the_signal_twenty_seeds(log_sd):
    assert_shrinkage_is_near_the_oracle(log_sd, range(20))


@pytest.mark.parametrize("loss", SHRINKERS)
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (20, 20)])
def test_shrunk_values_are_the_formula_on_the_same_vectors(shape, loss):
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    W += 4 * torch.outer(torch.ones(shape[0]), torch.linspace(-1, 1, shape[1])).double()
    (p, n), U_s_Vh = sorted(shape), torch.linalg.svd(W, full_matrices=False)
    found = shrink(W, 0.9, loss)
    by_hand = 0
    for u, s, v in zip(U_s_Vh[0].T, U_s_Vh[1], U_s_Vh[2], strict=True):
        c, y = p / n, float(s) / (0.9 * n**0.5)
        if y <= 1 + c**0.5:
            continue
        h = y**2 - 1 - c
        theta = ((h + (h**2 - 4 * c) ** 0.5) / 2) ** 0.5
        eta = {
            "frobenius": ((y**2 - c - 1) ** 2 - 4 * c) ** 0.5 / y,
            "operator": theta,
            "nuclear": max(0.0, (theta**4 - c - c**0.5 * theta * y) / (theta**2 * y)),
        }[loss]
        by_hand = by_hand + 0.9 * n**0.5 * eta * torch.outer(u, v)
    torch.testing.assert_close(found.dense(), by_hand, atol=1e-10, rtol=0)
    assert 0 < found.rank < p and bool((found.s > 0).all())
    # A unit is a unit, and so is a side.
    torch.testing.assert_close(shrink(1e3 * W, 900.0, loss).dense(), 1e3 * found.dense(), atol=1e-7, rtol=0)
    torch.testing.assert_close(shrink(W.T, 0.9, loss).dense(), found.dense().T, atol=1e-10, rtol=0)


def test_where_nothing_stands_above_the_edge_nothing_is_left():
    W = torch.randn(30, 50, generator=torch.Generator().manual_seed(5))
    found = shrink(W, 2.0)
    assert found.rank == 0
    assert found.dense().shape == (30, 50) and not found.dense().any()
    with pytest.raises(ValueError, match="sigma must be positive"):
        shrink(W, 0.0)
    with pytest.raises(ValueError, match="loss must be one of"):
        shrink(W, 1.0, loss="l2")


def test_zero_rows_and_columns_do_not_change_what_is_shrunk():
    W = torch.randn(30, 50, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    W[:, 0] += 6
    padded = torch.zeros(45, 90, dtype=torch.float64)
    padded[5:35, 10:60] = W
    torch.testing.assert_close(shrink(padded, 1.0).dense()[5:35, 10:60], shrink(W, 1.0).dense(), atol=1e-10, rtol=0)
    even = equalize(padded)
    inner = shrink(W, 1.0, scales=equalize(W)).dense()
    torch.testing.assert_close(shrink(padded, 1.0, scales=even).dense()[5:35, 10:60], inner, atol=1e-8, rtol=0)
