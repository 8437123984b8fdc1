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
from spectrim.inner.damage import relative_damage
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
    power=st.sampled_from([0, 0.5, 1]),
    score=st.sampled_from(["wanda", "obs"]),
)
def test_the_total_is_exact(seed, share, names, power, score):
    state = model(seed)
    found = survey(state)
    budget = MarginalDamage(seen(state, names), power, score)
    given_ = budget(found, share)
    assert given_.zeros == round(share * total(state))
    assert all(0 <= given_.counts[n] <= state[n].numel() for n in state) and list(given_.counts) == list(state)
    assert budget(found, share) == given_
    for n in set(state) - set(names):
        assert "never called" in given_.reasons[n] and given_.notes
        assert given_.counts[n] == budgets.Uniform()(found, share).counts[n]


@pytest.mark.parametrize("score", ["wanda", "obs"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_it_is_one_sort_of_all_scores(power, score):
    state = model()
    moments = seen(state)
    parts = []
    for name, W in state.items():
        C = moments[name].dense()
        energy = float(torch.trace(W.double() @ C @ W.double().T))
        parts.append((scores(W, C, score) / energy**power).reshape(-1))
    smallest = torch.cat(parts).argsort(stable=True)[: round(0.6 * total(state))]
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor([len(p) for p in parts]))[smallest]
    counts = MarginalDamage(moments, power, score)(survey(state), 0.6).counts
    assert list(counts.values()) == torch.bincount(owner, minlength=3).tolist()


def test_raw_damage_of_white_inputs_is_global_magnitude():
    state = model()
    white = Moments({n: identity(W.shape[1]) for n, W in state.items()}, "identity")
    found = survey(state)
    for share in (0.1, 0.5, 0.9):
        assert MarginalDamage(white)(found, share).counts == budgets.GlobalMagnitude()(found, share).counts
        relative = MarginalDamage(white, 1.0)(found, share).counts
        assert relative == budgets.LayerNormalised()(found, share).counts


def test_units_of_a_layer():
    """A unit of a weight cancels in relative damage; so does one of its inputs. Raw damage sees both."""
    state = model()
    moments, found = seen(state), survey(state)
    scaled = state | {"b": 1024 * state["b"]}
    louder = Moments(dict(moments) | {"b": Moment(1024**2 * moments["b"].second, moments["b"].mean, 99)}, "samples")
    even, raw = MarginalDamage(moments, 1.0), MarginalDamage(moments)
    assert even(found, 0.5).counts == even(survey(scaled), 0.5).counts == MarginalDamage(louder, 1.0)(found, 0.5).counts
    assert raw(survey(scaled), 0.5).counts == MarginalDamage(louder)(found, 0.5).counts != raw(found, 0.5).counts


def test_weights_of_outputs_count():
    state = model()
    base = seen(state)
    first = base["a"]
    heavy = Moment(first.second, first.mean, 99, rows=torch.full((12,), 100.0))
    moments = Moments(dict(base) | {"a": heavy}, "samples")
    found = survey(state)
    assert MarginalDamage(moments)(found, 0.5).counts["a"] < MarginalDamage(base)(found, 0.5).counts["a"]


def test_it_is_least_damage_to_first_order():
    """Raw damage beats the uniform share where the sum of damages is what counts, relative where shares are."""
    state = model()
    moments, found = seen(state), survey(state)

    def cut(counts, relative):
        cost = 0.0
        for n, W in state.items():
            C = Moment(moments[n].diagonal, moments[n].mean, 99)  # the diagonal alone: damage is a sum over entries
            order = scores(W, C, "wanda").reshape(-1).argsort()[: counts[n]]
            new = W.clone()
            new.view(-1)[order] = 0
            share = relative_damage(W, new, C)
            cost += share if relative else share * float((W.double().square() * C.diagonal).sum())
        return cost

    diagonal = Moments({n: Moment(m.diagonal, m.mean, 99) for n, m in moments.items()}, "samples")
    even = budgets.Uniform()(found, 0.5).counts
    raw, relative = (MarginalDamage(diagonal, power)(found, 0.5).counts for power in (0.0, 1.0))
    assert cut(raw, False) < min(cut(even, False), cut(relative, False))
    assert cut(relative, True) < min(cut(even, True), cut(raw, True))


def test_dead_layers_and_empty_outputs():
    state = model()
    base = seen(state)
    dead = Moments(dict(base) | {"a": Moment(torch.zeros(20, 20), torch.zeros(20), 99)}, "samples")
    given_ = MarginalDamage(dead)(survey(state), 0.5)
    assert given_.counts["a"] == 120 and "zero at every position" in given_.reasons["a"]
    assert given_.zeros == round(0.5 * total(state))


def test_it_plans_and_trims():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24))
    x = torch.randn(64, 24)
    hidden = net[0](x).relu().detach()
    moments = Moments(
        {"0": Moment(x.T @ x / 64, x.mean(0), 64), "2": Moment(hidden.T @ hidden / 64, hidden.mean(0), 64)}, "samples"
    )
    made = plan(survey(net), zeros=0.5, budget=MarginalDamage(moments, 1.0))
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
        ({"power": float("nan")}, ValueError),
        ({"score": "best"}, ValueError),
        ({"damping": -1.0}, ValueError),
    ):
        with pytest.raises(error):
            MarginalDamage(**({"moments": moments} | wrong))
    other = Moments({"a": identity(7)}, "identity")
    with pytest.raises(ValueError, match="of another model"):
        MarginalDamage(other)(survey(state), 0.5)
    assert (
        repr(MarginalDamage(moments)) == f"MarginalDamage(samples {moments.fingerprint[:12]}, power=0, score='wanda')"
    )
