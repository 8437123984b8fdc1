"""The experiments on arXiv 2303.08986: what it prints, the notebook's cut against a literal twin, dead classes."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from math import pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments import drawing, jobs, networks, records, training  # noqa: E402
from experiments.shmalo2023_rmt_svd import as_executed, examples, figure, printed, run, starts  # noqa: E402

from spectrim.laws import TracyWidom  # noqa: E402

# What the paper prints


@pytest.mark.parametrize("name", printed.EXAMPLES)
def test_every_printed_rank_keeps_45_per_cent(name):
    example = printed.EXAMPLES[name]
    found = printed.cuts(example.sizes, example.split)
    assert len(found) == len(example.split) - len(example.sizes)  # every number that is not an original size
    for rank, side in found:
        assert rank - int(0.45 * side) in range(31)
        # and the notebook's own count makes the rank, with a number of values above the edge that is plausible
        above = printed.spikes_behind(rank, side)
        assert above <= 30 and as_executed.number_kept(above, side) == rank


def test_no_printed_rank_keeps_55_per_cent_but_three_of_small_halves():
    every = [cut for example in printed.EXAMPLES.values() for cut in printed.cuts(example.sizes, example.split)]
    either = {(rank, side) for rank, side in every if rank - int(0.55 * side) in range(31)}
    assert len(every) == 52 and either == {(71, 124), (54, 89), (35, 54)}
    assert all(rank < int(0.55 * side) for rank, side in every if (rank, side) not in either)


@pytest.mark.parametrize("name", printed.EXAMPLES)
def test_the_printed_totals_count_one_bias_vector_a_printed_layer(name):
    example = printed.EXAMPLES[name]
    assert printed.count(example.sizes) == example.params
    assert printed.count(example.split) == example.params_split
    # without the biases of the halves that the notebook gives none, the total is another one
    fewer = sum(rank for rank, _ in printed.cuts(example.sizes, example.split))
    assert printed.count(example.split) - fewer != example.params_split
    # one digit read wrongly would show
    for i in range(1, len(example.split) - 1):
        wrong = (*example.split[:i], example.split[i] + 1, *example.split[i + 1 :])
        assert printed.count(wrong) != example.params_split


def test_nested_splits_are_found():
    assert printed.cuts((784, 3000, 10), (784, 176, 367, 90, 3000, 10)) == [(367, 784), (176, 367), (90, 367)]
    assert printed.cuts((784, 3000, 10), (784, 3000, 10)) == []
    # the smallest count, where two make the same rank
    assert printed.spikes_behind(353, 784) == 0 and printed.spikes_behind(1366, 3000) == 29


# The notebook's cut against a slow twin written from its description


def slow_reading(W: np.ndarray, alpha: float, beta: float) -> tuple[float, int, float]:
    """Edge of s**2 / n, values above it, and the goodness of fit, with the law integrated numerically."""
    p, n = min(W.shape), max(W.shape)
    c = p / n
    low, high = (1 - sqrt(c)) ** 2, (1 + sqrt(c)) ** 2

    def law(x: float) -> float:
        # x = middle - half cos t takes the square roots at both ends away, which a quadrature would miss
        middle, half = (low + high) / 2, (high - low) / 2
        t = np.arccos(np.clip((middle - x) / half, -1, 1))

        def f(u: float) -> float:
            return (half * np.sin(u)) ** 2 / (2 * pi * c * (middle - half * np.cos(u)))

        return quad(f, 0, t, epsabs=1e-12)[0]

    eigenvalues = np.sort(np.linalg.svd(W, compute_uv=False) ** 2) / n
    window = range(int(alpha * p), int((1 - alpha) * p))
    q = [brentq(lambda x, level=i / p: law(x) - level, low, high) for i in window]
    variance = sum(a * eigenvalues[i] for a, i in zip(q, window, strict=True)) / sum(a * a for a in q)
    scale = float(TracyWidom().ppf(1 - beta)) * n ** (-2 / 3) * c ** (-1 / 6) * (1 + sqrt(c)) ** 4 / 3
    edge = variance * (high + scale)
    worst = 0.0
    for j, i in enumerate(window):
        x = eigenvalues[i] / variance
        theory = law(x) if low <= x < high else 0.0
        worst = max(worst, abs(theory - (alpha + (1 - 2 * alpha) * j / len(window))))
    return edge * n, int(np.sum(eigenvalues > edge)), worst


def planted(rows: int, cols: int, spikes: int, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    left, right = (np.linalg.qr(draw.standard_normal((k, spikes)))[0] for k in (rows, cols))
    return torch.from_numpy(
        draw.standard_normal((rows, cols)) + (left * np.linspace(3, 6, spikes) * sqrt(max(rows, cols))) @ right.T
    ).float()


def linear(W: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0])
    with torch.no_grad():
        layer.weight.copy_(W)
    return layer


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70), (40, 200)])
def test_a_layer_is_read_and_cut_as_the_notebook_does(shape):
    W = planted(*shape, spikes=5, seed=sum(shape))
    edge, above, misfit = slow_reading(W.double().numpy(), 0.2, 0.1)
    layer = linear(W)
    new, account = as_executed.cut_layer(layer, gate=misfit + 1e-4)
    assert above == 5 and account.above == above and account.misfit == pytest.approx(misfit, abs=1e-5)
    p = min(shape)
    assert account.rank == above + 1 + int(0.45 * (p - above - 1))
    # the kept part is the truncation, and the function that of the truncation with the old bias
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    assert int((s**2 > edge).sum()) == above
    k = account.rank
    x = torch.randn(7, shape[1], generator=torch.Generator().manual_seed(0))
    expected = x.double() @ ((U[:, :k] * s[:k]) @ Vh[:k]).T + layer.bias
    assert torch.allclose(new(x).double(), expected, atol=1e-3)
    assert account.relative_error == pytest.approx(float(s[k:].norm() / s.norm()), rel=1e-6)
    # no layer is cut whose fit is not below the gate
    same, account = as_executed.cut_layer(layer, gate=misfit - 1e-4)
    assert same is layer and account.action == "does not fit"


def test_a_layer_is_split_where_that_saves_numbers_and_not_else():
    wide = as_executed.cut_layer(linear(planted(60, 200, 3, 0)), 1.0)[1]
    assert wide.action == "split" and wide.rank * 260 <= 60 * 200
    square = as_executed.cut_layer(linear(planted(60, 60, 3, 0)), 1.0)
    assert square[1].action == "split" and square[1].rank == 29  # 29 * 120 < 3600
    full = as_executed.cut_layer(linear(planted(60, 60, 3, 0)), 1.0, portion=0.5)
    assert full[1].rank == 32 and full[1].action == "dense" and isinstance(full[0], nn.Linear)
    last = as_executed.cut_layer(linear(planted(10, 60, 2, 0)), 1.0)[1]
    assert last.rank == 10 and last.relative_error == 0  # never below ten
    assert as_executed.cut_layer(linear(torch.randn(5, 60)), 1.0)[1].action == "not measured"


def net_of(sizes: tuple[int, ...], seed: int = 0, last_relu: bool = False) -> nn.Sequential:
    return networks.mlp(sizes, last_relu, torch.Generator().manual_seed(seed))


def test_splits_nest_and_the_parameters_are_those_of_the_printed_count():
    sizes, net = (100, 300, 200, 10), net_of((100, 300, 200, 10))
    first = as_executed.cut_net(net, 1.0)
    assert [account.action for account in first] == ["split", "split", "dense"]
    assert as_executed.sizes(net) == (100, first[0].rank, 300, first[1].rank, 200, 10)
    second = as_executed.cut_net(net, 1.0)
    assert len(second) == 5  # the halves are layers like all others
    found = printed.cuts(sizes, as_executed.sizes(net))
    assert set(found) == {(a.rank, min(a.rows, a.cols)) for a in first + second if a.action == "split"}
    assert sum(p.numel() for p in net.parameters()) == printed.count(as_executed.sizes(net))
    bare = net_of(sizes)
    as_executed.cut_net(bare, 1.0, biases="second")
    ranks = first[0].rank + first[1].rank
    assert sum(p.numel() for p in bare.parameters()) == printed.count(as_executed.sizes(bare)) - ranks


def test_controls_keep_the_same_rank_or_halve_the_bulk():
    W = planted(60, 200, 4, 1)
    s = torch.linalg.svdvals(W.double())
    plain = as_executed.cut_layer(linear(W), 1.0)[1]
    new, account = as_executed.cut_layer(linear(W), 1.0, way="random", generator=torch.Generator().manual_seed(3))
    assert (account.rank, account.action) == (plain.rank, plain.action)
    kept = torch.linalg.svdvals((new[1].weight @ new[0].weight).double())[: account.rank]
    places = [int((s - value).abs().argmin()) for value in kept]
    assert places[:4] == [0, 1, 2, 3] and len(set(places)) == account.rank and max(places) > account.rank
    halved, account = as_executed.cut_layer(linear(W), 1.0, way="halve")
    assert torch.allclose(
        torch.linalg.svdvals(halved.weight.double()), torch.where(torch.arange(60) < 4, s, s / 2), rtol=1e-4
    )
    with pytest.raises(ValueError, match="ways"):
        as_executed.cut_layer(linear(W), 1.0, way="best")


@pytest.mark.parametrize("way", as_executed.WAYS)
def test_a_cut_makes_its_tensors_where_the_layer_is(way):
    # Whatever is made without a word about its place is made on "meta" here, and cannot meet the layer's own numbers.
    for W in (planted(60, 200, 4, 1), planted(10, 60, 2, 0)):  # a pair, and a layer that stays one
        layer = linear(W)
        plain = as_executed.cut_layer(layer, 1.0, way, generator=torch.Generator().manual_seed(3))
        with torch.device("meta"):
            other = as_executed.cut_layer(layer, 1.0, way, generator=torch.Generator().manual_seed(3))
        assert plain[1] == other[1]
        both = zip(plain[0].parameters(), other[0].parameters(), strict=True)
        assert all(b.device.type == "cpu" and torch.equal(a, b) for a, b in both)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", as_executed.WAYS)
def test_a_cut_on_a_gpu_is_that_of_the_cpu(way):
    layer = linear(planted(60, 200, 4, 1))
    plain, moved = (
        as_executed.cut_layer(copy.deepcopy(layer).to(device), 1.0, way, generator=torch.Generator().manual_seed(3))
        for device in ("cpu", "cuda")
    )
    assert (plain[1].action, plain[1].rank, plain[1].above) == (moved[1].action, moved[1].rank, moved[1].above)
    x = torch.randn(7, 200, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plain[0](x), moved[0](x.cuda()).cpu(), atol=1e-3)


def test_the_optimiser_forgets_and_holds_the_new_parameters():
    net = net_of((20, 40, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    assert optimizer.state
    cut = as_executed.cutter(2, 1.0)
    assert cut(net, optimizer, 0) == [] and optimizer.state
    assert [account["action"] for account in cut(net, optimizer, 1)] == ["split", "dense"]
    assert not optimizer.state
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in net.parameters()}


def test_the_text_s_cut_keeps_55_per_cent_and_leaves_what_would_not_shrink():
    net = net_of((64, 200, 200, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    changes = examples.by_text(1.0, 1)(net, optimizer, 0)
    assert [(c.name, c.action) for c in changes] == [("fc1", "split")]
    assert 35 <= changes[0].rank <= 37  # .55 of 64 and what little chance puts over the edge
    assert as_executed.sizes(net) == (64, changes[0].rank, 200, 200, 10)


# Dead classes


def test_ties_and_dead_classes_by_hand():
    z = torch.full((40, 10), -1.0)
    labels = torch.arange(40) % 10
    z[torch.arange(40), labels] = 1.0
    z[:, 3] = -1.0  # silent
    z[labels == 0, 0] = -1.0  # class 0 lives on ties
    z[3, 7] = 0.5  # one of the four images of 3 is taken for a 7
    found = starts.judged(z, labels, last_relu=True)
    assert found["dead"] == [3] and found["recall"][0] == 1
    assert found["accuracy"] == pytest.approx(36 / 40) and found["tied"] == pytest.approx(3 / 4)
    assert found["accuracy_ties"] == pytest.approx(35 / 40)  # three of 3 won, four of 0 lost
    free = starts.judged(z, labels, last_relu=False)
    assert free["tied"] is not None and free["tied"] == 0  # without the ReLU nothing ties


@pytest.fixture(scope="module")
def images():
    return jobs.images("toy", None)


def test_a_silent_logit_gets_no_gradient_and_lifting_its_bias_wakes_it(images):
    case = starts.Case((64, 30, 10), 0.05, 0.9, True)
    net, order = starts.made(case, 0)
    with torch.no_grad():
        starts.last(net).bias[4] = -50
    before = starts.last(net).weight[4].clone()
    starts.one_epoch(case, net, starts.optimizer_of(case, net), images, order)
    assert 4 in starts.silent(net, images)[0] and torch.equal(before, starts.last(net).weight[4])
    starts.intervene(net, "lift", [4], images, 1.0, 0)
    positive = (starts.logits(net, images.train)[:, 4] > 0).float().mean()
    assert 0 < positive <= 0.02 and 4 not in starts.silent(net, images)[0]


def test_noise_is_as_large_as_the_cut_and_scaling_leaves_its_norm():
    net = net_of((64, 40, 30, 10), last_relu=True)
    cut = copy.deepcopy(net)
    accounts = as_executed.cut_net(cut, 1.0)
    noisy, scaled = copy.deepcopy(net), copy.deepcopy(net)
    starts.intervene(noisy, "noise", [], None, 1.0, 0)
    starts.change_start(scaled, "scaled", 1.0, 0)
    for i, account in enumerate(accounts):
        W = getattr(net, f"fc{i + 1}").weight.detach()
        moved = float((getattr(noisy, f"fc{i + 1}").weight.detach() - W).norm())
        assert moved == pytest.approx(account.relative_error * float(W.norm()), rel=1e-4, abs=1e-6)
        part = getattr(cut, f"fc{i + 1}")
        left = (part[1].weight @ part[0].weight if isinstance(part, nn.Sequential) else part.weight).detach().norm()
        assert float(getattr(scaled, f"fc{i + 1}").weight.detach().norm()) == pytest.approx(float(left), rel=1e-4)
    only = copy.deepcopy(net)
    starts.intervene(only, "noise last but one", [], None, 1.0, 0)
    changed = [not torch.equal(getattr(only, f"fc{i}").weight, getattr(net, f"fc{i}").weight) for i in (1, 2, 3)]
    assert changed == [False, True, False]


def test_starts_are_those_of_the_examples_and_of_the_seed(images):
    case = starts.Case((64, 20, 10), 0.05, 0.9, True)
    net, order = starts.made(case, 3)
    optimizer = starts.optimizer_of(case, net)
    starts.one_epoch(case, net, optimizer, images, order)
    other, _ = training.fit(training.Recipe((64, 20, 10), last_relu=True, epochs=1, rate=0.05), images, 3)
    assert torch.equal(net.fc1.weight, other.fc1.weight)
    assert starts.last(starts.made(starts.Case((64, 20, 10), 0, 0, True, "zero"), 0)[0]).bias.abs().max() == 0


# All of it, small


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return jobs.run(run.list_of(run.TOY, None), tmp_path_factory.mktemp("work"), workers=0)


def test_every_job_of_the_toy_list_leaves_a_result(toy):
    assert set(toy) == set(run.list_of(run.TOY, None))
    arm = toy["4.5 as executed, notebook, last ReLU, seed 0"]
    assert len(arm["epochs"]["test_accuracy"]) == 2 and len(arm["sizes"]) == 3 and arm["cuts"]
    left = toy["4.5 non-split, notebook, last ReLU, seed 0"]
    assert left["params_start"] == left["epochs"]["params"][-1] and not left["cuts"]
    assert toy["4.1 last ReLU, seed 0"]["accuracy"]["40"] == toy["4.1 last ReLU, seed 0"]["full"]


def test_dead_classes_are_those_without_recall_and_cost_their_share(toy):
    runs = {name: found for name, found in toy.items() if name.startswith("starts")}
    assert {found["case"]["last_relu"] for found in runs.values()} == {True, False}
    for found in runs.values():
        for r in found["runs"]:
            recall = r["test"]["recall"]
            assert r["test"]["dead"] == [c for c in range(10) if recall[c] < 0.005]
            # The classes of the images made here are even, so the accuracy is the mean of the recalls.
            assert r["test"]["accuracy"] == pytest.approx(np.mean(recall), abs=1e-5) == r["accuracy"][-1]
            assert r["test"]["accuracy"] <= 1 - len(r["test"]["dead"]) / 10 + 1e-5
            if found["case"]["last_relu"]:
                assert set(r["silent"][-1]) - {0} <= set(r["test"]["dead"])  # class 0 may live on ties
            elif r["test"]["dead"]:
                assert r["test"]["tied"] == 0
    # Of the same starts, a silent logit stays so with the ReLU, and moves without.
    for sizes in ("shallow", "deep"):
        closed, free = (runs[f"starts {sizes} notebook{end}"]["runs"] for end in ("", ", no last ReLU"))
        for a, b in zip(closed, free, strict=True):
            assert a["silent"][0] == b["silent"][0] == a["silent"][-1]
        assert sum(len(b["silent"][-1]) for b in free) < sum(len(a["silent"][-1]) for a in closed)


def test_tables_are_made_from_whatever_part_of_the_jobs_is_there(toy):
    whole = figure.tables(toy)
    assert all(len(rows) > 1 for rows in whole.values())
    assert all(len(row) == len(rows[0]) for rows in whole.values() for row in rows)
    assert [row[1] for row in whole["examples"][1:3]] == ["non-split", "as executed"]
    part = {name: found for name, found in toy.items() if name.startswith("4.5")}
    assert {name for name, rows in figure.tables(part).items() if len(rows) > 1} == {
        *("printed", "examples", "recall", "gates")
    }
    assert [len(rows) for name, rows in figure.tables({}).items() if name != "printed"] == [1] * (len(whole) - 1)


def test_the_list_is_balanced_and_costs_what_it_says():
    full = run.list_of(run.Config(), None)
    assert 200 < sum(job.seconds for job in full.values()) / 60 < 300  # what the head of run.py says
    places = {name: i for i, name in enumerate(full)}
    for name in full:
        if "seed 1" in name and name[:3] != "4.1":
            assert places[name.replace("seed 1", "seed 0")] < places[name] < places[name.replace("seed 1", "seed 2")]
    assert asdict(run.FULL)["epochs"] == tuple((name, e.epochs) for name, e in printed.EXAMPLES.items())
    assert examples.recipe("4.7", "text", True, 1).sizes == (784, 750, 750, 750, 10)


# What is committed

FOLDER = ROOT / "experiments" / "shmalo2023_rmt_svd"


def test_the_readme_and_the_figure_are_those_of_the_results():
    found = records.read(FOLDER / "results.json")["results"]
    text = (FOLDER / "README.md").read_text()
    for table, rows in figure.tables(found).items():
        assert f"<!-- table: {table} -->\n{drawing.markdown(rows)}<!-- end -->" in text
    assert drawing.digest(FOLDER) in (FOLDER / "figure.svg").read_text()
