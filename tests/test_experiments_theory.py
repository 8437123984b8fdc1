"""The experiment on the theorems at toy size, its parts against literal twins, and that what is committed agrees."""

from __future__ import annotations

import re
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import data, drawing, jobs, records  # noqa: E402
from experiments.theory import (  # noqa: E402
    approximation,
    claims,
    comparisons,
    decay,
    figure,
    network,
    noises,
    removal,
    run,
    spikes,
)
from experiments.theory.transform import Transform  # noqa: E402
from experiments.training import Recipe, fit  # noqa: E402

from spectrim.laws import MarchenkoPastur, cosines, observed  # noqa: E402

FOLDER = ROOT / "experiments/theory"


# What is committed


@pytest.fixture(scope="module")
def record() -> dict:
    return records.read(FOLDER / "results.json")


def test_the_readme_prints_the_results(record):
    text = (FOLDER / "README.md").read_text()
    for table, rows in figure.tables(record).items():
        assert f"<!-- table: {table} -->\n{drawing.markdown(rows)}<!-- end -->" in text


def test_the_figure_was_drawn_from_these_results():
    assert drawing.digest(FOLDER) in (FOLDER / "figure.svg").read_text()


def test_every_job_of_the_list_is_in_the_results(record):
    assert list(record["results"]) == list(run.listed(toy=False, fashion=Path("anywhere")))
    assert not record["config"]["toy"]


def test_a_changed_result_changes_the_claims(record):
    before = claims.all_claims(record)
    again = {"config": record["config"], "results": dict(record["results"])}
    cell = dict(again["results"]["removal fixed gaussian"])
    again["results"]["removal fixed gaussian"] = cell | {"rate of rms residual": 0.1}
    after = claims.all_claims(again)
    changed = [(a[0], b[3]) for a, b in zip(before, after, strict=True) if a != b]
    # The exponent stands in one more row, that on how fast.
    assert changed == [
        ("P25 theorem 4.2 (27): lower by lambda ‖R‖²", "not seen here"),
        ("how fast, S above the edge: any law, few units in use or all", "not seen here"),
    ]


def verdict_with(record: dict, job: str, key: str, column: list[float], row: str) -> str:
    """The verdict of a row after one column of one result was replaced."""
    again = {"config": record["config"], "results": dict(record["results"])}
    again["results"][job] = again["results"][job] | {key: column}
    return next(cells[3] for cells in claims.all_claims(again) if cells[0].startswith(row))


def test_the_checks_on_decay_are_two_sided(record):
    haar = record["results"]["decay start haar"]
    for factor, verdict in ((1.0, "holds"), (0.85, "not seen here"), (1.15, "not seen here")):
        tail = [factor * x for x in haar["expected"]]
        assert verdict_with(record, "decay start haar", "tail", tail, "P25 theorem 5.2") == verdict
    row, job = "the same at the end of a descent", "settled l2=0.002"
    pull = record["results"][job]["pull"]
    assert verdict_with(record, job, "slope", 0.5 * pull, row).endswith("stays open")
    assert "stays open" not in verdict_with(record, job, "slope", 0.01 * pull, row)
    assert verdict_with(record, job, "median", [1.0, 0.5], row) == "not seen here"


def test_means_are_held_to_the_quantile_of_their_number_and_draws(record):
    # k normal means of n draws, each divided by its own error: the largest passes in one table of twenty.
    drawn = np.random.default_rng(0).standard_normal((4000, 50, 16))
    largest = np.abs(drawn.mean(2) / (drawn.std(2, ddof=1) / 4)).max(1)
    # Bonferroni is exact to a fortieth here; 4000 tables leave .0034 of .05 to chance, four of them.
    assert np.mean(largest > comparisons.quantile(50, 16)) == pytest.approx(0.05, abs=0.015)
    assert np.mean(largest > 3.5) > 0.1  # what a normal law would allow for sixty
    results = record["results"]
    assert comparisons.size_of(results, -1) == (800, 16) and comparisons.size_of(results, 0) == (100, 160)
    # 5 cells of values and two cosines of three signals, and three strengths at two c.
    assert comparisons.enough(results) == comparisons.quantile(5 * 9 + 6, 16)


