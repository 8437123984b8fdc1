"""Optimal brain surgeon against literal twins, exact counts, classical limits, and what each step is worth."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrim.inner.alternate import alternate
from spectrim.inner.damage import damage, metric
from spectrim.inner.obs import obs, refit, scores, smallest, surgeon, wanda
from spectrim.linalg import cholesky, inverse_root
from spectrim.moments import Moment, identity
from spectrim.steps import lowest, smallest_to_zero

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = {
    "wanda": lambda W, C, k, scope, **kw: wanda(W, C, k, scope, **kw),
    "obs": lambda W, C, k, scope, **kw: obs(W, C, k, scope=scope, **kw),
    "alternate": lambda W, C, k, scope, **kw: alternate(W, C, k, scope=scope, **kw),
}
EACH = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(cols, seed=0, positions=None):
    """A second moment with a few loud directions, uneven columns and a mean, as layers have them."""
    x = drawn(positions or 8 * cols, cols, seed=seed) @ (torch.eye(cols) + 0.3 * drawn(cols, cols, seed=seed + 1))
    x = (x + 0.5) * torch.linspace(0.3, 3, cols, dtype=torch.float64)[torch.randperm(cols, generator=_g(seed))]
    return x.T @ x / len(x)


def _g(seed):
    return torch.Generator().manual_seed(seed)


def damped(C, share=0.01):
    return C + share * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)


# Literal twins


def one_column_at_a_time(W, H, mask):
    """SparseGPT's update as written: the trailing block of the Hessian is inverted anew for every column."""
    W = W.clone()
    for j in range(W.shape[1]):
        inverse = torch.linalg.inv(H[j:, j:])
        for i in range(W.shape[0]):
            if mask[i, j]:
                W[i, j:] -= W[i, j] / inverse[0, 0] * inverse[0]
                W[i, j] = 0
    return W


def textbook(W, H, zeros):
    """Hassibi and Stork: the cheapest entry of all, all others of its row that stay compensated, again and again."""
    W, gone = W.clone(), torch.zeros(W.shape, dtype=torch.bool)
    for _ in range(zeros):
        best = None
        for i in range(W.shape[0]):
            kept = (~gone[i]).nonzero()[:, 0]
            if not len(kept):
                continue
            inverse = torch.linalg.inv(H[kept][:, kept])
            costs = W[i, kept] ** 2 / inverse.diagonal()
            q = int(costs.argmin())
            if best is None or costs[q] < best[0]:
                best = (costs[q], i, kept, inverse, q)
        _, i, kept, inverse, q = best
        W[i, kept] -= W[i, kept[q]] / inverse[q, q] * inverse[q]
        W[i, kept[q]], gone[i, kept[q]] = 0, True
    return W


@pytest.mark.parametrize("block", [1, 5, 16, 128])
@pytest.mark.parametrize("shape", [(6, 40), (20, 17), (1, 9)])
def test_a_given_mask_in_a_given_order_is_the_columnwise_update(shape, block):
    W, C = drawn(*shape), correlated(shape[1])
    mask = torch.rand(shape, generator=_g(3)) < 0.6
    found = obs(W, C, mask=mask, order="given", block=block)
    assert float((found - one_column_at_a_time(W, damped(C), mask)).abs().max()) < 1e-8


@pytest.mark.parametrize("order", ["quiet first", "loud first"])
def test_an_order_is_a_permutation_before_and_after(order):
    W, C = drawn(5, 24), correlated(24)
    mask = torch.rand(W.shape, generator=_g(3)) < 0.5
    at = sorted(range(24), key=lambda j: (float(C[j, j]) * (1 if order == "quiet first" else -1), j))
    twin = torch.empty_like(W)
    twin[:, at] = one_column_at_a_time(W[:, at], damped(C)[at][:, at], mask[:, at])
    assert float((obs(W, C, mask=mask, order=order) - twin).abs().max()) < 1e-8


