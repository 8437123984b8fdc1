"""The budget by marginal damage: exact totals, a literal twin, its limits, and matrices without moments."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrim import budgets, plan, survey, trim
from spectrim.budgets.allotment import evened
from spectrim.budgets.marginal import MarginalDamage
from spectrim.inner.obs import scores
from spectrim.moments import Moment, Moments, identity

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"a": (12, 20), "b": (20, 14), "c": (16, 16)}


def model(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=g) * 3**i for i, (n, shape) in enumerate(SHAPES.items())}


def seen(state, names=tuple(SHAPES), seed=1):
    g = torch.Generator().manual_seed(seed)
    found = {}
    for i, name in enumerate(names):
        cols = state[name].shape[1]
        x = torch.randn(99, cols, generator=g) * torch.linspace(0.2, 2, cols) / 2**i
        found[name] = Moment(x.T @ x / 99, x.mean(0), 99)
    return Moments(found, "samples", missing={n: "the layer was never called" for n in state if n not in names})


def total(state):
    return sum(W.numel() for W in state.values())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    share=st.one_of(st.sampled_from([0, 1, 0.5]), st.floats(0, 1)),
    names=st.sampled_from([("a", "b", "c"), ("b",), ("a", "c"), ()]),
    trust=st.sampled_from([0, 0.5, 1]),
)
def test_the_total_is_exact(seed, share, names, trust):
    state = model(seed)
    found = survey(state)
    budget = MarginalDamage(seen(state, names), trust)
    given_ = budget(found, share)
    assert given_.zeros == round(share * total(state))
    assert all(0 <= given_.counts[n] <= state[n].numel() for n in state) and list(given_.counts) == list(state)
    assert budget(found, share) == given_
    for n in set(state) - set(names):
        assert "never called" in given_.reasons[n] and given_.notes
        assert given_.counts[n] == budgets.Uniform()(found, share).counts[n]


@pytest.mark.parametrize("trust", [0.0, 0.5, 1.0])
def test_it_is_one_sort_of_all_scores(trust):
    state = model()
    base = seen(state)
    moments = Moments(
        {n: Moment(m.second, m.mean, 99, rows=torch.rand(len(state[n]))) for n, m in base.items()}, "samples"
    )
    parts = []
    for name, W in state.items():
        C, s = moments[name].dense(), moments[name].rows.double()
        parts.append((W.double() ** 2 * (s[:, None] * C.diagonal()) ** trust).reshape(-1))
    smallest = torch.cat(parts).argsort(stable=True)[: round(0.6 * total(state))]
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([len(p) for p in parts]))[smallest]
    counts = MarginalDamage(moments, trust)(survey(state), 0.6).counts
    assert list(counts.values()) == torch.bincount(owner, minlength=3).tolist()


def test_without_trust_or_with_white_inputs_it_is_global_magnitude():
    state = model()
    white = Moments({n: identity(W.shape[1]) for n, W in state.items()}, "identity")
    found = survey(state)
    for share in (0.1, 0.5, 0.9):
        for budget in (MarginalDamage(white, 1), MarginalDamage(white), MarginalDamage(seen(state), 0)):
            assert budget(found, share).counts == budgets.GlobalMagnitude()(found, share).counts


def test_units_of_a_layer():
    """Inputs measured in another unit, and a matrix that makes up for it, are the same layer; at full trust."""
    state = model()
    moments, found = seen(state), survey(state)
    scaled = state | {"b": state["b"] / 1024}
    louder = Moments(dict(moments) | {"b": Moment(1024**2 * moments["b"].second, moments["b"].mean, 99)}, "samples")
    assert MarginalDamage(louder, 1)(survey(scaled), 0.5).counts == MarginalDamage(moments, 1)(found, 0.5).counts
    assert MarginalDamage(louder, 1)(found, 0.5).counts != MarginalDamage(moments, 1)(found, 0.5).counts


def test_weights_of_outputs_count():
    state = model()
    base = seen(state)
    first = base["a"]
    heavy = Moment(first.second, first.mean, 99, rows=torch.full((12,), 100.0))
    moments = Moments(dict(base) | {"a": heavy}, "samples")
    found = survey(state)
    assert MarginalDamage(moments)(found, 0.5).counts["a"] < MarginalDamage(base)(found, 0.5).counts["a"]


def test_at_full_trust_no_other_shares_cost_less():
    """Of a diagonal C damage is a sum over entries, and one threshold has the least of it."""
    state = model()
    diagonal = Moments({n: Moment(m.diagonal, m.mean, 99) for n, m in seen(state).items()}, "samples")

    def cost(counts):
        parts = (scores(W, diagonal[n], "wanda").reshape(-1).sort().values[: counts[n]] for n, W in state.items())
        return sum(float(part.sum()) for part in parts)

    found = survey(state)
    best = cost(MarginalDamage(diagonal, 1)(found, 0.5).counts)
    half, none, even = (
        b(found, 0.5).counts for b in (MarginalDamage(diagonal), MarginalDamage(diagonal, 0), budgets.Uniform())
    )
    assert best < min(cost(half), cost(even)) and cost(half) < cost(none)


def test_dead_layers_and_empty_outputs():
    state = model()
    base = seen(state)
    dead = Moments(dict(base) | {"a": Moment(torch.zeros(20, 20), torch.zeros(20), 99)}, "samples")
    given_ = MarginalDamage(dead)(survey(state), 0.5)
    assert given_.counts["a"] == 120 and "zero at every position" in given_.reasons["a"]
    assert given_.zeros == round(0.5 * total(state))


def test_without_a_weight_among_weights_it_is_the_share_of_all():
    state = model()
    base = seen(state)
    rows = {n: torch.full((len(state[n]),), 1e-4) for n in ("a", "b")}
    found = MarginalDamage(Moments(dict(base), "samples", rows=rows))(survey(state), 0.5)
    assert found.counts["c"] == 128 and "weigh" in found.reasons["c"] and found.zeros == round(0.5 * total(state))


def test_it_plans_and_trims():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24))
    x = torch.randn(64, 24)
    hidden = net[0](x).relu().detach()
    moments = Moments(
        {"0": Moment(x.T @ x / 64, x.mean(0), 64), "2": Moment(hidden.T @ hidden / 64, hidden.mean(0), 64)}, "samples"
    )
    made = plan(survey(net), zeros=0.5, budget=MarginalDamage(moments))
    assert "samples" in str(made.budget) and moments.fingerprint[:12] in str(made.budget)
    done = trim(net, made)
    assert sum(int((done.model[i].weight == 0).sum()) for i in (0, 2)) == 960


def test_moments_are_of_the_matrix_as_it_is():
    """In the evened-out basis too: which entries cost what on real inputs does not depend on how a spectrum is read."""
    state = model()
    found = survey(state, equalize=True)
    budget = MarginalDamage(seen(state))
    assert budget(evened(found), 0.5).counts == budget(found, 0.5).counts


def test_bad_input():
    state = model()
    moments = seen(state)
    for wrong, error in (
        ({"moments": dict(moments)}, TypeError),
        ({"trust": float("nan")}, ValueError),
        ({"trust": 1.5}, ValueError),
        ({"trust": True}, ValueError),
    ):
        with pytest.raises(error):
            MarginalDamage(**({"moments": moments} | wrong))
    other = Moments({"a": identity(7)}, "identity")
    with pytest.raises(ValueError, match="of another model"):
        MarginalDamage(other)(survey(state), 0.5)
    assert repr(MarginalDamage(moments)) == f"MarginalDamage(samples {moments.fingerprint[:12]}, trust=0.5)"
