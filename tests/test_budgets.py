"""Budgets of zeros: one suite for all of them, then literal twins, references worked by hand, and the fit gate."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from spectrim import NoiseFit, Reading, Spectrum, Survey, budgets, equalize, plan, planted, survey, trim
from spectrim.budgets import thresholds
from spectrim.budgets.allotment import NONE, asked, candidates, lifted, share_out
from spectrim.budgets.damage import Norm, Size, signal
from spectrim.budgets.spectral_edge import is_attention
from spectrim.budgets.thresholds import magnitudes, threshold_counts
from spectrim.edges import Bema, Median
from spectrim.laws import critical_strength, observed
from spectrim.survey import open_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Every member, with the settings that change its way of counting. scale: counts stand when one matrix is rescaled;
# monotone: more zeros in all are never fewer in one.
MEMBERS = {
    "uniform": (budgets.Uniform(), True, True),
    "global": (budgets.GlobalMagnitude(), False, True),
    "lamp": (budgets.Lamp(), True, True),
    "erdos-renyi": (budgets.ErdosRenyi(), True, True),
    "layer-normalised": (budgets.LayerNormalised(), True, True),
    "spectral-edge": (budgets.SpectralEdge(), False, False),
    "spectral-edge sigma": (budgets.SpectralEdge(signal="sigma", end=0.9, gate=1.0), False, False),
    "spectral-edge relative": (budgets.SpectralEdge(signal="relative edge", beta_mlp=9.0, gate=1.0), False, False),
    "heavy-tail": (budgets.HeavyTail(), True, True),
    "heavy-tail wide": (budgets.HeavyTail(tau=1.0), True, True),
    "misfit": (budgets.Misfit(), True, True),
    "bulk-share": (budgets.BulkShare(), True, True),
    "bulk-share alone": (budgets.BulkShare(cycle=2, misfit=False, gate=0.1), True, True),
    "least-damage": (budgets.LeastDamage(), True, True),
    "least-damage spectral": (budgets.LeastDamage(1.0, "spectral"), True, True),
    "least-damage edge": (budgets.LeastDamage(-0.5, "edge", gate=1.0), True, True),
    "least-damage mean square": (budgets.LeastDamage(0.5, "mean square"), True, True),
}
KINDS = {
    "gaussian": lambda g, shape: torch.randn(shape, generator=g),
    "many zeros": lambda g, shape: torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.3),
    "one entry": lambda g, shape: torch.zeros(shape).index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(1.0)),
    "few levels": lambda g, shape: torch.randint(-3, 4, shape, generator=g).float(),
    "signs": lambda g, shape: torch.randint(0, 2, shape, generator=g).float() * 2 - 1,
    "tiny": lambda g, shape: torch.randn(shape, generator=g) * 1e-40,
    "wide": lambda g, shape: torch.exp(20 * torch.randn(shape, generator=g)),
}
EACH = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def fit(edge: float, spikes: int = 0, misfit: float | None = 0.01, sigma: float | None = 1.0) -> NoiseFit:
    return NoiseFit(sigma, edge, None, misfit, spikes, "Test()")


def surveyed(state: dict[str, torch.Tensor], fits: dict[str, NoiseFit] | None = None) -> Survey:
    """A survey of these matrices with verdicts that are given, or an edge at twice the root mean square value."""
    readings = []
    for name, W in state.items():
        s = torch.linalg.svdvals(W.double()).numpy()
        edge = 1.2 * math.sqrt(float((s**2).mean())) or 1.0
        found = (fits or {}).get(name) or fit(edge, int((s > edge).sum()), sigma=edge / 2)
        readings.append(Reading(name, "linear", *W.shape, Spectrum(s, *W.shape), found, params=W.numel()))
    params = sum(W.numel() for W in state.values())
    return Survey("net", tuple(readings), params, 4 * params, "Test()", False, 0.1, open_model(dict(state)))


@st.composite
def models(draw, kinds=tuple(KINDS)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    state = {}
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.one_of(st.tuples(st.integers(2, 9), st.integers(2, 9)), st.sampled_from([(10, 14), (13, 11)])))
        W = KINDS[draw(st.sampled_from(kinds))](generator, shape) * draw(st.sampled_from([1.0, 1.0, 0.25, 8.0]))
        name = draw(st.sampled_from(["attn.q_proj", "mlp.fc1"])) + f".{i}"
        state[name] = torch.nan_to_num(W.to(draw(st.sampled_from(DTYPES))), posinf=6e4)
    return state


def total(state: dict[str, torch.Tensor]) -> int:
    return sum(W.numel() for W in state.values())


# The suite


@EACH
@settings(max_examples=12, deadline=None)
@given(state=models(), share=st.one_of(st.sampled_from([0, 1, 0.5, 0.2]), st.floats(0, 1)))
def test_the_total_is_exact_and_nobody_gives_more_than_it_has(member, state, share):
    given_ = member[0](surveyed(state), share)
    assert sum(given_.counts.values()) == given_.zeros == round(share * total(state))
    assert list(given_.counts) == list(state)
    assert all(type(n) is int and 0 <= n <= state[name].numel() for name, n in given_.counts.items())
    assert set(given_.reasons) <= set(state)
    assert member[0](surveyed(state), share) == given_  # and again


@EACH
@settings(max_examples=8, deadline=None)
@given(state=models(("gaussian", "few levels", "many zeros")), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_in_all_is_never_fewer_in_one(member, state, shares):
    budget, _, monotone = member
    fewer, more = (budget(surveyed(state), share).counts for share in sorted(shares))
    if monotone:
        assert all(fewer[name] <= more[name] for name in state)


@EACH
@settings(max_examples=6, deadline=None)
@given(state=models(("gaussian", "few levels")), share=st.floats(0, 1), power=st.integers(-12, 12))
def test_a_unit_changes_nothing(member, state, share, power):
    """By a power of two, which rounds nothing in float64, where even the smallest of these are far from underflow."""
    state = {name: W.double() for name, W in state.items()}
    scaled = {name: W * 2.0**power for name, W in state.items()}
    assert member[0](surveyed(state), share).counts == member[0](surveyed(scaled), share).counts


@EACH
@settings(max_examples=6, deadline=None)
@given(state=models(("gaussian",)), share=st.floats(0, 1), power=st.integers(-12, 12))
def test_the_unit_of_one_matrix_matters_only_to_those_that_say_so(member, state, share, power):
    budget, invariant, _ = member
    state = {name: W.double() for name, W in state.items()}
    first = next(iter(state))
    scaled = state | {first: state[first] * 2.0**power}
    before, after = budget(surveyed(state), share), budget(surveyed(scaled), share)
    if invariant and before.notes != (NONE,):  # where nothing fits it is plain magnitude
        assert before.counts == after.counts


@EACH
@settings(max_examples=6, deadline=None)
@given(state=models(("gaussian",)), share=st.floats(0, 1))
def test_the_order_of_the_matrices_matters_for_ties_only(member, state, share):
    state = {name: W + 1e-3 * torch.rand(W.shape).double() for name, W in state.items()}
    turned = dict(reversed(state.items()))
    counts, back = member[0](surveyed(state), share).counts, member[0](surveyed(turned), share).counts
    assert all(abs(counts[name] - back[name]) <= 1 for name in state)
    if isinstance(member[0], budgets.GlobalMagnitude | budgets.LayerNormalised):  # the last entries of all tie in LAMP
        assert counts == {name: back[name] for name in counts}


@EACH
def test_the_order_of_entries_within_a_matrix_does_not_matter(member):
    generator = torch.Generator().manual_seed(0)
    state = {f"m{i}": torch.randn(12, 15 + i, generator=generator).bfloat16() for i in range(3)}
    turned = {name: W[torch.randperm(12, generator=generator)] for name, W in state.items()}
    assert member[0](surveyed(state), 0.55).counts == member[0](surveyed(turned), 0.55).counts


@EACH
@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, True, "half", None])
def test_a_share_outside_is_refused(member, share):
    with pytest.raises((ValueError, TypeError), match=r"lies in \[0, 1\]"):
        member[0](surveyed({"m": torch.randn(12, 15)}), share)


@EACH
def test_a_survey_without_matrices_is_refused(member):
    with pytest.raises(ValueError, match="no matrix with a verdict"):
        member[0](survey({"a": torch.zeros(30, 30)}), 0.5)


@EACH
def test_it_is_a_configuration(member):
    budget = member[0]
    space = {name: getattr(budgets, name) for name in budgets.__all__}
    assert eval(repr(budget), space) == budget
    with pytest.raises(AttributeError):
        budget.gate = 3  # frozen


def test_every_budget_is_in_the_suite():
    found = {type(budget).__name__ for budget, _, _ in MEMBERS.values()}
    classes = {name for name in budgets.__all__ if isinstance(getattr(budgets, name), type)}
    assert found == classes - {"Allotment", "Target", "MarginalDamage"}  # the last needs moments: test_budgets_marginal


def test_those_that_say_so_do_depend_on_the_unit_of_one_matrix():
    """So that the suite's exceptions are none for want of looking."""
    generator = torch.Generator().manual_seed(3)
    state = {f"m{i}": torch.randn(12, 15, generator=generator) for i in range(3)}
    scaled = state | {"m0": 4 * state["m0"]}
    for budget, invariant, _ in MEMBERS.values():
        if not invariant:
            assert budget(surveyed(state), 0.3).counts != budget(surveyed(scaled), 0.3).counts


