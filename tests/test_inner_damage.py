"""Damage against the outputs themselves, and what counts as a metric."""

from __future__ import annotations

import pytest
import torch

from spectrim.inner.damage import damage, metric, relative_damage
from spectrim.moments import Moment, identity

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_damage_is_the_mean_square_of_the_change_of_the_output(dtype):
    x = drawn(500, 12, seed=1) @ drawn(12, 12, seed=2)
    W, new = drawn(7, 12).to(dtype), drawn(7, 12, seed=3).to(dtype)
    outputs = (x @ (W.double() - new.double()).T).square().sum(1).mean()
    C = x.T @ x / len(x)
    assert damage(W, new, C) == pytest.approx(float(outputs), rel=1e-10)  # rounding in float64 alone
    assert damage(W, new, Moment(C.float(), x.mean(0), 500)) == pytest.approx(float(outputs), rel=1e-5)
    whole = (x @ W.double().T).square().sum(1).mean()
    assert relative_damage(W, new, C) == pytest.approx(float(outputs / whole), rel=1e-10)


def test_a_diagonal_and_the_weights_of_rows():
    W, new, c, r = drawn(5, 6), drawn(5, 6, seed=1), drawn(6, seed=2).square(), drawn(5, seed=3).square() + 0.1
    E = W - new
    by_hand = sum(float(r[i] * E[i, j] ** 2 * c[j]) for i in range(5) for j in range(6))
    assert damage(W, new, c, r) == pytest.approx(by_hand, rel=1e-12)
    assert damage(W, new, torch.diag(c), r) == pytest.approx(by_hand, rel=1e-12)
    assert damage(W, new, Moment(c, torch.zeros(6), 0, rows=r)) == pytest.approx(by_hand, rel=1e-12)
    assert damage(W, new) == pytest.approx(float(E.square().sum()), rel=1e-12)
    assert damage(W, new, 3 * torch.eye(6)) == pytest.approx(3 * float(E.square().sum()), rel=1e-12)


def test_what_is_classical():
    W = drawn(4, 6)
    same = [None, torch.eye(6), 2.5 * torch.eye(6), torch.ones(6), identity(6), torch.zeros(6, 6)]
    assert all(metric(W, C).classical for C in same)
    assert metric(W, None, torch.full((4,), 7.0)).classical
    other = [torch.arange(1.0, 7.0), torch.diag(torch.arange(1.0, 7.0)), torch.eye(6) + 0.1]
    assert not any(metric(W, C).classical for C in other)
    assert not metric(W, None, torch.arange(1.0, 5.0)).classical
    assert metric(W, torch.diag(torch.arange(1.0, 7.0))).second.ndim == 1  # held as its diagonal


def test_damping_and_a_dead_layer():
    W, C, notes = drawn(4, 3), torch.diag(torch.tensor([1.0, 2.0, 3.0])) + 0.5, []
    assert torch.allclose(metric(W, C).damped(0.1).second, C.double() + 0.25 * torch.eye(3))
    assert metric(W, torch.zeros(3, 3)).damped(0.1, notes).second is None
    assert "zero at every position" in notes[0]
    assert damage(W, 0 * W, torch.zeros(3, 3)) == 0
    assert relative_damage(W, W, torch.zeros(3, 3)) != relative_damage(W, W, torch.zeros(3, 3))  # NaN


@pytest.mark.parametrize(
    ("C", "said"),
    [
        (torch.ones(5), "are these the moments of this matrix"),
        (torch.ones(6, 5), "are these the moments of this matrix"),
        (torch.full((6,), float("nan")), "NaN"),
        (-torch.ones(6), ">= 0"),
        (torch.eye(6) + torch.triu(torch.ones(6, 6)), "symmetric"),
    ],
)
def test_what_is_no_second_moment_is_refused(C, said):
    with pytest.raises(ValueError, match=said):
        metric(drawn(4, 6), C)


def test_other_bad_input():
    W = drawn(4, 6)
    with pytest.raises(ValueError, match="one shape"):
        damage(W, W.T)
    with pytest.raises(ValueError, match="weight > 0"):
        metric(W, None, torch.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        metric(W / 0, None)
    with pytest.raises(ValueError, match="damping"):
        metric(W, torch.ones(6)).damped(-1)