def test_distances_and_what_could_be_missed_by_hand():
    pairs = [([[1.0, 2.2], [0.1, 0.1]], [1.0, 2.0]), ([[5.0], [1.0]], [4.0])]
    assert comparisons.off(pairs) == pytest.approx(2)
    assert comparisons.unseen(pairs, 3.0) == pytest.approx(100 * 3 * 1 / 4)


def test_the_bound_rows_name_the_worst_sample(record):
    cells = {k: v for k, v in record["results"].items() if k.startswith("removal") and v["law"] == "gaussian"}
    worst = [t["worst share of later, any draw"] for v in cells.values() for t in v["widths"]]
    verdict = next(cells[3] for cells in claims.all_claims(record) if cells[0] == "lemma 4.4, later form")
    assert f"{1 / max(worst):.0f} to {1 / min(worst):.0f} times too large for the worst sample" in verdict
    for v in cells.values():
        for t in v["widths"]:
            assert t["share of later"][0] < t["worst share of later"][0] <= t["worst share of later, any draw"]


# Noise and its transform


def test_errors_of_exponents_are_those_of_repeated_draws():
    sizes, generator = [10, 20, 40, 80], np.random.default_rng(3)
    rates, said = [], []
    for _ in range(400):
        both = [noises.rms(generator.standard_normal(30) / sqrt(size)) for size in sizes]
        values, errors = ([float(part) for part in parts] for parts in zip(*both, strict=True))
        rates.append(noises.rate(sizes, values))
        said.append(noises.rate_error(sizes, values, errors))
    # 400 draws leave .035 of the spread to chance; the error of an rms of 30 numbers is a little short.
    assert np.mean(said) == pytest.approx(np.std(rates), rel=0.12)
    assert np.mean(rates) == pytest.approx(-0.5, abs=4 * np.std(rates) / 20)


@pytest.mark.parametrize("law", ["gaussian", "uniform", "student5", "haar", "product", "uneven"])
def test_noise_of_every_law_has_one_mean_square(law):
    R = noises.draw(law, 120, 200, np.random.default_rng(0))
    # Of Student 5 with a kurtosis of 9 the relative deviation of the mean is sqrt(8 / 24000) = .018, of `haar`, whose
    # 120 values vary by half, .05; five of them.
    assert np.sum(R**2) / 120 == pytest.approx(1, rel=0.25 if law == "haar" else 0.09)
    assert np.array_equal(R, noises.draw(law, 120, 200, np.random.default_rng(0)))


def test_unknown_noise_and_noise_without_a_variance_are_refused():
    for law in ("student2", "none"):
        with pytest.raises(ValueError):
            noises.draw(law, 3, 4, np.random.default_rng(0))


def test_the_transform_is_its_definition():
    t, n, z = np.array([0.3, 0.7, 1.1]), 5, 1.9
    phi = sum(z / (z**2 - x**2) for x in t) / 3
    padded = (sum(z / (z**2 - x**2) for x in t) + 2 * (z / z**2)) / 5  # the long side has two zeros more
    found = Transform(t, n)
    assert float(found(z)) == pytest.approx(phi * padded, rel=1e-12)
    step = 1e-6
    left, right = found.parts(z - step)[:2], found.parts(z + step)[:2]
    slopes = [(b - a) / (2 * step) for a, b in zip(left, right, strict=True)]
    assert [float(x) for x in found.parts(z)[2:]] == pytest.approx([float(x) for x in slopes], rel=1e-6)


