"""Pruning while training: what is cut and by which rule, what becomes of the optimiser, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectrim
from spectrim import Pruner, edges, planted, schedules, survey
from spectrim.factored import Pair, Parts
from spectrim.handover import hand_over


def planted_layer(rows: int, cols: int, spikes: int, seed: int = 0, dtype=torch.float64) -> nn.Linear:
    """A linear layer whose weight is unit noise with so many spikes, all far above the transition."""
    strengths = np.linspace(3, 6, spikes) * planted.critical(rows, cols)
    made = planted.planted(rows, cols, strengths, generator=np.random.default_rng(seed))
    layer = nn.Linear(cols, rows, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(made.W))
        layer.bias.copy_(torch.linspace(-1, 1, rows))
    return layer


def net_of(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


def step_of(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: int, seed: int = 0) -> float:
    """One step of training on made-up data; the loss."""
    generator = torch.Generator().manual_seed(seed)
    weight = next(net.parameters())
    x = torch.randn(16, inputs, generator=generator, dtype=weight.dtype)

    def closure():
        optimizer.zero_grad()
        out = net(x)
        loss = out.square().mean()
        loss.backward()
        return loss

    return optimizer.step(closure).item()


# The rule


def test_spikes_stay_and_the_portion_is_of_the_whole_bulk():
    net = net_of(planted_layer(120, 90, 7), planted_layer(50, 120, 4, seed=1))
    pruner = Pruner(net, None, keep=lambda epoch: 0.5 - 0.1 * epoch)
    whole = {"0": (90, 7), "2": (50, 4)}
    for epoch in (0, 1, 2):
        before = {site: W.clone() for site, W in (("0", net[0].weight), ("2", net[2].weight))}
        changes = pruner.step(epoch)
        assert [change.name for change in changes] == ["0", "2"]
        for change in changes:
            p, spikes = whole[change.name]
            assert pruner.readings[change.name].fit.spikes == spikes
            assert change.rank == spikes + int((0.5 - 0.1 * epoch) * (p - spikes))
            # The best approximation of that rank, by numpy's own decomposition.
            U, s, Vh = np.linalg.svd(before[change.name].detach().numpy(), full_matrices=False)
            r = change.rank
            best = (U[:, :r] * s[:r]) @ Vh[:r]
            np.testing.assert_allclose(net[int(change.name)].weight.detach().numpy(), best, atol=1e-10)
            error = np.sqrt((s[r:] ** 2).sum() / (s**2).sum())
            assert change.relative_error == pytest.approx(error, abs=1e-10)


def test_a_pair_only_where_it_is_smaller_and_else_in_place():
    net = net_of(planted_layer(100, 100, 2))
    pruner = Pruner(net, None, keep=lambda epoch: (0.6, 0.4)[epoch])
    weight = net[0].weight
    (first,) = pruner.step(0)
    assert (first.action, first.rank, first.fresh) == ("dense", 2 + int(0.6 * 98), ())
    assert net[0].weight is weight and np.linalg.matrix_rank(weight.detach().numpy()) == first.rank
    assert first.params_after == first.params_before == 100 * 100
    (second,) = pruner.step(1)
    assert (second.action, second.rank) == ("split", 2 + int(0.4 * 98))
    assert second.params_after == second.rank * 200 == sum(half.weight.numel() for half in net[0])
    assert second.fresh == ("0.0.weight", "0.1.weight")


def test_split_and_rebuild_can_be_forbidden():
    made = planted_layer(100, 100, 2)
    (dense,) = Pruner(net_of(copy.deepcopy(made)), None, keep=0.3, split=False).step(0)
    assert dense.action == "dense" and dense.params_after == 100 * 100
    pruner = Pruner(net_of(copy.deepcopy(made)), None, keep=0.6, rebuild=False)
    assert pruner.step(0) == [] and "no smaller" in pruner.kept["0"]
    (pair,) = Pruner(net_of(made), None, keep=0.3, rebuild=False).step(0)
    assert pair.action == "split"


def test_what_training_adds_beside_a_rebuilt_matrix_is_cut_again():
    net = net_of(planted_layer(100, 100, 2))
    pruner = Pruner(net, None, keep=0.6)
    (first,) = pruner.step(0)
    noise = torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net[0].weight += 0.01 * noise
    assert np.linalg.matrix_rank(net[0].weight.detach().numpy()) == 100
    (second,) = pruner.step(1)
    # Its noise is read from the values that the first cut left: the same spikes, the same rank.
    assert second.rank == first.rank == np.linalg.matrix_rank(net[0].weight.detach().numpy())
    assert pruner.readings["0"].fit.spikes == 2
    assert pruner.readings["0"].fit.sigma == pytest.approx(1, rel=0.03)


def test_the_last_layer_of_ten_classes_is_spared_and_floor_says_how_many_stay():
    net = net_of(planted_layer(10, 200, 1), planted_layer(60, 60, 1, seed=1))
    net[1] = nn.Linear(10, 60, dtype=torch.float64)
    pruner = Pruner(net, None, keep=0.0)
    (change,) = pruner.step(0)
    assert (change.name, change.rank) == ("2", 10) and "nothing had to go" in pruner.kept["0"]
    (change,) = Pruner(net_of(planted_layer(60, 60, 1)), None, keep=0.0, floor=1).step(0)
    assert change.rank == 1


def test_the_gate_closes_on_what_does_not_fit():
    generator = np.random.default_rng(0)
    rough = planted.planted(120, 160, [], row_log_sd=1.2, generator=generator).W
    net = net_of(planted_layer(120, 160, 3), planted_layer(120, 120, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(rough))
    pruner = Pruner(net, None, keep=0.2)
    assert [change.name for change in pruner.step(0)] == ["2"]
    assert "does not fit" in pruner.kept["0"] or "power law" in pruner.kept["0"]
    # Its rows are uneven, and that is all: with the scales evened out it is noise, and is cut in that basis.
    again = net_of(nn.Linear(160, 120, dtype=torch.float64))
    with torch.no_grad():
        again[0].weight.copy_(torch.tensor(rough))
    (change,) = Pruner(again, None, keep=0.2, equalize=True).step(0)
    assert change.rank == int(0.2 * 120)
    open_gate = Pruner(net, None, keep=0.2, gate=1.0)
    assert "0" in [change.name for change in open_gate.step(0)]


def test_only_the_epochs_that_are_due_and_the_names_that_are_let_through():
    net = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2))
    pruner = Pruner(net, None, keep=0.2, every=3, only=lambda name: name == "2")
    assert pruner.step(0) == pruner.step(1) == [] and pruner.readings == {}
    assert [change.name for change in pruner.step(2)] == ["2"]
    assert set(pruner.readings) == {"2"}


@pytest.mark.parametrize("share", [0.8, 0.45, 0.2, 0.1])
def test_the_noise_of_a_pair_is_read_from_the_values_that_are_left(share):
    net = net_of(planted_layer(300, 200, 6, seed=3))
    Pruner(net, None, keep=share, floor=1).step(0)
    found = survey(net, equalize=False).readings[0]
    assert found.fit.spikes == 6 and found.verdict.cuttable
    # One in 200 x 300 entries: .003 of sigma for the whole spectrum, at most thrice that for a tenth of it.
    assert found.fit.sigma == pytest.approx(1, rel=0.015)


def test_factors_of_another_origin_are_no_rest_of_noise():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 60, bias=False), nn.Linear(60, 150))
    with torch.no_grad():
        for layer in net:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    pruner = Pruner(nn.Sequential(net, nn.ReLU()), None, keep=0.2)
    assert pruner.step(0) == [] and "0" in pruner.kept


# The optimiser


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    "momentum, fused": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "amsgrad": lambda params: torch.optim.Adam(params, lr=1e-3, amsgrad=True, foreach=True),
    "fused": lambda params: torch.optim.Adam(params, lr=1e-3, fused=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=1e-3, momentum=0.5),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
    "adadelta": torch.optim.Adadelta,
    "adamax": lambda params: torch.optim.Adamax(params, lr=1e-3),
    "nadam": lambda params: torch.optim.NAdam(params, lr=1e-3),
    "radam": lambda params: torch.optim.RAdam(params, lr=1e-3),
    "asgd": lambda params: torch.optim.ASGD(params, lr=1e-2),
    "rprop": lambda params: torch.optim.Rprop(params, lr=1e-3),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-3),
    "lbfgs": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_goes_on_with_the_parameters_that_are_there(name):
    net = net_of(planted_layer(60, 80, 2), planted_layer(40, 60, 2))
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    pruner = Pruner(net, optimizer, keep=lambda epoch: (0.3, 0.1)[epoch])
    for epoch in (0, 1):
        step_of(net, optimizer, 80)
        biases = [net[0].bias, net[2].bias]
        kept = {id(b): optimizer.state[b] for b in biases} if name != "lbfgs" else {}
        assert len(pruner.step(epoch)) == 2
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in held] == [id(p) for p in net.parameters()]
        assert all(now is before for now, before in zip((net[0].bias, net[2].bias), biases, strict=True))
        assert all(optimizer.state[b] is kept[id(b)] for b in biases if kept)
        assert {id(p) for p in optimizer.state} <= {id(p) for p in held}
        before = [p.detach().clone() for p in held]
        step_of(net, optimizer, 80, seed=epoch + 1)
        assert all(torch.isfinite(p).all() for p in held)
        assert all(not torch.equal(p, q) for p, q in zip(held, before, strict=True))


def test_groups_keep_their_settings_and_schedulers_go_on():
    net = net_of(planted_layer(60, 80, 2), planted_layer(40, 60, 2))
    groups = [
        {"params": [net[0].weight], "lr": 0.1, "weight_decay": 0.5},
        {"params": [net[2].weight, net[2].bias, net[0].bias], "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.01], total_steps=8)
    pruner = Pruner(net, optimizer, keep=0.2)
    for epoch in range(4):
        step_of(net, optimizer, 80)
        scheduler.step()
        pruner.step(epoch)
        if epoch == 0:
            first, second = (group["params"] for group in optimizer.param_groups)
            assert [id(p) for p in first] == [id(net[0][0].weight), id(net[0][1].weight)]
            rest = [net[2][0].weight, net[2][1].weight, net[2].bias, net[0].bias]
            assert [id(p) for p in second] == [id(p) for p in rest]
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert optimizer.param_groups[0]["lr"] == pytest.approx(10 * optimizer.param_groups[1]["lr"])


def test_names_in_the_groups_follow():
    net = net_of(planted_layer(60, 80, 2))
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1)
    Pruner(net, optimizer, keep=0.2).step(0)
    assert optimizer.param_groups[0]["param_names"] == ["0.0.weight", "0.1.weight", "0.1.bias"]


def test_momentum_of_a_matrix_that_is_rebuilt_in_place_stays():
    net = net_of(planted_layer(60, 60, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    step_of(net, optimizer, 60)
    buffer = optimizer.state[net[0].weight]["momentum_buffer"]
    (change,) = Pruner(net, optimizer, keep=0.9).step(0)
    assert change.action == "dense" and change.fresh == ()
    assert optimizer.state[net[0].weight]["momentum_buffer"] is buffer


def test_several_optimisers_share_a_model():
    net = net_of(planted_layer(60, 80, 2), planted_layer(40, 60, 2))
    both = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.Adam(net[2].parameters())]
    Pruner(net, both, keep=0.2).step(0)
    for optimizer, layer in zip(both, (net[0], net[2]), strict=True):
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in layer.parameters()]
    with pytest.raises(ValueError, match=r"no optimiser given holds 2\.0\.weight"):
        Pruner(net, both[0], keep=0.2)


def test_a_frozen_weight_stays_frozen_and_needs_no_optimiser():
    net = net_of(planted_layer(60, 80, 2))
    net[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([net[0].bias], lr=0.1)
    Pruner(net, optimizer, keep=0.2).step(0)
    assert not net[0][0].weight.requires_grad and not net[0][1].weight.requires_grad and net[0].bias.requires_grad
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(net[0].bias)]


def test_fused_projections_and_gates():
    generator = torch.Generator().manual_seed(0)
    attention = nn.MultiheadAttention(96, 4)
    lstm = nn.LSTM(64, 48)
    qkv = nn.Linear(80, 240)
    with torch.no_grad():
        for p in (*attention.parameters(), *lstm.parameters(), *qkv.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator))
    model = nn.ModuleDict({"attention": attention, "lstm": lstm, "qkv": qkv})
    optimizer = torch.optim.Adam(model.parameters())
    changes = Pruner(model, optimizer, keep=0.25, floor=1).step(0)
    names = {change.name for change in changes}
    assert {"attention.in_proj_weight[q]", "lstm.weight_hh_l0[f]", "qkv[v]"} <= names
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert isinstance(model["qkv"], Parts)
    fresh = {name for change in changes for name in change.fresh}
    assert fresh <= dict(model.named_parameters()).keys()
    # The bias of q, k and v was cut into three: they are new, and in the group.
    assert {"qkv.0.1.bias", "qkv.1.1.bias", "qkv.2.1.bias"} <= fresh
    x = torch.randn(5, 2, 96)
    assert model["attention"](x, x, x)[0].isfinite().all()


def test_the_schedule_of_a_moving_average_copy_is_told_by_its_error():
    net = net_of(planted_layer(60, 80, 2))
    average = torch.optim.swa_utils.AveragedModel(net)
    Pruner(net, None, keep=0.2).step(0)
    with pytest.raises((RuntimeError, ValueError)):  # loud, not silent: the copy has the old structure
        average.update_parameters(net)


# Convolutions and compiled models


def test_a_convolution_becomes_two_and_its_norm_stays():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    norm, x = net[1], torch.randn(4, 16, 9, 9)
    net(x)
    mean = norm.running_mean.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    (change,) = Pruner(net, optimizer, keep=0.2).step(0)
    assert isinstance(net[0], Pair) and net[1] is norm and torch.equal(norm.running_mean, mean)
    assert net[0][0].weight.shape == (change.rank, 16, 3, 3) and net[0][1].weight.shape == (64, change.rank, 1, 1)
    assert net[0][0].stride == (2, 2) and net[0][0].padding == (1, 1)
    net(x).sum().backward()
    optimizer.step()


def test_a_model_is_compiled_after_it_was_cut():
    net = net_of(planted_layer(60, 80, 2, dtype=torch.float32))
    pruner = Pruner(net, None, keep=0.2)
    pruner.step(0)
    x = torch.randn(3, 80)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    with pytest.raises(ValueError, match="compile it afterwards"):
        Pruner(compiled, None, keep=0.2)
    # The wrapper looks at the module again when the module has changed under it.
    with torch.no_grad():
        net[0][1].bias.zero_()
    Pruner(net, None, keep=0.1).step(0)
    torch.testing.assert_close(compiled(x), net(x))


# Saving and going on


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped():
    def made():
        net = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        return net, optimizer, Pruner(net, optimizer, keep=schedules.linear(5), every=2)

    def epochs(net, optimizer, pruner, which):
        for epoch in which:
            step_of(net, optimizer, 80, seed=epoch)
            pruner.step(epoch)

    straight = made()
    epochs(*straight, range(6))
    first = made()
    epochs(*first, range(4))
    saved = pickle.loads(pickle.dumps([part.state_dict() for part in first]))
    net, optimizer, pruner = made()
    pruner.load_state_dict(saved[2])
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    epochs(net, optimizer, pruner, range(4, 6))
    for a, b in zip(straight[0].parameters(), net.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another model"):
        Pruner(net_of(planted_layer(30, 30, 1)), None, keep=0.5).load_state_dict(saved[2])


def test_the_cut_model_is_surveyed_saved_and_loaded(tmp_path):
    net = net_of(planted_layer(60, 80, 2, dtype=torch.float32))
    Pruner(net, None, keep=0.3).step(0)
    found = survey(net)
    assert found.readings[0].kind == "pair" and found.readings[0].fit is not None
    done = spectrim.trim(net, spectrim.plan(found, params=0.6), tmp_path / "out")
    again = spectrim.load(net_of(nn.Linear(80, 60)), tmp_path / "out")
    x = torch.randn(2, 80)
    torch.testing.assert_close(again(x), net(x))
    assert done.params_after < done.params_before


def test_what_was_done_is_told_and_saved_for_others(tmp_path):
    net = net_of(planted_layer(60, 80, 2, dtype=torch.float32), planted_layer(8, 60, 1, dtype=torch.float32))
    seen = []
    pruner = Pruner(net, None, keep=lambda epoch: 0.3 - 0.1 * epoch, progress=lambda sites: seen.append(sites) or sites)
    assert str(pruner) == "nothing was cut so far"
    for epoch in (0, 1):
        pruner.step(epoch)
    assert [epoch for epoch, _ in pruner.history] == [0, 1] and [len(sites) for sites in seen] == [2, 2]
    rank = pruner.history[-1][1].rank
    told = str(pruner).splitlines()
    assert told[0] == f"1 matrices cut; they hold {140 * rank} of 4800 numbers"
    assert f"rank {rank} since epoch 1, 4800 -> {140 * rank}" in told[1] and "too small" in told[2]
    folder = pruner.save(tmp_path / "out")
    script = "import sys, torch; sys.path.insert(0, sys.argv[1]); sys.modules['spectrim'] = None\n" + (
        "from modeling_spectrim import load; from torch import nn\n"
        "net = load(nn.Sequential(nn.Linear(80, 60), nn.Tanh(), nn.Linear(60, 8)), sys.argv[1])\n"
        "torch.save(net(torch.ones(2, 80)), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder), str(tmp_path / "y.pt")], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), net(torch.ones(2, 80)))
    assert [c["epoch"] for c in json.loads((folder / "spectrim.json").read_text())["pruned"]] == [0, 1]


# What is refused, with the model as it was


def unchanged(net: nn.Module, action, match: str, error=ValueError) -> None:
    before = copy.deepcopy(net.state_dict())
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(error, match=match):
        action()
    assert [type(module) for module in net.modules()] == kinds
    for name, value in net.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())


def test_a_model_without_a_matrix():
    net = nn.Sequential(nn.LayerNorm(5), nn.Embedding(7, 5))
    unchanged(net, lambda: Pruner(net, None, keep=0.5), "no matrix that could be pruned")
    net = net_of(planted_layer(60, 80, 2))
    unchanged(net, lambda: Pruner(net, None, keep=0.5, only=lambda name: False), "only= lets none")


def test_an_optimiser_of_another_model():
    net, other = net_of(planted_layer(60, 80, 2)), net_of(planted_layer(60, 80, 2))
    unchanged(net, lambda: Pruner(net, torch.optim.SGD(other.parameters(), lr=1), keep=0.2), "another model")
    unchanged(net, lambda: Pruner(net, "adam", keep=0.2), "optimiser", TypeError)
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    pruner = Pruner(net, optimizer, keep=0.2)
    net[0] = planted_layer(60, 80, 2)  # exchanged behind the optimiser's back
    unchanged(net, lambda: pruner.step(0), "another model")


def test_weights_that_diverged():
    net = net_of(planted_layer(60, 80, 2), planted_layer(40, 60, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(net, optimizer, keep=0.2)
    with torch.no_grad():
        net[2].weight[3, 4] = float("nan")
    unchanged(net, lambda: pruner.step(5), "epoch 5: the weights of 2 hold NaN")
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]


def test_settings_out_of_range():
    net = net_of(planted_layer(60, 80, 2))
    for settings, match in (
        ({"keep": 45}, "share"),
        ({"keep": -0.1}, "share"),
        ({"keep": 0.5, "every": 0}, "every"),
        ({"keep": 0.5, "every": 2.5}, "every"),
        ({"keep": 0.5, "gate": 2}, "gate"),
        ({"keep": 0.5, "floor": 0}, "floor"),
        ({"keep": 0.5, "split": False, "rebuild": False}, "nothing that may be done"),
    ):
        unchanged(net, lambda settings=settings: Pruner(net, None, **settings), match)
    pruner = Pruner(net, None, keep=lambda epoch: 1 - epoch)
    unchanged(net, lambda: pruner.step(3), "epoch 3")


def test_a_model_wrapped_for_several_devices():
    net = nn.DataParallel(net_of(planted_layer(60, 80, 2)))
    with pytest.raises(ValueError, match=r"its \.module"):
        Pruner(net, None, keep=0.5)


def test_an_estimator_without_a_verdict_leaves_the_matrix_alone():
    net = net_of(planted_layer(60, 80, 2))
    pruner = Pruner(net, None, keep=0.2, edge=edges.Median())
    assert len(pruner.step(0)) == 1
    assert pruner.step(1) == [] and "no verdict" in pruner.kept["0"]  # it needs a whole spectrum


# Handing over


def test_new_parameters_stand_where_the_old_one_stood():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.SGD([a, b, c], lr=1)
    listed = optimizer.param_groups[0]["params"]
    new = {"x": nn.Parameter(torch.zeros(1)), "y": nn.Parameter(torch.zeros(1))}
    hand_over([optimizer], [([b], new)])
    assert optimizer.param_groups[0]["params"] is listed  # others may hold the list
    assert [id(p) for p in listed] == [id(a), id(new["x"]), id(new["y"]), id(c)]


def test_a_loss_falls_through_cuts():
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(20, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(300, 20)
    y = (x[:, :3] + 0.5 * x[:, 3:6] ** 2).argmax(1)
    pruner = Pruner(net, optimizer, keep=schedules.linear(40), every=5)
    losses = []
    for epoch in range(30):
        for _ in range(5):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        pruner.step(epoch)
    assert losses[-1] < 0.5 * losses[0]
    assert any(isinstance(module, Pair) for module in net.modules())


# What is left of noise


def static(rows: int, cols: int, strengths: np.ndarray, seed: int = 0) -> nn.Sequential:
    made = planted.planted(rows, cols, strengths * planted.critical(rows, cols), generator=np.random.default_rng(seed))
    net = net_of(nn.Linear(cols, rows, dtype=torch.float64))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(made.W))
    return net


@pytest.mark.parametrize(("shape", "low", "high"), [((200, 200), 2.5, 3), ((200, 400), 2.5, 3), ((100, 1000), 2, 3)])
def test_spikes_that_are_left_alone_are_not_taken_for_noise(shape, low, high):
    """Twenty values of a like size, with no bulk beside them, pass for the top of a louder noise."""
    net = static(*shape, np.linspace(low, high, 20))
    pruner = Pruner(net, None, keep=0.0)
    assert pruner.step(0)[0].rank == 20
    assert pruner.step(1) == [] and "beside its spikes" in pruner.kept["0"]
    again = Pruner(net, None, keep=0.0)
    again.load_state_dict(pruner.state_dict())
    assert again.step(2) == []


def test_noise_that_seems_to_grow_louder_is_not_cut():
    """Signal at the transition hides in the bulk; where the bulk below it has gone, it sets the level."""
    net = static(300, 300, np.linspace(1.05, 1.6, 40))
    pruner = Pruner(net, None, keep=lambda epoch: (0.5, 0.25, 0.1, 0.05)[epoch], floor=1)
    levels, ranks = [], []
    for epoch in range(4):
        pruner.step(epoch)
        levels.append(pruner.readings["0"].fit.sigma)
        ranks.append(pruner.history[-1][1].rank)
    assert levels[3] > 1.05 * levels[2] and ranks[3] == ranks[2] < ranks[1] < ranks[0]
    assert "risen" in pruner.kept["0"]


def test_rows_and_columns_of_zeros_are_no_bulk():
    net = net_of(planted_layer(100, 80, 3))
    with torch.no_grad():
        net[0].weight[:, 60:] = 0
    pruner = Pruner(net, None, keep=0.5)
    (change,) = pruner.step(0)
    spikes = pruner.readings["0"].fit.spikes
    assert change.rank == spikes + int(0.5 * (60 - spikes)) and change.action == "split"
    again = net_of(planted_layer(100, 80, 3))
    with torch.no_grad():
        again[0].weight[:, 60:] = 0
    assert Pruner(again, None, keep=1.0).step(0) == []


def test_a_pair_with_a_dead_direction_is_read_without_it():
    net = net_of(planted_layer(100, 90, 3))
    Pruner(net, None, keep=0.4).step(0)
    with torch.no_grad():
        net[0][0].weight[-1] = 0
    held = net[0][0].out_features
    pruner = Pruner(net, None, keep=0.2)
    (change,) = pruner.step(0)
    assert len(pruner.readings["0"].spectrum.s) == held - 1 and change.rank < held - 1


def test_the_error_of_a_half_precision_pair_is_that_of_its_stored_halves():
    net = net_of(planted_layer(60, 80, 2, dtype=torch.float32).bfloat16())
    W = net[0].weight.detach().clone().double()
    (change,) = Pruner(net, None, keep=0.3).step(0)
    product = net[0][1].weight.double() @ net[0][0].weight.double()
    assert change.relative_error == pytest.approx(float((W - product.detach()).norm() / W.norm()), rel=1e-5)


# Models that are not as simple


def test_what_is_frozen_in_attention_and_recurrent_layers_stays_so_and_can_be_cut_twice():
    torch.manual_seed(0)
    net = nn.ModuleDict({"lstm": nn.LSTM(64, 96), "attention": nn.MultiheadAttention(96, 4)})
    for name, p in net.named_parameters():
        p.requires_grad_("bias" not in name and "weight_hh" not in name)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    pruner = Pruner(net, optimizer, keep=lambda epoch: (0.4, 0.2)[epoch])
    x = torch.randn(3, 2, 96)
    for epoch in (0, 1):
        assert pruner.step(epoch)
        (net["lstm"](x[..., :64])[0].sum() + net["attention"](x, x, x)[0].sum()).backward()  # torch's LSTM looks anew
        for name, p in net.named_parameters():
            assert p.requires_grad == ("bias" not in name and "weight_hh" not in name), name
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in net.parameters() if p.requires_grad}


def test_a_pair_half_of_which_the_optimiser_holds():
    net = net_of(planted_layer(120, 100, 3))
    Pruner(net, None, keep=0.4).step(0)
    net[0][0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    Pruner(net, optimizer, keep=0.2).step(0)
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert {id(p) for p in net.parameters() if p.requires_grad} == held


def test_a_bias_in_an_optimiser_that_was_not_given_is_told_where_it_would_be_cut_into_pieces():
    net = nn.ModuleDict({"qkv": nn.Linear(80, 240), "out": nn.Linear(80, 80)})
    matrices = torch.optim.SGD([p for p in net.parameters() if p.ndim > 1], lr=0.1)
    with pytest.raises(ValueError, match=r"no optimiser given holds qkv\.bias"):
        Pruner(net, matrices, keep=0.2)
    both = [matrices, torch.optim.SGD([p for p in net.parameters() if p.ndim == 1], lr=0.1)]
    Pruner(net, both, keep=0.2).step(0)
    held = {id(p) for optimizer in both for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in net.parameters()}


def test_parts_that_are_not_cut_keep_their_parameters_and_their_state():
    torch.manual_seed(0)
    net = nn.ModuleDict({"qkv": nn.Linear(80, 240), "attention": nn.MultiheadAttention(80, 4)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    only = {"qkv[q]", "attention.in_proj_weight[q]"}
    pruner = Pruner(net, optimizer, keep=lambda epoch: (0.4, 0.2)[epoch], only=lambda name: name in only)
    assert len(pruner.step(0)) == 2
    x = torch.randn(5, 2, 80)
    (net["qkv"](x).sum() + net["attention"](x, x, x)[0].square().sum()).backward()
    optimizer.step()
    before = dict(net.named_parameters())
    changes = pruner.step(1)
    fresh = {name for change in changes for name in change.fresh}
    assert fresh == {
        *("qkv.0.0.weight", "qkv.0.1.weight"),
        *(f"attention.parametrizations.in_proj_weight.original{i}" for i in (0, 1)),
    }
    for name, p in net.named_parameters():
        assert (p is before[name]) == (name not in fresh)
        assert (p in optimizer.state) == (name not in fresh)


class WithGain(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False)
        self.gain = nn.Parameter(torch.ones(sizes[1]))


@pytest.mark.parametrize(
    "extra", ["parameter", "buffer", "parametrised bias", "compiled leaf", "tensor hook", "module hook"]
)
def test_a_layer_that_holds_or_is_watched_by_something_else_is_rebuilt_and_not_split(extra):
    net = net_of(nn.Linear(90, 120), nn.Linear(120, 100))
    if extra == "parameter":
        net[0] = WithGain(90, 120)
    elif extra == "buffer":
        net[0].register_buffer("seen", torch.zeros(3))
    elif extra == "parametrised bias":
        nn.utils.parametrize.register_parametrization(net[0], "bias", nn.Identity())
    elif extra == "compiled leaf":
        net[0] = torch.compile(net[0], backend="eager")
    elif extra == "tensor hook":
        net[0].weight.register_hook(lambda gradient: 2 * gradient)
    else:
        net[0].register_forward_hook(lambda *_: None)
    before, layer = net(torch.ones(1, 90)), net[0]
    changes = {change.name.removesuffix("._orig_mod"): change for change in Pruner(net, None, keep=0.2, gate=1).step(0)}
    assert changes["0"].action == "dense" and changes["2"].action == "split" and net[0] is layer
    assert not torch.equal(net(torch.ones(1, 90)), before)


def test_a_pair_that_is_watched_is_left_alone_and_the_others_are_cut():
    net = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2))
    pruner = Pruner(net, None, keep=lambda epoch: (0.4, 0.2)[epoch])
    pruner.step(0)
    net[2][1].register_forward_hook(lambda *_: None)
    assert [change.name for change in pruner.step(1)] == ["0"] and "cannot be cut again" in pruner.kept["2"]


def test_who_still_holds_a_replaced_parameter_is_warned():
    net = net_of(planted_layer(60, 80, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(net, optimizer, keep=lambda epoch: 0.4 - 0.1 * epoch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(2):
            pruner.step(epoch)
        listed = list(net.parameters())
        pruner.step(2)
    with pytest.warns(UserWarning, match=r"still holds 0\.0\.weight, 0\.1\.weight"):
        pruner.step(3)
    assert listed


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_interrupt_while_layers_are_exchanged_leaves_all_as_it_was(error, monkeypatch):
    net = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2), planted_layer(50, 60, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step_of(net, optimizer, 80)
    pruner = Pruner(net, optimizer, keep=lambda epoch: (0.6, 0.3)[epoch])
    pruner.step(0)
    saved = pruner.state_dict()
    held = [id(p) for p in net.parameters()]
    from spectrim import factored

    right, calls = factored._linear, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error("stop")
        return right(*arguments)

    monkeypatch.setattr(factored, "_linear", fails)
    unchanged(net, lambda: pruner.step(1), "stop", error)
    assert [id(p) for p in net.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]] == held
    assert pruner.state_dict() == saved and len(pruner.history) == 3
    monkeypatch.undo()
    assert len(pruner.step(1)) == 3


def test_a_step_inside_inference_mode_leaves_what_can_be_trained():
    net = net_of(planted_layer(60, 80, 2))
    with torch.inference_mode():
        Pruner(net, None, keep=0.2).step(0)
    net(torch.ones(2, 80, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_state_is_loaded_into_the_model_that_it_belongs_to():
    net = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2))
    pruner = Pruner(net, None, keep=0.2)
    fresh_state = pruner.state_dict()
    pruner.step(0)
    for state, match in (({}, "not the state of a pruner"), (fresh_state, "as it was built")):
        unchanged(net, lambda state=state: pruner.load_state_dict(state), match)
    other = net_of(planted_layer(60, 90, 2), planted_layer(60, 60, 2))
    unchanged(other, lambda: Pruner(other, None, keep=0.2).load_state_dict(pruner.state_dict()), "0 differs")
    again = net_of(planted_layer(60, 80, 2), planted_layer(60, 60, 2))
    foreign = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another model"):
        Pruner(again, foreign, keep=0.2)


def test_what_is_not_read_as_a_matrix_is_told():
    net = net_of(
        nn.utils.parametrizations.weight_norm(nn.Linear(80, 60)), planted_layer(60, 60, 2, dtype=torch.float32)
    )
    pruner = Pruner(net, None, keep=0.2)
    pruner.step(0)
    assert any("parametris" in reason for name, reason in pruner.kept.items() if name.startswith("0."))
    with pytest.raises(ValueError, match="parametris"):
        Pruner(net_of(nn.utils.parametrizations.weight_norm(nn.Linear(80, 60))), None, keep=0.2)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"edge": edges.Bema}, TypeError),
        ({"edge": "bema"}, TypeError),
        ({"only": {"0"}}, TypeError),
        ({"gate": None}, ValueError),
        ({"keep": "0.5"}, ValueError),
        ({"keep": True}, ValueError),
        ({"keep": torch.tensor([0.3, 0.4])}, ValueError),
        ({"every": "2"}, ValueError),
    ],
)
def test_settings_of_another_kind(settings, error):
    net = net_of(planted_layer(60, 80, 2))
    with pytest.raises(error):
        Pruner(net, None, **{"keep": 0.5, **settings})
    assert Pruner(net, None, keep=np.float32(0.5), every=np.int64(2)).every == 2
    with pytest.raises(TypeError):
        Pruner(net, None, keep=0.5).step(1.5)
    with pytest.raises(TypeError, match="live module"):
        Pruner({"w": net[0].weight}, None, keep=0.5)
