"""The plan: targets reached from below, bulk before spikes, zeros exact, and a file that refuses what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrim import NoiseFit, Plan, Reading, Spectrum, Survey, budgets, equalize, plan, planted, survey, trim
from spectrim.edges import Bema, Known
from spectrim.plan import DEFAULT_ZEROS

SHAPES = st.tuples(st.integers(2, 60), st.integers(2, 60))


def reading(
    name: str, rows: int, cols: int, spikes: int, generator: np.random.Generator, zero_rows: int = 0
) -> Reading:
    """A reading with a spectrum of its own and a verdict that is given: the plan looks at nothing else."""
    s = np.sort(generator.uniform(0.1, 1, min(rows - zero_rows, cols)) * generator.uniform(0.5, 2))[::-1].copy()
    s[:spikes] += 1 + np.arange(spikes, 0, -1)
    spectrum, fit = Spectrum(s, rows - zero_rows, cols), NoiseFit(0.1, 1.0, None, 0.01, spikes, "Test()")
    return Reading(name, "linear", rows, cols, spectrum, fit, params=rows * cols, plain=fit, plain_spectrum=spectrum)


def survey_of(readings: list[Reading], beside: int = 100) -> Survey:
    params = sum(r.params for r in readings) + beside
    return Survey("net", tuple(readings), params, 4 * params, "Test()", True, 0.1)


@st.composite
def surveys(draw) -> Survey:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=6))
    found = []
    for i, (rows, cols) in enumerate(shapes):
        zero = draw(st.sampled_from([0, 0, rows // 3, 2 * rows // 3]))  # rows that the survey left out
        spikes = draw(st.integers(0, min(rows - zero, cols) - 1))
        found.append(reading(f"m{i}", rows, cols, spikes, generator, zero))
    return survey_of(found)


def out_of_reach(found: Survey, share: float) -> bool:
    least = sum(min(r.params, r.rows + r.cols) for r in found.fitted)
    return least > share * sum(r.params for r in found.fitted)


def assert_reached(found: Survey, chosen: Plan, share: float) -> None:
    """At most the target, and one value more in some matrix would pass it, or there is none left to give back."""
    total = sum(r.params for r in found.fitted)
    assert chosen.params_before == total
    assert chosen.params_after == sum(e.params_after for e in chosen.entries) <= share * total
    step = max((e.rows + e.cols for e in chosen.entries), default=0)
    values = {r.name: r.spectrum.p for r in found.fitted}
    lossless = all(
        e.rank == values[e.name] for e in chosen.touched
    )  # zero rows went, and there is nothing to give back
    assert share * total - chosen.params_after <= step or lossless
    if share == 1:
        assert not chosen.touched
    assert chosen.model_params_after == found.params - total + chosen.params_after


@settings(max_examples=150, deadline=None)
@given(found=surveys(), share=st.floats(0.01, 1))
def test_a_target_is_reached_from_below_within_one_rank_step(found, share):
    if out_of_reach(found, share):
        with pytest.raises(ValueError, match="out of reach"):
            plan(found, params=share, gate=1)
        return
    assert_reached(found, plan(found, params=share, gate=1), share)


@settings(max_examples=150, deadline=None)
@given(found=surveys(), share=st.floats(0.01, 1))
def test_every_split_saves_and_bulk_goes_before_spikes(found, share):
    if out_of_reach(found, share):
        return
    chosen = plan(found, params=share, gate=1)  # some of them are more than half spikes
    for e in chosen.entries:
        even = e.rows * e.cols / (e.rows + e.cols)
        assert e.action == ("keep" if e.rank is None else "split")
        if e.rank is not None:
            assert 1 <= e.rank < even  # break-even: a pair at or above it is no smaller
            assert e.params_after == e.macs_after == e.rank * (e.rows + e.cols) < e.params_before == e.rows * e.cols
            assert e.spikes_cut == max(0, e.spikes - e.rank)
            energy = next(r for r in found.readings if r.name == e.name).spectrum.s ** 2
            assert e.damage == pytest.approx(math.sqrt(energy[e.rank :].sum() / energy.sum()))
        else:
            assert e.params_after == e.params_before and e.spikes_cut == 0 and e.damage is None
        assert e.bytes_after == 4 * e.params_after and e.reason
    if any(e.spikes_cut for e in chosen.entries):
        # No pair keeps bulk while spikes go elsewhere; a matrix whose spikes fill more than a pair may stay dense.
        assert "spikes are cut too" in " ".join(chosen.notes)
        assert not any((e.rank or 0) > max(1, e.spikes) for e in chosen.entries)
    else:
        assert not chosen.notes


def test_the_note_counts_the_spikes_that_are_cut():
    generator = np.random.default_rng(3)
    found = survey_of([reading(f"m{i}", 40, 60, 12, generator) for i in range(3)])
    enough = plan(found, params=0.55)  # 12 spikes are 12 * 100 of 2400 numbers
    assert not enough.notes and all(e.rank >= 12 for e in enough.entries)
    below = plan(found, params=0.3)
    cut = sum(e.spikes_cut for e in below.entries)
    assert cut == 15 and below.notes == (
        f"the target lies below the noise: {cut} spikes are cut too, the smallest first",
    )
    assert all("spikes are cut" in e.reason for e in below.entries if e.spikes_cut)


def test_ranks_cost_hardly_more_than_the_best_ones():
    """Against every pair of ranks of two matrices: the hull leaves at most a step of slack."""
    generator = np.random.default_rng(0)
    readings = [reading("a", 40, 60, 0, generator), reading("b", 30, 80, 0, generator)]
    chosen = plan(survey_of(readings), params=0.5)

    def damage(ranks):
        return sum(
            r.params * (1 - (r.spectrum.s[:k] ** 2).sum() / (r.spectrum.s**2).sum())
            for r, k in zip(readings, ranks, strict=True)
        )

    budget = 0.5 * sum(r.params for r in readings) - 110  # less one rank of the larger matrix
    best = min(damage((j, k)) for j in range(1, 25) for k in range(1, 22) if j * 100 + k * 110 <= budget)
    assert damage([e.rank for e in chosen.entries]) <= best


def test_a_whole_share_changes_nothing():
    chosen = plan(survey_of([reading("m", 40, 60, 2, np.random.default_rng(0))]), params=1)
    assert not chosen.touched and chosen.params_after == chosen.params_before


@pytest.mark.parametrize("share", [0, -1, 1.5, math.nan, math.inf, "half", 1.0000001])
@pytest.mark.parametrize("target", ["params", "zeros"])
def test_a_target_outside_is_refused(target, share):
    found = survey_of([reading("m", 40, 60, 2, np.random.default_rng(0))])
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        plan(found, **{target: share})


def test_one_target_is_asked_for():
    found = survey_of([reading("m", 40, 60, 2, np.random.default_rng(0))])
    for targets in ({}, {"params": 0.5, "zeros": 0.5}):
        with pytest.raises(ValueError, match="give one target"):
            plan(found, **targets)


def test_what_is_out_of_reach_is_refused_with_the_least():
    found = survey_of([reading("m", 40, 60, 2, np.random.default_rng(0))])
    with pytest.raises(ValueError, match=r"params=0.01 is out of reach.*4.17%"):
        plan(found, params=0.01)
    with pytest.raises(ValueError, match="no matrix with a verdict"):
        plan(survey({"a": torch.zeros(30, 30)}), params=0.5)


def test_the_equalised_basis_needs_an_equalised_survey():
    found = survey(net(), equalize=False)
    with pytest.raises(ValueError, match="without equalisation"):
        plan(found, params=0.5, basis="equalised")
    assert {e.basis for e in plan(found, params=0.5).touched} == {"plain"}


def net(seed: int = 0, sizes=((64, 96), (48, 64), (64, 48))) -> nn.Module:
    generator = np.random.default_rng(seed)
    layers = [nn.Linear(cols, rows) for rows, cols in sizes]
    for i, (layer, (rows, cols)) in enumerate(zip(layers, sizes, strict=True)):
        W = planted.noise(rows, cols, sigma=0.1 * (i + 1), generator=generator)
        W += 3 * np.outer(generator.standard_normal(rows), generator.standard_normal(cols)) / math.sqrt(rows)
        layer.weight.data = torch.from_numpy(W).float()
    return nn.Sequential(*layers)


def naive_zeros(matrices: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """One concatenated stable sort of all magnitudes."""
    flat = torch.cat([W.flatten().float().abs() for W in matrices.values()])
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[torch.sort(flat, stable=True).indices[: round(share * len(flat))]] = True
    pieces = gone.split([W.numel() for W in matrices.values()])
    return {name: W.masked_fill(piece.view_as(W), 0) for (name, W), piece in zip(matrices.items(), pieces, strict=True)}


def matrices(kind: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    found = {}
    for i, (rows, cols) in enumerate([(30, 40), (25, 60), (50, 24)]):
        W = torch.randn(rows, cols, generator=generator) * (i + 1)
        if kind == "ties":
            W = (W * 2).round() / 2  # few distinct magnitudes, zeros among them
        if kind == "zeros":
            W[torch.rand(rows, cols, generator=generator) < 0.3] = 0
        if kind == "tiny":
            W *= 1e-20
        found[f"m{i}"] = W.to(torch.bfloat16 if kind == "bf16" else torch.float16 if kind == "f16" else torch.float32)
    return found


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "bf16", "f16", "tiny"])
@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.9, 1.0])
def test_zeros_are_those_of_one_sort_over_all(kind, share, tmp_path):
    found = matrices(kind, torch.Generator().manual_seed(7))
    total = sum(W.numel() for W in found.values())
    if (held := sum(int((W == 0).sum()) for W in found.values())) > round(share * total):
        with pytest.raises(ValueError, match=f"holds {held} zeros already"):
            plan(survey(found, edge=Known(1.0)), zeros=share, budget=budgets.GlobalMagnitude())
        return
    chosen = plan(survey(found, edge=Known(1.0)), zeros=share, budget=budgets.GlobalMagnitude())
    assert chosen.zeros == round(share * total) == sum(e.zeros for e in chosen.entries)
    expected = naive_zeros(found, share)
    for e in chosen.entries:
        there = int((found[e.name] == 0).sum())
        assert int((expected[e.name] == 0).sum()) == max(e.zeros, there)
        lost = torch.linalg.norm(found[e.name].double() - expected[e.name].double())
        # Of equal magnitudes it does not matter which go, but for rounding in the sum of squares.
        assert e.damage == pytest.approx(float(lost / torch.linalg.norm(found[e.name].double())), rel=1e-6)
        assert e.params_after == e.params_before
    trim(found, chosen, tmp_path / "out")
    from safetensors.torch import load_file

    after = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(after[name], expected[name]) for name in found)


def odd_net() -> nn.Module:
    """Three matrices, of which the middle one fits no law of noise: half of its values stand far above the rest."""
    model = net()
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(48, 24, generator=generator) @ torch.randn(24, 64, generator=generator)
    model[1].weight.data += signal
    return model


def test_magnitudes_need_no_law_so_the_gate_keeps_nothing_from_zeros():
    model = odd_net()
    found = survey(model)
    kinds = {r.name: r.verdict.cuttable for r in found.fitted}
    assert kinds == {"0": True, "1": False, "2": True}
    assert next(e for e in plan(found, params=0.5).entries if e.name == "1").action == "keep"
    for gate in (None, 0.0, 0.1, 1.0):
        chosen = plan(found, zeros=0.5, budget=budgets.GlobalMagnitude(), gate=gate)
        assert {e.name for e in chosen.touched} == {"0", "1", "2"} and not chosen.notes
        assert chosen.zeros == round(0.5 * chosen.params_before)
    expected = naive_zeros({str(i): layer.weight.data for i, layer in enumerate(model)}, 0.5)
    assert {e.name: e.zeros for e in chosen.entries} == {n: int((W == 0).sum()) for n, W in expected.items()}


def test_the_gate_of_zeros_is_that_of_the_budget():
    found = survey(odd_net())
    edge = budgets.SpectralEdge(signal="edge", beta_mlp=2.0, end=0.9)
    usual, shut, opened = (plan(found, zeros=0.5, budget=edge, gate=gate) for gate in (None, 0.0, 1.0))
    assert usual.model.gate == 0.1 and "(1)" in usual.notes[0]
    assert "gate=0.1" in usual.budget and "gate=1.0" in opened.budget and opened.model.gate == 1.0
    assert opened.notes == () and len({tuple(e.zeros for e in p.entries) for p in (usual, shut, opened)}) == 3
    assert "2 matrices do not fit the law of noise (1, 2)" in shut.notes[0]
    assert plan(found, zeros=0.5, budget=budgets.Uniform(), gate=0.0) == plan(
        found, zeros=0.5, budget=budgets.Uniform()
    )


BUDGETS = [budgets.Uniform(), budgets.Lamp(), budgets.LayerNormalised(), budgets.SpectralEdge(), budgets.HeavyTail(),
           budgets.BulkShare(), budgets.LeastDamage(0.5, "spikes"), budgets.ErdosRenyi()]  # fmt: skip


@pytest.mark.parametrize("basis", ["plain", "equalised"])
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: type(b).__name__)
def test_a_plan_holds_what_its_budget_says(budget, basis, tmp_path):
    model = net()
    found = survey(model)
    chosen = plan(found, zeros=0.6, budget=budget, basis=basis)
    allotment = budget(budgets.evened(found) if basis == "equalised" else found, 0.6)
    assert {e.name: e.zeros for e in chosen.entries} == allotment.counts
    assert chosen.zeros == round(0.6 * chosen.params_before) and chosen.notes == allotment.notes
    assert chosen.budget == repr(budget) and repr(budget) in str(chosen)
    for e in chosen.entries:
        W = model[int(e.name)].weight.data
        scale = equalize(W, edge=Bema()).apply(W).abs() if basis == "equalised" else W.abs()
        lost = W.flatten()[torch.sort(scale.flatten(), stable=True).indices[: e.zeros]]
        assert e.damage == pytest.approx(float(lost.double().norm() / W.double().norm()))  # of W as it is
        assert e.basis == basis and f"by {type(budget).__name__}" in e.reason
        assert allotment.reasons.get(e.name, "") in e.reason
    chosen.to_json(tmp_path / "plan.json")
    assert Plan.from_json(tmp_path / "plan.json") == chosen


def test_zeros_are_shared_out_by_magnitude_unless_told():
    found = survey(net())
    chosen = plan(found, zeros=0.3)
    assert chosen.budget == repr(budgets.GlobalMagnitude()) == repr(DEFAULT_ZEROS)
    assert chosen == plan(found, zeros=0.3, budget=budgets.GlobalMagnitude())
    assert plan(found, params=0.5).budget == ""


def test_a_plan_from_before_there_were_budgets_is_read(tmp_path):
    raw = json.loads(plan(survey(net()), zeros=0.3).to_json())
    del raw["budget"]
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    assert Plan.from_json(tmp_path / "plan.json").budget == ""


def first_alone(found: Survey, zeros: float) -> budgets.Allotment:
    total = round(zeros * sum(t.entries for t in budgets.candidates(found)))
    return budgets.Allotment({"0": np.int64(total)}, {"0": "the first pays"}, ("my own",))


def test_any_function_is_a_budget():
    chosen = plan(survey(net()), zeros=0.3, budget=first_alone)
    assert [e.zeros for e in chosen.entries] == [round(0.3 * 12288), 0, 0] and chosen.notes == ("my own",)
    assert chosen.budget == "first_alone" and chosen.entries[0].reason.endswith("by first_alone: the first pays")
    again = plan(survey(net()), zeros=0.3, budget=lambda found, zeros: first_alone(found, zeros))
    assert "0x" not in again.budget and "lambda" in again.budget
    mine = budgets.SpectralEdge(attention=lambda name: True)
    assert "0x" not in plan(survey(net()), zeros=0.3, budget=mine).budget


@pytest.mark.parametrize(
    ("budget", "error", "match"),
    [
        (budgets.Lamp, TypeError, r"such as budgets.Lamp\(\), not <class"),
        ("lamp", TypeError, "a budget is a function"),
        (lambda found, zeros: {"0": 3}, TypeError, "returns an Allotment"),
        (lambda found, zeros: budgets.Allotment({"0": 3}), ValueError, "gives 3 zeros, and 6144 were asked for"),
        (lambda found, zeros: budgets.Allotment({"1": -1, "0": 6145}), ValueError, "1 -1 zeros, and it has 3072"),
        (lambda found, zeros: budgets.Allotment({"0": 6144.0}), TypeError, "6144.0 zeros, which is no count"),
        (lambda found, zeros: budgets.Allotment({"1": 6144}), ValueError, "1 6144 zeros, and it has 3072 entries"),
        (lambda found, zeros: budgets.Allotment({"9": 6144}), ValueError, "'9', which is no matrix"),
    ],
)
def test_what_is_no_budget_is_refused(budget, error, match):
    with pytest.raises(error, match=match):
        plan(survey(net()), zeros=0.5, budget=budget)


def test_a_budget_and_a_basis_are_asked_for_where_they_mean_something():
    found = survey(net())
    with pytest.raises(ValueError, match="a budget shares out zeros"):
        plan(found, params=0.5, budget=budgets.Lamp())
    for target in ({"params": 0.5}, {"zeros": 0.5}):
        with pytest.raises(ValueError, match="basis is one of plain, equalised, moments, not 'even'"):
            plan(found, **target, basis="even")
    with pytest.raises(ValueError, match="without equalisation"):
        plan(survey(net(), equalize=False), zeros=0.5, basis="equalised")


def test_zeros_skip_what_has_no_verdict():
    found = {"good": torch.randn(40, 30), "nan": torch.full((30, 30), math.nan), "none": torch.zeros(30, 30)}
    chosen = plan(survey(found), zeros=0.5)
    assert {e.name: e.zeros for e in chosen.entries} == {"good": 600, "nan": None, "none": None}


def test_matrices_without_a_verdict_are_kept_with_the_reason():
    model = net()
    for i, layer in enumerate([nn.Linear(5, 3), nn.Linear(40, 30), nn.Linear(30, 40)]):
        model.append(layer)
        if i:
            layer.weight.data.fill_(0 if i == 1 else math.nan)
    model[-1].weight.data[1:] = 1.0
    found = survey(model)
    assert len(found.matrices) == 6 and len(found.fitted) == 3
    for chosen in (plan(found, params=0.5), plan(found, zeros=0.5), plan(found, params=0.5, dense=True)):
        entries = {e.name: e for e in chosen.entries}
        assert set(entries) == {r.name for r in found.matrices}
        for name, reason in (("3", "3 x 5"), ("4", "all zero"), ("5", "30 of 1200 entries are not finite")):
            assert entries[name].action == "keep" and reason in entries[name].reason, entries[name].reason
        assert chosen.params_before == sum(r.params for r in found.fitted)


@pytest.fixture
def chosen() -> Plan:
    return plan(survey(net()), params=0.5)


@pytest.mark.parametrize("how", [{"params": 0.4}, {"params": 0.4, "dense": True}, {"zeros": 0.3}, {"params": 1.0}])
def test_a_plan_survives_its_file(how, tmp_path):
    chosen = plan(survey(net()), **how)
    text = chosen.to_json(tmp_path / "plan.json")
    assert json.loads(text)["schema"] == "spectrim.plan/1"
    again = Plan.from_json(tmp_path / "plan.json")
    assert again == chosen and again.to_json() == text
    assert str(chosen.model.label) in str(again)


def edited(chosen: Plan, folder: Path, **changes) -> Path:
    raw = json.loads(chosen.to_json())
    entry = next(e for e in raw["entries"] if e["action"] == "split")
    entry.update(changes)
    path = folder / "plan.json"
    path.write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rank": 10**6}, r"rank 1000000 is impossible for a \d+ x \d+ matrix"),
        ({"rank": 0}, "rank"),
        ({"rank": -3}, "rank"),
        ({"rank": 2.5}, "rank"),
        ({"rank": None}, "rank None is impossible"),
        ({"rank": "many"}, "rank"),
        ({"action": "keep"}, "takes no rank"),
        ({"action": "zeros"}, "takes no rank"),
        ({"action": "zeros", "rank": None}, "zeros is a count"),
        ({"action": "zeros", "rank": None, "zeros": -1}, "zeros"),
        ({"action": "zeros", "rank": None, "zeros": 10**9}, "do not fit"),
        ({"zeros": 5}, "zeros is a count"),
        ({"action": "prune"}, "action"),
        ({"basis": "diagonal"}, "basis"),
        ({"damage": -0.1}, "damage"),
        ({"rnak": 5}, "rnak"),
    ],
)
def test_an_impossible_edit_is_refused_by_name(chosen, changes, match, tmp_path):
    name = chosen.touched[0].name
    with pytest.raises(ValueError, match=match) as raised:
        Plan.from_json(edited(chosen, tmp_path, **changes))
    assert f"{name!r}" in str(raised.value) and "plan.json" in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_several_errors_are_told_at_once(chosen, tmp_path):
    raw = json.loads(chosen.to_json())
    for entry in raw["entries"]:
        entry["rank"] = 10**6
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError) as raised:
        Plan.from_json(tmp_path / "plan.json")
    assert all(f"{e.name!r}" in str(raised.value) for e in chosen.entries)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "found 'list'"),
        ("{}", "found None"),
        ('{"schema": "spectrim.plan/2"}', "found 'spectrim.plan/2'"),
        ('{"schema": "spectrim.survey/1"}', "not a plan of schema"),
        ('{"schema": "spectrim.plan/1"}', "entries"),
        ('{"schema": "spectrim.plan/1", "entries": {}}', "entries"),
        ('{"schema": "spectrim.plan/1", "entries": [3]}', "entries number 0"),
        (b"\xff\xfe\x00", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, match, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        Plan.from_json(path)


def test_a_rank_edited_by_hand_is_carried_out(chosen, tmp_path):
    path = edited(chosen, tmp_path, rank=5)
    read = Plan.from_json(path)
    entry = next(e for e in read.entries if e.name == chosen.touched[0].name)
    assert entry.params_after == 5 * (entry.rows + entry.cols) and "by hand" in entry.reason
    done = trim(net(), read)
    assert next(c for c in done if c.name == entry.name).rank == 5
    assert done.params_after == read.model_params_after


def test_an_entry_left_out_by_hand_is_kept(chosen, tmp_path):
    raw = json.loads(chosen.to_json())
    entry = raw["entries"][0]
    entry.update(action="keep", rank=None)
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    model = net()
    trim(model, tmp_path / "plan.json")
    assert type(model[0]) is nn.Linear and type(model[1]) is not nn.Linear


def test_zero_rows_are_no_reason_to_undershoot():
    """A matrix with dropped rows has fewer values than its short side, and a pair of all of them is free."""
    A = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    A[40:] = 0
    found = survey({"a.weight": A})
    assert [plan(found, params=share).params_after for share in (1.0, 0.9, 0.7, 0.4)] == [10000, 8000, 7000, 4000]


@pytest.mark.parametrize("how", ["dense", "zeros", "basis"])
def test_an_edit_leaves_no_stale_figure(tmp_path, how):
    model = torch.nn.Sequential(torch.nn.Linear(60, 80), torch.nn.ReLU(), torch.nn.Linear(80, 40))
    chosen = plan(survey(model), zeros=0.5) if how == "zeros" else plan(survey(model), params=0.4, dense=how == "dense")
    file = tmp_path / "plan.json"
    raw = json.loads(chosen.to_json())
    change = {"dense": {"rank": 2}, "zeros": {"zeros": 9}, "basis": {"basis": "equalised"}}[how]
    raw["entries"][0] |= change
    file.write_text(json.dumps(raw))
    first, *others = Plan.from_json(file).entries
    assert first.damage is None and first.reason.startswith("edited by hand")
    assert others == list(chosen.entries[1:])
    done = trim(model, file)
    assert done[0].name == "0" and (done[0].rank, done[0].zeros) == (first.rank, first.zeros)