# Literal twins: all scores in one list, sorted


def one_sort(scores: dict[str, np.ndarray], zeros: int) -> dict[str, int]:
    owner = np.concatenate([np.full(x.size, i) for i, x in enumerate(scores.values())])
    order = np.argsort(np.concatenate([x.ravel() for x in scores.values()]), kind="stable")[:zeros]
    return dict(zip(scores, np.bincount(owner[order], minlength=len(scores)).tolist(), strict=True))


def lamp_scores(W: np.ndarray) -> np.ndarray:
    squares = np.sort(W.ravel() ** 2)
    return np.array([x / squares[i:].sum() if x else 0.0 for i, x in enumerate(squares)])


def edge_scores(state: dict[str, np.ndarray], edges: dict[str, float], betas: tuple, share: float, end: float) -> dict:
    mean, sd = np.mean(list(edges.values())), np.std(list(edges.values()))
    scores = {}
    for name, W in state.items():
        beta = betas[0] if "attn" in name else betas[1]
        w = max(0.1, 1 + beta * (edges[name] - mean) / sd * max(0, 1 - share / end)) if name in edges else 1
        scores[name] = np.abs(W) / w
    return scores


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "many zeros", "few levels", "wide"])
def test_counts_are_those_of_one_sorted_list(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn": (17, 19), "mlp.0": (22, 15), "mlp.1": (13, 40)}
    state = {n: torch.nan_to_num(KINDS[kind](generator, s).to(dtype), posinf=6e4) for n, s in shapes.items()}
    found, plain = surveyed(state), {name: W.double().numpy() for name, W in state.items()}
    magnitude = {name: np.abs(W) for name, W in plain.items()}
    normed = {name: np.abs(W) / np.linalg.norm(W) for name, W in plain.items()}
    edges = {r.name: r.fit.edge for r in found.fitted}
    edge = budgets.SpectralEdge(signal="edge", beta_attention=0.5, beta_mlp=1.0, end=0.9)
    for share in (0.01, 0.2, 0.5, 0.7, 0.95):
        zeros = round(share * total(state))
        assert budgets.GlobalMagnitude()(found, share).counts == one_sort(magnitude, zeros)
        assert budgets.LayerNormalised()(found, share).counts == one_sort(normed, zeros)
        assert budgets.Lamp()(found, share).counts == one_sort({n: lamp_scores(W) for n, W in plain.items()}, zeros)
        scores = edge_scores(plain, edges, (0.5, 1.0), share, 0.9)
        assert edge(found, share).counts == one_sort(scores, zeros)


@settings(max_examples=40, deadline=None)
@given(state=models(), zeros=st.integers(0, 600), held=st.sampled_from([0, 1, 7, 1 << 22]))
def test_a_threshold_is_that_of_one_sorted_list_however_many_are_held(state, zeros, held):
    zeros = min(zeros, total(state))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "HELD", held)
        patch.setattr(thresholds, "BLOCK", 50)
        counts = threshold_counts([magnitudes(lambda W=W: W) for W in state.values()], zeros)
    assert counts == list(one_sort({n: W.double().abs().numpy() for n, W in state.items()}, zeros).values())


