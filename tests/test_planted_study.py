"""The page on choosing an edge says what the results file says, and the results are those of the code."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "experiments/planted_study"


def load(name):
    spec = importlib.util.spec_from_file_location(f"planted_study_{name}", STUDY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record():
    return json.loads((STUDY / "results.json").read_text())


def test_the_tables_of_the_page_are_those_of_the_results(record):
    table = load("table")
    assert table.MARKS[0] + table.tables(record) + table.MARKS[1] in table.PAGE.read_text()


def test_a_changed_result_would_be_noticed(record):
    table = load("table")
    before = table.tables(record)
    cell = table.cells_of(record)[table.key(128)]
    cell["estimators"]["Bema"]["false"][0] += 1
    assert table.tables(record) != before


def test_every_figure_is_possible(record):
    for cell in record["results"]["cells"]:
        for name, figures in cell["estimators"].items():
            for figure, (mean, error) in figures.items():
                assert np.isfinite(mean), (name, figure)
                assert error is None or error >= 0
            if "power" in figures:
                assert 0 <= figures["power"][0] <= 1
            if "truncated" in figures:
                # No cut at a count is better than the best one.
                assert figures["truncated"][0] >= cell["estimators"]["best cut"]["truncated"][0] * (1 - 1e-6) or (
                    name in ("BemaGamma", "shuffled")  # of the first draws only
                )


@pytest.mark.slow
def test_a_cell_comes_out_as_it_was_recorded(record, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    run, table = load("run"), load("table")
    cell = run.Cell(128, 0.5, 20, "weak", entries="student")
    found = run.summary(cell, run.DRAWS)
    kept = table.cells_of(record)[table.key(128, 20, "weak", entries="student")]
    for name, figures in kept["estimators"].items():
        for figure, (mean, _) in figures.items():
            # Six digits are kept, and another linear algebra library may differ in the last of sixteen.
            assert found["estimators"][name][figure][0] == pytest.approx(mean, rel=1e-4, abs=1e-6), (name, figure)