def test_the_published_form_chooses_a_block_at_a_time():
    """Blocks of 8 columns, half of each by w^2 / [C^-1]_jj of the trailing block, as it stands at the block's turn."""
    W, C = drawn(6, 32), correlated(32)
    H, twin, mask = damped(C), W.clone(), torch.zeros(6, 32, dtype=torch.bool)
    for first in range(0, 32, 8):
        size = torch.empty(6, 8, dtype=torch.float64)
        for j in range(8):
            size[:, j] = twin[:, first + j] ** 2 / torch.linalg.inv(H[first + j :, first + j :])[0, 0]
        order = sorted(range(48), key=lambda i: (float(size.reshape(-1)[i]), i))[:24]
        for i in order:
            mask[i // 8, first + i % 8] = True
        twin = one_column_at_a_time(W, H, mask)  # later columns are not masked yet: this is the state at the next turn
    found = obs(W, C, 96, scope="block", order="given", block=8)
    assert torch.equal(found == 0, mask)
    assert float((found - twin).abs().max()) < 1e-8


def test_the_damage_of_a_pass_is_the_sum_of_its_errors():
    W, H = drawn(5, 20), damped(correlated(20))
    U = inverse_root(H)
    mask = torch.rand(W.shape, generator=_g(1)) < 0.5
    found, _, size = surgeon(W, U, lambda first, s: mask[:, first : first + 1], 1)  # at its turn, column by column
    assert damage(W, found, H) == pytest.approx(float(size[mask].square().sum()), rel=1e-10)


def test_the_excess_of_fast_forms_over_the_textbook():
    """Sum of damages over ten problems of 6 x 16 at half zeros, beside the textbook's (greedy, all compensated)."""
    total = dict.fromkeys(("textbook", "published", "obs", "alternate", "wanda"), 0.0)
    for seed in range(10):
        W, C = drawn(6, 16, seed=seed), correlated(16, seed=seed + 50)
        H = damped(C)
        found = {
            "textbook": textbook(W, H, 48),
            "published": obs(W, C, 48, scope="block", order="given", block=4),
            "obs": obs(W, C, 48, block=4),
            "alternate": alternate(W, C, 48, steps=None),
            "wanda": wanda(W, C, 48, "layer"),
        }
        for name, new in found.items():
            total[name] += damage(W, new, H) / damage(W, 0 * W, H)
    excess = {name: value / total["textbook"] for name, value in total.items()}
    assert 1 < excess["obs"] < excess["published"] < excess["wanda"]
    assert excess["obs"] < EXCESS_OBS
    assert excess["alternate"] < EXCESS_ALTERNATE


EXCESS_OBS, EXCESS_ALTERNATE = 2.0, 1.2  # measured, rounded up


def test_refit_is_least_squares_on_samples():
    x, W = drawn(200, 10, seed=5) @ drawn(10, 10, seed=6), drawn(4, 10)
    mask = torch.rand(W.shape, generator=_g(2)) < 0.5
    mask[3] = True  # a row that loses everything
    C = x.T @ x / 200
    found = refit(W, mask, C, damping=0)
    for i in range(3):
        S = (~mask[i]).nonzero()[:, 0]
        aim = torch.linalg.lstsq(x[:, S], x @ W[i, :, None]).solution[:, 0]
        assert torch.allclose(found[i, S], aim, atol=1e-9)  # condition numbers of 1e3, squared, on 1e-16
    assert not found[mask].any()
    steps = [damage(W, refit(W, mask, C, damping=0, steps=n), C) for n in (0, 2, 5, 40)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == pytest.approx(damage(W, W.masked_fill(mask, 0), C))
    assert steps[-1] == pytest.approx(damage(W, found, C), rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), rows=st.integers(1, 7), cols=st.integers(2, 12))
def test_refit_is_never_worse(seed, share, rows, cols):
    W, C = drawn(rows, cols, seed=seed), correlated(cols, seed=seed)
    mask = torch.rand(W.shape, generator=_g(seed)) < share
    *others, best = (
        damage(W, new, damped(C)) for new in (W.masked_fill(mask, 0), obs(W, C, mask=mask), refit(W, mask, C))
    )
    slack = 1e-9 * damage(W, 0 * W, damped(C))
    assert best <= min(others) + slack


# Scores


def test_obs_scores_are_what_removal_costs():
    W, C = drawn(4, 8), correlated(8)
    found = scores(W, C)
    for i, j in itertools.product(range(4), range(8)):
        mask = torch.zeros(4, 8, dtype=torch.bool)
        mask[i, j] = True
        assert float(found[i, j]) == pytest.approx(damage(W, refit(W, mask, C), damped(C)), rel=1e-7)


def test_wanda_scores_are_norms_of_inputs_times_magnitudes():
    x, W = drawn(50, 8) * torch.arange(1, 9), drawn(4, 8, seed=1)
    published = W.abs() * x.norm(dim=0)
    found = wanda(W, x.T @ x, 16)
    for i in range(4):
        gone = set(published[i].argsort()[:4].tolist())
        assert {j for j in range(8) if found[i, j] == 0} == gone
    kept = found != 0
    assert torch.equal(found[kept], W[kept])
    assert torch.allclose(scores(W, x.T @ x, "wanda").sqrt(), published)


def test_weights_of_rows_move_zeros_between_rows_and_nothing_within():
    W, C, r = drawn(6, 12), correlated(12), torch.tensor([100.0, 1, 1, 1, 1, 1])
    for step in STEPS.values():
        plain, weighted = step(W, C, 36, "layer"), step(W, C, 36, "layer", rows=r)
        assert int((weighted[0] == 0).sum()) < int((plain[0] == 0).sum())
        # twice the root of the weight on a row is that row doubled
        doubled = W * r.sqrt()[:, None]
        assert torch.equal(step(doubled, C, 36, "layer") == 0, weighted == 0)
        by_moment = step(W, Moment(C, torch.zeros(12), 1, rows=r), 36, "layer")
        assert torch.equal(by_moment, weighted)
    assert torch.allclose(scores(W, C, rows=r), scores(W, C) * r[:, None])


# Classical limits, bit for bit


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_without_moments_it_is_plain_magnitude(step, dtype):
    W = (drawn(9, 14) * 2).round().div(4).to(dtype)  # many ties
    for C in (None, torch.eye(14), 0.37 * torch.eye(14), torch.full((14,), 5.0), identity(14), torch.zeros(14, 14)):
        for zeros in (0, 1, 63, 126):
            found = step(W, C, zeros, "layer")
            assert torch.equal(found, smallest_to_zero(W, zeros)) and found.dtype == dtype
        rows = step(W, C, 63, "row")
        assert torch.equal(rows, torch.stack([smallest_to_zero(w[None], 7)[0] for w in W]))


@EACH
def test_a_diagonal_needs_no_compensation(step):
    W, c = drawn(9, 14), torch.linspace(1, 5, 14, dtype=torch.float64)
    for C in (c, torch.diag(c)):
        found = step(W, C, 60, "layer", **({} if step is STEPS["wanda"] else {"damping": 0}))
        assert torch.equal(found, wanda(W, c, 60, "layer"))


def test_an_exact_mask_of_a_diagonal_changes_nothing_else():
    W, mask = drawn(4, 6), torch.rand(4, 6, generator=_g(0)) < 0.5
    for C in (None, torch.arange(1.0, 7.0)):
        assert torch.equal(obs(W, C, mask=mask), W.masked_fill(mask, 0))
        assert torch.equal(refit(W, mask, C), W.masked_fill(mask, 0))


# Counts


@EACH
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 7),
    cols=st.integers(1, 150),
    share=st.one_of(st.sampled_from([0, 1]), st.floats(0, 1)),
    scope=st.sampled_from(["layer", "row", "block"]),
)
def test_counts_are_exact(step, seed, rows, cols, share, scope):
    W, C = drawn(rows, cols, seed=seed), correlated(cols, seed=seed)
    zeros = round(share * W.numel())
    found = step(W, C, zeros, scope)
    assert int((found == 0).sum()) == zeros
    if scope == "row":
        each = (found == 0).sum(1)
        assert int(each.max() - each.min()) <= 1
    assert torch.equal(found, step(W, C, zeros, scope))