def test_float64_is_told_apart_below_float32():
    """Neighbours in float64 are equal in float32; the order must still be theirs."""
    first = torch.tensor([[1.0 + 2e-12, 1.0 + 4e-12]], dtype=torch.float64)
    second = torch.tensor([[1.0 + 1e-12, 1.0 + 3e-12]], dtype=torch.float64)
    readers = [magnitudes(lambda: first), magnitudes(lambda: second)]
    assert [threshold_counts(readers, n) for n in (1, 2, 3)] == [[0, 1], [1, 1], [1, 2]]


def test_equal_scores_are_taken_in_the_order_of_the_model():
    state = {name: torch.ones(3, 4) for name in "abc"}
    assert budgets.GlobalMagnitude()(surveyed(state), 0.5).counts == {"a": 12, "b": 6, "c": 0}
    assert budgets.GlobalMagnitude()(surveyed(dict(reversed(state.items()))), 0.5).counts == {"c": 12, "b": 6, "a": 0}


@EACH
def test_looking_changes_no_matrix(member):
    """Scores are worked out in place where that is cheap: never in place of the model."""
    net = nn.Sequential(nn.Linear(15, 12).double(), nn.Linear(12, 14).float(), nn.Linear(14, 12).bfloat16())
    state = {f"m{i}": layer.weight.detach() for i, layer in enumerate(net)}
    before = {name: W.clone() for name, W in state.items()}
    member[0](surveyed(state), 0.4)
    assert all(torch.equal(W, before[name]) for name, W in state.items())


def test_more_zeros_than_entries_are_refused():
    with pytest.raises(ValueError, match="13 zeros are asked of 12 entries"):
        threshold_counts([magnitudes(lambda: torch.ones(3, 4))], 13)


def test_lamp_empties_no_matrix_while_another_holds_two_entries():
    state = {"few": torch.full((3, 4), 1e-3), "many": torch.randn(30, 40) + 5}
    for left, few in ((2, 11), (3, 10)):  # the last but one of equal entries is half of what is left: more than most
        assert budgets.Lamp()(surveyed(state), 1 - left / total(state)).counts["few"] == few


def signal_of(s, fit, rows, cols):
    """The root of Sigma l^2, each l the root of observed(l) = s, by bisection; the edge where there is no spike."""
    p, n = sorted((rows, cols))
    unit, least = fit.sigma * math.sqrt(n), critical_strength(p / n)
    strengths = [brentq(lambda x, y=y: float(observed(x, p / n)) - y, least, 2 * y) if y > float(observed(least, p / n))
                 else least for y in s[s > fit.edge] / unit]  # fmt: skip
    return unit * math.sqrt(sum(x**2 for x in strengths) or least**2)


def test_least_damage_is_least():
    """Against every way to share the zeros over two matrices; and the names for the same thing agree."""
    generator = torch.Generator().manual_seed(5)
    state = {"a": torch.randn(12, 15, generator=generator), "b": 3 * torch.randn(14, 10, generator=generator)}
    found = surveyed(state)

    def damage(counts, budget):
        lost = 0.0
        for r in found.fitted:
            W = np.sort(state[r.name].double().numpy().ravel() ** 2)
            s = r.spectrum.s
            norm = {"spectral": s[0], "frobenius": math.sqrt(W.sum()), "mean square": math.sqrt(W.mean()),
                    "edge": r.fit.edge, "spikes": math.sqrt((s[s > r.fit.edge] ** 2).sum()),
                    "top tenth": math.sqrt((s[: {12: 2, 10: 1}[len(s)]] ** 2).sum()),
                    "signal": signal_of(s, r.fit, r.rows, r.cols)}  # fmt: skip
            size = W.size if budget.size == "entries" else max(r.rows, r.cols)
            lost += size**budget.power * W[: counts[r.name]].sum() / norm[budget.norm] ** 2
        return lost

    for norm, size in product(get_args(Norm), get_args(Size)):
        for power in (0.0, 1.0, -0.7, 0.5):
            budget = budgets.LeastDamage(power, norm, size)
            counts = budget(found, 0.5).counts
            ways = [{"a": n, "b": 160 - n} for n in range(20, 161)]
            assert counts == min(ways, key=lambda way: damage(way, budget))
    assert budgets.LeastDamage(1.0, "mean square")(found, 0.4).counts != budgets.LayerNormalised()(found, 0.4).counts
    assert (
        budgets.LeastDamage(-1.0, "mean square", "entries")(found, 0.4).counts
        == budgets.LayerNormalised()(found, 0.4).counts
    )


