"""Element sparsification: which entries go, what is reported, and that a curve leaves the model as it was."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from spectrim.linalg import svd
from spectrim.modules import of_module
from spectrim.sparsify import curve, grid, sparsify


class Net(nn.Module):
    """One of everything: what is a matrix, what shares one, and what is none."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.conv = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(20, 12)
        self.again = self.fc
        self.pair = nn.Linear(18, 14)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight
        self.attention = nn.MultiheadAttention(16, 2)
        self.gates = nn.GRU(5, 6)


def net(seed: int = 0) -> Net:
    model = Net()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*model.parameters(), *model.buffers()]:
            if p.is_floating_point():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator).abs() + 1e-4)
    (site,) = (site for site in of_module(model).sites if site.name == "pair")
    site.split(*svd(site.get()).truncate(4).split())
    return model


MATRICES = (
    *("conv.weight", "grouped.weight", "fc.weight", "again.weight", "pair.0.weight", "pair.1.weight"),
    *("attention.in_proj_weight", "attention.out_proj.weight", "gates.weight_ih_l0", "gates.weight_hh_l0"),
)
COUNTED = tuple(name for name in MATRICES if name != "again.weight")  # the same tensor as fc's


def everything(model: nn.Module) -> dict:
    return copy.deepcopy(model.state_dict())


def assert_same(model: nn.Module, before: dict) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.11, 10.0])
def test_small_entries_of_the_matrices_go_and_nothing_else(threshold):
    model, before = net(), everything(net())
    changes = sparsify(model, threshold)
    after = model.state_dict()
    for name, old in before.items():
        expected = torch.where(old.abs() <= threshold, 0.0, old) if name in MATRICES else old
        assert torch.equal(after[name], expected), name
    zeros = sum(int((after[name] == 0).sum()) for name in COUNTED)
    assert sum(change.zeros for change in changes) == zeros
    assert bool(changes) == (threshold > 0)
    assert all(change.action == "zeros" and change.params_before == change.params_after for change in changes)
    entries = sum(before[name].numel() for name in COUNTED)
    if threshold == 10.0:
        assert sum(change.params_after for change in changes) == zeros == entries
        assert all(change.relative_error == 1 for change in changes)


def test_what_a_change_says():
    model, dense = net(), net()
    changes = {change.name: change for change in sparsify(model, 0.05)}
    W, new = dense.fc.weight.detach().double(), model.fc.weight.detach().double()
    assert changes["fc"].relative_error == pytest.approx(float((W - new).norm() / W.norm()), rel=1e-12)
    assert changes["fc"].zeros == int((new == 0).sum()) and changes["fc"].rank is None
    W, new = dense.pair.weight.detach().double(), model.pair.weight.detach().double()
    assert changes["pair"].rank == 4 and changes["pair"].params_after == 4 * (18 + 14)
    assert changes["pair"].relative_error == pytest.approx(float((W - new).norm() / W.norm()), rel=1e-5)
    assert {"grouped[0]", "grouped[1]", "attention.in_proj_weight[k]", "gates.weight_hh_l0[z]"} <= set(changes)
    assert "head" not in changes and "again" not in changes
    assert sparsify(model, 0.05) == []  # all of it is done


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_of_kernels_do_not_matter(layout):
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 8, 3)).to(memory_format=layout)
    (site, _) = of_module(model).sites
    site.split(*svd(site.get()).truncate(3).split())
    model = model.to(memory_format=layout)
    before = everything(model)
    sparsify(model, 0.07)
    for name in ("0.0.weight", "0.1.weight", "1.weight"):
        assert torch.equal(model.state_dict()[name], torch.where(before[name].abs() <= 0.07, 0.0, before[name]))
        assert bool((model.state_dict()[name] == 0).any())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(30, 20)).to(dtype)
    before = model[0].weight.detach().clone()
    sparsify(model, 0.1)
    assert torch.equal(model[0].weight, torch.where(before.abs() <= 0.1, torch.zeros((), dtype=dtype), before))