def test_ties_go_first_come_first():
    size = torch.ones(3, 4)
    assert smallest(size, 5).reshape(-1).tolist() == [True] * 5 + [False] * 7
    assert smallest(size, 5, "row").sum(1).tolist() == [2, 2, 1]
    assert smallest(size, 7, "block", 2).sum(0).tolist() == [2, 2, 2, 1]
    size[0, 2] = 0.5
    assert smallest(size, 1, "row").nonzero().tolist() == [[0, 2]]
    size[2, 1] = 0.1
    assert smallest(size, 4, "row").sum(1).tolist() == [2, 1, 1]  # what comes second is the same: the first row


def test_zeros_that_are_there_go_first():
    W, C = drawn(6, 20), correlated(20)
    W[:, ::3] = 0
    already = int((W == 0).sum())
    for step in STEPS.values():
        assert torch.equal(step(W, C, already, "layer"), W) or step is STEPS["alternate"]
        assert int((step(W, C, already + 10, "layer") == 0).sum()) == already + 10


# Hard cases


def test_a_singular_moment():
    x = drawn(5, 30)  # five positions for thirty inputs
    W, C, notes = drawn(8, 30, seed=1), x.T @ x / 5, []
    for step in (STEPS["obs"], STEPS["alternate"]):
        found = step(W, C, 120, "layer")
        assert torch.isfinite(found).all() and int((found == 0).sum()) == 120
    found = obs(W, C, 120, damping=0, notes=notes)
    assert torch.isfinite(found).all() and "added to the diagonal" in notes[0]
    # 18 numbers a row that stay can make up for all that five positions tell apart
    assert damage(W, found, C) < 1e-6 * damage(W, wanda(W, C, 120, "layer"), C)