def test_large_powers_stay_finite():
    generator = torch.Generator().manual_seed(6)
    state = {"a": torch.randn(30, 40, generator=generator), "b": torch.randn(30, 80, generator=generator)}
    assert budgets.LeastDamage(power=700.0)(surveyed(state), 0.3).counts == {"a": 1080, "b": 0}


def test_the_first_spike_changes_little():
    """The norm is continuous there: a matrix with no spike counts like one whose only spike has just appeared."""
    state, norms = {"a": torch.randn(20, 80, generator=torch.Generator().manual_seed(7))}, []
    s = torch.linalg.svdvals(state["a"].double()).numpy()
    for edge in (s[0] * 1.0001, s[0] * 0.9999):
        sigma = edge / (math.sqrt(80) + math.sqrt(20))
        (target,) = budgets.candidates(surveyed(state, {"a": fit(edge, int((s > edge).sum()), sigma)}))
        norms.append(signal(target))
    assert norms[1] == pytest.approx(norms[0], rel=0.03)


def test_the_signal_is_the_one_that_was_planted():
    """Eight strong directions in 200 x 400 noise. The map back is exact for large matrices; here within two percent."""
    strengths = math.sqrt(400) * np.array([2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0])
    made = planted.planted(200, 400, strengths, generator=np.random.default_rng(3))
    (target,) = budgets.candidates(survey({"a": torch.from_numpy(made.W)}))
    whole = math.sqrt(float((made.strengths**2).sum()))
    assert abs(signal(target) / whole - 1) < 0.02
    assert signal(target) < 0.9 * target.norm


# Rounding and room

WEIGHTS = st.one_of(st.just(0.0), st.floats(1e-3, 10))


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.tuples(WEIGHTS, st.integers(0, 40)), min_size=1, max_size=6), part=st.floats(0, 1))
def test_what_is_shared_out_is_websters_rule(places, part):
    """One after the other to the place whose next one is worth most."""
    weights, room = [w for w, _ in places], [r for _, r in places]
    wanted = round(part * sum(room))
    given_ = [0] * len(places)
    for _ in range(wanted):
        values = [
            ((w / (k + 0.5) if w > 0 else 0.0), w > 0, (r / (k + 0.5)) if w == 0 else 0.0, -i)
            for i, (w, r, k) in enumerate(zip(weights, room, given_, strict=True))
            if k < r
        ]
        i = -max(values, key=lambda v: (v[1], v[0], v[2], v[3]))[3]
        given_[i] += 1
    found = share_out(weights, room, wanted)
    assert sum(found) == wanted
    assert all(abs(a - b) <= (1 if w else 2) for a, b, w in zip(found, given_, weights, strict=True))
    if len(set(weights)) == len(weights):
        values = [w / (k - 0.5) for w, k in zip(weights, found, strict=True) if k and w]  # the last that each got
        refused = [w / (k + 0.5) for w, k, r in zip(weights, found, room, strict=True) if k < r]
        assert not values or not refused or min(values) >= max(refused) * (1 - 1e-12)


def test_shares_are_the_weights_where_there_is_room():
    assert share_out([1.0, 2.0, 3.0], [100] * 3, 60) == [10, 20, 30]
    assert share_out([1.0, 2.0, 3.0], [100, 5, 100], 65) == [15, 5, 45]  # the excess goes on in proportion
    assert share_out([0.0, 1.0, 0.0], [10, 10, 30], 18) == [2, 10, 6]  # weight zero last, by room
    assert share_out([1.0] * 3, [5] * 3, 2) == [1, 1, 0]  # ties in order
    assert share_out([1e-300, 1e300], [5, 5], 6) == [1, 5]
    for total_ in (-1, 16):
        with pytest.raises(ValueError, match="cannot be shared out"):
            share_out([1.0] * 3, [5] * 3, total_)


# References worked by hand


def test_erdos_renyi_by_hand():
    """30 of 100 percent kept: 960 of 3200 + 800 entries in proportion to 120 and 60 are 800 and 400."""
    state = {"a": torch.randn(40, 80), "b": torch.randn(20, 40)}
    assert budgets.ErdosRenyi()(surveyed(state), 0.7).counts == {"a": 2400, "b": 400}
    state["c"] = torch.randn(10, 12)  # 22 of 202 parts of 2060 are 224 > 120: it stays whole, the rest is shared anew
    counts = budgets.ErdosRenyi()(surveyed(state), 0.5).counts
    assert counts["c"] == 0 and counts == {"a": 3200 - 1293, "b": 800 - 647, "c": 0}


def test_erdos_renyi_knows_kernels():
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 1), nn.Linear(64, 40))
    parts = [(32 + 16 + 3 + 3), (64 + 32 + 1 + 1), (40 + 64)]  # kept in proportion: entries times density
    matrices = [32 + 144, 64 + 32, 40 + 64]
    room = [32 * 144, 64 * 32, 40 * 64]
    for budget, sides in ((budgets.ErdosRenyi(), parts), (budgets.ErdosRenyi(kernels=False), matrices)):
        counts = budget(survey(net, edge=Median()), 0.8).counts
        kept = [r - n for r, n in zip(room, counts.values(), strict=True)]
        assert sum(kept) == sum(room) - round(0.8 * sum(room))
        expected = [x / sum(sides) * sum(kept) for x in sides]
        assert kept == pytest.approx(expected, abs=1)


