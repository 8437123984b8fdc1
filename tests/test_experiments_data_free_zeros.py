"""Zeros without data: a toy run end to end, and that page and figure say what the results say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import drawing, records  # noqa: E402
from experiments.data_free_zeros import figure, run  # noqa: E402

from spectrim import budgets  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = ROOT / "experiments/data_free_zeros"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    work = tmp_path_factory.mktemp("zeros")
    return {kind: json.loads(json.dumps(run.measured("toy", kind, {}, work, (0.5,)))) for kind in run.SETS}


def test_a_toy_run_holds_every_way_and_its_gains(made):
    for kind, (methods, _) in run.SETS.items():
        cells = figure.cells(made[kind])
        assert {method for method, _ in cells} == {*figure.CONTROLS, *methods}
        for score in figure.scores_of(made[kind]):
            assert set(made[kind]["gains"][score]) == {method for method, _ in cells} - {run.RULE}


def test_a_gain_is_the_difference_of_the_cells(made):
    cells = figure.cells(made["curves"])
    for score in figure.scores_of(made["curves"]):
        mine = figure.figure_of(cells[run.RULE, 0.5], score)[0]
        for other, gains in made["curves"]["gains"][score].items():
            assert gains["0.5"]["all"]["value"] == pytest.approx(mine - figure.figure_of(cells[other, 0.5], score)[0])
            assert gains["0.5"]["all"]["low"] <= gains["0.5"]["all"]["high"]


def test_the_same_way_measured_in_both_sets_is_measured_once(made):
    one, two = (figure.cells(made[kind])[run.RULE, 0.5] for kind in ("curves", "ablation"))
    assert one["seconds"] == two["seconds"] and one["scores"]["cosine"]["all"]["value"]


def test_tables_of_a_toy_run(made, monkeypatch):
    monkeypatch.setattr(figure, "MODELS", {"toy": "Toy"})
    tables = figure.tables({f"toy {kind}": record for kind, record in made.items()})
    assert tables["toy agreement"][0] == ["agreement", "50%"]
    assert f"**{run.RULE}**" in [row[0] for row in tables["toy cosine"]]
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)


def test_below_chance_nothing_counts():
    figures = {"value": 0.11, "error": 0.01, "gains": {}}
    cell = {"method": "a", "rate": 0.5, "scores": {"accuracy": {"all": figures}}}
    info = {"accuracy": {"chance": 0.1, "better": "higher"}}
    record = {"sweep": {"cells": [cell], "rates": [0.5], "scores": info}}
    assert not figure.counts(record, "accuracy", 0.5)
    figures["value"] = 0.13
    assert figure.counts(record, "accuracy", 0.5)
    info["accuracy"] |= {"better": "lower", "chance": 0.1}
    assert not figure.counts(record, "accuracy", 0.5)


# What is committed


def test_the_page_shows_the_results():
    results = records.read(HERE / "results.json")["results"]
    text = (HERE / "README.md").read_text()
    marks = re.findall(r"<!-- table: (.*?) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    tables = figure.tables(results)
    assert {name for name, _ in marks} == set(tables)
    for name, body in marks:
        assert body == drawing.markdown(tables[name]), name


def test_the_document_shows_the_results():
    body = drawing.markdown(figure.summary(records.read(HERE / "results.json")["results"]))
    assert f"<!-- table: budgets at 60 % -->\n{body}<!-- end -->" in (ROOT / "docs/budgets.md").read_text()


def test_the_figure_was_drawn_from_the_results():
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()


def test_the_rule_of_the_package_is_the_one_that_was_measured():
    assert records.read(HERE / "results.json")["config"]["rule"] == repr(budgets.LeastDamage())
