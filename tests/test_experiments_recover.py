"""The experiment on recovery: a toy run, what is compared with what, and the pages that hold its tables."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import drawing  # noqa: E402
from experiments.recover import figure, run  # noqa: E402

HERE = ROOT / "experiments/recover"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def results():
    return json.loads((HERE / "results.json").read_text())["results"]


def test_the_toy_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "DRAWS", 100)
    zeros, ranks = (run.measured("toy", kind, 20, {}, tmp_path) for kind in run.RATES)
    for found in (zeros, ranks):
        cells = found["sweep"]["cells"]
        assert set(found["ways"]) <= {c["method"] for c in cells}
        # A flag would say that the share of zeros, or of numbers stored, is no longer what the cut had made of it.
        assert not [c["method"] for c in cells if c["failed"] or c["flag"]]
        for way, (_, how, _) in found["ways"].items():
            assert (figure.seconds(found, way) is not None) == bool(how)
    of = zeros["gains"]["cosine"]
    for given in ("128 samples", "noise"):
        for how in run.HOW:
            assert of[f"global magnitude + {how}, {given}"]["global magnitude"]["low"] > 0
            share, error = figure.back(zeros, f"global magnitude + {how}, {given}", "cosine")
            assert 0 < share <= 1 and 0 < error < share
        assert of[f"global magnitude + both, {given}"][f"global magnitude + fit, {given}"]["low"] > 0
    plain = "plain ranks + train, 128 samples"
    assert ranks["gains"]["cosine"][plain]["plain ranks"]["low"] > 0
    assert zeros["chosen"]["global magnitude"]["recovery"] != "nothing"
    rows = figure.ways_table(zeros)
    assert len(rows) == 2 + len(zeros["ways"]) and {len(row) for row in rows} == {7}
    again = run.measured("toy", "zeros", 20, {}, tmp_path)  # from the cells
    assert again["sweep"]["cells"] == zeros["sweep"]["cells"] and again["gains"] == zeros["gains"]


@pytest.mark.parametrize("kind", run.RATES)
def test_two_ways_are_compared_where_they_differ_in_one_thing(kind):
    every = run.ways(kind)
    assert len({way.name for way in every}) == len(every)
    asked = {(one.name, other.name) for one, other in run.pairs(kind)}
    for i, j in product(range(len(every)), repeat=2):
        same = (every[i].cut == every[j].cut) + ((every[i].how, every[i].given) == (every[j].how, every[j].given))
        assert ((every[i].name, every[j].name) in asked) == (i < j and same == 1)
    for way in every:  # each recovery stands beside its bare cut
        assert not way.how or (way.cut, way.name) in asked


def test_the_best_is_chosen_on_the_half_that_is_not_reported():
    """Planted: the fit is best on the half to choose by, the training on the other; nothing is best after random."""
    best = {"global magnitude + fit, noise": "choose", "global magnitude + train, noise": "report", "random": "choose"}

    def cell(name, rate):
        halves = {half: SimpleNamespace(value=0.9 if best.get(name) == half else 0.5) for half in ("choose", "report")}
        return SimpleNamespace(failed="", scores={"cosine": halves})

    found = run.chosen(SimpleNamespace(cell=cell), "zeros")
    assert found["global magnitude"] == {"way": "global magnitude + fit, noise", "recovery": "fit, noise"}
    assert found["random"] == {"way": "random", "recovery": "nothing"}


def test_what_came_back_is_a_share_of_what_was_lost():
    """From .4 to .7 of a dense .9 is three fifths; the error is that of the ratio over draws of the pair, made here."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(0, 0.008, 200_000), rng.normal(0, 0.004, 200_000)
    y, x = 0.4 + common, 0.7 + 0.5 * common + own
    cells = [
        {"method": name, "scores": {"cosine": {"report": {"value": at, "error": draws.std()}}}}
        for name, at, draws in (("a", 0.4, y), ("a + fit", 0.7, x))
    ]
    result = {
        "ways": {"a": ["a", "", ""], "a + fit": ["a", "fit", "noise"]},
        "sweep": {"cells": cells, "dense": {"scores": {"cosine": {"report": {"value": 0.9}}}}},
        "gains": {"cosine": {"a + fit": {"a": {"value": 0.3, "error": (x - y).std()}}}},
    }
    # The ratio is straight over errors of 2 % to first order; the draws give its spread to .2 %.
    assert figure.back(result, "a + fit", "cosine") == pytest.approx((0.6, ((x - y) / (0.9 - y)).std()), rel=0.01)
    cells[0]["scores"]["cosine"]["report"] = {"value": 0.89, "error": 0.01}  # nothing to speak of was lost
    assert figure.back(result, "a + fit", "cosine") is None
    assert figure.share(None) == "–" and figure.share((0.6, 0.012)) == "60.0% ± 1.2"