def test_heavy_tails_by_hand():
    """Eigenvalues i^-p have Hill exponents that rise as p falls; the shares are a straight line of them."""
    state, alphas = {}, {}
    for name, p in (("steep", 2.0), ("middle", 1.2), ("flat", 0.7)):
        x = np.arange(1, 21) ** -p
        state[name] = torch.diag(torch.from_numpy(np.sqrt(x)))
        alphas[name] = 1 + 10 / sum(math.log(x[i] / x[10]) for i in range(10))
    least, largest = min(alphas.values()), max(alphas.values())
    assert least == alphas["steep"] and largest == alphas["flat"]
    shares = {name: 0.7 + 0.6 * (alpha - least) / (largest - least) for name, alpha in alphas.items()}
    eta = 0.4 * 3 / sum(shares.values())
    found = budgets.HeavyTail(tau=0.3)(surveyed(state), 0.4)
    for name, n in found.counts.items():
        assert n == pytest.approx(400 * eta * shares[name], abs=1)
        assert found.reasons[name] == f"exponent {alphas[name]:.2f}"
    assert budgets.HeavyTail(tau=0)(surveyed(state), 0.4).counts == budgets.Uniform()(surveyed(state), 0.4).counts


def test_a_matrix_without_a_tail_gets_the_mean_share():
    state = {"a": torch.randn(12, 15), "b": 2 * torch.randn(15, 12), "flat": torch.eye(14)}
    found = budgets.HeavyTail(tau=0.5)(surveyed(state), 0.5)
    assert "no exponent" in found.reasons["flat"] and "mean share" in found.notes[0]
    a, b, flat = (found.counts[name] / state[name].numel() for name in state)
    assert flat == pytest.approx((a + b) / 2, abs=0.01)


def test_the_amounts_of_the_classical_procedure_by_hand():
    state = {"a": torch.randn(20, 20), "b": torch.randn(20, 25)}
    fits = {"a": fit(1.0, 4, 0.3), "b": fit(1.0, 1, 0.05)}
    found = surveyed(state, fits)
    for i in (1, 3):
        for budget, (a, b) in {
            budgets.BulkShare(cycle=i): (0.7 * 0.8, 0.95 * 0.95),
            budgets.BulkShare(cycle=i, misfit=False): (0.8, 0.95),
            budgets.Misfit(cycle=i): (0.7, 0.95),
        }.items():
            a, b = 400 * a ** (1.5 / i), 500 * b ** (1.5 / i)
            counts = budget(found, 0.3).counts
            assert counts["a"] == pytest.approx(270 * a / (a + b), abs=0.51)
    # At 90 % the second matrix is full, and the first gives the rest.
    assert budgets.BulkShare()(found, 0.95).counts == {"a": 355, "b": 500}


@pytest.mark.parametrize(
    ("share", "signal", "betas", "end"),
    [(0.1, "exponent", (0.5, 0.5), 0.3), (0.2, "exponent", (0.5, 0.5), 0.3), (0.21, "edge", (1.0, 1.0), 0.5),
     (0.4, "edge", (1.0, 1.0), 0.5), (0.5, "edge", (1.25, 1.25), 0.7), (0.55, "edge", (1.25, 1.25), 0.7),
     (0.6, "edge", (1.0, 2.0), 0.85), (0.8, "edge", (1.0, 2.0), 0.85), (0.9, "edge", (1.0, 2.0), 0.85)],
)  # fmt: skip
def test_the_four_regimes(share, signal, betas, end):
    generator = torch.Generator().manual_seed(2)
    state = {"attn": torch.randn(20, 30, generator=generator), "mlp": 2 * torch.randn(30, 20, generator=generator),
             "mlp.more": torch.randn(20, 25, generator=generator) + 1}  # fmt: skip
    found = surveyed(state)
    fixed = budgets.SpectralEdge(signal, *betas, end)
    assert budgets.SpectralEdge()(found, share).counts == fixed(found, share).counts
    scores = {name: np.abs(W.double().numpy()) for name, W in state.items()}
    if signal == "edge":
        edges = {r.name: r.fit.edge for r in found.fitted}
        scores = edge_scores({n: W.double().numpy() for n, W in state.items()}, edges, betas, share, end)
        assert fixed(found, share).counts == one_sort(scores, round(share * total(state)))
    same = budgets.GlobalMagnitude()(found, share).counts == fixed(found, share).counts
    assert same is (share >= end)
    assert any("is plain magnitude" in note for note in fixed(found, share).notes) is (share >= end)


def test_without_strength_the_edge_is_plain_magnitude():
    state = {"a": torch.randn(20, 30), "b": 2 * torch.randn(30, 20)}
    none = budgets.SpectralEdge(beta_attention=0, beta_mlp=0)
    assert none(surveyed(state), 0.5).counts == budgets.GlobalMagnitude()(surveyed(state), 0.5).counts
    alone = {"a": state["a"]}
    assert budgets.SpectralEdge()(surveyed(alone), 0.5).counts == {"a": 300}  # one matrix has no sd


