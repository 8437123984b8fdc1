"""Certificates on MNIST: a toy run end to end, and that pages and figure say what the results say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import data, drawing, records  # noqa: E402
from experiments.certificate import figure, run  # noqa: E402

from spectrim.modules import of_module  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = ROOT / "experiments/certificate"


def test_a_toy_run_certifies_and_nothing_certified_changes(toy):
    results = toy["results"]
    assert {r["net"] for r in results.values()} == set(run.NETS)
    assert {r["way"] for r in results.values()} == set(run.WAYS)
    for r in results.values():
        assert r["zeros"] >= 0.95 * r["rate"] * r["entries"]  # a matrix without a verdict is left alone
        for c in r["cells"]:
            assert c["violations"] == 0 and c["certified"] <= c["stands"] <= c["images"]
    zero = [figure.cell(r, "response", 0.0) for r in results.values()]
    assert sum(c["certified"] for c in zero) > 0.9 * sum(c["stands"] for c in zero)


def test_tables_of_a_toy_run(toy):
    tables = figure.tables(toy["results"])
    assert [row[0] for row in tables["mlp at the samples"][1:3]] == ["no cut", "global magnitude, 10%"]
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)
    assert len(figure.summary(toy["results"])) == 6


def test_an_attack_finds_what_a_linear_net_cannot_hold():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.9], [1.0, 0.5]])  # .1 / sqrt(2) and .5 / sqrt(2) from the line between the classes
    classes = torch.tensor([0, 0])
    assert run.attacked(net, x, classes, 0.06).tolist() == [False, False]
    assert run.attacked(net, x, classes, 0.08).tolist() == [True, False]
    assert run.attacked(net, x, classes, 0.36).tolist() == [True, True]


def test_the_surgeon_has_the_zeros_of_global_magnitude():
    images = data.made_images()
    net = run.training.build(run.Recipe(sizes=(64, 24, 10)), 8, torch.Generator().manual_seed(0)).eval()
    one, two = (run.cut_weights(net, way, 0.4, images) for way in (run.WAYS[0], "surgeon"))
    assert {k: int((W == 0).sum()) for k, W in one.items()} == {k: int((W == 0).sum()) for k, W in two.items()}
    assert set(one) == {site.name for site in of_module(net).sites} and not torch.equal(one["fc1"], two["fc1"])


def test_shares_are_whole_only_where_they_are():
    assert [figure.share(*pair) for pair in ((10000, 10000), (9999, 10000), (1, 2), (0, 0))] == [
        "100.0",
        "99.99",
        "50.0",
        "-",
    ]


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
    assert f"<!-- table: certified -->\n{body}<!-- end -->" in (ROOT / "docs/certificate.md").read_text()


def test_the_figure_was_drawn_from_the_results():
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()


def test_the_results_are_whole_and_hold_no_violation():
    found = records.read(HERE / "results.json")
    assert set(found["results"]) == set(run.make_jobs("reduced", None, Path()))
    assert all(c["violations"] == 0 for r in found["results"].values() for c in r["cells"])
