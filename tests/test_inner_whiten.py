"""Low rank in a metric: its error is the whitened tail, exactly; its limits; and low rank beside sparse entries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.inner.alternate import alternate
from spectrim.inner.damage import damage
from spectrim.inner.obs import obs
from spectrim.inner.whiten import low_rank, low_rank_plus_sparse, whitened_values
from spectrim.moments import Moment, identity
from spectrim.steps import smallest_to_zero, truncate

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(cols, seed=0, positions=None):
    x = drawn(positions or 4 * cols, cols, seed=seed) @ (torch.eye(cols) + 0.3 * drawn(cols, cols, seed=seed + 1))
    return x.T @ x / len(x)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("rows", [False, True])
def test_the_damage_is_the_tail_exactly(shape, rows):
    """Against an SVD of W L by numpy's Cholesky; rounding in float64 alone."""
    W, C = drawn(*shape), moment(shape[1])
    r = drawn(shape[0], seed=9).square() + 0.1 if rows else None
    L = torch.linalg.cholesky(C)
    s = torch.linalg.svdvals((W if r is None else W * r.sqrt()[:, None]) @ L)
    assert torch.allclose(whitened_values(W, C, rows=r), s, rtol=1e-10)
    for rank in (1, 5, 11):
        found = low_rank(W, C, rank, rows=r)
        assert found.rank == rank and torch.linalg.matrix_rank(found.dense()) == rank
        assert damage(W, found.dense(), C, r) == pytest.approx(float(s[rank:].square().sum()), rel=1e-10)
    left, right = low_rank(W, C, 5, rows=r).split()
    assert torch.allclose(left @ right, low_rank(W, C, 5, rows=r).dense())
    assert torch.allclose(low_rank(W, C, 12, rows=r).dense(), W) == (min(shape) == 12)


def test_it_is_the_whitened_svd_with_the_inverse():
    W, C = drawn(10, 14), moment(14)
    L = torch.linalg.cholesky(C)
    U, s, Vh = torch.linalg.svd(W @ L, full_matrices=False)
    published = (U[:, :4] * s[:4]) @ Vh[:4] @ torch.linalg.inv(L)
    assert torch.allclose(low_rank(W, C, 4).dense(), published, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 6))
def test_no_other_matrix_of_that_rank_is_nearer(seed, rank):
    W, C = drawn(7, 9, seed=seed), moment(9, seed=seed)
    best = damage(W, low_rank(W, C, rank).dense(), C)
    for other in (truncate(W, rank).dense(), low_rank(W, moment(9, seed=seed + 1), rank).dense()):
        assert best <= damage(W, other, C) * (1 + 1e-9)
    nudged = low_rank(W, C, rank)
    U = nudged.U + 0.01 * drawn(7, rank, seed=seed)
    assert best <= damage(W, (U * nudged.s) @ nudged.Vh, C)


def test_without_moments_it_is_the_plain_truncation():
    W = drawn(8, 12).float()
    plain = truncate(W, 3)
    for C in (None, torch.eye(12), 4 * torch.eye(12), torch.ones(12), identity(12), torch.zeros(12, 12)):
        found = low_rank(W, C, 3, damping=0.1, spikes=2)
        assert torch.equal(found.dense(), plain.dense())


def test_a_diagonal_is_the_truncation_under_column_scales():
    W, c = drawn(8, 12), torch.linspace(0.1, 5, 12, dtype=torch.float64)
    by_scales = truncate(W * c.sqrt(), 3).dense() / c.sqrt()
    for C in (c, torch.diag(c), Moment(c, torch.zeros(12), 0)):
        assert torch.allclose(low_rank(W, C, 3).dense(), by_scales)