ATTENTION = {
    "blocks.0.attn.qkv[q]": True,
    "blocks.0.attn.qkv[k.11]": True,
    "blocks.0.attn.proj": True,
    "blocks.0.mlp.fc1": False,
    "patch_embed.proj": False,
    "head": False,
    "encoder.layer.0.attention.self.query": True,
    "encoder.layer.0.attention.output.dense": True,
    "encoder.layer.0.intermediate.dense": False,
    "encoder.layer.0.output.dense": False,
    "transformer.layer.1.attention.q_lin": True,
    "transformer.layer.1.ffn.lin1": False,
    "model.encoder.layers.0.self_attn.q_proj": True,
    "model.decoder.layers.0.encoder_attn.out_proj": True,
    "model.decoder.layers.0.fc2": False,
    "h.0.attn.c_attn[v]": True,
    "h.0.attn.c_proj": True,
    "h.0.mlp.c_proj": False,
    "encoder.block.0.layer.0.SelfAttention.o": True,
    "encoder.block.0.layer.1.DenseReluDense.wi": False,
    "layers.0.self_attn.in_proj_weight[k]": True,
    "layers.0.linear1": False,
    "model.layers.3.mlp.gate_proj": False,
    "model.layers.3.block_sparse_moe.experts.1.w1": False,
    "attention_block.mlp.fc1": False,
    "layer4.1.conv2": False,
    "(model)": False,
    "": False,
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_told_by_name(name):
    assert is_attention(name) is ATTENTION[name]


def test_the_user_may_tell_attention():
    generator = torch.Generator().manual_seed(2)
    state = {"one": torch.randn(20, 30, generator=generator), "two": 2 * torch.randn(30, 20, generator=generator)}
    how = {"signal": "edge", "end": 0.9, "beta_attention": 0.0, "beta_mlp": 1.0}
    mine = budgets.SpectralEdge(**how, attention=lambda name: name == "two")
    plain = {name: W.double().numpy() for name, W in state.items()}
    edges = {r.name: r.fit.edge for r in surveyed(state).fitted}
    renamed = {"one": "one", "two": "attn"}
    scores = edge_scores({renamed[n]: W for n, W in plain.items()}, {renamed[n]: e for n, e in edges.items()},
                         (0.0, 1.0), 0.5, 0.9)  # fmt: skip
    assert list(mine(surveyed(state), 0.5).counts.values()) == list(one_sort(scores, 600).values())
    assert mine(surveyed(state), 0.5).counts != budgets.SpectralEdge(**how)(surveyed(state), 0.5).counts


# The fit gate


def gated_model() -> tuple[dict[str, torch.Tensor], dict[str, NoiseFit]]:
    generator = torch.Generator().manual_seed(4)
    state = {f"mlp.{i}": (i + 1) * torch.randn(20, 30, generator=generator) for i in range(3)}
    fits = {"mlp.0": fit(10.0, 0, 0.02), "mlp.1": fit(25.0, 0, 0.6), "mlp.2": fit(30.0, 0, 0.03)}
    return state, fits


@pytest.mark.parametrize("budget", [budgets.SpectralEdge(), budgets.LeastDamage(norm="edge"),
                                    budgets.LeastDamage(norm="spikes"), budgets.BulkShare(gate=0.1),
                                    budgets.Misfit(gate=0.1)])  # fmt: skip
def test_what_does_not_fit_falls_back_and_the_budget_says_so(budget):
    state, fits = gated_model()
    found = budget(surveyed(state, fits), 0.5)
    assert "no fit" in found.reasons["mlp.1"] and "misfit 0.600" in found.reasons["mlp.1"]
    assert not any("no fit" in found.reasons[name] for name in ("mlp.0", "mlp.2"))
    (note,) = found.notes
    assert "1 matrix does not fit the law of noise (mlp.1)" in note and "gate=1" in note
    # Its own figures play no part: with any other edge and misfit beyond the gate the outcome is the same.
    other = fits | {"mlp.1": fit(3.0, 0, 0.9)}
    assert budget(surveyed(state, other), 0.5).counts == found.counts
    # Let in, they do.
    opened = type(budget)(**{**budget.__dict__, "gate": 1.0})
    assert opened(surveyed(state, fits), 0.5).counts != opened(surveyed(state, other), 0.5).counts
    assert opened(surveyed(state, fits), 0.5).notes == ()


def test_the_gated_edge_is_that_of_the_others_by_hand():
    state, fits = gated_model()
    budget = budgets.SpectralEdge(signal="edge", beta_mlp=1.0, end=0.9)
    plain = {name: W.double().numpy() for name, W in state.items()}
    edges = {name: fits[name].edge for name in ("mlp.0", "mlp.2")}
    expected = one_sort(edge_scores(plain, edges, (1.0, 1.0), 0.5, 0.9), 900)
    assert budget(surveyed(state, fits), 0.5).counts == expected


@pytest.mark.parametrize("name", ["spectral-edge", "least-damage", "bulk-share alone"])
def test_where_nothing_fits_it_is_plain_magnitude_and_says_so(name):
    budget = MEMBERS[name][0]
    state, fits = gated_model()
    found = budget(surveyed(state, {n: fit(5.0, 0, 0.5) for n in fits}), 0.5)
    assert found.counts == budgets.GlobalMagnitude()(surveyed(state), 0.5).counts
    assert found.notes == (NONE,)
    assert all("misfit 0.500" in why for why in found.reasons.values())


def test_what_does_not_fit_takes_the_usual_share_of_its_norm():
    """The geometric mean of edge / Frobenius norm over the two that fit, by hand; its own scale cancels."""
    state, fits = gated_model()
    whole = {name: float(W.double().norm()) for name, W in state.items()}
    usual = math.sqrt(10.0 / whole["mlp.0"] * 30.0 / whole["mlp.2"])
    norms = {"mlp.0": 10.0, "mlp.1": usual * whole["mlp.1"], "mlp.2": 30.0}
    scores = {name: W.double().abs().numpy() / norms[name] for name, W in state.items()}
    budget = budgets.LeastDamage(norm="edge")
    assert budget(surveyed(state, fits), 0.4).counts == one_sort(scores, round(0.4 * 1800))
    louder = state | {"mlp.1": 8 * state["mlp.1"]}
    assert budget(surveyed(louder, fits), 0.4).counts == budget(surveyed(state, fits), 0.4).counts


def test_the_usual_share_is_the_geometric_mean():
    """Of shares a hundred times apart, where another mean would be another one."""
    state, fits = gated_model()
    fits = fits | {"mlp.0": fit(1.0), "mlp.2": fit(100.0)}
    whole = {name: float(W.double().norm()) for name, W in state.items()}
    shares = [1.0 / whole["mlp.0"], 100.0 / whole["mlp.2"]]
    for usual, same in ((math.sqrt(shares[0] * shares[1]), True), (sum(shares) / 2, False)):
        norms = {"mlp.0": 1.0, "mlp.1": usual * whole["mlp.1"], "mlp.2": 100.0}
        scores = {name: W.double().abs().numpy() / norms[name] for name, W in state.items()}
        found = budgets.LeastDamage(norm="edge")(surveyed(state, fits), 0.6)
        assert (found.counts == one_sort(scores, round(0.6 * 1800))) is same


def test_norms_that_need_no_law_have_no_gate():
    state, fits = gated_model()
    for norm in ("frobenius", "spectral", "mean square"):
        assert budgets.LeastDamage(norm=norm)(surveyed(state, fits), 0.5).notes == ()


def test_odd_verdicts_of_a_users_estimator():
    """No sigma, no misfit, an edge of zero, a matrix of zeros: every budget has an answer."""
    generator = torch.Generator().manual_seed(4)
    state = {name: torch.randn(20, 30, generator=generator) for name in "abc"} | {"d": torch.zeros(20, 30)}
    fits = {"a": fit(10.0, 0, None, None), "b": fit(0.0, 20, 0.5, 0.0), "c": fit(8.0), "d": fit(1.0)}
    found = surveyed(state, fits)
    for budget, _, _ in MEMBERS.values():
        for gate in (0.1, 1.0):
            changed = type(budget)(**{**budget.__dict__, "gate": gate}) if hasattr(budget, "gate") else budget
            for share in (0.1, 0.5, 0.9):
                assert changed(found, share).zeros == round(share * 2400)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: budgets.LeastDamage(norm="nuclear"), "norm is one of signal"),
        (lambda: budgets.LeastDamage(size="rows"), "size is one of longer side"),
        (lambda: budgets.LeastDamage(power=math.nan), "power is a finite number"),
        (lambda: budgets.LeastDamage(gate=1.5), r"gate lies in \[0, 1\]"),
        (lambda: budgets.SpectralEdge(signal="alpha"), "signal is one of edge"),
        (lambda: budgets.SpectralEdge(beta_mlp=math.inf), "beta_mlp is a finite number"),
        (lambda: budgets.SpectralEdge(end=0), "end is a share of zeros above 0"),
        (lambda: budgets.SpectralEdge(floor=0), "floor is a positive weight"),
        (lambda: budgets.SpectralEdge(gate="high"), r"gate lies in \[0, 1\]"),
        (lambda: budgets.HeavyTail(tau=1.5), r"tau lies in \[0, 1\]"),
        (lambda: budgets.BulkShare(cycle=0), "cycle counts from 1"),
        (lambda: budgets.Misfit(cycle=math.inf), "cycle counts from 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        wrong()


# Where the matrices come from


def uneven_state(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    state = {}
    for i, (rows, cols) in enumerate([(30, 40), (48, 32), (36, 36)]):
        W = planted.noise(rows, cols, generator=generator) * np.exp(0.6 * generator.standard_normal((rows, 1)))
        W += 2 * np.outer(generator.standard_normal(rows), generator.standard_normal(cols)) / math.sqrt(rows)
        state[f"m{i}"] = torch.from_numpy(W * (i + 1)).to(dtype)
    return state


def test_evened_out_the_scores_are_those_of_the_evened_matrix():
    state = uneven_state()
    found = survey(state)
    even = {n: equalize(W, edge=Bema()).apply(W).numpy() for n, W in state.items()}
    for share in (0.2, 0.6):
        zeros = round(share * total(state))
        seen = budgets.evened(found)
        magnitude = one_sort({n: np.abs(W) for n, W in even.items()}, zeros)
        assert budgets.GlobalMagnitude()(seen, share).counts == magnitude
        assert budgets.GlobalMagnitude()(found, share).counts != magnitude
        assert budgets.Lamp()(seen, share).counts == one_sort({n: lamp_scores(W) for n, W in even.items()}, zeros)
    edges = {t.name: t.fit.edge for t in budgets.candidates(budgets.evened(found))}
    assert edges == {r.name: r.fit.edge for r in found.fitted}
    assert {t.name: t.fit.edge for t in budgets.candidates(found)} == {r.name: r.plain.edge for r in found.fitted}


def test_evened_out_needs_scales_that_can_be_found_again():
    state = uneven_state()
    with pytest.raises(ValueError, match="without equalisation"):
        budgets.evened(survey(state, equalize=False))
    with pytest.raises(ValueError, match="no estimator of spectrim"):
        budgets.evened(survey(state, edge=lambda spectrum: Bema()(spectrum)))
    seen = budgets.evened(survey(state))
    assert budgets.evened(seen) is seen


def test_a_survey_that_lost_its_model_serves_those_that_read_nothing():
    found = survey(uneven_state())
    lost = Survey(found.model, found.readings, found.params, found.bytes, found.edge, True, 0.1)
    for name in ("uniform", "erdos-renyi", "heavy-tail", "misfit", "bulk-share"):
        assert MEMBERS[name][0](lost, 0.5) == MEMBERS[name][0](found, 0.5)
    for name in ("global", "lamp", "spectral-edge", "least-damage"):
        with pytest.raises(ValueError, match="does not hold the model"):
            MEMBERS[name][0](lost, 0.5)


def test_a_matrix_that_is_gone_is_told():
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30))
    found = survey(net, edge=Median())
    net[2] = nn.Identity()
    with pytest.raises(ValueError, match="2 stood in the model when it was surveyed"):
        budgets.Uniform()(found, 0.5)


