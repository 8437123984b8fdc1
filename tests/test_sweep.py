"""Sweeps: errors against formulas and slow twins, counts against torch's own, failures recorded, stops survived."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from spectrim import budgets
from spectrim.cli import app
from spectrim.survey import inventory, survey
from spectrim.sweep import (
    CONTROLS,
    Cell,
    Figure,
    Random,
    Ranks,
    Score,
    ScoreInfo,
    Stopped,
    Sweep,
    Zeros,
    count,
    defaults,
    errors_among,
    known,
    mean,
    named,
    pearson,
    ratio,
    resample,
    spearman,
    sweep,
    watched,
)
from spectrim.sweep.resampling import Drawn
from sweep_toy import Toy

pytestmark = pytest.mark.usefixtures("one_thread")


# The methods of the tests: plain functions, as a user writes them.


def nothing(model, found, rate, generator):
    pass


def half_way(model, found, rate, generator):
    Random()(model, found, rate / 2, generator)


def broken(model, found, rate, generator):
    if rate > 0.5:
        raise ZeroDivisionError("no such luck")
    Random()(model, found, rate, generator)


def poisoned(model, found, rate, generator):
    next(model.parameters()).data.fill_(math.nan)


def dead(model, found, rate, generator):
    for p in model.parameters():
        p.data.zero_()


@pytest.fixture(scope="module")
def toy():
    return Toy()


@pytest.fixture(scope="module")
def found(toy):
    methods = {"lamp": Zeros(budgets.Lamp()), "ranks": Ranks(), "nothing": nothing, "half": half_way, "broken": broken}
    return sweep(toy, methods | {"nan": poisoned, "dead": dead}, (0.4, 0.7), bootstrap=200)


# Scores and their errors.


def test_the_statistics_are_those_of_scipy():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, 2)) @ np.array([[1.0, 0.6], [0.0, 1.0]])
    tied = np.round(rows)  # many equal figures
    assert pearson(rows) == pytest.approx(stats.pearsonr(*rows.T).statistic, abs=1e-12)
    for table in (rows, tied):
        assert spearman(table) == pytest.approx(stats.spearmanr(*table.T).statistic, abs=1e-12)
    assert mean(rows) == rows[:, 0].mean() and ratio(rows) == rows[:, 0].sum() / rows[:, 1].sum()
    assert math.isnan(spearman(np.ones((5, 2)))) and math.isnan(ratio(np.zeros((5, 2))))


def test_the_errors_of_a_mean_and_of_a_ratio_are_the_analytic_ones():
    """4000 draws know a standard deviation to 1.1 %, and 400 items follow the formula to a few more."""
    generator = np.random.default_rng(1)
    words = generator.integers(5, 40, 400).astype(float)
    errors = generator.binomial(words.astype(int), 0.1).astype(float)
    found = resample(Score(errors, mean), "mean", 0, 4000)["all"]
    assert found.error == pytest.approx(errors.std() / 20, rel=0.06)
    rate = errors.sum() / words.sum()
    found = resample(Score(np.stack([errors, words], 1), ratio), "wer", 0, 4000)["all"]
    assert found.value == pytest.approx(rate, abs=1e-12)
    assert found.error == pytest.approx((errors - rate * words).std() / 20 / words.mean(), rel=0.06)


def test_a_difference_is_drawn_in_pairs():
    generator = np.random.default_rng(2)
    hard = generator.normal(size=500)  # what makes an item hard is shared
    ours, theirs = (hard + 0.1 * generator.normal(size=500) + shift for shift in (0.02, 0.0))
    a, b = (resample(Score(x, mean), "score", 3, 3000)["all"] for x in (ours, theirs))
    gain = a.gain(b)
    assert gain.value == pytest.approx((ours - theirs).mean(), abs=1e-12)
    assert gain.error == pytest.approx((ours - theirs).std() / np.sqrt(500), rel=0.06)
    assert gain.error < 0.2 * a.error  # unpaired, the shift would drown
    assert gain.low == np.quantile(a.draws - b.draws, 0.025) and gain.high > gain.value > gain.low
    assert gain.clear == 1 and b.gain(a).clear == -1
    lower = [resample(Score(x, mean, better="lower"), "score", 3, 100)["all"] for x in (ours, theirs)]
    worse = lower[0].gain(lower[1])  # to be higher is no gain there
    assert worse.value == -gain.value and worse.low < worse.value < worse.high < 0 and worse.clear == -1


def test_a_difference_in_the_last_digits_is_none():
    x = np.random.default_rng(4).normal(size=80)
    found = [resample(Score(table, mean), "score", 0, 200)["all"] for table in (x * (1 + 1e-15), x)]
    gain = found[0].gain(found[1])
    assert (gain.low, gain.high, gain.clear) == (0.0, 0.0, 0) and abs(gain.value) < 1e-15


def test_an_error_is_made_of_one_half_of_the_draws_and_of_no_less():
    def lacking(share: float) -> Drawn:
        draws = np.random.default_rng(5).normal(size=100)
        draws[: round(100 * share)] = math.nan
        return Drawn(0.0, draws)

    whole, half, less = map(lacking, (0.0, 0.5, 0.51))
    assert half.error == pytest.approx(half.draws[50:].std(ddof=1)) and math.isnan(less.error)
    assert math.isfinite(whole.gain(half).error) and math.isnan(whole.gain(less).error)
    assert whole.gain(less).value == 0 and whole.gain(less).clear == 0


def test_the_draws_know_the_score_and_the_seed_and_nothing_of_the_model():
    x, y = np.arange(50.0), np.arange(50.0)[::-1].copy()
    first, second = (resample(Score(table, mean), "a", 0, 20)["all"].draws for table in (x, y))
    assert np.allclose(first + second, 49)  # the same items in the same order
    assert not np.allclose(first, resample(Score(x, mean), "a", 1, 20)["all"].draws)
    assert not np.allclose(first, resample(Score(x, mean), "b", 0, 20)["all"].draws)


def test_the_halves_are_the_even_and_the_odd_items():
    table = np.where(np.arange(101) % 2, 5.0, 1.0)
    found = resample(Score(table, mean), "score", 0, 50)
    assert (found["choose"].value, found["report"].value) == (1.0, 5.0)
    assert found["choose"].error == found["report"].error == 0 and found["all"].error > 0
    assert set(found["choose"].draws) == {1.0}


def test_square_scores_are_those_of_all_pairs_with_the_weights_of_the_draw():
    generator = np.random.default_rng(4)
    table = generator.normal(size=(12, 12, 2))
    score = Score(table, spearman, square=True)
    upper = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    assert score.value == pytest.approx(stats.spearmanr(*np.array([table[i, j] for i, j in upper]).T).statistic)
    index = np.array([3, 3, 0, 7, 7, 7, 11])
    times = np.bincount(index, minlength=12)
    slow = [table[i, j] for i, j in upper for _ in range(times[i] * times[j])]  # never an item with itself
    assert score.of(index) == pytest.approx(spearman(np.array(slow)), abs=1e-12)
    assert math.isnan(score.of(np.array([5, 5, 5])))
    flat = Score(table[..., 0], mean, square=True)  # one figure a pair
    assert flat.value == pytest.approx(np.mean([table[i, j, 0] for i, j in upper]))


def test_the_error_of_a_square_score_holds_that_pairs_share_items():
    """The figure of a pair is the sum of its items': the error of their mean is 2 sd / sqrt(n), not that of n² / 2."""
    generator = np.random.default_rng(5)
    errors = []
    for seed in range(8):
        own = generator.normal(size=40)
        found = resample(Score(own[:, None] + own[None, :], mean, square=True), "sum", seed, 300)["all"]
        errors.append(found.error / (2 * own.std() / np.sqrt(40)))
    assert np.mean(errors) == pytest.approx(1, abs=0.08)  # seen: 1.01


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"table": np.zeros((2, 2, 2))}, "items x figures"),
        ({"table": np.zeros((3, 4)), "square": True}, "items x items"),
        ({"table": np.zeros(1)}, "no standard error"),
        ({"statistic": 3}, "is a function"),
        ({"better": "more"}, "'higher' or 'lower'"),
    ],
)
def test_scores_that_are_none_are_refused(given, complaint):
    with pytest.raises((ValueError, TypeError), match=complaint):
        Score(**{"table": np.zeros(4), "statistic": mean} | given)