def test_the_pages_are_those_of_the_results(results):
    tables = figure.tables(results)
    page = (HERE / "README.md").read_text()
    for name, rows in tables.items():
        assert f"<!-- table: {name} -->\n{drawing.markdown(rows)}<!-- end -->" in page
    page = figure.PAGE.read_text()
    assert f"<!-- table: back -->\n{drawing.markdown(tables['back'])}<!-- end -->" in page


def test_every_result_holds_what_was_asked_for(results):
    assert set(results) <= {f"{name} {kind}" for name in figure.MODELS for kind in figure.KINDS}
    for job, result in results.items():
        name, kind = job.split()
        assert result["steps"] == run.STEPS[name]
        assert list(result["ways"]) == [way.name for way in run.ways(kind)]
        for one, other in run.pairs(kind):
            # The figures of the two cells and their difference in pairs are of the same half of the same items.
            apart = figure.value(result, other.name, "cosine")[0] - figure.value(result, one.name, "cosine")[0]
            assert result["gains"]["cosine"][other.name][one.name]["value"] == pytest.approx(apart, abs=3e-6)


def test_what_the_page_says_in_words_is_in_the_results(results):
    zeros, ranks = (results[f"vit_cifar {kind}"] for kind in figure.KINDS)
    cosine, accuracy = zeros["gains"]["cosine"], zeros["gains"]["accuracy"]
    shares = {way: f"{figure.back(zeros, way, 'cosine')[0]:.1%}" for way, (_, how, _) in zeros["ways"].items() if how}
    assert (
        shares["global magnitude + fit, 128 samples"] == "97.5%" and shares["global magnitude + fit, noise"] == "96.2%"
    )
    for given in ("128 samples", "noise"):
        assert cosine[f"global magnitude + train, {given}"][f"global magnitude + fit, {given}"]["high"] < 0
        assert 0 < cosine[f"global magnitude + both, {given}"][f"global magnitude + fit, {given}"]["low"] < 0.001
        for how in run.HOW:
            cut = f"alternate, {given}"
            assert cosine[f"{cut} + {how}, {given}"][cut]["high"] < 0.001
            assert accuracy[f"{cut} + {how}, {given}"][cut]["low"] <= 0
    of = {
        cut: figure.value(zeros, cut + more, "cosine")
        for cut, more in zip(run.CONTROLS, [" + both, 128 samples"] * 3, strict=True)
    }
    assert of["random"][0] < min(of["uniform"][0], of["global magnitude"][0]) - 0.04
    best = figure.value(zeros, "alternate, 128 samples", "cosine")
    assert best[0] > of["global magnitude"][0] + 2 * (best[1] + of["global magnitude"][1])
    clear = {
        w: g[c]["value"] / g[c]["error"] for w, g in accuracy.items() if (c := zeros["ways"][w][0]) in g and c != w
    }
    assert {way.split(" +")[0] for way, errors in clear.items() if errors > 3} == {"uniform", "random"}
    plain, whitened = (
        figure.value(ranks, w, "cosine")[0] for w in ("plain ranks + train, 128 samples", run.WHITENED["128 samples"])
    )
    assert plain < whitened and figure.back(ranks, "plain ranks + train, 128 samples", "cosine")[0] > 0.5
