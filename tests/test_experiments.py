"""The experiments at a tiny size, and that what is committed of them agrees: results, tables, figures."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import data, drawing, records  # noqa: E402
from experiments.berlyand2025_metrics import figure as metrics_figure  # noqa: E402
from experiments.berlyand2025_metrics import models  # noqa: E402
from experiments.berlyand2025_metrics import run as metrics_run  # noqa: E402
from experiments.berlyand2025_regression import figure as regression_figure  # noqa: E402
from experiments.berlyand2025_regression import run as regression  # noqa: E402
from experiments.nishikawa2025_thresholds import figure as thresholds_figure  # noqa: E402
from experiments.nishikawa2025_thresholds import nets, train  # noqa: E402
from experiments.nishikawa2025_thresholds import run as thresholds  # noqa: E402

from spectrim import Bema, Spectrum  # noqa: E402
from spectrim.laws import MarchenkoPastur  # noqa: E402
from spectrim.planted import noise  # noqa: E402

FOLDERS = {
    "berlyand2025_metrics": lambda found: metrics_figure.tables(found),
    "berlyand2025_regression": lambda found: regression_figure.tables(found["results"]),
    "nishikawa2025_thresholds": lambda found: thresholds_figure.tables(found["results"]["networks"]),
}


# What is committed


@pytest.mark.parametrize("name", FOLDERS)
def test_the_readme_prints_the_results(name):
    folder = ROOT / "experiments" / name
    text = (folder / "README.md").read_text()
    for table, rows in FOLDERS[name](records.read(folder / "results.json")).items():
        assert f"<!-- table: {table} -->\n{drawing.markdown(rows)}<!-- end -->" in text


@pytest.mark.parametrize("name", FOLDERS)
def test_the_figure_was_drawn_from_these_results(name):
    folder = ROOT / "experiments" / name
    assert drawing.digest(folder) in (folder / "figure.svg").read_text()


def test_the_summaries_follow_from_the_draws():
    for result in records.read(ROOT / "experiments/berlyand2025_regression/results.json")["results"].values():
        again = records.rounded(regression.summary(result["draws"]))
        assert again["kept"] == result["summary"]["kept"] and again["ordered"] == result["summary"]["ordered"]
        for name, (mean, half) in again["mse"].items():
            # The draws were rounded to six digits before they are averaged here; a narrow interval loses some of them.
            assert result["summary"]["mse"][name] == pytest.approx([mean, half], rel=1e-3)


def test_the_means_follow_from_the_layers():
    found = records.read(ROOT / "experiments/berlyand2025_metrics/results.json")
    for result in found["results"].values():
        again = metrics_run.means(result["layers"], metrics_run.Config(alphas=tuple(found["config"]["alphas"])))
        for variant in metrics_run.VARIANTS:
            for key in ("bulk_share", "misfit"):
                assert result["means"][variant][key]["mean"] == pytest.approx(again[variant][key]["mean"], rel=1e-4)


def test_every_network_of_the_list_is_in_the_results():
    networks = records.read(ROOT / "experiments/nishikawa2025_thresholds/results.json")["results"]["networks"]
    assert [train.Run(**found["run"]) for found in networks] == train.RUNS


# Records and data


def test_records_come_back_and_rows_of_numbers_stay_on_one_line(tmp_path):
    file = tmp_path / "r.json"
    records.write(
        file, {"a": (1, 2)}, {"x": np.array([0.1234567, 2.0]), "deep": [{"y": None, "z": "a, b"}, [[1], [2]]]}
    )
    assert records.read(file)["results"] == {"x": [0.123457, 2.0], "deep": [{"y": None, "z": "a, b"}, [[1], [2]]]}
    assert '"x": [0.123457, 2.0]' in file.read_text()


def test_interval_is_that_of_student():
    # t of 2 degrees of freedom at .975 is 4.302652729911275; the sample deviation of 1, 2, 3 is 1.
    assert records.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302652729911275 / np.sqrt(3)))
    assert np.isnan(records.interval([1.0])[1])


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(k).to_bytes(4, "big") for k in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_idx_files_gzipped_and_raw(tmp_path):
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([7, 3]))))
    found = data.idx_images(tmp_path)
    assert found.train.shape == (2, 1, 3, 3) and found.test_labels.tolist() == [7, 3]
    assert torch.equal((found.test[1, 0] * 255).round(), torch.tensor(images[1]).float())
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="no IDX file"):
        data.idx_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="train-images"):
        data.idx_images(tmp_path / "empty")


def test_an_archive_of_images(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    with tarfile.open(tmp_path / "c.tar.xz", "w:xz") as archive:
        for name, grey in (("train/cat/1.png", 255), ("train/dog/1.png", 0), ("test/truck/1.png", 51)):
            stream = io.BytesIO()
            Image.new("RGB", (4, 4), (grey,) * 3).save(stream, "PNG")
            member = tarfile.TarInfo(name)
            member.size = stream.tell()
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    found = data.cifar_images(tmp_path / "c.tar.xz")
    assert found.train.shape == (2, 3, 4, 4) and found.train_labels.tolist() == [3, 5]
    assert found.test_labels.tolist() == [9] and torch.allclose(found.test, torch.tensor(0.2))


# Regression


def test_lasso_meets_the_conditions_of_a_minimum():
    draw = np.random.default_rng(0)
    X, Y = draw.standard_normal((80, 12)), draw.standard_normal((80, 5))
    gram, cross = X.T @ X / 80, X.T @ Y / 80
    W = regression.lasso(gram, cross, 0.1, np.zeros((5, 12)), tol=1e-12, steps=5000)
    slope = (gram @ W.T - cross).T
    assert 0 < np.count_nonzero(W) < W.size
    assert np.abs(slope[W == 0]).max() <= 0.1 + 1e-9
    assert np.abs(slope[W != 0] + 0.1 * np.sign(W[W != 0])).max() < 1e-8


def test_ridge_solves_its_normal_equations():
    draw = np.random.default_rng(1)
    X, Y = draw.standard_normal((50, 7)), draw.standard_normal((50, 3))
    W = regression.ridge(X.T @ X / 50, X.T @ Y / 50, 0.3)
    stacked = np.linalg.lstsq(np.r_[X, np.sqrt(50 * 0.3) * np.eye(7)], np.r_[Y, np.zeros((7, 3))], rcond=None)[0]
    assert np.allclose(W, stacked.T)


def test_the_features_are_orthogonal_on_an_even_grid_only():
    even = regression.features(np.linspace(-10, 10, 400, endpoint=False), 32)
    assert np.allclose(even.T @ even / 400, 0.5 * np.eye(64), atol=1e-12)
    chance = regression.features(np.random.default_rng(0).uniform(-10, 10, 400), 32)
    assert np.abs(chance.T @ chance / 400 - 0.5 * np.eye(64)).max() > 0.05


def test_one_tiny_draw_of_the_regression():
    config = regression.Config(outputs=60, frequencies=32, active=2, samples=400, design="grid")
    found = regression.one(config, seed=0)
    errors = found["mse"]
    # Planted truth: four values far above the edge, and nothing else that is not noise.
    assert found["kept"] == 4
    assert errors["pruning"] == pytest.approx(errors["pruning at the true rank"])
    assert errors["pruning"] < errors["l1"] < errors["none"] and errors["l2"] < errors["none"]
    # On orthogonal features least squares keeps m / N of the noise variance; 7 % is four standard errors of 60 x 64.
    assert errors["none"] == pytest.approx(3.5**2 * 64 / 400, rel=0.07)
    assert set(regression.summary([found, found])["mse"]) == set(errors)


# Metrics


@pytest.fixture
def uneven() -> Spectrum:
    W = noise(60, 150, generator=np.random.default_rng(5)) * np.exp(
        0.5 * np.random.default_rng(6).standard_normal((60, 1))
    )
    return Spectrum(np.linalg.svd(W, compute_uv=False), 60, 150)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4])
def test_as_executed_agrees_with_the_library_s_compatible_fit(uneven, alpha):
    fit = Bema(alpha=alpha, beta=0.8, compat="authors")(uneven)
    assert metrics_run.as_executed(uneven, alpha, 0.8) == pytest.approx((fit.edge, fit.misfit), rel=1e-9)


def test_one_value_above_the_edge_makes_the_misfit_as_executed_one_less_alpha():
    # An ideal bulk with a tenth of its values far above: the window reaches into them where alpha is under .1.
    x = MarchenkoPastur(0.5).ppf((np.arange(100) + 0.5) / 100)
    x[90:] *= 4
    spectrum = Spectrum(np.sqrt(200 * x), 100, 200)
    assert metrics_run.as_executed(spectrum, 0.05, 0.8)[1] > 0.9
    assert metrics_run.as_printed(spectrum, 0.05, 0.8)[1] < 0.3
    wide, printed = metrics_run.as_executed(spectrum, 0.2, 0.8), metrics_run.as_printed(spectrum, 0.2, 0.8)
    assert wide[1] == pytest.approx(printed[1], abs=0.02)


def test_figures_of_a_layer_and_their_means():
    config = metrics_run.Config(alphas=(0.1, 0.3))
    draw = np.random.default_rng(2)
    layers = {name: metrics_run.layer(noise(40, 50, generator=draw), config) for name in "ab"}
    found = metrics_run.means(layers, config)
    for variant in metrics_run.VARIANTS:
        shares = found[variant]["bulk_share"]
        assert len(shares["mean"]) == 2 and shares["layers"] == [2, 2]
        assert min(shares["mean"]) > 0.9  # pure noise: at most a few of forty values above an edge
        assert max(found[variant]["misfit"]["mean"]) < 0.2


def test_query_key_and_value_are_stacked_in_this_order():
    parts = {
        f"layer.0.attention.{name}": np.full((2, 3), i, np.float32) for i, name in enumerate(("key", "value", "query"))
    }
    found = models.fused(parts | {"layer.0.fc1": np.zeros((4, 2), np.float32)})
    assert set(found) == {"layer.0.attention.qkv", "layer.0.fc1"}
    assert found["layer.0.attention.qkv"][:, 0].tolist() == [2, 2, 0, 0, 1, 1]


# Thresholds


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (1, 28, 28)), ("lenet5", (1, 28, 28)), ("small_alexnet", (3, 32, 32))]
)
def test_networks_take_their_images_and_start_as_glorot_says(name, shape):
    net = nets.NETS[name]()
    nets.glorot(net, torch.Generator().manual_seed(0))
    assert net(torch.zeros(2, *shape)).shape == (2, 10)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            kernel = layer.weight[0, 0].numel()
            sigma = np.sqrt(2 / (kernel * sum(layer.weight.shape[:2])))
            # Of a uniform law the variance of n entries has the relative deviation sqrt(.8 / n); five of them.
            assert layer.weight.pow(2).mean().item() == pytest.approx(
                sigma**2, rel=5 * np.sqrt(0.8 / layer.weight.numel())
            )
            assert layer.weight.abs().max() <= np.sqrt(3) * sigma and not layer.bias.any()
    again = nets.NETS[name]()
    nets.glorot(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.fixture(scope="module")
def stripes() -> data.Images:
    """Ten classes of 28 x 28 images: a bright band whose height is the label, in noise."""
    generator = torch.Generator().manual_seed(1)
    images, labels = 0.3 * torch.rand(600, 1, 28, 28, generator=generator), torch.arange(600) % 10
    for image, label in zip(images, labels, strict=True):
        image[0, 2 + 2 * int(label)] += 0.7
    return data.Images(images[:400], labels[:400], images[400:], labels[400:])


@pytest.fixture(scope="module")
def found(stripes) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nets.NETS, "mlp", lambda: nets.mlp((784, 96, 64, 10)))
        return analysed(stripes)


def analysed(stripes) -> dict:
    run = train.Run("mlp", "mnist", batch=20, seed=0, epochs=3, rate=0.05)
    made = train.trained(run, stripes)
    config = thresholds.Config(
        ranks=(1, 4, 16, 64), control_ranks=(4, 64), random_draws=1, test_items=200, conv_items=200
    )
    return {"made": made, "result": thresholds.network(made, stripes, config)}


def test_training_moves_the_weights_and_learns(found):
    made = found["made"]
    assert made["test_accuracy"] > 0.9
    assert not torch.equal(made["before"]["fc1.weight"], made["after"]["fc1.weight"])


def test_what_is_found_of_a_network(found):
    layers = found["result"]["layers"]
    assert set(layers) == {"fc1", "fc2"}  # the last layer has a short side of ten
    first = layers["fc1"]
    # The start is independent noise of known level: what is found of it is that level, and few spikes.
    assert first["estimators"]["bema"]["sigma"] == pytest.approx(first["known"]["sigma"], rel=0.03)
    assert 1 <= first["estimators"]["bema"]["spikes"] <= 40
    accuracy = first["truncation"]["accuracy"]
    assert accuracy["96"] == found["result"]["test_accuracy"]
    assert 1 <= first["truncation"]["needed"]["within_half_a_point"] <= 96
    assert first["on_start"]["64"] >= accuracy["4"] and set(first["controls"]) == {"random", "magnitude"}
    json.dumps(records.rounded(found["result"]))


def test_a_cut_leaves_the_network_as_it_was(stripes):
    net = nets.mlp((784, 30, 20, 10))
    nets.glorot(net, torch.Generator().manual_seed(3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    config = thresholds.Config(test_items=200)
    for place in thresholds.matrices(net).values():
        cut = thresholds.Cut(net, place, stripes, config)
        whole = net[place].weight.detach().clone()
        assert cut.accuracy(whole) == nets.accuracy(net, stripes.test, stripes.test_labels)
        cut.accuracy(torch.zeros_like(whole))
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("true", [1, 2, 7, 63, 64, 100])
def test_the_smallest_rank_is_found_between_the_points_of_the_grid(true):
    table = {r: float(r >= true) for r in (1, 4, 16, 64, 100)}
    assert thresholds.smallest_rank(table, 0.5, lambda rank: float(rank >= true)) == true


def test_quick_runs_are_few_and_short():
    runs = train.quick(train.RUNS)
    assert 0 < len(runs) < len(train.RUNS) and all(run.epochs == 1 for run in runs)
    assert len({run.name for run in train.RUNS}) == len(train.RUNS)
    assert replace(train.RUNS[0], seed=5).name != train.RUNS[0].name