# What is counted.


def counter_macs(model, *inputs) -> int:
    """Torch's own count, of products with weights."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    told = counter.get_flop_counts()["Global"]
    return sum(n for op, n in told.items() if str(op).rpartition(".")[2] in ("mm", "addmm", "convolution")) // 2


def grouped_and_turned() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, groups=16),  # depthwise: skipped by a survey, and counted all the same
        nn.Conv2d(16, 24, 3, groups=2),
        nn.ConvTranspose2d(24, 8, 2, stride=2),
        nn.Flatten(),
        nn.Linear(8 * 14 * 14, 10),
    )


def macs(model, *inputs) -> tuple[int, int]:
    with watched(model) as seen, torch.no_grad():
        model(*inputs)
    assert not seen.unseen
    assert not any(m._forward_hooks for m in model.modules())
    return seen.executed(inventory(model)), seen.weighted(inventory(model))


def test_multiply_adds_are_those_of_torch():
    torch.manual_seed(0)
    net, x = grouped_and_turned(), torch.randn(2, 3, 22, 22)
    assert macs(net, x)[0] == counter_macs(net, x)
    shared = nn.Linear(20, 20)
    tied = nn.Sequential(shared, nn.ReLU(), nn.Linear(20, 20), shared)
    tied[2].weight = shared.weight
    assert macs(tied, torch.randn(7, 20))[0] == 3 * 7 * 400
    heads = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    q, k = torch.randn(2, 5, 16), torch.randn(2, 9, 16)
    assert macs(heads, q, k, k)[0] == 2 * (2 * 5 + 2 * 9) * 16 * 16
    block = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 2).eval()
    assert macs(block, q)[0] == 2 * 10 * (4 * 16 * 16 + 2 * 16 * 64)
    for cell, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        assert macs(cell(8, 12, bidirectional=True), torch.randn(6, 3, 8))[0] == 2 * gates * 12 * (8 + 12) * 18


def test_zeros_are_free_in_one_count_and_not_in_the_other():
    net = nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 4))
    net[0].weight.data[:3] = 0
    assert macs(net, torch.randn(5, 10)) == (5 * 84, 5 * (84 - 30))


def test_pairs_make_both_counts_smaller(toy, found):
    for cell in (found.cell("ranks", 0.4), found.cell("ranks", 0.7)):
        cut = Toy().model
        Ranks()(cut, survey(Toy().model), cell.rate, None)
        assert cell.counts.macs_executed == counter_macs(cut, toy.x)
        assert cell.counts.params == sum(p.numel() for p in cut.parameters()) < found.dense.counts.params
    dense = counter_macs(toy.model, toy.x)
    assert found.dense.counts.macs_executed == found.cell("lamp", 0.7).counts.macs_executed == dense
    assert found.cell("lamp", 0.7).counts.macs_nonzero < 0.4 * dense
    assert found.items == 300


# The sweep.


def test_the_controls_are_always_there_and_exact(found):
    assert found.methods[:3] == CONTROLS
    for name in (*CONTROLS, "lamp"):
        for rate in (0.4, 0.7):
            c = found.cell(name, rate).counts
            assert c.zeros == round(rate * c.entries) and c.stored == c.entries, name
            assert c.params - c.nonzeros == c.zeros  # nothing else was touched
    assert all(cell.control == (cell.method in CONTROLS) for cell in found)


def test_the_model_itself_stays_as_it_was(toy, found):
    fresh = Toy().model.state_dict()
    assert all(torch.equal(fresh[name], t) for name, t in toy.model.state_dict().items())


def test_the_control_at_random_is_nested_and_repeats_itself(toy):
    def zeros(rate, seed):
        model = Toy().model
        Random()(model, seen, rate, torch.Generator().manual_seed(seed))
        return torch.cat([(p == 0).flatten() for p in model.parameters() if p.dim() > 1])

    seen = survey(toy.model)
    few, many = zeros(0.3, 0), zeros(0.6, 0)
    assert torch.equal(few, zeros(0.3, 0)) and not torch.equal(few, zeros(0.3, 1))
    assert (few <= many).all()
    W = toy.model[0].weight.detach().abs().flatten()
    chosen = many[: W.numel()]
    assert W[chosen].mean() == pytest.approx(float(W.mean()), rel=0.1)  # magnitude has no say


def test_figures_are_those_of_the_measure_itself(toy, found):
    model = Toy().model
    Zeros(budgets.Lamp())(model, survey(toy.model), 0.7, None)
    with torch.no_grad():
        expected = toy.measure(model)
    cell = found.cell("lamp", 0.7)
    for name, score in expected.items():
        assert cell.scores[name]["all"].value == pytest.approx(score.value, abs=1e-9)
    even = expected["accuracy"].table[::2].mean()
    assert cell.scores["accuracy"]["choose"].value == pytest.approx(even)
    accuracy, error = (cell.scores[name]["all"] for name in ("accuracy", "error"))
    for control in ("dense", *CONTROLS):
        assert accuracy.gains[control].value == pytest.approx(error.gains[control].value)  # other draws, same items
        there = found.dense if control == "dense" else found.cell(control, 0.7)
        assert accuracy.gains[control].value == pytest.approx(accuracy.value - there.scores["accuracy"]["all"].value)
    assert "uniform" not in found.cell("uniform", 0.7).scores["accuracy"]["all"].gains


def test_a_method_that_does_nothing_or_too_little_is_flagged(found):
    assert "changed nothing" in found.cell("nothing", 0.4).flag
    assert found.cell("nothing", 0.4).achieved == 0
    assert found.cell("half", 0.7).flag == "70.0% was asked for, 35.0% is gone"
    assert not any(found.cell(name, rate).flag for name in (*CONTROLS, "lamp", "ranks") for rate in (0.4, 0.7))
    # They would win, and take no part.
    best = found.best(0.7)
    assert best.method not in ("nothing", "half")
    able = [c for c in found if c.rate == 0.7 and c.scores and not c.flag]
    assert best.scores["accuracy"]["choose"].value == max(c.scores["accuracy"]["choose"].value for c in able)
    assert found.best(0.7, "error").method == found.best(0.7, "accuracy").method


def test_a_method_that_fails_is_recorded_and_the_others_go_on(found):
    assert not found.cell("broken", 0.4).failed
    failed = found.cell("broken", 0.7)
    assert failed.failed.startswith("ZeroDivisionError: no such luck (test_sweep.py, line ") and not failed.scores
    assert "not finite" in found.cell("nan", 0.4).failed
    assert {c.name for c in found.failed} == {"broken 70%", "nan 40%", "nan 70%"}
    assert len(found) == 2 * 10 and "broken 70% failed" in str(found)
    # Outputs that are all alike have an accuracy, and no correlation.
    dead = found.cell("dead", 0.4)
    assert math.isnan(dead.scores["pairs"]["all"].value) and "'pairs' is not defined" in " ".join(dead.notes)
    assert dead.scores["accuracy"]["all"].value < 0.4


def test_a_rate_counts_where_some_method_is_better_than_chance(found):
    assert found.counts_at(0.4) and found.counts_at(0.4, "error") and found.counts_at(0.4, "cosine")
    high = replace(found, scores={"accuracy": replace(found.scores["accuracy"], chance=0.99)})
    assert not high.counts_at(0.7)


def test_only_the_matrices_that_the_task_names_are_touched():
    task = Toy()
    task.only = lambda name: name != "2"
    seen = sweep(task, {"ranks": Ranks()}, (0.5,), bootstrap=2)
    assert seen.conditions["left_out"] == ["2", "5"] and seen.dense.counts.entries == 24 * 48 + 40 * 32
    gone = seen.cell("global magnitude", 0.5).counts
    assert gone.zeros == gone.params - gone.nonzeros == round(0.5 * gone.entries)
    cut = []
    task.measure, measure = lambda model: cut.append(model) or measure(model), task.measure
    sweep(task, {"ranks": Ranks()}, (0.5,), bootstrap=2)
    assert len(cut) == 5 and all(torch.equal(model[2].weight, task.model[2].weight) for model in cut)
    task.only = lambda name: False
    with pytest.raises(ValueError, match=r"the task's `only` lets none of the 3 matrices through \(0, 2, 4\)"):
        sweep(task, {}, (0.5,), bootstrap=2)


def test_multiply_adds_are_those_of_the_items_that_a_task_tells_of():
    task = Toy()
    task.items = 600
    assert sweep(task, {}, (0.5,), bootstrap=2).items == 600


def test_any_two_cells_are_held_against_one_another_in_pairs(found, toy, tmp_path):
    """Against the items themselves, drawn again here; and where the record has a gain, it is that one."""
    lamp, ranks = found.cell("lamp", 0.7), found.cell("ranks", 0.4)
    tables = []
    for method, rate in ((Zeros(budgets.Lamp()), 0.7), (Ranks(), 0.4)):
        model = copy.deepcopy(toy.model)
        method(model, survey(toy.model), rate, torch.Generator())
        with torch.no_grad():
            tables.append(toy.measure(model)["accuracy"].table[:, 0])
    assert tables[0].mean() == lamp.scores["accuracy"]["all"].value
    for half, i, items in (("all", 0, slice(None)), ("report", 2, slice(1, None, 2))):
        a, b = (table[items] for table in tables)
        generator = np.random.default_rng([0, zlib.crc32(b"accuracy"), 300, i])
        drawn = [generator.integers(0, len(a), len(a)) for _ in range(200)]
        apart = [(a - b)[picked].mean() for picked in drawn]
        gain = found.gain(lamp, ranks, "accuracy", half)
        assert gain.value == pytest.approx((a - b).mean(), abs=1e-12)
        assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(apart, (0.025, 0.975))), abs=1e-12)
        back = found.gain(ranks, lamp, "accuracy", half)
        assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low), abs=1e-12)
    worse = found.gain(lamp, ranks, "error")  # of which less is better: the same, up to the other draws of its name
    assert worse.value == pytest.approx(found.gain(lamp, ranks).value, abs=1e-12)
    for cell in (lamp, ranks):
        for half in ("all", "choose", "report"):
            kept = cell.scores["pairs"][half].gains
            assert kept["dense"] == found.gain(cell, found.dense, "pairs", half)
            assert kept["random"] == found.gain(cell, found.cell("random", cell.rate), "pairs", half)
    assert found.gain(lamp, lamp).error == 0 == found.gain(lamp, lamp).clear
    for call, complaint in (
        (lambda: found.gain(lamp, found.cell("broken", 0.7)), "broken 70% has no accuracy: ZeroDivisionError"),
        (lambda: found.gain(lamp, replace(lamp)), "lamp 70% is no cell of this sweep: take .dense"),
        (lambda: found.gain("lamp", "ranks"), "'lamp' is no cell"),
        (lambda: found.gain(lamp, ranks, "loss"), "'loss' on 'all': scores are accuracy"),
        (lambda: found.gain(lamp, ranks, half="both"), "halves all, choose, report"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()


def test_the_draws_stay_out_of_the_file_and_come_back_from_the_folder(tmp_path):
    first = sweep(Toy(), {"ranks": Ranks()}, (0.5,), bootstrap=100, work=tmp_path / "work")
    text = first.to_json(tmp_path / "sweep.json")
    assert "draws" not in json.loads(text) and len(text) < 40_000
    read = Sweep.from_json(tmp_path / "sweep.json")
    assert read.to_json() == text and not read.draws and replace(first, draws={}) == first
    with pytest.raises(ValueError, match=r"read from a file has no draws.*work folder"):
        read.gain(read.cell("ranks", 0.5), read.dense)
    again = sweep(Toy(), {"ranks": Ranks()}, (0.5,), bootstrap=100, work=tmp_path / "work")
    gains = [s.gain(s.cell("ranks", 0.5), s.cell("random", 0.5), "cosine") for s in (first, again)]
    assert gains[0] == gains[1] and gains[0].error > 0


def test_the_best_of_many_at_chance_is_above_it_more_often_than_one(found):
    """2,000 sweeps of k methods that know nothing: standard normals in errors; a share known to one in a hundred."""
    normals = np.random.default_rng(6).normal(size=(2000, 8))
    for k, rate in ((1, 0.023), (8, 0.168)):
        assert (normals[:, :k].max(1) > errors_among(1)).mean() == pytest.approx(rate, abs=0.03)
        assert (normals[:, :k].max(1) > errors_among(k)).mean() == pytest.approx(0.023, abs=0.015)
    info = {"accuracy": ScoreInfo("higher", 0.2, 300)}
    for away, plain in ((1.9, False), (2.1, True), (2.9, True)):
        figures = {"accuracy": {half: Figure(0.2 + 0.01 * away, 0.01) for half in ("all", "choose", "report")}}
        one = replace(found, cells=(Cell("lamp", 0.4, scores=figures),), scores=info)
        assert one.counts_at(0.4) is plain  # the rule is that of one method
        assert one.counts_at(0.4, errors=errors_among(8)) is (away > 2.76)


def test_a_sweep_comes_back_from_its_file(found, tmp_path):
    text = found.to_json(tmp_path / "sweep.json")
    again = Sweep.from_json(tmp_path / "sweep.json")
    assert again.to_json() == text and again.best(0.7).method == found.best(0.7).method
    raw = json.loads(text)
    assert raw["schema"] == "spectrim.sweep/1" and raw["version"] and raw["conditions"]["torch"] == torch.__version__
    assert raw["cells"][0]["config"] == "Zeros(budget=Uniform(), basis='plain')"
    (tmp_path / "other.json").write_text('{"schema": "spectrim.plan/1"}')
    with pytest.raises(ValueError, match="is not a sweep"):
        Sweep.from_json(tmp_path / "other.json")
    for wrong, complaint in (
        (b"[]", "found 'list'"),
        (b"{}", "found None"),
        (b"{", "valid JSON"),
        (b"\xff\xfe", "valid"),
    ):
        (tmp_path / "wrong.json").write_bytes(wrong)
        with pytest.raises(ValueError, match=complaint):
            Sweep.from_json(tmp_path / "wrong.json")
    (tmp_path / "marked.json").write_text(text, encoding="utf-8-sig")  # as some editors save it
    assert Sweep.from_json(tmp_path / "marked.json").to_json() == text
    del raw["cells"][0]["rate"]
    (tmp_path / "cut.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="lacks a part"):
        Sweep.from_json(tmp_path / "cut.json")


def test_every_budget_has_a_name():
    assert set(defaults()) <= set(known()) and {"lamp", "spectral edge", "erdos renyi", *CONTROLS} <= set(defaults())
    assert list(named(["Spectral-Edge", "lamp"])) == ["spectral edge", "lamp"]
    with pytest.raises(ValueError, match="'nope'; there are: uniform; global magnitude"):
        named(["lamp", "nope"])


class Wrong:
    """Tasks that cannot be swept."""

    name, only = "wrong", None

    def __init__(self, measure):
        self.model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20)).eval()
        self.measure = measure


def raising(model):
    return {}["there is none"]


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"rates": (0.5, 1.0)}, ValueError, r"shares in \(0, 1\), not 0.5, 1.0"),
        ({"rates": ()}, ValueError, "none at all"),
        ({"rates": "half"}, ValueError, "rates are shares"),
        ({"bootstrap": 1}, ValueError, "2 at least"),
        ({"seed": -1}, ValueError, "a whole number"),
        ({"methods": ["lamp"]}, TypeError, "dict of functions by name"),
        ({"methods": {"x": Ranks}}, TypeError, "a method is a function"),
        ({"methods": {"uniform": nothing}}, ValueError, "'uniform' is a control"),
        ({"task": object()}, TypeError, "lacks model or measure"),
        (
            {"task": Wrong(raising)},
            RuntimeError,
            r"dense model itself: KeyError: .* \(test_sweep.py, line \d+, in rais",
        ),
        ({"task": Wrong(lambda m: {"a": 1.0})}, RuntimeError, "a dict of Score by name"),
        ({"task": Wrong(lambda m: {})}, RuntimeError, "at least one"),
        ({"task": Wrong(lambda m: {"a": Score(np.full(5, math.nan), mean)})}, RuntimeError, "5 of 5 figures"),
        ({"task": Wrong(lambda m: {"a": Score(np.ones((5, 2)), pearson)})}, RuntimeError, "'a' is not defined"),
    ],
)
def test_requests_that_are_wrong_are_told_so(toy, given, error, complaint):
    with pytest.raises(error, match=complaint):
        sweep(**{"task": toy, "methods": {}, "rates": (0.5,), "bootstrap": 2} | given)


def test_a_model_in_training_mode_is_refused():
    task = Toy()
    task.model[1].train()  # one layer is enough: a dropout
    with pytest.raises(ValueError, match=r"the model of toy is in training mode.*model.eval\(\)"):
        sweep(task, {}, (0.5,), bootstrap=2)


def test_a_measure_that_ignores_its_argument_is_flagged_and_never_best(tmp_path):
    task = Toy()
    task.measure, measure = lambda model: measure(task.model), task.measure
    for _ in range(2):  # measured, and read from the folder
        seen = sweep(task, {}, (0.5,), bootstrap=2, work=tmp_path)
        assert all("exactly those of the dense model: does measure() use its argument?" in c.flag for c in seen)
        with pytest.raises(ValueError, match="no cell at rate"):
            seen.best(0.5)


def test_answers_that_all_stay_right_are_no_sign_of_that():
    task = Toy()
    task.measure = lambda model: {"runs": Score(torch.isfinite(model(task.x)).all(1).double().numpy(), mean)}
    seen = sweep(task, {}, (0.5,), bootstrap=2)
    assert not any(cell.flag for cell in seen) and seen.best(0.5).scores["runs"]["all"].value == 1


def test_at_random_the_zeros_that_are_there_count_and_go_first():
    model = Toy().model
    model[2].weight.data[:20] = 0
    before = [p.clone() for p in model.parameters() if p.dim() > 1]
    Random()(model, survey(model), 0.4, torch.Generator().manual_seed(0))
    after = [p for p in model.parameters() if p.dim() > 1][:3]
    entries = sum(p.numel() for p in after)
    assert sum(int((p == 0).sum()) for p in after) == round(0.4 * entries)
    assert all((new[old == 0] == 0).all() for new, old in zip(after, before, strict=False))


# Stops.


def without_times(text: str) -> dict:
    def cleaned(x):
        if isinstance(x, dict):
            return {key: cleaned(value) for key, value in x.items() if key != "seconds"}
        return [cleaned(y) for y in x] if isinstance(x, list) else x

    return cleaned(json.loads(text))


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from sweep_toy import Toy
from spectrim.sweep import sweep

class Slow(Toy):
    def measure(self, model):
        with open({log!r}, "a") as log:
            log.write("measured\\n")
        time.sleep({pause})
        return super().measure(model)

print(sweep(Slow(), {{}}, (.3, .6), bootstrap=50, work={work!r}).to_json())
"""


