"""The experiment on damage before cutting: a toy run, planted correlations, and the page that holds its tables."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import drawing  # noqa: E402
from experiments.inner_product.run import toy  # noqa: E402
from experiments.model_error import figure, run  # noqa: E402
from experiments.model_error.methods import Prices, read, seen  # noqa: E402

from spectrim import budgets, plan, survey, trim  # noqa: E402
from spectrim.calibrate import gather, weighed  # noqa: E402

HERE = ROOT / "experiments/model_error"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results():
    return json.loads((HERE / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    work = tmp_path_factory.mktemp("cells")
    return work, run.measured("toy", {}, work, (0.5,), 100)


def test_the_toy_run_and_that_it_goes_on_where_it_was(toy_run, monkeypatch):
    work, found = toy_run
    cells = found["sweep"]["cells"]
    assert not [c["method"] for c in cells if c["failed"] or c["flag"]]
    estimates = found["estimates"]["0.5"]
    assert list(estimates) == [c["method"] for c in cells] and len(estimates) == 15
    assert all(set(run.ESTIMATES) == set(prices) for prices in estimates.values())
    for of in estimates.values():  # of two layers, the second linear: first order is nearly all
        assert of["weighed, 128 samples"] == pytest.approx(of["seen"], rel=0.25)
    # The samples are as many as a layer has inputs: what was fitted on them looks better there than it is.
    assert estimates["alternate, 128 samples"]["seen"] < figure.held_out(found, "alternate, 128 samples", "0.5") / 2
    assert found["correlations"]["cosine"]["0.5"]["weighed, noise"]["high"] < -0.7

    def never(*_):
        raise AssertionError("cut again")

    monkeypatch.setattr(run.Estimated, "__call__", never)
    again = run.measured("toy", {}, work, (0.5,), 100)
    assert again["estimates"] == found["estimates"] and again["correlations"] == found["correlations"]


def test_the_estimate_is_that_of_the_plan_and_the_others_are_what_they_say():
    task, samples = toy()
    model, dense = task.model, toy()[0].model
    moments = weighed(gather(model, samples), model, samples, samples=None)
    found = survey(model)
    chosen = plan(found, zeros=0.5, moments=moments, budget=budgets.GlobalMagnitude())
    before = [dense[i].weight.detach().double() for i in (0, 2)]
    trim(model, chosen, moments=moments)
    after = [model[i].weight.detach().double() for i in (0, 2)]
    prices = Prices(dense, {"samples": lambda: moments}, samples).of(model, found)
    assert prices["weighed, samples"] == pytest.approx(chosen.model_error)
    shares = [float((w - v).norm() / w.norm()) for w, v in zip(before, after, strict=True)]
    assert prices["plain"] == pytest.approx(math.hypot(*shares))
    inputs = [samples[0].double(), (samples[0].double() @ before[0].T).relu()]  # the dense ones, of both layers
    shares = [float((x @ (w - v).T).norm() / (x @ w.T).norm()) for x, w, v in zip(inputs, before, after, strict=True)]
    assert prices["summed, samples"] == pytest.approx(math.hypot(*shares), rel=1e-5)
    gone = sum(float(w.abs()[v == 0].sum()) for w, v in zip(before, after, strict=True))
    assert prices["magnitude"] == pytest.approx(gone / sum(float(w.abs().sum()) for w in before))
    with torch.no_grad():
        one, two = dense(samples[0]).double(), model(samples[0]).double()
    assert prices["seen"] == pytest.approx(float((one - two).norm() / one.norm()))


def test_what_is_seen_leaves_padding_out():
    class Tokens(nn.Module):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def forward(self, ids, attention_mask):
            return {"out": torch.nn.functional.one_hot(ids, 2) * self.at}

    batch = {"ids": torch.tensor([[0, 1], [0, 1]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    one, two = Tokens(torch.tensor([1.0, 1.0])), Tokens(torch.tensor([1.0, 3.0]))
    assert seen(one, two, [batch]) == pytest.approx(math.sqrt(4 / 3))  # of three tokens one is off by 2


def test_samples_to_see_by_are_the_first_ones():
    batches = [{"a": torch.arange(20)}, {"a": torch.arange(20, 40)}, {"a": torch.arange(40, 60)}]
    assert torch.cat([b["a"] for b in run.first(batches)]).tolist() == list(range(run.READ))
    assert [len(b) for b in run.first([torch.zeros(40, 2), torch.zeros(40, 2)])] == [run.READ]


def test_correlations_of_planted_estimates():
    """One estimate falls as the score rises, one is mixed up: the first is ahead, and the interval says so."""
    rng = np.random.default_rng(0)
    scores = np.linspace(0, 1, 15)
    columns = {run.WEIGHED: 1 - scores**2, "mixed": rng.permutation(15), "constant": np.ones(15)}
    found = run.ranked(columns, scores, 400)
    assert found[run.WEIGHED] == {"value": -1.0, "low": -1.0, "high": -1.0} | {
        "behind": {"value": 0.0, "low": 0.0, "high": 0.0}
    }
    mixed = found["mixed"]
    assert mixed["low"] < mixed["value"] < mixed["high"] and mixed["behind"]["low"] > 0
    assert mixed["behind"]["value"] == pytest.approx(mixed["value"] + 1)
    assert found["constant"]["value"] is None and figure.told(found["constant"]) == "–"


def test_a_note_is_read_back_and_a_failed_cell_has_none():
    assert read(("said of the cut", 'estimates {"plain": 0.5}')) == {"plain": 0.5}
    assert read(("said of the cut",)) == {}


def test_the_tables_of_a_toy_run(toy_run):
    _, found = toy_run
    tables = figure.tables({"toy": found})
    assert [row[0] for row in tables["cosine"]] == ["model", "toy"] and tables["own"][1][2] == "agreement"
    assert tables["minilm"] == figure.WAITING
    rows = figure.cells_table(found)
    assert len(rows) == 16 and {len(row) for row in rows} == {2}
    small, large = (figure.ratios(found, run.WEIGHED, "seen", of) for of in (True, False))
    assert len(small) + len(large) == 15 and small == sorted(small)
    # A cosine of .8 is an error of .6 at the best scale.
    cells = [{"method": "a", "rate": 0.5, "scores": {"cosine": {"all": {"value": 0.8, "error": 0.0}}}}]
    assert figure.held_out({"sweep": {"cells": cells}}, "a", "0.5") == pytest.approx(0.6)


def test_the_page_and_the_figure_are_those_of_the_results(results):
    page = (HERE / "README.md").read_text()
    for name, rows in figure.tables(results).items():
        assert f"<!-- table: {name} -->\n{drawing.markdown(rows)}<!-- end -->" in page
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()


def test_every_result_holds_what_was_asked_for(results):
    assert set(results) <= set(figure.MODELS) and "minilm" in results
    for name, result in results.items():
        assert [float(rate) for rate in result["estimates"]] == list(run.RATES)
        for rate, of in result["estimates"].items():
            assert len(of) == len(run.FEWER.get(name, range(15)))
            for score, told in result["correlations"].items():
                # The committed correlations are those of the committed numbers.
                columns = {estimate: [prices[estimate] for prices in of.values()] for estimate in run.ESTIMATES}
                again = run.ranked(columns, [figure.value(result, m, rate, score)[0] for m in of], 10)
                for estimate, figures in again.items():
                    assert told[rate][estimate]["value"] == pytest.approx(figures["value"], abs=2e-3)
