"""The small vision transformer: its training, its toy run, and that tables and figure are those of the results."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

pytest.importorskip("transformers")

from experiments import data, drawing, records  # noqa: E402
from experiments.vit_cifar import figure, net, run, train  # noqa: E402

from spectrim.survey import inventory  # noqa: E402

HERE = ROOT / "experiments/vit_cifar"
pytestmark = pytest.mark.usefixtures("one_thread")
TINY = train.Settings(
    size=net.Size(side=8, patch=4, width=16, blocks=1, heads=2), epochs=2, batch=50, rate=3e-3, dtype="float32"
)
there = pytest.mark.skipif(not (HERE / "results.json").exists(), reason="the results are not there")


def test_moves_are_those_of_a_loop():
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = net.moved(pixels, torch.Generator().manual_seed(5), most=2)
    draw = torch.Generator().manual_seed(5)
    down, along = torch.randint(0, 5, (2, 6, 1), generator=draw)
    flip = torch.rand(6, 1, generator=draw) < 0.5
    wide = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    for i in range(6):
        one = wide[i, :, int(down[i]) : int(down[i]) + 8, int(along[i]) : int(along[i]) + 8]
        assert torch.equal(found[i], one.flip(2) if flip[i] else one)
    assert 0 < int(flip.sum()) < 6


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    images = data.made_images(items=200, test=50, channels=3)
    said: list[str] = []
    whole = train.train(images, tmp_path / "whole", TINY, said.append)
    assert len(said) == 2 and all(1 < epoch["loss"] < 4 for epoch in whole["epochs"])

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(images, tmp_path / "parts", TINY, stop)
    train.train(images, tmp_path / "parts", TINY, said.append)
    assert len(said) == 3 and said[1].partition(",")[0] == said[2].partition(",")[0]
    one, other = (net.load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="other settings"):
        train.train(images, tmp_path / "parts", replace(TINY, rate=1e-3), said.append)


def test_the_rate_warms_up_and_falls_to_zero():
    settings = train.Settings(epochs=10, rate=1.0, warmup=2.0)
    assert [settings.rate_at(t) for t in (1.0, 2.0, 6.0, 10.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert 0 < settings.rate_at(0.0) < 0.01


def test_cycles_end_at_the_exact_share():
    images = data.made_images(channels=3)
    model = run.toy(images)
    cycles = run.by_cycles(model, 0.3)
    sites = inventory(model).sites
    zeros, total = sum(int((s.get() == 0).sum()) for s in sites), sum(s.rows * s.cols for s in sites)
    assert zeros == round(0.3 * total) and cycles > 3


def test_the_toy_run(toy):
    results = toy["results"]
    assert len(results) == 1 + len(run.CONTROLS) + len(run.METHODS) + 1
    for name, found in results.items():
        entries, zeros = found["cut"]["entries"], sum(found["cut"]["zeros"].values())
        assert zeros == (0 if name.startswith(run.DENSE) else round(0.6 * entries))
        assert found["frozen"] == zeros and found["zeros_lost"] == 0
        assert run.unpacked(found["tuned"]["hits"]).sum() / 200 == pytest.approx(found["tuned"]["accuracy"])
    assert results["dense, seed 0"]["dense"]["accuracy"] == results["dense, seed 0"]["pruned"]["accuracy"]
    tables = figure.tables(results)
    assert tables["pruned"][1][0] == "uniform" and len(tables["differences"]) == 1 + len(results) - 1


def test_differences_are_taken_image_by_image():
    def record(*hits: int) -> dict:
        return {"tuned": {"hits": run.packed(np.array(hits, float))}, "images": 4}

    one, other = [record(1, 1, 0, 1)], [record(0, 1, 0, 1), record(1, 0, 0, 1)]
    value, error = figure.against(one, other, "tuned")
    apart = torch.tensor([0.5, 0.5, 0.0, 0.0]).double()  # 1 - .5, 1 - .5, 0 - 0, 1 - 1
    assert value == pytest.approx(100 * float(apart.mean())) and error == pytest.approx(100 * float(apart.std()) / 2)


@there
def test_the_readme_prints_the_results():
    text = (HERE / "README.md").read_text()
    for table, rows in figure.tables(records.read(HERE / "results.json")["results"]).items():
        assert f"<!-- table: {table} -->\n{drawing.markdown(rows)}<!-- end -->" in text


@there
def test_the_figure_was_drawn_from_these_results():
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()
