"""Prune and restore: what matters comes back, the share is exact, and nothing else has moved."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spectrim.frozen import frozen_zeros
from spectrim.restore import Restore, _largest

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed: int = 0, sizes: tuple[int, ...] = (12, 9, 7, 3)) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def zeros_of(net: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in net.parameters() if p.ndim > 1)


def select(net: nn.Module, restore: Restore, steps: int = 3, make=lambda p: torch.optim.SGD(p, lr=0.1)) -> None:
    with restore.selecting():
        optimizer = make(net.parameters())
        for i in range(steps):
            x = torch.randn(16, next(net.parameters()).shape[1], generator=torch.Generator().manual_seed(i))
            loss = (net(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


# ------------------------------------------------------------------------------------------------ planted truth


def planted(rows: int = 20, cols: int = 30) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear map whose smallest weights stand on its loudest inputs: the net, its inputs and outputs, the weights."""
    g = torch.Generator().manual_seed(5)
    W = torch.empty(rows, cols).uniform_(0.3, 1.0, generator=g) * torch.randn(rows, cols, generator=g).sign()
    W[:, :6] *= 0.1  # six inputs, 120 weights: the smallest, and they matter 40**2 times as much as others
    loud = torch.ones(cols)
    loud[:6] = 40.0
    net = nn.Sequential(nn.Linear(cols, rows, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(W)
    x = torch.diag(loud)
    return net, x, x @ W.T, W


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (net(x) - y).square().sum()


def restored(chooser=None) -> tuple[float, Tensor, Restore]:
    net, x, y, W = planted()
    restore = Restore(net, zeros=0.3, over=0.2)  # 300 of 600 go, 120 come back
    with restore.selecting():
        sgd = torch.optim.SGD(net.parameters(), lr=1e-6)
        loss_of(net, x, y).backward()
        sgd.step()
    if chooser is not None:
        restore.movement["0"] = chooser(restore.movement["0"])
    (change,) = restore.finish()
    assert change.zeros == 180 == zeros_of(net)
    kept = net[0].weight != 0
    assert torch.equal(net[0].weight[kept], W[kept])  # at the value that they had
    return float(loss_of(net, x, y).detach()), kept, restore


def test_what_matters_comes_back_and_chance_does_not_find_it():
    loss, kept, restore = restored()
    assert kept[:, :6].all()  # all 120 of them
    # The gradient at zero is |w| c^2, and that is what the movement says.
    net, x, _, W = planted()
    gone = restore.movement["0"] > 0
    expected = W.abs() * x.diagonal().square()
    assert torch.allclose(restore.movement["0"][gone], 1e-6 * expected[gone], rtol=1e-2)
    by_chance = []
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        by_chance.append(restored(lambda m, g=g: (m > 0) * torch.rand(m.shape, generator=g)))
        assert 0.2 < by_chance[-1][1][:, :6].float().mean() < 0.6  # 120 of 300 at random: .4, sd .03
    plain = copy.deepcopy(net)
    (change,) = Restore(plain, zeros=0.3, plain_below=0.5).finish()
    assert change.zeros == 180
    controls = [entry[0] for entry in by_chance] + [float(loss_of(plain, x, x @ W.T).detach())]
    assert 10 * loss < min(controls)


# ----------------------------------------------------------------------------------------------------- exactness


def literal(net: nn.Module, restore: Restore, movement: dict[str, Tensor], goal: int, rho: dict) -> dict[str, Tensor]:
    """What stays zero, by one stable sort of everything."""
    rows = []
    for m, name in enumerate(movement):
        W = net.get_submodule(name).weight
        for k, (value, moved) in enumerate(zip(W.flatten().tolist(), movement[name].flatten().tolist(), strict=True)):
            if value == 0:
                rows.append((-moved * rho.get(name, 1.0), m, k, name))
    back = sorted(rows)[: len(rows) - goal]
    masks = {name: (net.get_submodule(name).weight == 0).flatten().clone() for name in movement}
    for _, _, k, name in back:
        masks[name][k] = False
    return {name: mask.reshape(movement[name].shape) for name, mask in masks.items()}


@settings(max_examples=25, deadline=None)
@given(
    zeros=st.floats(0.2, 0.8),
    over=st.floats(0.01, 0.2),
    levels=st.integers(1, 1000),
    seed=st.integers(0, 99),
    rho=st.floats(0.1, 10),
)
def test_the_share_is_exact_and_ties_go_to_the_first(zeros, over, levels, seed, rho):
    net = small(seed)
    entries = 12 * 9 + 9 * 7 + 7 * 3
    restore = Restore(net, zeros=zeros, over=over, multipliers={"2": rho})
    removed = restore.prune()
    assert sum(change.zeros for change in removed) == zeros_of(net) == round((zeros + over) * entries)
    select(net, restore, steps=1)
    for name, moved in restore.movement.items():  # a few levels only: many ties
        restore.movement[name] = torch.ceil(moved / moved.max() * levels)
    goal = round(zeros * entries)
    expected = literal(net, restore, restore.movement, goal, {"2": rho})
    changes = restore.finish()
    assert sum(change.zeros for change in changes) == zeros_of(net) == goal
    assert all(torch.equal(net.get_submodule(name).weight == 0, mask) for name, mask in expected.items())


def test_equal_weights_and_equal_movement():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for p in net.parameters():
        nn.init.ones_(p)
    restore = Restore(net, zeros=0.5, over=0.25)
    with restore.selecting():
        sgd = torch.optim.SGD(net.parameters(), lr=1.0)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        sgd.step()
    restore.finish()  # 24 went, the first matrix whole; the first 8 of it are back
    assert net[0].weight.flatten().tolist() == [1.0] * 8 + [0.0] * 8
    assert net[1].weight.flatten().tolist() == [0.0] * 8 + [1.0] * 8


def test_the_largest_of_a_vector():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    assert _largest(scores, 0).tolist() == [False] * 6
    assert _largest(scores, 3).nonzero().flatten().tolist() == [1, 2, 3]
    assert _largest(scores, 6).all()


def test_the_counts_of_a_budget_are_what_is_removed():
    net = small()
    counts = {"0": 100, "4": 5}
    restore = Restore(net, zeros=0.5, counts=counts)
    assert {c.name: c.zeros for c in restore.prune()} == counts
    untouched = net[2].weight.clone()
    select(net, restore)
    changes = restore.finish()
    assert sum(c.zeros for c in changes) == round(0.5 * (12 * 9 + 7 * 3))
    assert torch.equal(net[2].weight, untouched)
    with pytest.raises(ValueError, match="ask the budget for a larger share"):
        Restore(small(), zeros=0.9, counts=counts)
    with pytest.raises(ValueError, match="counts names 9"):
        Restore(small(), zeros=0.5, counts={"9": 1})
    with pytest.raises(ValueError, match="below 0 or more"):
        Restore(small(), zeros=0.5, counts={"0": 109})
    with pytest.raises(ValueError, match="both"):
        Restore(small(), zeros=0.5, counts=counts, over=0.1)
    with pytest.raises(ValueError, match="plain_below=0"):
        Restore(small(), zeros=0.1, counts=counts)


# ------------------------------------------------------------------------------------------------- the selection


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("start", ["zero", "value"])
def test_only_removed_entries_train_whatever_the_optimiser(start):
    torch.manual_seed(0)
    net = Normed()
    full = copy.deepcopy(net.state_dict())
    adam = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):  # momentum from before
        net(torch.randn(8, 12)).square().sum().backward()
        adam.step()
    net.load_state_dict(full)
    restore = Restore(net, zeros=0.5, over=0.1, start=start)
    restore.prune()
    sparse = copy.deepcopy(net.state_dict())
    gone = {name: p == 0 for name, p in net.named_parameters() if p.ndim > 1}
    with restore.selecting():
        for name in gone:  # where the entries start
            assert torch.equal(net.get_parameter(name), (sparse if start == "zero" else full)[name])
        for _ in range(4):
            adam.zero_grad()
            net(torch.randn(8, 12)).square().sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            for name, p in net.named_parameters():
                assert not (p.grad if name not in gone else p.grad[~gone[name]]).any()
            adam.step()
            for name, p in net.named_parameters():
                mask = gone.get(name, torch.zeros_like(p, dtype=torch.bool))
                assert torch.equal(p[~mask], sparse[name][~mask])
                assert not mask.any() or not torch.equal(p[mask], (sparse if start == "zero" else full)[name][mask])
    assert all(torch.equal(value, sparse[name]) for name, value in net.state_dict().items())  # buffers too
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("start", ["zero", "value"])
@pytest.mark.parametrize("back", ["original", "moved"])
def test_what_comes_back(start, back):
    net = small()
    full = copy.deepcopy(net)
    restore = Restore(net, zeros=0.5, over=0.2, start=start, back=back)
    restore.prune()
    gone = {name: p == 0 for name, p in net.named_parameters() if p.ndim > 1}
    select(net, restore)
    changes = {change.name: change for change in restore.finish()}
    for name, mask in gone.items():
        p, original = net.get_parameter(name), full.get_parameter(name)
        came = mask & (p != 0)
        assert came.any() or name == "4.weight"
        moved = restore.movement[name.removesuffix(".weight")]
        distance = (p - (original if start == "value" else 0)).abs()
        if back == "original":
            assert torch.equal(p[came], original[came])
        else:
            assert torch.equal(distance[came], moved[came])
        assert moved[came].numel() == 0 or moved[came].min() >= 0
        error = torch.linalg.norm(p - original) / torch.linalg.norm(original)
        assert abs(changes[name.removesuffix(".weight")].relative_error - float(error.detach())) < 1e-6


@pytest.mark.parametrize("earlier", [True, False])
def test_entries_that_were_zero_before(earlier):
    net = small()
    with torch.no_grad():
        net[0].weight[:, :6] = 0.0
    restore = Restore(net, zeros=0.5, over=0.1, earlier=earlier)
    select(net, restore)
    restore.movement["0"][:, :6] *= 1e6  # they would be first
    restore.finish()
    assert zeros_of(net) == round(0.5 * 192)
    assert bool(net[0].weight[:, :6].any()) is earlier


def test_the_multipliers_shift_the_choice():
    kept = []
    for rho in (1e-6, 1.0, 1e6):
        net = small()
        restore = Restore(net, zeros=0.5, over=0.1, multipliers={"2": rho})
        select(net, restore)
        kept.append({c.name: c.zeros for c in restore.finish()}["2"])
    assert kept[0] > kept[1] > kept[2]


def test_below_a_fifth_it_is_plain_magnitude():
    net, plain = small(), small()
    restore = Restore(net, zeros=0.1)
    assert not restore.selects
    select(net, restore)
    restore.finish()
    flat = torch.cat([p.flatten().abs() for p in plain.parameters() if p.ndim > 1])
    level = flat.kthvalue(19).values
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q.masked_fill(q.abs() <= level, 0) if p.ndim > 1 else q)
    assert Restore(small(), zeros=0.1, plain_below=0).selects