def test_a_sweep_that_was_killed_goes_on_where_it_was(tmp_path):
    log, work = tmp_path / "log", tmp_path / "work"
    names = {"tests": str(Path(__file__).parent), "log": str(log), "work": str(work)}

    def measured() -> int:
        return len(log.read_text().splitlines()) if log.exists() else 0

    running = subprocess.Popen([sys.executable, "-c", SLOW.format(pause=0.5, **names)], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while measured() < 4 and time.monotonic() < deadline:  # the dense model, and the third cell has begun
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    assert running.communicate()[0] == b"" and running.returncode == -signal.SIGKILL
    kept = len(list(work.glob("*.json")))
    assert 3 <= kept < 7  # the dense model, two or three cells of six
    before = measured()
    done = subprocess.run([sys.executable, "-c", SLOW.format(pause=0, **names)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert measured() - before == 1 + 7 - kept  # the dense model again, and what was missing
    whole = sweep(Toy(), {}, (0.3, 0.6), bootstrap=50)
    assert without_times(done.stdout) == without_times(whole.to_json())


def test_what_is_torn_is_done_again_and_another_model_is_noticed(tmp_path):
    task, work = Toy(), tmp_path / "work"
    first = sweep(task, {}, (0.5,), bootstrap=20, work=work)
    tables = sorted(work.glob("random*.npz"))
    tables[0].write_bytes(tables[0].read_bytes()[:100])
    next(work.glob("uniform*.json")).write_text('{"schema"')
    calls = []
    task.measure, measure = lambda model: calls.append(1) or measure(model), task.measure
    again = sweep(task, {}, (0.5,), bootstrap=20, work=work)
    assert len(calls) == 3 and without_times(again.to_json()) == without_times(first.to_json())
    assert not list(work.glob(".*"))  # nothing half written is left
    with pytest.raises(ValueError, match="for another model"):
        sweep(Toy(seed=1), {}, (0.5,), bootstrap=20, work=work)
    other = Toy()
    other.y = (other.y + 1) % 5
    with pytest.raises(ValueError, match="other scores of the dense model"):
        sweep(other, {}, (0.5,), bootstrap=20, work=work)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        sweep(Toy(), {}, (0.5,), bootstrap=20, work=tmp_path / "file")


def shares(budget):
    def method(model, found, rate, generator):
        Zeros(budget)(model, found, rate, generator)

    return method


def test_methods_that_look_alike_have_cells_of_their_own(tmp_path):
    """Two functions of one factory, under names that differ in what a file name leaves out."""
    for first, second in (("beta .5", "beta 5"), ("величина", "равномерно"), ("a" * 40 + "1", "a" * 40 + "2")):
        methods = {first: shares(budgets.GlobalMagnitude()), second: shares(budgets.Uniform())}
        for _ in range(2):
            seen = sweep(Toy(), methods, (0.6,), bootstrap=2, work=tmp_path / "work")
            for name, control in ((first, "global magnitude"), (second, "uniform")):
                same = (seen.cell(c, 0.6).scores["cosine"]["all"].value for c in (name, control))
                assert len(set(same)) == 1
            figures = [seen.cell(name, 0.6).scores["cosine"]["all"].value for name in (first, second)]
            assert figures[0] != figures[1]


def test_cells_of_other_candidates_are_not_taken(tmp_path):
    task = Toy()
    sweep(task, {}, (0.5,), bootstrap=2, work=tmp_path)
    task.only = lambda name: name != "2"
    seen = sweep(task, {}, (0.5,), bootstrap=2, work=tmp_path)
    assert without_times(seen.to_json()) == without_times(sweep(task, {}, (0.5,), bootstrap=2).to_json())
    assert {cell.counts.entries for cell in seen} == {24 * 48 + 40 * 32}


def test_ctrl_c_keeps_what_is_done(tmp_path):
    def interrupt(model, found, rate, generator):
        raise KeyboardInterrupt

    with pytest.raises(Stopped) as stop:
        sweep(Toy(), {"stop": interrupt}, (0.5,), bootstrap=20, work=tmp_path / "work")
    assert isinstance(stop.value, KeyboardInterrupt)
    assert [cell.method for cell in stop.value.sweep] == list(CONTROLS) and "uniform" in str(stop.value.sweep)
    assert len(list((tmp_path / "work").glob("*.npz"))) == 4


# The command line.

TASK = """
import sys
sys.path.insert(0, {tests!r})
from sweep_toy import Toy

def task(model, seed="0"):
    return Toy(int(seed))

def nameless():
    return Toy()
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TASK.format(tests=str(Path(__file__).parent)))
    return path


def run(*args, **env):
    plain = {"COLUMNS": "250", "TERMINAL_WIDTH": "250", "NO_COLOR": "", "FORCE_COLOR": "", "TERM": "dumb"}
    return CliRunner().invoke(app, ["sweep", *map(str, args)], env=plain)


def test_the_command_from_a_task_file_to_figures_and_page(file, tmp_path):
    asked = ("--task", file, "--methods", "lamp,ranks", "--rates", ".5", "--bootstrap", "20", "--set", "seed=3")
    done = run(
        "anything", *asked, "--html", tmp_path / "s.html", "--json", tmp_path / "s.json", "--work", tmp_path / "w"
    )
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[1:7]] == ["dense", *CONTROLS, "lamp", "ranks"]
    at = lines[0].index("gone")
    assert lines[2][at] == "50.00%" and "Zeros save no time" in done.stdout
    told = Sweep.from_json(tmp_path / "s.json")
    assert told.conditions["options"]["seed"] == "3" and told.conditions["options"]["task file"] == "mine.py"
    assert told.fingerprint == sweep(Toy(3), {}, (0.5,), bootstrap=2).fingerprint
    assert (tmp_path / "s.html").stat().st_size > 1_000_000
    again = run("anything", *asked, "--json", "-", "--work", tmp_path / "w")
    assert without_times(again.stdout) == without_times((tmp_path / "s.json").read_text())


def test_a_failed_cell_is_told_by_the_exit_status(file, monkeypatch):
    monkeypatch.setattr(Ranks, "__call__", lambda self, *given: broken(*given))
    done = run("--task", file, "--methods", "ranks", "--rates", ".6", "--bootstrap", "2")
    assert done.exit_code == 1 and "no such luck" in done.stdout and "1 of 4 cells failed" in done.stdout
    assert "error" not in done.stderr


def test_ctrl_c_is_told_by_the_exit_status(file, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Ranks, "__call__", interrupt)
    done = run("--task", file, "--methods", "ranks", "--rates", ".5,.6,.5", "--bootstrap", "2")
    assert done.exit_code == 130 and "error" not in done.stderr
    assert "stopped after 6 of 8 cells; with --work DIR" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "complaint"),
    [
        ((), 2, "name the task: --task FILE.py"),
        (("--task", "nowhere.py"), 2, "there is no file nowhere.py"),
        (("--task", "{file}:missing"), 2, "has no function 'missing'"),
        (("--task", "{file}:missing"), 2, "task, nameless"),
        (("--task", "{file}:nameless"), 2, "cannot be called"),
        (("--task", "{file}", "--set", "size=3"), 2, "size"),
        (("--task", "{file}", "--set", "seed"), 2, "NAME=VALUE"),
        (("--task", "{file}", "--set", "seed=1", "--set", "seed=2"), 2, "given twice"),
        (("--task", "{file}", "--rates", ".5,2"), 2, "--rates lie in (0, 1), not 2"),
        (("--task", "{file}", "--rates", "half"), 2, "commas between"),
        (("--task", "{file}", "--methods", "lamp,nope"), 2, "no method is called 'nope'; there are: uniform"),
        (("--task", "{file}", "--methods", ","), 2, "names nothing"),
        (("--task", "{file}", "--html", "/nowhere/at/all.html"), 2, "there is no folder"),
        (("--task", "{text}"), 2, "a task is a Python file"),
        (("--task", "{bad}"), 1, "ZeroDivisionError"),
        (("--task", "{bad}:late"), 1, "RuntimeError: not today"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file, tmp_path, args, status, complaint):
    (tmp_path / "notes.txt").write_text("no code")
    (tmp_path / "bad.py").write_text("1 / 0")
    names = {"file": file, "text": tmp_path / "notes.txt", "bad": tmp_path / "bad.py"}
    if args and args[-1].endswith("late"):
        names["bad"].write_text("def late(model):\n    raise RuntimeError('not today')\n")
        complaint = "not today"
    done = run(*(arg.format(**names) for arg in args))
    assert done.exit_code == status, done.output
    assert complaint in done.output and "Traceback" not in done.output


def test_help_says_that_the_file_is_executed():
    told = run("--help").output
    assert "executed" in told and "--set" in told and "all budgets" in told


def test_the_count_knows_what_is_gone(toy):
    net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20))
    with watched(net) as seen, torch.no_grad():
        net(torch.zeros(1, 30))
    entries = [("0", 1200), ("1", 800)]
    net[1] = nn.Identity()
    c = count(net, entries, seen)
    assert c.missing == ("1",) and c.kept == 1200 / 2000
