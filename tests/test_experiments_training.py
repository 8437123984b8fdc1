"""What the experiments train with: penalties, reduction, records, cuts by chance, jobs that are kept and that fail."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from experiments import __main__ as entry  # noqa: E402
from experiments import controls, data, jobs, networks, sparse, training  # noqa: E402
from experiments.training import Pruning, Recipe  # noqa: E402

from spectrim.linalg import svd  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Recipe(sizes=(64, 40, 30, 10), epochs=3, rate=0.1, batch=32)


@pytest.fixture(scope="module")
def images() -> data.Images:
    return data.made_images()


# The penalties


def test_the_gradients_added_by_hand_are_those_of_the_penalties_in_the_loss():
    net = networks.mlp((12, 9, 5), generator=torch.Generator().manual_seed(0)).double()
    weights = networks.matrices(net)
    with torch.no_grad():
        weights[0][0, :3] = 0  # where the subgradient is 0 both ways
    x, y = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)).double(), torch.arange(7) % 5
    l1, l2 = 0.03, 0.2
    F.cross_entropy(net(x), y).backward()
    training.add_penalty_gradients(weights, l1, l2)
    by_hand = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    penalty = sum(l1 * w.abs().sum() + l2 * w.square().sum() for w in weights)
    (F.cross_entropy(net(x), y) + penalty).backward()
    for ours, theirs in zip(by_hand, (p.grad for p in net.parameters()), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_training_with_penalties_is_training_on_the_penalised_loss(images):
    recipe = replace(SMALL, epochs=1, l1=1e-3, l2=1e-3)
    net, _ = training.fit(recipe, images, seed=3)
    drawn, order = (torch.Generator().manual_seed(6 + k) for k in (0, 1))
    twin = training.build(recipe, 8, drawn)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for chosen in torch.randperm(600, generator=order).split(32):
        loss = F.cross_entropy(twin(images.train[chosen]), images.train_labels[chosen])
        loss = loss + sum(1e-3 * w.abs().sum() + 1e-3 * w.square().sum() for w in networks.matrices(twin))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_stable_rank_is_part_of_the_loss_in_every_sixth_epoch_only(images):
    plain = training.train(replace(SMALL, epochs=2), images, 0)["epochs"]["loss"]
    ranked = replace(SMALL, epochs=2, stable_rank=0.05, stable_rank_every=2)
    assert training.train(ranked, images, 0)["epochs"]["loss"][0] == plain[0]
    assert training.train(ranked, images, 0)["sums"] != training.train(replace(SMALL, epochs=2), images, 0)["sums"]


# Recipes


def test_a_reduced_recipe_ends_where_the_whole_one_does():
    full = Recipe(
        sizes=(784, 3000, 500, 10), epochs=100, decay=0.96, decay_every=4, pruning=Pruning("linear", 200, every=4)
    )
    small = training.reduced(full, width=4, time=3)
    assert small.sizes == (784, 750, 125, 10) and small.epochs == 33
    assert small.pruning.every == 4 and small.decay_every == 4
    # 33 epochs hold one period less than a third of 100: the rates differ by less than one period of the decay.
    assert small.rate_at(32) / full.rate_at(99) == pytest.approx(1, rel=1 - 0.96**3)
    assert 1 - 33 / small.pruning.value == pytest.approx(1 - 99 / 200)


def test_rates():
    assert Recipe(sizes=(), rate=1.0, decay=0.5, decay_every=2).rate_at(5) == 0.25
    wave = Recipe(sizes=(), rate=1.0, cosine=True, epochs=10)
    assert wave.rate_at(0) == 1 and wave.rate_at(5) == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in pairwise(map(wave.rate_at, range(10))))


@pytest.mark.parametrize(("init", "variance"), [("torch", 1 / (3 * 400)), ("normal", 1 / 400), ("small", 1 / 400**2)])
def test_starts_have_the_variance_that_they_say(init, variance):
    recipe = Recipe(sizes=(400, 300, 10), init=init)
    first, again, other = (training.build(recipe, 20, torch.Generator().manual_seed(k)) for k in (0, 0, 1))
    # 120000 entries: the variance errs by at most sqrt(2 / 120000) = .4 %; five of them.
    assert first.fc1.weight.var().item() == pytest.approx(variance, rel=0.02)
    assert torch.equal(first.fc1.weight, again.fc1.weight) and not torch.equal(first.fc1.weight, other.fc1.weight)
    assert first.fc1.bias.any() == (init == "torch")
    with pytest.raises(ValueError, match="init is"):
        training.build(replace(recipe, init="glorot"), 20, torch.Generator())


def test_the_last_relu_is_there_or_not():
    assert list(networks.mlp((4, 3, 2))._modules) == ["flat", "fc1", "relu1", "fc2"]
    assert list(networks.mlp((4, 3, 2), last_relu=True)._modules)[-1] == "relu2"


def test_the_convolutional_net_takes_its_images():
    recipe = Recipe(sizes=(0, 20, 10), channels=(3, 4, 8, 8), pools=(1, 3), dropout=0.1)
    net = training.build(recipe, 12, torch.Generator().manual_seed(0))
    assert net(torch.zeros(2, 3, 12, 12)).shape == (2, 10) and net.fc1.in_features == 8 * 3 * 3
    assert networks.architecture(net)["conv2"] == [4, 8]


def test_images_are_centred_and_scaled(images):
    centred = training.prepared(replace(SMALL, centred=True), images)
    assert torch.allclose(centred.train, 2 * images.train - 1)
    scaled = training.prepared(replace(SMALL, largest_norm=0.05), images)
    longest = images.train.flatten(1).norm(dim=1).max()
    assert torch.allclose(scaled.train, images.train * (0.05 / longest))
    assert torch.allclose(scaled.test, images.test * (0.05 / longest))


# The record


@pytest.fixture(scope="module")
def pruned(images):
    recipe = replace(SMALL, sizes=(64, 60, 60, 10), epochs=6, l2=1e-4, pruning=Pruning("linear", 8, every=2))
    return training.fit(recipe, images, seed=1)


def test_the_record_is_what_the_net_does(pruned, images):
    net, record = pruned
    with torch.no_grad():
        guess = net(images.test).argmax(1)
        loss = F.cross_entropy(net(images.train), images.train_labels).item()
    assert record["test_accuracy"] == pytest.approx((guess == images.test_labels).float().mean().item())
    for k, recall in enumerate(record["test"]["recall"]):
        assert recall == pytest.approx((guess[images.test_labels == k] == k).float().mean().item())
    assert record["train"]["loss"] == pytest.approx(loss, rel=1e-5)
    squares = sum(float(w.detach().square().sum()) for w in networks.matrices(net))
    assert record["regularised_loss"] == pytest.approx(loss + 1e-4 * squares, rel=1e-5)
    assert {len(column) for column in record["epochs"].values()} == {6}
    assert record["parameters"]["weights"] + record["parameters"]["other"] == record["epochs"]["params"][-1]
    assert set(record["seconds"]) == {"training", "pruning", "decomposing"}
    json.dumps(record)


def test_cuts_fall_when_they_are_due_and_are_in_the_architecture(pruned):
    net, record = pruned
    assert {change["epoch"] for change in record["changes"]} <= {1, 3, 5}
    splits = {c["name"]: c["rank"] for c in record["changes"] if c["action"] == "split"}
    assert splits, "the last portion, 3 / 8, makes pairs of layers of 60 x 60"
    for name, rank in splits.items():
        assert record["architecture"][name][1] == rank and len(record["architecture"][name]) == 3
    assert record["epochs"]["params"][-1] < record["epochs"]["params"][0]
    assert sum(p.numel() for p in net.parameters()) == record["epochs"]["params"][-1]


def test_arms_of_one_seed_share_start_and_order(images, pruned):
    plain = training.train(replace(SMALL, sizes=(64, 60, 60, 10), epochs=2, l2=1e-4), images, seed=1)
    # The same until the first cut, which comes after the second epoch.
    assert plain["epochs"]["loss"] == pruned[1]["epochs"]["loss"][:2]


def test_a_dead_class_is_counted(images):
    def kill(net, optimizer, epoch):
        with torch.no_grad():
            net.fc3.bias[4] = -100
        return [{"name": "fc3", "action": "bias"}]

    record = training.train(SMALL, images, 0, cut=kill, watch=lambda net, epoch: {"epoch": epoch})
    assert record["test"]["recall"][4] == 0 and record["dead"] >= 1
    assert [change["epoch"] for change in record["changes"]] == [0, 1, 2]
    assert [seen["epoch"] for seen in record["watched"]] == [-1, 0, 1, 2]


def test_a_loss_that_is_not_finite_ends_the_training(images):
    with pytest.raises(FloatingPointError, match="epoch 0"):
        training.train(replace(SMALL, rate=1e20), images, 0)


# Controls and sparse versions


def test_what_is_chosen_by_chance_are_all_spikes_and_some_of_the_rest():
    draws = [controls.chosen(42, spikes=2, rank=12, draw=torch.Generator().manual_seed(k)) for k in range(50)]
    for kept in draws:
        assert len(set(kept)) == 12 and kept[:2] == [0, 1] and max(kept) < 42
    # Each of the forty is drawn with probability 1 / 4; that one is never drawn in fifty turns has probability 2e-5.
    assert set(range(42)) == set().union(*draws)
    assert controls.chosen(42, spikes=12, rank=12, draw=torch.Generator()) == list(range(12))


def test_the_spikes_behind_a_rank():
    for p, share in ((375, 0.535), (62, 0.94), (250, 0.15), (30, 0.0)):
        for K in (0, 1, 7, 20):
            rank = K + int(share * (p - K))
            found = controls.spikes_behind(rank, p, share)
            # Where the portion is near 1, several numbers of spikes give the same rank; the smallest is taken.
            assert found <= K and found + int(share * (p - found)) == rank
    assert controls.spikes_behind(10, 30, 0.0) == 10


def test_the_control_by_chance_keeps_as_much_as_the_pruner_every_time_and_all_spikes(images, pruned):
    record = pruned[1]
    recipe = replace(SMALL, sizes=(64, 60, 60, 10), epochs=6, l2=1e-4, pruning=Pruning("linear", 8, every=2))
    seen: dict[tuple[int, str], torch.Tensor] = {}

    class Watched(controls.RandomBulk):
        def __call__(self, net, optimizer, epoch):
            for change in self.leader:
                if change["epoch"] == epoch:
                    seen[epoch, change["name"]] = svd(net.get_submodule(change["name"]).weight).s
            made = super().__call__(net, optimizer, epoch)
            for change in made:
                whole, left = seen[epoch, change.name], svd(net.get_submodule(change.name).weight).s
                spikes = controls.spikes_behind(change.rank, len(whole), self.share(epoch))
                assert torch.allclose(left[:spikes], whole[:spikes], rtol=1e-4)
                # Every value that is left is one of the matrix that was cut.
                gaps = (left[: change.rank, None] - whole[None]).abs().min(1).values
                assert gaps.max() < 1e-4 * whole[0]
                # The cut is a truncation to those: what it costs is the rest of the sum of squares.
                lost = float((whole.square().sum() - left[: change.rank].square().sum()).sqrt() / whole.norm())
                assert change.relative_error == pytest.approx(lost, abs=1e-4)
            return made

    cut = Watched(recipe.pruning, record["changes"], seed=0)
    chance = training.train(recipe, images, 1, cut=cut)

    def cuts(found):
        return [(c["epoch"], c["name"], c["action"], c["rank"]) for c in found["changes"]]

    assert cuts(chance) == cuts(record) and len(cuts(chance)) >= 4
    assert chance["epochs"]["params"] == record["epochs"]["params"]
    assert chance["epochs"]["loss"][:2] == record["epochs"]["loss"][:2]
    # The largest values hold more of the matrix than any others.
    first = {c["name"]: c["relative_error"] for c in record["changes"] if c["epoch"] == 1}
    for name, error in first.items():
        s, rank = seen[1, name], next(c["rank"] for c in record["changes"] if c["name"] == name)
        assert error == pytest.approx(float(s[rank:].norm() / s.norm()), rel=1e-3)
        assert next(c["relative_error"] for c in chance["changes"] if c["name"] == name) > error + 1e-3


def test_the_control_follows_a_record_or_trains_anew(images, pruned, tmp_path):
    recipe = replace(SMALL, sizes=(64, 60, 60, 10), epochs=6, l2=1e-4, pruning=Pruning("linear", 8, every=2))
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"asked": "", "result": pruned[1]}))
    from_file, anew = (controls.follow(recipe, images, 1, "cpu", place) for place in (file, tmp_path / "none.json"))
    assert [(c["name"], c["rank"]) for c in from_file.leader] == [(c["name"], c["rank"]) for c in anew.leader]


def test_sparse_versions_leave_the_net_and_begin_with_its_accuracy(pruned, images):
    net, record = pruned
    before = [p.clone() for p in net.parameters()]
    found = sparse.curve(net, images)
    assert found["accuracy"][0] == pytest.approx(record["test_accuracy"])
    assert (
        all(a >= b for a, b in pairwise(found["nonzeros"])) and found["nonzeros"][0] == record["parameters"]["weights"]
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# Jobs


@dataclass(frozen=True)
class Asked:
    a: int = 1
    b: float = 2.0


def double(x: int, note: Path | None = None) -> dict[str, int]:
    if x < 0:
        raise ValueError("negative")
    if note is not None:
        with note.open("a") as stream:
            stream.write(f"{x}\n")
    return {"x": 2 * x, "threads": torch.get_num_threads()}


def settings(recipe: Asked) -> dict[str, int]:
    return {"a": recipe.a}


def test_jobs_are_made_once_and_failures_stop_no_other(tmp_path, capsys):
    note = tmp_path / "note"
    asked = {"a": (double, {"x": 1, "note": note}), "b": (double, {"x": -1}), "c": (double, {"x": 3, "note": note})}
    found = jobs.run(asked, tmp_path / "work", workers=0)
    assert {name: result["x"] for name, result in found.items()} == {"a": 2, "c": 6}
    assert "ValueError: negative" in capsys.readouterr().out
    again = jobs.run(asked | {"d": (double, {"x": 4, "note": note})}, tmp_path / "work", workers=0)
    assert again["d"]["x"] == 8 and note.read_text() == "1\n3\n4\n"
    assert not list((tmp_path / "work").glob("*.part"))


def test_a_job_is_made_again_where_its_arguments_changed_but_not_where_its_files_moved(tmp_path):
    work, kept = tmp_path / "work", {}
    for x, place in ((1, "one"), (1, "two"), (5, "two")):
        note = tmp_path / place
        kept = jobs.run({"a": (double, {"x": x, "note": note})}, work, workers=0)
    assert kept["a"]["x"] == 10 and not (tmp_path / "two").read_text().startswith("1")
    assert (tmp_path / "one").read_text() == "1\n"
    assert jobs.asked(jobs.Job(settings, {"recipe": Asked(b=2.0)})) == jobs.asked(
        jobs.Job(settings, {"recipe": Asked()})
    )
    assert jobs.asked(jobs.Job(settings, {"recipe": Asked(a=2)})) != jobs.asked(jobs.Job(settings, {"recipe": Asked()}))


def test_only_a_part_of_a_list(tmp_path):
    asked = {name: (double, {"x": 1}) for name in ("fashion 0", "mnist 0")}
    assert set(jobs.run(asked, tmp_path, workers=0, only="mnist")) == {"mnist 0"}
    assert set(jobs.run(asked, tmp_path, workers=0, only="nothing")) == {"mnist 0"}


def test_jobs_in_processes_of_one_thread(tmp_path):
    asked = {str(x): (double, {"x": x}) for x in (1, -1)}
    found = jobs.run(asked, tmp_path, workers=2)
    assert set(found) == {"1"} and found["1"]["threads"] == 1


def test_data_are_named_where_they_are_missing():
    with pytest.raises(ValueError, match="--mnist"):
        jobs.images("mnist", None)
    colour = jobs.images("toy colour", None)
    assert colour.train.shape[1] == 3 and jobs.images("toy colour", None) is colour
    assert colour.train.min() >= 0 and colour.train.max() <= 1


def test_the_list_of_experiments(capsys, monkeypatch):
    found = entry.experiments()
    assert {"berlyand2025_appendix", "berlyand2023_accuracy", "planted_study"} <= set(found)
    assert all(line.endswith((".", ":")) or line for line in found.values())
    monkeypatch.setattr(sys, "argv", ["experiments"])
    entry.main()
    assert "berlyand2025_appendix" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["experiments", "unknown"])
    with pytest.raises(SystemExit, match="unknown"):
        entry.main()


def test_a_toy_run_never_writes_what_is_committed(monkeypatch, tmp_path):
    told = []
    module = type("Run", (), {"main": staticmethod(lambda: told.append(list(sys.argv)))})
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: module)
    for arguments in (["--toy"], ["--toy", "--output", str(tmp_path / "mine.json")], []):
        monkeypatch.setattr(sys, "argv", ["experiments", "planted_study", *arguments])
        entry.main()
    assert told[0][-2] == "--output" and not Path(told[0][-1]).is_relative_to(ROOT)
    assert told[1][1:] == ["--toy", "--output", str(tmp_path / "mine.json")] and told[2][1:] == []


def test_the_estimate_counts_the_arithmetic():
    one, two = Recipe(sizes=(784, 100, 10), epochs=1), Recipe(sizes=(784, 100, 10), epochs=2)
    assert training.estimate(two) == pytest.approx(2 * training.estimate(one))
    conv = Recipe(sizes=(0, 10), channels=(1, 4, 8), pools=(1,), epochs=1)
    expected = 6 * 1000 * (9 * 4 * 64 + 9 * 32 * 16) / 36e9 + 6 * 1000 * 8 * 16 * 10 / 70e9 + 0.0014 * 1000 / 128
    assert training.estimate(conv, 1000, 8) == pytest.approx(1.06 * expected)


def test_stacked_layers_count_their_numbers():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        net[0].weight[0, :3] = 0
    assert networks.count(net) == {"weights": 20, "other": 12, "zeros": 3}