def test_a_curve_is_what_one_by_one_would_give():
    thresholds = [0.05, 0.0, 10.0, 0.2, 0.05]
    model, before = net(), everything(net())
    seen = []
    points = curve(model, thresholds, lambda model: seen.append(everything(model)) or len(seen))
    assert_same(model, before)
    assert [point.threshold for point in points] == thresholds and [point.score for point in points] == [1, 2, 3, 4, 5]
    entries = sum(before[name].numel() for name in COUNTED)
    for point, state in zip(points, seen, strict=True):
        alone = net()
        sparsify(alone, point.threshold)
        assert_same(alone, state)
        assert point.nonzeros == sum(int((state[name] != 0).sum()) for name in COUNTED)
        assert point.share == point.nonzeros / entries
    assert points[1].share == 1 and points[2].nonzeros == 0 and points[0] != points[1]


def test_the_model_is_as_it_was_whatever_the_score_does():
    model = net().train()
    before, places = everything(model), [id(p) for p in model.parameters()]
    model.fc.bias.grad = torch.ones(12)

    def score(given):
        assert given is model
        given.eval()
        given.fc.weight.data.zero_()
        given.norm.running_mean.add_(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curve(model, [0.05], score)
    assert_same(model, before)
    assert [id(p) for p in model.parameters()] == places
    assert all(module.training for module in model.modules())
    assert torch.equal(model.fc.bias.grad, torch.ones(12))

    def counts(given):
        given.norm.num_batches_tracked.add_(1)
        return int(given.norm.num_batches_tracked)

    assert [point.score for point in curve(model, grid(count=3), counts)] == [1, 1, 1]  # each begins anew


def test_the_grids_of_the_papers():
    assert grid() == tuple(1 / (1 + k) for k in range(50))
    assert grid(1 / 20) == pytest.approx([1 / (20 * (1 + k)) for k in range(50)])
    assert len(list(curve(nn.Sequential(nn.Linear(4, 3)), (t for t in grid(count=7)), lambda model: None))) == 7


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ([], "no thresholds"),
        ([0.1, -0.2], "got -0.2"),
        ([math.nan], "got nan"),
        ([math.inf], "got inf"),
    ],
)
def test_bad_thresholds(thresholds, words):
    model, before = net(), everything(net())
    with pytest.raises(ValueError, match=words):
        curve(model, thresholds, lambda model: pytest.fail("nothing is to be scored"))
    for threshold in thresholds[-1:]:
        with pytest.raises(ValueError, match=words):
            sparsify(model, threshold)
    assert_same(model, before)


@pytest.mark.parametrize("first", [0, -1, math.inf, math.nan])
def test_bad_grids(first):
    with pytest.raises(ValueError, match="grid"):
        grid(first)
    with pytest.raises(ValueError, match="grid"):
        grid(1, 0)


@pytest.mark.parametrize("broken", ["fc.weight", "pair.1.weight", "attention.in_proj_weight"])
def test_broken_weights_are_named_and_nothing_is_changed(broken):
    model = net()
    with torch.no_grad():
        model.get_parameter(broken)[0, 0] = math.nan
    before = {name: value.nan_to_num(7.0) for name, value in everything(model).items()}
    for act in (lambda: sparsify(model, 0.1), lambda: curve(model, [0.1], lambda model: 0)):
        with pytest.raises(ValueError, match=rf"NaN.*{broken.split('.')[0]}.*nothing was changed"):
            act()
    assert all(torch.equal(value.nan_to_num(7.0), before[name]) for name, value in model.state_dict().items())


def test_nothing_to_sparsify_is_said():
    with pytest.raises(ValueError, match="no matrix to sparsify"):
        sparsify(nn.Sequential(nn.ReLU(), nn.Embedding(4, 3)), 0.1)