def test_the_survivors_are_then_tuned_with_frozen_zeros():
    net = small()
    restore = Restore(net, zeros=0.6)
    select(net, restore)
    restore.finish()
    adam = torch.optim.AdamW(net.parameters(), lr=0.01)
    with frozen_zeros(net) as frozen:
        for _ in range(5):
            net(torch.ones(1, 12)).square().sum().backward()
            adam.step()
    assert sum(frozen.zeros.values()) == zeros_of(net) == round(0.6 * 192)


class Odd(nn.Module):
    """A fused qkv, a transposed weight, a grouped convolution in another memory format, a tied head."""

    def __init__(self):
        super().__init__()
        self.nf = 0
        self.qkv = nn.Linear(6, 18)
        self.c_proj = Transposed(6, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2).to(memory_format=torch.channels_last)
        self.words = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 5, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        h = self.c_proj(q * k + v)
        return self.head(self.conv(h[..., None, None])[..., 0, 0])


class Transposed(nn.Module):
    def __init__(self, inputs: int, nf: int):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(inputs, nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_odd_models():
    torch.manual_seed(1)
    net = Odd()
    table = net.words.weight.clone()
    restore = Restore(net, zeros=0.4, over=0.2, only=lambda name: name != "qkv[k]")
    keys = net.qkv.weight[6:12].clone()
    before = copy.deepcopy(net.state_dict())
    restore.prune()
    gone = {name: (p == 0).clone() for name, p in net.named_parameters()}
    select(net, restore)
    changes = restore.finish()
    assert {c.name for c in changes} == {"qkv[q]", "qkv[v]", "c_proj", "conv[0]", "conv[1]"}
    entries = 6 * 12 + 6 * 8 + 8 * 36
    assert sum(c.zeros for c in changes) == round(0.4 * entries)
    assert torch.equal(net.qkv.weight[6:12], keys) and torch.equal(net.words.weight, table)
    for name, p in net.named_parameters():  # what came back is what went
        assert torch.equal(p[p != 0], before[name][p != 0])
        assert not (p == 0)[~gone[name]].any()


# ------------------------------------------------------------------------------------- what goes wrong, and is told


def test_the_order_of_the_calls():
    net = small()
    restore = Restore(net, zeros=0.5)
    with pytest.raises(RuntimeError, match="prune"):
        restore.finish()
    restore.prune()
    with pytest.raises(RuntimeError, match="this one is pruned"):
        restore.prune()
    sparse = copy.deepcopy(net.state_dict())
    with pytest.raises(KeyError), restore.selecting():
        raise KeyError("an accident")
    assert all(torch.equal(value, sparse[name]) for name, value in net.state_dict().items())
    select(net, restore)  # again
    restore.finish()
    for again in (restore.prune, restore.finish, lambda: select(net, restore)):
        with pytest.raises(RuntimeError, match="this one is done"):
            again()


def test_a_selection_in_which_nothing_moves():
    net = small()
    restore = Restore(net, zeros=0.5)
    with restore.selecting():
        pass
    with pytest.raises(RuntimeError, match="no removed entry has moved"):
        restore.finish()
    assert zeros_of(net) == round(0.53 * 192)


def test_too_few_entries_with_a_value():
    net = small()
    restore = Restore(net, zeros=0.5, over=0.1, back="moved")
    restore.prune()
    sparse = copy.deepcopy(net.state_dict())
    with restore.selecting():
        one = net[0].weight.grad = torch.zeros_like(net[0].weight)
        one[tuple((net[0].weight == 0).nonzero()[0])] = 1.0
        torch.optim.SGD(net.parameters(), lr=1.0).step()
    with pytest.raises(RuntimeError, match="19 entries are to come back, and only 1 have a value"):
        restore.finish()
    assert all(torch.equal(value, sparse[name]) for name, value in net.state_dict().items())


class Counting(nn.Module):
    """Buffers that a forward pass does not write to, but replaces."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.seen = torch.cat([self.seen, self.mean.sum()[None]])
        self.last = y.detach()
        return y - self.mean


def test_buffers_that_a_forward_pass_replaces():
    net = Counting()
    restore = Restore(net, zeros=0.5, over=0.1)
    before = copy.deepcopy(net.state_dict())
    mean = net.mean
    select(net, restore)
    now = net.state_dict()
    assert set(now) == set(before) and net.last is None and net.mean is mean
    assert torch.equal(now["mean"], torch.zeros(3)) and torch.equal(now["seen"], torch.zeros(1))


def test_a_loop_that_writes_by_hand_is_told_of():
    net = small()
    restore = Restore(net, zeros=0.5)
    restore.prune()
    sparse = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match="take no part in the selection"), restore.selecting(), torch.no_grad():
        for p in net.parameters():
            p += 0.1
    assert all(torch.equal(value, sparse[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"zeros": 0}, "above 0 and below 1"),
        ({"zeros": 0.99, "over": 0.02}, "at most 1 - zeros"),
        ({"zeros": 0.5, "over": 0}, "above 0"),
        ({"zeros": 0.5, "start": "there"}, "'zero' or 'value'"),
        ({"zeros": 0.5, "multipliers": {"1": 1.0}}, "multipliers names 1"),
        ({"zeros": 0.5, "multipliers": {"0": 0.0}}, "not positive"),
        ({"zeros": 0.5, "only": lambda name: False}, "no matrix to prune"),
    ],
)
def test_requests_that_cannot_be_met(given, told):
    net = small()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=told):
        Restore(net, **given)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"zeros": "0.5"}, "zeros is a share, a number from 0 to 1, not '0.5'"),
        ({"zeros": 0.5, "over": "0.1"}, "over is a share"),
        ({"zeros": 0.5, "plain_below": None}, "plain_below is a share"),
        ({"zeros": 0.5, "counts": {"0": 100.0}}, "whole numbers of zeros: that of 0 is 100.0"),
    ],
)
def test_what_is_no_number_is_told_of_before_anything_is_done(given, told):
    with pytest.raises(TypeError, match=told):
        Restore(small(), **given)


def test_models_that_cannot_be_pruned_so():
    net = small()
    with torch.no_grad():
        net[0].weight.zero_()
    with pytest.raises(ValueError, match="zero already"):
        Restore(net, zeros=0.3).prune()
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        Restore(net, zeros=0.7).prune()
    with pytest.raises(TypeError, match="live module"):
        Restore(net.state_dict(), zeros=0.5)
    with pytest.raises(TypeError, match="only is a function"):
        Restore(net, zeros=0.5, only="0")
