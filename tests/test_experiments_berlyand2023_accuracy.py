"""The comparison of 2310.03165 at toy size, and facts that hold at any size."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import drawing, records, training  # noqa: E402
from experiments.berlyand2023_accuracy import figure, run  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = ROOT / "experiments" / "berlyand2023_accuracy"


def test_every_arm_has_its_start(toy):
    named = {f"{name}, seed 0" for names in figure.ARMS.values() for name in names}
    assert named == set(toy["results"])
    listed = run.make_jobs("reduced", {}, "cpu")
    assert set(listed) == {f"{name}, seed {k}" for names in figure.ARMS.values() for name in names for k in range(5)}


def test_pruned_and_unpruned_have_equal_epochs_and_the_same_start(toy):
    for one, other in (("fashion pruned", "fashion"), ("mnist pruned", "mnist"), ("cifar pruned", "cifar")):
        a, b = toy["results"][f"{one}, seed 0"], toy["results"][f"{other}, seed 0"]
        assert len(a["epochs"]["loss"]) == len(b["epochs"]["loss"]) and a["start"] == b["start"]
        assert a["epochs"]["loss"][0] == b["epochs"]["loss"][0]
        assert a["epochs"]["params"][-1] < b["epochs"]["params"][-1]


def test_the_control_by_chance_has_as_many_parameters_in_every_epoch(toy):
    chance, pruned = (toy["results"][f"fashion pruned{tail}, seed 0"] for tail in (" by chance", ""))
    assert chance["epochs"]["params"] == pruned["epochs"]["params"]
    assert chance["architecture"] == pruned["architecture"]


def test_a_part_of_the_images_holds_all_classes(monkeypatch):
    from experiments import data

    made = data.made_images()
    order = made.train_labels.argsort()  # as in the archive, class by class
    ordered = data.Images(made.train[order], made.train_labels[order], made.test, made.test_labels)
    monkeypatch.setattr(run.jobs, "images", lambda source, place: ordered)
    seen = {}
    monkeypatch.setattr(run.training, "fit", lambda recipe, images, *rest, **more: seen.update(images=images) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.one(run.toy(run.PLAIN), "toy", None, 200, 0, "cpu")
    # 20 of a class are expected; that one has fewer than 5 of 200 drawn without return has a probability below 1e-5.
    assert seen["images"].train_labels.bincount(minlength=10).min() >= 5 and len(seen["images"].train) == 200


def test_convolutions_are_split_too(toy):
    found = toy["results"]["cifar pruned, seed 0"]
    assert {change["name"] for change in found["changes"]} >= {"fc1"}
    for name, sizes in found["architecture"].items():
        ranks = [c["rank"] for c in found["changes"] if c["name"] == name and c["action"] == "split"]
        assert sizes[1:-1] == ranks[-1:]


def test_the_small_net_has_no_more_parameters_and_hardly_fewer(toy):
    for name in ("fashion pruned", "mnist pruned by default"):
        found = toy["results"][f"{name}, seed 0"]
        target, small = found["epochs"]["params"][-1], found["smaller"]["epochs"]["params"]
        assert small[0] <= target and found["smaller"]["changes"] == []
        # One unit more in either hidden layer of at most 48 costs less than 64 + 2 * 48 + 10 + 2 numbers.
        assert target - small[0] < 172


@pytest.mark.parametrize("parameters", [1000, 50000, 100000, 261510])
def test_smaller_against_all_widths(parameters):
    sizes = run.smaller((784, 250, 250, 10), parameters)

    def held(w):
        return sum(a * b + b for a, b in pairwise((784, w, w, 10)))

    best = max((w for w in range(1, 251) if held(w) <= parameters), default=1)
    assert sizes == (784, best, best, 10)


def test_the_default_arm_is_what_three_lines_give():
    from torch import nn

    from spectrim.pruner import Pruner
    from spectrim.schedules import linear

    net = nn.Sequential(nn.Linear(30, 20))
    plain, ours = Pruner(net, None, linear(20), every=3), training.make_pruner(run.DEFAULT, net, None)
    for name in ("keep", "every", "rule", "only"):
        assert getattr(plain, name) == getattr(ours, name)


def test_the_front_page_quotes_the_results():
    if not (HERE / "results.json").exists():
        pytest.skip("not run")
    found = figure.nets(records.read(HERE / "results.json")["results"])
    front = " ".join((ROOT / "README.md").read_text().split())

    def told(name: str) -> str:
        one = figure.figures(found[name])
        return f"{one['mean']:.2f} ± {one['stderr']:.2f} %".replace(" 0.", " .")

    default = "mnist pruned by default"
    kept = figure.figures(found[default])["params"] / figure.figures(found["mnist"])["params"]
    assert f"{told(default)} with {kept:.0%} of the parameters, {told('mnist')} without" in front.replace("41 %", "41%")
    assert f"{told(default + ', as small from the start')} for a net as small from its start" in front
    mean, half = figure.difference(found["fashion pruned"], found["fashion"])
    assert f"cost {-mean:.2f} ± {half:.2f} points (95 %)".replace(" 0.", " .") in front


def test_figures_and_differences_against_numpy():
    def made(accuracy):
        return {"test_accuracy": accuracy, "train_accuracy": 1.0, "epochs": {"params": [9, 7]}}

    one, other = ([made(x) for x in values] for values in ((0.9, 0.92, 0.91), (0.88, 0.9, 0.92)))
    found = figure.figures(one)
    assert found["mean"] == pytest.approx(91) and found["spread"] == pytest.approx(1) and found["params"] == 7
    assert found["stderr"] == pytest.approx(1 / np.sqrt(3)) and found["range"] == pytest.approx(2)
    mean, half = figure.difference(one, other)
    # Gains 2, 2, -1 points: sample deviation sqrt(3); t of 2 degrees of freedom at .975 is 4.302653.
    assert mean == pytest.approx(1) and half == pytest.approx(4.302652729911275)


def test_variances_of_five_are_a_factor_of_nearly_ten_apart_by_chance():
    draw = np.random.default_rng(0).standard_normal((2, 40000, 5)).var(axis=2, ddof=1)
    low, high = (float(x) for x in figure.between(5).split(" to "))
    share = np.mean((draw[0] / draw[1] > low) & (draw[0] / draw[1] < high))
    # Of 40000 draws: standard deviation .0011; the printed ends are rounded to .01 and .1.
    assert share == pytest.approx(0.95, abs=0.006)


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


def test_tables_take_what_is_there(toy):
    rows = figure.tables(toy["results"])["accuracy"]
    assert len(rows) == 1 + len(toy["results"]) + 2  # two arms bring a net that was small from the start
    part = {name: value for name, value in toy["results"].items() if name.startswith("fashion,")}
    assert len(figure.tables(part)["accuracy"]) == 2 and len(figure.tables(part)["pairs"]) == 1


@pytest.mark.skipif(not (HERE / "results.json").exists(), reason="not run")
def test_the_readme_prints_the_results_and_the_figure_was_drawn_from_them():
    text = (HERE / "README.md").read_text()
    for name, rows in figure.tables(records.read(HERE / "results.json")["results"]).items():
        assert f"<!-- table: {name} -->\n{drawing.markdown(rows)}<!-- end -->" in text
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()
