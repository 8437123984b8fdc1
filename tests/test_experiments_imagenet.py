"""The ImageNet recipe at a tiny size: images as they lie, models, a course that goes on, tables with empty cells."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

from experiments import drawing, records  # noqa: E402
from experiments.imagenet import figure, models, pictures, published, run  # noqa: E402
from experiments.tasks import lite  # noqa: E402

from spectrim.survey import inventory  # noqa: E402

HERE = ROOT / "experiments/imagenet"
pytestmark = pytest.mark.usefixtures("one_thread")
there = pytest.mark.skipif(not (HERE / "results.json").exists(), reason="the results are not there")


def picture(k: int, width: int = 20, height: int = 16):
    return Image.fromarray(np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    for k, name in enumerate(("n02", "n00", "n01")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(2):
            picture(10 * k + i).save(tmp_path / "val" / name / f"{i}.png")
    (tmp_path / "val" / "readme.txt").write_text("no image")
    return tmp_path / "val"


def test_images_in_class_folders_are_classed_by_the_order_of_their_names(folder):
    names, classes = pictures.listed(folder)
    assert names == [f"n0{k}/{i}.png" for k in range(3) for i in range(2)] and classes == [0, 0, 1, 1, 2, 2]
    view = models.View(side=16, resized=16)
    x, y = next(iter(pictures.batches(folder, None, view, None, 4, 0)))
    expected = torch.from_numpy(np.array(picture(10))).permute(2, 0, 1)[:, :, 2:18] / 255.0
    assert torch.allclose(x[0], (expected - 0.5) / 0.5) and y.tolist() == [0, 0, 1, 1]
    assert len(pictures.batches(folder, None, view, 3, 4, 0).dataset) == 3
    kept = pictures.kept(pictures.batches(folder, None, view, None, 4, 0))
    assert torch.equal(kept[0][0], x)


def test_images_with_a_file_of_labels_and_in_a_zip(tmp_path):
    (tmp_path / "val").mkdir()
    for k in range(3):
        picture(k).save(tmp_path / f"val/{k}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("2.png 7\n0.png 5\n1.png 6\n")
    assert pictures.listed(tmp_path / "val", labels) == (["0.png", "1.png", "2.png"], [5, 6, 7])
    labels.write_text("9\n8\n7\n")
    assert pictures.listed(tmp_path / "val", labels)[1] == [9, 8, 7]
    labels.write_text("9\n8\n")
    with pytest.raises(ValueError, match="2 lines"):
        pictures.listed(tmp_path / "val", labels)
    labels.write_text("0.png 5\n")
    with pytest.raises(ValueError, match=r"nothing of 1\.png"):
        pictures.listed(tmp_path / "val", labels)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        raw = io.BytesIO()
        picture(0).save(raw, "PNG")
        out.writestr("0042_x.png", raw.getvalue())
    assert pictures.listed(tmp_path / "a.zip") == (["0042_x.png"], [42])
    assert pictures.Pictures(tmp_path / "a.zip", ["0042_x.png"], [42], models.View(8, 8))[0][0].shape == (3, 8, 8)
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises((FileNotFoundError, ValueError), match="class folders"):
            pictures.listed(place)


def test_views_are_those_of_the_files_beside_a_model():
    deit = {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    assert models.view_of(deit) == models.View(224, 256)
    vit = {"size": {"height": 224, "width": 224}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    assert models.view_of(vit) == models.View(224, 248, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    odd = models.View(10, 12, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert models.view_of(odd.told()) == odd
    assert models.view_of({}) == models.View() and models.view_of({"size": 32}).side == 32


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [("a", "nowhere", "config.json"), ("a", "lite0:x.pth", "no file x.pth"), ("a", "random", "started at random")],
)
def test_models_that_are_none(name, where, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        models.classifier(name, where)


def test_deit_tiny_has_the_parameters_and_multiply_adds_that_are_published():
    model = models.classifier("deit-tiny", "random")
    found = run.sizes(model, "cpu")
    # 5.7 M, Touvron et al., arXiv 2012.12877, table 1. Its matrices by hand: 12 blocks of 12 d^2, 197 tokens each, the
    # patches (196) and the classifier (the class token alone).
    d, tokens = 192, 197
    assert found["params"] == pytest.approx(1e6 * published.MODELS["deit-tiny"].params, rel=0.01)
    assert found["macs"] == 12 * 12 * d * d * tokens + 196 * d * 768 + d * 1000 == found["macs_nonzero"]


def test_zeros_are_counted_where_they_are_multiplied(tmp_path):
    torch.save(lite.Lite0(classes=10).state_dict(), tmp_path / "a.pth")
    model = models.classifier("lite", f"lite0:{tmp_path / 'a.pth'}")
    before = run.sizes(model, "cpu")
    site = next(site for site in inventory(model).sites if site.name.endswith("_conv_head"))
    W = site.get().clone()
    W[:640] = 0
    site.put(W)
    after = run.sizes(model, "cpu")
    assert before["macs_nonzero"] - after["macs_nonzero"] == 640 * 320 * 7 * 7
    assert before["nonzeros"] - after["nonzeros"] == 640 * 320 and after["macs"] == before["macs"]


def test_accuracy_is_that_of_a_count():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x[:, 0, 0]

    out = torch.randn(30, 1, 1, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 12
    found = run.accuracy(Fixed(), [(out[:20], y[:20]), (out[20:], y[20:])], "cpu", "float32")
    ranks = (out[:, 0, 0] > out[torch.arange(30), 0, 0, y][:, None]).sum(1)
    assert found["top1"] == (ranks == 0).double().mean() and found["top5"] == pytest.approx(
        float((ranks < 5).double().mean())
    )
    assert found["images"] == 30 and found["error"] == pytest.approx((found["top1"] * (1 - found["top1"]) / 30) ** 0.5)


def test_the_toy_run(toy):
    found = toy["results"]["toy"]
    assert [row["cycle"] for row in found["cycles"]] == [1, 2, 3, 4]
    assert [row["cycle"] for row in found["cycles"] if "top1" in row] == [2, 4]
    for row, other in zip(found["cycles"][1::2], found["methods"]["global magnitude"], strict=True):
        assert other["nonzeros"] == pytest.approx(row["nonzeros"], abs=2) and row["macs_nonzero"] < row["macs"]
    assert toy["results"]["toy, tuned"]["images"] == 100
    tables = figure.tables(toy["results"] | {"toy-10, tuned": toy["results"]["toy, tuned"]})
    assert len(tables["kept"]) == 3 and tables["models"][1][-1] == "`--model vit-base=WHERE`"
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)


def test_a_course_that_was_stopped_goes_on(tmp_path, monkeypatch):
    options = type("Options", (), {})()
    run.toy(options, tmp_path)
    given = {
        "name": "toy", "where": str(tmp_path / "model"), "imagenet": tmp_path / "val", "labels": None, "images": 40,
        "every": 2, "settings": "default", "methods": ("global magnitude",), "dtype": "float32", "device": "cpu",
        "batch": 16, "readers": 0,
    }  # fmt: skip
    whole = run.course(**given, cycles=4, state=tmp_path / "whole.pt", save=(0.1,))
    run.course(**given, cycles=2, state=tmp_path / "parts.pt")
    parts = run.course(**given, cycles=4, state=tmp_path / "parts.pt")
    for one, other in zip(whole["cycles"], parts["cycles"], strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    assert whole["methods"] == parts["methods"]
    saved = models.classifier("toy", str(tmp_path / "toy-10"))
    assert run.sizes(saved, "cpu")["nonzeros"] == whole["cycles"][1]["nonzeros"]


def test_names_on_the_command_line():
    assert run.named(["vit-base=a/b", "x=timm:y:z"], "model") == {"vit-base": "a/b", "x": "timm:y:z"}
    for wrong in ("vit-base", "=a", "a b=c"):
        with pytest.raises(SystemExit, match="NAME=WHERE"):
            run.named([wrong], "model")
    with pytest.raises(SystemExit, match="twice"):
        run.named(["a=b", "a=c"], "model")


def test_what_is_published_is_put_beside_what_is_near():
    row = {"share": 0.3, "params": 100, "nonzeros": 70, "macs": 10, "macs_nonzero": 8, "top1": 0.5, "error": 0.01}
    found = {"dense": row, "cycles": [row, row | {"nonzeros": 69, "top1": 0.4}], "methods": {}}
    assert figure.near(found, 30.0) == "50.00 (at 30.0)" and figure.near(found, 40.0) == "" == figure.near(None, 30.0)
    assert figure.near(found, 20.0, figure.saved) == "50.00 (at 20.0)"
    rows = figure.tables({"vit-large": found | {"cycles": [row | {"misfit": 0.1, "bulk": 0.9, "cycle": 1}]}})["vit"]
    assert next(r for r in rows if r[1] == "30.0")[:4] == ["ViT-L/16", "30.0", "85.05", "50.00 (at 30.0)"]


@there
def test_the_readme_prints_the_results():
    text = (HERE / "README.md").read_text()
    for table, rows in figure.tables(records.read(HERE / "results.json")["results"]).items():
        assert f"<!-- table: {table} -->\n{drawing.markdown(rows)}<!-- end -->" in text


@there
def test_the_figure_was_drawn_from_these_results():
    assert drawing.digest(HERE) in (HERE / "figure.svg").read_text()
