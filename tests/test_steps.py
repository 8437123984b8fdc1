"""What is done to one matrix: against the literal twin, the best approximation, and exact counts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.reading import equalize
from spectrim.steps import magnitude_counts, smallest_to_zero, truncate


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