def test_a_singular_moment_needs_no_damping():
    """Five positions for thirty inputs: rank 5 is exact on them, and a lower rank costs its tail."""
    x = drawn(5, 30)
    W, C = drawn(20, 30, seed=1), x.T @ x / 5
    whole = damage(W, 0 * W, C)
    assert damage(W, low_rank(W, C, 5).dense(), C) < 1e-9 * whole  # 1e-12 is added to the diagonal, and W is as large
    s = torch.linalg.svdvals(W @ x.T / 5**0.5)
    assert damage(W, low_rank(W, C, 3).dense(), C) == pytest.approx(float(s[3:].square().sum()), rel=1e-6)
    more = low_rank(W, C, 12).dense()
    assert torch.isfinite(more).all() and float(more.abs().max()) < 10 * float(W.abs().max())
    dead = C.clone()
    dead[3], dead[:, 3] = 0, 0
    assert torch.isfinite(low_rank(W, dead, 4).dense()).all()
    diagonal = torch.linspace(0, 1, 30)  # one input was never there
    assert torch.isfinite(low_rank(W, diagonal, 4).dense()).all()


def test_spikes_first_are_kept_whole():
    W, C = drawn(20, 30), moment(30)
    W = W + 200 * torch.outer(drawn(20, seed=3), drawn(30, seed=4)) / 25
    spike = truncate(W, 1).dense()
    found = low_rank(W, C, 6, spikes=1)
    assert found.rank == 6 and torch.linalg.matrix_rank(found.dense()) == 6
    assert torch.allclose(low_rank(W, C, 1, spikes=1).dense(), spike)
    rest = low_rank(W - spike, C, 5).dense()
    assert torch.allclose(found.dense(), spike + rest)
    costs = [damage(W, low_rank(W, C, 6, spikes=k).dense(), C) for k in (0, 1, 6)]
    assert costs[0] <= costs[1] <= costs[2]


def test_low_rank_plus_sparse_stores_what_it_may():
    W, C = drawn(20, 30), moment(30)
    for stored in (0, 30, 120, 300, 600):
        for share in (0.0, 0.3, 1.0):
            factors, spare = low_rank_plus_sparse(W, C, stored, share=share)
            rank = min(int(share * stored) // 50, 20)
            assert factors.rank == rank
            assert rank * 50 + int((spare != 0).sum()) == stored
    factors, spare = low_rank_plus_sparse(W, C, 300, share=0)
    assert torch.equal(spare, alternate(W, C, 300)) and not factors.dense().any()
    factors, spare = low_rank_plus_sparse(W, C, 300, share=0, sparse="obs")
    assert torch.equal(spare, obs(W, C, 300))
    factors, spare = low_rank_plus_sparse(W, None, 300, share=0)
    assert torch.equal(spare, smallest_to_zero(W, 300))


def test_rounds_pay_where_there_is_something_to_find():
    """Planted: rank 3 and 40 large entries; noise one hundredth. One round mixes the two up, thirty do not."""
    W = 3 * drawn(30, 3) @ drawn(3, 40, seed=1) + 0.01 * drawn(30, 40, seed=2)
    at = torch.randperm(1200, generator=torch.Generator().manual_seed(3))[:40]
    W.view(-1)[at] += 15
    C = moment(40)
    cost = []
    for rounds in (1, 30):
        factors, spare = low_rank_plus_sparse(W, C, 250, share=0.85, rounds=rounds, damping=0.001)
        cost.append(damage(W, factors.dense() + spare, C) / damage(W, 0 * W, C))
    assert factors.rank == 3
    assert cost[1] < 0.1 * cost[0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda W, C: low_rank(W, C, 0), "rank of 1 to 4"),
        (lambda W, C: low_rank(W, C, 5), "rank of 1 to 4"),
        (lambda W, C: low_rank(W, C, 2, spikes=3), "spikes are kept"),
        (lambda W, C: low_rank(W, C[:2, :2], 2), "are these the moments"),
        (lambda W, C: low_rank_plus_sparse(W, C, 25), "stored is"),
        (lambda W, C: low_rank_plus_sparse(W, C, 0.5), "stored is"),
        (lambda W, C: low_rank_plus_sparse(W, C, 5, share=2), "share lies"),
        (lambda W, C: low_rank_plus_sparse(W, C, 5, sparse="wanda"), "sparse is"),
        (lambda W, C: low_rank_plus_sparse(W, C, 5, rounds=0), "rounds"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(drawn(4, 6), moment(6))