@pytest.mark.parametrize("c", [1.0, 0.4])
def test_the_transform_of_the_marchenko_pastur_law_gives_the_known_maps(c):
    # Midpoint quantiles, in units where the noise is 1 / n; the error of a sum over 4000 of them is far below 1e-3.
    values = np.sqrt(MarchenkoPastur(c).ppf((np.arange(4000) + 0.5) / 4000))
    found = Transform(values, round(4000 / c))
    theta = np.array([1.3, 2.0, 4.0])
    assert found.seen(theta) == pytest.approx(observed(theta, c), rel=1e-3)
    assert found.strength(observed(theta, c)) == pytest.approx(theta, rel=2e-3)
    long, short = cosines(theta, c)
    assert found.cosines(theta)[0] == pytest.approx(short, abs=0.01)
    assert found.cosines(theta)[1] == pytest.approx(long, abs=0.01)


def test_the_transform_of_a_known_other_law():
    # Even singular values on [1, 2], square: the mean is the integral 1/(2z) log((z+t)/(z-t)), D its square.
    t = 1 + (np.arange(2000) + 0.5) / 2000
    z = 2.3
    mean = quad(lambda x: z / (z**2 - x**2), 1, 2)[0]
    assert float(Transform(t, 2000)(z)) == pytest.approx(mean**2, rel=1e-6)


def test_a_cell_of_spikes_agrees_with_its_limits():
    found = spikes.cell("gaussian", 0.5, 1.0, [(60, 12), (120, 12)], seed=3)
    last = found["sizes"][-1]
    # The strong two of the signals; five standard errors, the bias at p = 120 is below one.
    for key in ("values", "short", "long"):
        mean, error = (np.array(part[:2]) for part in last[key])
        assert np.all(np.abs(mean - found["limit"][key][:2]) < 5 * error + 0.01)
    assert last["frobenius"][0] == pytest.approx(120, rel=0.02)


def test_the_variance_scales_values_and_leaves_vectors():
    one = spikes.one("gaussian", 40, 80, 1.0, np.random.default_rng(4))
    quarter = spikes.one("gaussian", 40, 80, 0.25, np.random.default_rng(4))
    assert quarter["values"] == pytest.approx(0.5 * one["values"]) and quarter["short"] == pytest.approx(one["short"])


# Approximation


def test_the_limit_along_the_signal_on_square_matrices():
    theta = np.array([1.2, 2.0, 5.0])
    assert approximation.along(theta, 1.0) == pytest.approx(1 + theta**-2 - theta**-4)
    assert np.all(approximation.worst(theta, 1.0) >= approximation.along(theta, 1.0))


def test_the_cut_matrix_is_measured_as_it_is():
    found = approximation.one("gaussian", 60, 120, np.random.default_rng(5))
    assert found["cut, worst"] >= max(found["cut, along"]) and found["cut, random"] < found["whole, random"]
    assert found["whole, random"] == pytest.approx(0.5, rel=0.1)


# Removal


@pytest.fixture(scope="module")
def images() -> data.Images:
    return data.made_images()


@pytest.fixture(scope="module")
def net(images) -> network.Net:
    return network.trained(images, units=16, rank=4, epochs=40, items=40, seed=0)


def test_the_trained_signal_has_its_rank_above_the_edge(net):
    s = np.linalg.svd(net.S, compute_uv=False)
    assert s[3] == pytest.approx(2 * network.ABOVE) and s[4] < 1e-5
    assert np.mean(network.margins(net.outputs(), net.labels) > 0) > 0.5


@pytest.mark.parametrize("copies", [1, 3])
def test_a_wider_net_is_the_same_function(net, copies):
    wide = network.widened(net, 64, copies)
    assert wide.outputs() == pytest.approx(net.outputs())
    assert wide.lengths() == pytest.approx(sqrt(copies) * net.lengths())
    assert np.abs(wide.W3).sum(1).max() == pytest.approx(np.abs(net.W3).sum(1).max())
    kept = np.linalg.svd(wide.S, compute_uv=False)
    assert kept[:4] == pytest.approx(np.linalg.svd(net.S, compute_uv=False)[:4]) and kept[4] < 1e-5
    with pytest.raises(ValueError, match="do not fit"):
        network.widened(net, 40, 3)