def test_pairs_take_no_zeros():
    left, right = torch.randn(60, 30), torch.randn(30, 60)
    state = {"x.0.weight": right, "x.1.weight": left, "y.weight": torch.randn(30, 40)}

    def edge(spectrum: Spectrum) -> NoiseFit:
        return fit(float(np.median(spectrum.s)))

    found = survey(state, edge)
    assert {r.name for r in found.fitted} == {"x", "y"}
    assert budgets.Uniform()(found, 0.5).counts == {"y": 600}
    with pytest.raises(ValueError, match="pairs of layers, which take no zeros"):
        budgets.Uniform()(survey({"x.0.weight": right, "x.1.weight": left}, edge), 0.5)


def test_a_model_that_is_partly_sparse_already_counts_its_zeros():
    state = uneven_state()
    state["m1"][torch.rand(state["m1"].shape) < 0.5] = 0
    there = int((state["m1"] == 0).sum())
    found = survey(state)
    few = there / 2 / total(state)
    assert budgets.GlobalMagnitude()(found, few).counts == {"m0": 0, "m1": round(few * total(state)), "m2": 0}
    assert budgets.Lamp()(found, there / total(state)).counts == {"m0": 0, "m1": there, "m2": 0}


@given(
    places=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=6),
)
def test_counts_are_lifted_to_the_zeros_that_are_there(places):
    """Against the factor found by bisection, at which the larger of each two add up."""
    counts = {str(i): count for i, (count, _) in enumerate(places)}
    there = {str(i): held for i, (_, held) in enumerate(places)}
    total = sum(counts.values())
    if sum(there.values()) > total:
        counts, there, total = there, counts, sum(there.values())
    found = lifted(counts, there)
    assert list(found) == list(counts) and sum(found.values()) == total
    assert all(found[name] >= there[name] for name in counts)

    def water(factor):
        return sum(max(there[name], factor * counts[name]) for name in counts)

    factor = brentq(lambda x: water(x) - total, 0, 1) if total > 0 and water(0) < total else 1.0
    if water(0) < total:
        assert all(abs(found[name] - max(there[name], factor * counts[name])) <= 1 for name in counts)


