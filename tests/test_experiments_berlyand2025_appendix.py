"""Appendix A and B.3 of 2503.01922 at toy size, and facts that hold at any size."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import data, drawing, networks, records, training  # noqa: E402
from experiments.berlyand2025_appendix import figure, noise, run, widths  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = ROOT / "experiments" / "berlyand2025_appendix"


def test_every_arm_of_the_paper_is_run(toy):
    results = toy["results"]
    assert {f"A1 {name}, seed 0" for name in figure.PAPER} <= set(results)
    assert set(figure.PAPER) <= set(run.ARMS) and len(figure.PAPER) == 9
    assert len(results) == len(run.make_jobs("toy", None, "cpu"))
    assert toy["config"]["full"]["sizes"] == [784, 3000, 3000, 3000, 3000, 500, 10]


def test_what_an_arm_is_called_is_what_it_has(toy):
    for name, found in toy["results"].items():
        recipe = found["recipe"]
        if name.startswith("A1"):
            assert (recipe["pruning"] is not None) == name.startswith("A1 MP")
            assert (recipe["l2"] > 0) == ("L2" in name) and (recipe["l1"] > 0) == ("L1" in name)
            assert (recipe["stable_rank"] > 0) == ("SR" in name)
            assert recipe["last_relu"] != ("open" in name)
        if recipe["pruning"] is None:
            assert found["changes"] == [] and len(set(found["epochs"]["params"])) == 1


def test_arms_that_share_a_loss_share_their_first_epoch(toy):
    first = {name: found["epochs"]["loss"][0] for name, found in toy["results"].items()}
    assert first["A1 none, seed 0"] == first["A1 MP, seed 0"] == first["A1 MP by chance, seed 0"]
    assert first["A1 L1 + L2, seed 0"] == first["A1 MP + L1 + L2, seed 0"]


def test_the_control_by_chance_cuts_as_much(toy):
    def cuts(name):
        return [
            (c["epoch"], c["name"], c["action"], c["rank"]) for c in toy["results"][f"A1 {name}, seed 0"]["changes"]
        ]

    assert cuts("MP") == cuts("MP by chance") != []


def test_the_portion_of_47_makes_no_square_layer_smaller_in_100_epochs():
    # r = K + int(f (p - K)) with f >= 1 - 99 / 200 is at least p / 2, and a pair of p / 2 values is no smaller.
    for p in (750, 3000):
        for spikes in range(0, 100, 7):
            rank = spikes + int((1 - 99 / 200) * (p - spikes))
            assert not rank * 2 * p < p * p


def test_the_jobs_are_ordered_by_starts_and_cost_something():
    listed = run.make_jobs("reduced", None, "cpu")
    arms = [name for name in listed if name.startswith("A1")]
    assert [int(name[-1]) for name in arms] == sorted(int(name[-1]) for name in arms) and len(arms) == 3 * len(run.ARMS)
    assert all(job.seconds > 1 for job in listed.values())
    recipe = listed["A1 MP, seed 0"].kwargs["recipe"]
    assert recipe.sizes == (784, 750, 750, 750, 750, 125, 10) and recipe.epochs == 33
    full = run.make_jobs("full", None, "cpu")["A1 MP, seed 0"].kwargs["recipe"]
    assert full == replace(run.FULL, pruning=run.CUTS)


# A.3


@pytest.fixture(scope="module")
def images() -> data.Images:
    return data.made_images()


def test_a_merged_net_is_the_same_map(images):
    recipe = training.Recipe(
        sizes=(64, 60, 60, 10), epochs=2, rate=0.1, batch=32, pruning=training.Pruning("constant", 0.1, every=2)
    )
    net, record = training.fit(recipe, images, 0)
    assert any(len(sizes) == 3 for sizes in record["architecture"].values())
    merged = noise.merged(net)
    assert [w.shape for w in networks.matrices(merged)] == [(60, 64), (60, 60), (10, 60)]
    with torch.no_grad():
        assert torch.allclose(merged(images.test), net(images.test), atol=1e-5)


def test_the_sum_of_squares_grows_with_the_number_of_entries(images):
    net = networks.mlp((64, 80, 70, 10), generator=torch.Generator().manual_seed(0))
    before = [p.clone() for p in net.parameters()]
    found = noise.sweep(net, images, l2=0.1, seed=0, levels=(0.0, 0.01, 0.02, 0.05), draws=3)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert found["entries"] == 64 * 80 + 80 * 70  # all matrices but the last
    # Five standard deviations of what three draws leave to chance.
    assert found["slope"] == pytest.approx(found["entries"], abs=5 * found["slope_stderr"])
    assert found["slope_stderr"] < 0.05 * found["entries"]
    whole = sum(float(w.detach().square().sum()) for w in networks.matrices(net))
    assert found["squares"][0] == [pytest.approx(whole), 0.0]
    assert found["regularised"][0] == pytest.approx(found["train_loss"][0][0] + 0.1 * whole)


def test_the_toy_sweep_begins_at_the_accuracy_of_its_net(toy):
    record = toy["results"]["A1 MP + L1 + L2, seed 0"]
    assert record["noise"]["test"][0][0] == pytest.approx(record["test_accuracy"], abs=1e-5)
    assert record["sparse"]["accuracy"][0] == pytest.approx(record["test_accuracy"], abs=1e-5)


# B.3


def test_the_bounds_against_their_formula(images):
    net = networks.mlp((64, 30, 30, 10), generator=torch.Generator().manual_seed(1))
    W1, _, W3 = (w.detach().double().numpy() for w in networks.matrices(net))
    x = images.train.flatten(1).double().numpy()
    longest = max(np.linalg.norm(W1 @ s) for s in x)
    rows = max(np.abs(row).sum() for row in W3)
    found = widths.bounds(net, images.train)
    assert found["a"] == pytest.approx(rows * longest * (sqrt(2 * log(60) / 30) + 30**-0.375), rel=1e-5)
    assert found["a_prime"] == pytest.approx(rows * longest * (sqrt(2 * log(1800) / 900) + 900**-0.375), rel=1e-5)
    assert found["entrywise"] == pytest.approx(np.abs(W3).sum(), rel=1e-5)


def test_at_the_start_the_bound_grows_with_the_width_under_variance_one_over_inputs():
    # Row sums of W3 and the norm of W1 s both grow like sqrt(N), their product by four; the largest of ten rows and of
    # 600 images stands above the mean, and the more so the narrower the net is.
    found = {}
    for N in (100, 400):
        recipe = training.Recipe(sizes=(64, N, N, 10), init="normal")
        net: nn.Sequential = training.build(recipe, 8, torch.Generator().manual_seed(0))
        found[N] = widths.bounds(net, data.made_images().train)
    ratio = found[400]["rows"] * found[400]["longest"] / (found[100]["rows"] * found[100]["longest"])
    assert 2.5 < ratio < 4.2
    assert found[400]["a"] > found[100]["a"]


# Tables and figure


def test_tables_and_figure_of_a_run(toy, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    shutil.copy(HERE / "README.md", tmp_path / "README.md")
    records.write(tmp_path / "results.json", toy["config"], toy["results"])
    monkeypatch.setattr(figure, "HERE", tmp_path)
    figure.main()
    assert drawing.digest(tmp_path) in (tmp_path / "figure.svg").read_text()
    text = (tmp_path / "README.md").read_text()
    for rows in figure.tables(toy["results"]).values():
        assert drawing.markdown(rows) in text


def test_tables_need_no_matplotlib_and_take_what_is_there(toy):
    found = figure.tables(toy["results"])
    assert len(found["arms"]) == 1 + len(run.ARMS) and found["arms"][1][1] == "78.03 / 71.64"
    part = {name: value for name, value in toy["results"].items() if name.startswith("A1 none, seed")}
    assert len(figure.tables(part)["arms"]) == 2 and len(figure.tables({})["widths"]) == 1


def test_the_second_moment_of_figure_5_is_that_of_a_standard_deviation():
    # 44.5 and 75 are mu2 ||W||^2 before and after noise of .01 on 30.9 million entries; with that mu2 the first is
    # about what torch's start of this net has: a third of the number of outputs of every layer.
    before, after, sizes = figure.FIGURE5
    entries = sum(a * b for a, b in pairwise(sizes))
    mu2 = (after - before) / (0.01**2 * entries)
    assert mu2 == pytest.approx(0.01, rel=0.02)
    assert before / mu2 == pytest.approx(sum(sizes[1:]) / 3, rel=0.1)
    # In training it would leave nothing of that start: A.1's rate, .01 times .96 every 4 epochs, and momentum .9.
    steps = sum(469 * log(1 - 2 * mu2 * 0.01 * 0.96 ** (epoch // 4) / (1 - 0.9)) for epoch in range(100))
    assert round(steps) == -59 and "exp(-59)" in (HERE / "README.md").read_text()


@pytest.mark.skipif(not (HERE / "results.json").exists(), reason="not run")
def test_the_readme_prints_the_results_and_the_figure_was_drawn_from_them():
    text = (HERE / "README.md").read_text()
    for name, rows in figure.tables(records.read(HERE / "results.json")["results"]).items():
        assert f"<!-- table: {name} -->\n{drawing.markdown(rows)}<!-- end -->" in text
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()