def test_the_figures_of_a_net_are_those_of_torch(net):
    out = torch.from_numpy(net.outputs())
    labels = torch.from_numpy(net.labels)
    assert network.cross_entropy(net.outputs(), net.labels) == pytest.approx(float(F.cross_entropy(out, labels)))
    right = network.margins(net.outputs(), net.labels) > 0
    assert np.array_equal(right, (out.argmax(1) == labels).numpy())


def test_the_bounds_are_their_formulas(net):
    wide = network.widened(net, 32, 2)
    row, column, total = 0.0, 0.0, 0.0
    for line in wide.W3:
        row = max(row, sum(abs(float(x)) for x in line))
    for line in wide.W3.T:
        column = max(column, sum(abs(float(x)) for x in line))
    total = sum(abs(float(x)) for x in wide.W3.ravel())
    found, size = network.bounds(wide, g=0.5), np.linalg.norm(wide.hidden[7])
    bracket = sqrt(2 * np.log(64) / 32) + 32**-0.375
    expected = {
        "printed": row * size * bracket,
        "printed, column": column * size * bracket,
        "printed, entries": total * size * bracket,
        "later": 2 * sqrt(2) * row * size * sqrt(np.log(64) / 32),
        "confidence": row * size * sqrt(2 * 0.5 * np.log(2 * 32 * 40 / 0.05) / 32),
    }
    assert {key: float(values[7]) for key, values in found.items()} == pytest.approx(expected)


def test_folded_units_are_the_mean_over_much_noise(net):
    # 400 copies of every unit, one draw: each output is then a mean over as many; four deviations of such a mean.
    wide = network.widened(net, 16 * 400, 400)
    noise = np.random.default_rng(1)
    h = np.repeat(net.hidden @ net.S.T, 400, axis=1)
    drawn = np.abs(h + wide.lengths()[:, None] / sqrt(wide.width) * noise.standard_normal(h.shape))
    out = np.abs(drawn @ wide.W3.T)
    spread = wide.lengths()[:, None] / sqrt(wide.width) * np.linalg.norm(wide.W3, axis=1)
    assert np.all(np.abs(out - network.smeared(wide, 1.0)) < 4.5 * spread)
    assert np.abs(network.smeared(wide, 1.0) - net.outputs()).max() > 4.5 * spread.max()


def test_what_a_draw_changes_is_what_the_whole_loss_says(net):
    wide, penalty, g = network.widened(net, 32, 1), 0.01, 0.7
    found = removal.one(wide, wide.outputs(), "gaussian", g, penalty, np.random.default_rng(2))
    R = sqrt(g) * noises.draw("gaussian", 32, 32, np.random.default_rng(2))
    S, W3, hidden = np.zeros((32, 32)), np.zeros((len(wide.W3), 32)), np.zeros((len(wide.hidden), 32))
    S[:16, :16], W3[:, :16], hidden[:, :16] = wide.S, wide.W3, wide.hidden

    def loss(W: np.ndarray) -> float:
        out = np.abs(np.abs(hidden @ W.T) @ W3.T)
        return network.cross_entropy(out, wide.labels) + penalty * np.sum(W**2)

    square = penalty * np.sum(R**2)
    assert found["gap"] == pytest.approx(loss(S + R) - loss(S))
    change = np.abs(wide.outputs(R[:16, :16]) - wide.outputs()).max(1)
    shares = [float(x) / float(b) for x, b in zip(change, network.bounds(wide, g)["later"], strict=True)]
    assert found["worst share of later"] == pytest.approx(max(shares))
    assert found["share of later"] == pytest.approx(sum(shares) / len(shares))
    assert found["residual"] == pytest.approx(loss(S + R) - loss(S) - square)
    assert found["scaled, squares"] == pytest.approx(loss(S + R) - loss(S + R / 2) - 0.75 * square)
    assert found["scaled, linear"] == pytest.approx(loss(S + R) - loss(S + R / 2) - 0.5 * square)