def half_sparse() -> nn.Module:
    """Three layers, the middle one with three quarters of its entries at zero."""
    generator = torch.Generator().manual_seed(8)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((40, 50), (50, 60), (60, 30))))
    for layer in model:
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    model[1].weight.data.view(-1)[torch.randperm(3000, generator=generator)[:2250]] = 0
    return model


def first_in_order(found, zeros):
    """A budget of a user's own, which knows nothing of zeros."""
    counts, left = {}, asked(candidates(found), zeros)
    for t in candidates(found):
        counts[t.name] = min(left, t.entries)
        left -= counts[t.name]
    return budgets.Allotment(counts)


@pytest.mark.parametrize("budget", [m[0] for m in MEMBERS.values()] + [first_in_order], ids=[*MEMBERS, "own"])
@pytest.mark.parametrize("share", [0.34, 0.5])
def test_the_total_is_exact_where_zeros_are_there_already(budget, share):
    model = half_sparse()
    found = survey(model, Median())
    chosen = plan(found, zeros=share, budget=budget)
    trim(model, chosen)
    counts = {name.removesuffix(".weight"): int((p == 0).sum()) for name, p in model.named_parameters()}
    assert sum(counts.values()) == chosen.zeros == round(share * 6800)
    assert counts == {e.name: e.zeros for e in chosen.entries} and counts["1"] >= 2250


def test_what_one_matrix_holds_beyond_its_share_the_others_give_less():
    chosen = plan(survey(half_sparse(), Median()), zeros=0.5, budget=budgets.Uniform())
    assert [e.zeros for e in chosen.entries] == [605, 2250, 545]  # (3400 - 2250) in proportion to 2000 and 1800
    assert "its share was 1500, but 2250 are zero already" in chosen.entries[1].reason
    assert "395 fewer than its share" in chosen.entries[0].reason


@EACH
def test_fewer_zeros_than_are_there_are_refused(member):
    with pytest.raises(ValueError, match=r"2250 zeros already, 33.09% .* zeros=0.2 asks for 1360 .* zeros=0.3309 or"):
        plan(survey(half_sparse(), Median()), zeros=0.2, budget=member[0])


@EACH
def test_a_share_may_be_a_number_of_numpy(member):
    found = survey(half_sparse(), Median())
    chosen = plan(found, zeros=np.float32(0.5), budget=member[0], gate=np.float32(1))
    assert chosen == plan(found, zeros=0.5, budget=member[0], gate=1) and type(chosen.target["zeros"]) is float
    assert member[0](found, np.float32(0.7)).zeros == round(float(np.float32(0.7)) * 6800)