def test_weights_of_dead_inputs_go_first():
    x = drawn(300, 30)
    x[:, [7, 20]] = 0
    W, C = drawn(8, 30, seed=1), x.T @ x / 300
    for step in STEPS.values():
        found = step(W, C, 16, "layer", **({} if step is STEPS["wanda"] else {"damping": 1e-9}))
        assert torch.equal(found == 0, (x == 0).all(0).expand(8, 30))
        kept = found != 0
        assert torch.allclose(found[kept], W[kept], atol=1e-5)  # float32 inside, and the damping


def test_cholesky_refuses_what_is_indefinite():
    with pytest.raises(ValueError, match="negative eigenvalues"):
        cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


@EACH
def test_scale_and_dtype(step):
    W, C = drawn(6, 24), correlated(24)
    base = step(W, C, 70, "layer")
    for unit in (2.0**-40, 2.0**40):
        assert torch.equal(step(unit * W, C, 70, "layer"), unit * base)
        assert torch.allclose(step(W, unit * C, 70, "layer"), base)
    half = step(W.to(torch.bfloat16), C.float(), 70, "layer")
    assert half.dtype == torch.bfloat16 and int((half == 0).sum()) == 70
    before = W.clone()
    step(W, C, 70, "row")
    assert torch.equal(W, before)
    assert torch.equal(step(W.T.contiguous().T, C, 70, "layer"), base)  # not contiguous


def test_the_order_of_the_methods_on_correlated_inputs():
    """The claim of the docstrings, on planted moments: 40 x 96 at 60 %, five seeds, each by itself."""
    for seed in range(5):
        W, C = drawn(40, 96, seed=seed), correlated(96, seed=seed)
        k = round(0.6 * W.numel())
        cost = [
            damage(W, new, damped(C))
            for new in (
                alternate(W, C, k),
                obs(W, C, k, block=16),
                obs(W, C, k, scope="block", order="given", block=16),
                wanda(W, C, k, "layer"),
                smallest_to_zero(W, k),
            )
        ]
        assert cost == sorted(cost)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda W, C: obs(W, C), "one of the two"),
        (lambda W, C: obs(W, C, 3, mask=W > 0), "one of the two"),
        (lambda W, C: obs(W, C, 99999), "zeros is a number of entries"),
        (lambda W, C: obs(W, C, 0.5), "zeros is a number of entries"),
        (lambda W, C: obs(W, C, 5, scope="model"), "scope is"),
        (lambda W, C: obs(W, C, 5, order="random"), "order is"),
        (lambda W, C: obs(W, C, 5, block=0), "block is"),
        (lambda W, C: obs(W, C, mask=torch.ones(2, 2)), "a mask is of bool"),
        (lambda W, C: obs(W, C[:3, :3], 5), "are these the moments"),
        (lambda W, C: wanda(W, C, 5, "model"), "scope is"),
        (lambda W, C: wanda(W, C, -1), "zeros is a number of entries"),
        (lambda W, C: alternate(W, C, 5, levels=()), "levels are"),
        (lambda W, C: alternate(W, C, True), "zeros is a number of entries"),
        (lambda W, C: scores(W, C, "best"), "kind is"),
        (lambda W, C: refit(W, W, C), "a mask is of bool"),
        (lambda W, C: obs(W * float("nan"), C, 5), "not finite"),
        (lambda W, C: obs(W, C, 5, damping=-1), "damping is"),
    ],
)
def test_bad_input_is_refused_before_anything_is_done(call, said):
    W, C = drawn(4, 6), correlated(6)
    with pytest.raises(ValueError, match=said):
        call(W, C)


def test_a_metric_that_is_seen_through():
    assert metric(drawn(2, 3), correlated(3)).dense


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_lowest_figures_are_those_of_a_stable_sort(dtype):
    figures = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0)).to(dtype)
    for count in (0, 1, 57, 200):
        chosen = torch.sort(figures, stable=True).indices[:count]
        assert torch.equal(lowest(figures, count).nonzero()[:, 0], chosen.sort().values)