def test_the_control_has_the_norm_of_noise(net):
    wide = network.widened(net, 640, 40)
    R, square = removal.noise_of("along", wide, 0.5, np.random.default_rng(0))
    assert square == 0.5 * 640
    # The squared norm of 640 normal numbers of variance 1/640 varies by sqrt(2 / 640) = .056; four of them.
    assert np.sum(R**2) == pytest.approx(square, rel=0.22)
    # All of it in the direction of the mean of the hidden layer, so nothing in any other.
    mean = wide.hidden.mean(0)
    assert np.linalg.norm(R @ mean) == pytest.approx(np.linalg.norm(R) * np.linalg.norm(mean))
    other = np.random.default_rng(1).standard_normal(640)
    assert np.linalg.norm(R @ (other - mean * (other @ mean) / (mean @ mean))) < 1e-9


# Decay


def test_what_no_data_reach_decays_by_the_closed_form(images):
    # A pixel that is always zero: its column of the first layer feels nothing but the penalty.
    train, test = images.train.clone(), images.test
    train[:, 0, 0, 0] = 0
    blind = data.Images(train, images.train_labels, test, images.test_labels)
    for momentum in (0.0, 0.5):
        recipe = Recipe(sizes=(64, 12, 12, 10), rate=0.02, momentum=momentum, epochs=30, l2=5e-3, batch=200)
        starts = []

        def watch(net, epoch, starts=starts):
            if epoch < 0:
                starts.append(net.fc1.weight.detach()[:, 0].clone())

        net, _ = fit(recipe, blind, 0, watch=watch)
        left = float((net.fc1.weight.detach()[:, 0] / starts[0]).mean())
        # Plain descent to the last digits of float32; momentum but for its first steps, one part in a few hundred.
        assert left == pytest.approx(decay.left(recipe, 3, 29), rel=1e-4 if momentum == 0 else 1e-3)
        assert decay.left(recipe, 3, -1) == 1


def test_the_penalty_that_leaves_a_share_is_found():
    recipe = Recipe(sizes=(4, 10), rate=0.1, momentum=0.0, epochs=7)
    weight = decay.needed(recipe, 11, 6, 0.25)
    assert (1 - 0.2 * weight) ** 77 == pytest.approx(0.25, rel=1e-6)


def test_a_named_law_of_the_start_has_the_variance_of_the_default():
    net = torch.nn.Sequential()
    net.add_module("fc2", torch.nn.Linear(300, 200))
    watch = decay.Watch("gaussian", np.random.default_rng(0))
    first = watch(net, -1)
    # 60,000 entries: a relative deviation of .006 of the variance.
    assert float(net.fc2.weight.detach().square().mean()) == pytest.approx(1 / 900, rel=0.03)
    assert first["start kept"] == pytest.approx(1) and first["sigma"] == pytest.approx(1 / 30, rel=0.03)


# The whole at toy size


def test_toy_run(tmp_path):
    asked = run.listed(toy=True, fashion=None)
    found = jobs.run(asked, tmp_path, workers=0)
    assert list(found) == list(asked)
    for result in found.values():
        assert "NaN" not in repr(result) and not re.search(r"\binf\b", repr(result))
    config = {"example A.1": decay.paper_factor()}
    tables = figure.tables({"config": config, "results": found})
    assert all(len(row) == len(rows[0]) for rows in tables.values() for row in rows)
    rows = {row[0]: row for row in tables["claims"][1:]}
    # What is so at any width: the loss falls by 1 - kappa^2, and the bound, of probability 1 - 1 / N, has much room.
    assert rows["P25 corollary 4.3: R scaled by kappa"][3].startswith("holds with 1 - kappa²")
    assert rows["lemma 4.4, later form"][3].startswith("holds;")
    # What forty steps, or four draws, cannot show.
    for title in (
        "the same at the end of a descent: 2000 images, full batch",
        *(title for title, *_ in comparisons.MAPS),
    ):
        assert rows[title][3] == "not seen here"
    # The settings of example A.1, step by step.
    left = 1.0
    for epoch in range(100):
        for _ in range(469):
            left *= 1 - 2 * 1e-6 * 0.01 * 0.96 ** (epoch // 4) / (1 - 0.9)
    assert f"leaves {100 * left:.1f} %" in rows["the same at the settings of example A.1"][2]
