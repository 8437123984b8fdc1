"""Penalties against autograd through torch's own decompositions in float64: values, gradients, and what counts."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from torch import Tensor, nn

from spectrim.linalg import svd
from spectrim.modules import of_module
from spectrim.penalties import l1, l2, nuclear, stable_rank, top_triplet

# The literal twins: autograd goes through the whole decomposition.
TWINS = {
    l1: lambda W: W.abs().sum(),
    l2: lambda W: (W * W).sum(),
    stable_rank: lambda W: (W * W).sum() / torch.linalg.matrix_norm(W, 2) ** 2,
    nuclear: lambda W: torch.linalg.matrix_norm(W, "nuc"),
}
EACH = pytest.mark.parametrize("penalty", TWINS, ids=lambda penalty: penalty.__name__)


def noise(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(s, rows: int, cols: int, seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    s = torch.as_tensor(s, dtype=torch.float64)
    left = torch.linalg.qr(noise(rows, len(s), seed))[0]
    return left * s @ torch.linalg.qr(noise(cols, len(s), seed + 1))[0].T


def valued(penalty, W: Tensor, **more) -> tuple[float, Tensor]:
    W = W.detach().clone().requires_grad_()
    found = penalty([W], **more)
    assert found.ndim == 0
    (3 * found).backward()
    return found.item(), W.grad / 3


def twin(penalty, W: Tensor) -> tuple[float, Tensor]:
    W = W.detach().clone().double().requires_grad_()
    found = TWINS[penalty](W)
    found.backward()
    return found.item(), W.grad


def assert_same(found, expected, tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    gap = torch.linalg.norm(found[1].double() - expected[1])
    assert float(gap) <= tolerance * float(torch.linalg.norm(expected[1])) + 1e-12


SHAPES = {
    "spiked": with_values([5, *torch.linspace(2, 0.1, 39)], 60, 40),
    "wide": with_values([5, *torch.linspace(2, 0.1, 39)], 40, 60),
    "low rank": with_values([3, 2, 1], 30, 20),
    "one row": noise(1, 30),
    "one column": noise(30, 1),
    "one entry": torch.tensor([[-2.0]], dtype=torch.float64),
    "two by three": noise(2, 3),
}


@EACH
@pytest.mark.parametrize("W", SHAPES.values(), ids=SHAPES)
def test_value_and_gradient_are_those_of_autograd(penalty, W):
    more = {"steps": 12} if penalty is stable_rank else {}
    # Twelve steps bring a gap of 5 to 2 to rounding; the others are exact.
    assert_same(valued(penalty, W, **more), twin(penalty, W), 1e-9)
    assert_same(valued(penalty, W.T, **more), twin(penalty, W.T), 1e-9)


@EACH
def test_a_kernel_is_outputs_by_the_rest(penalty):
    W = SHAPES["spiked"]
    value, gradient = valued(penalty, W.reshape(60, 10, 2, 2))
    expected = valued(penalty, W)
    assert_same((value, gradient.flatten(1)), expected, 1e-12)
    value, gradient = valued(penalty, W.reshape(60, 10, 2, 2).to(memory_format=torch.channels_last))
    assert_same((value, gradient.flatten(1)), expected, 1e-12)


@EACH
def test_a_matrix_of_zeros_counts_nothing_and_pulls_nowhere(penalty):
    value, gradient = valued(penalty, torch.zeros(5, 4, dtype=torch.float64))
    assert value == 0
    if penalty is not nuclear:  # any subgradient is right there: torch's has norm one
        assert not gradient.any()
    W = SHAPES["spiked"].clone()
    together = penalty([W, torch.zeros(5, 4, dtype=torch.float64)])
    assert together.item() == pytest.approx(penalty([W]).item(), rel=1e-12)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_floats_are_summed_in_float32(penalty, dtype):
    W = SHAPES["spiked"].to(dtype)
    value, gradient = valued(penalty, W)
    assert gradient.dtype == dtype
    expected = twin(penalty, W)
    assert value == pytest.approx(expected[0], rel=1e-5)
    # One rounding of the gradient to its dtype, and that of the factor 3 that was put on it.
    gap = torch.linalg.norm(gradient.double() - expected[1]) / torch.linalg.norm(expected[1])
    assert float(gap) < max(2 * torch.finfo(dtype).eps, 1e-4)


def test_the_stable_rank_without_a_gap_is_close_and_never_too_small():
    W = noise(300, 200)
    exact = twin(stable_rank, W)[0]
    errors = [valued(stable_rank, W, steps=steps)[0] / exact - 1 for steps in (1, 2, 4, 6, 12, 40)]
    assert all(a >= b - 1e-12 for a, b in zip(errors, errors[1:], strict=False))  # noqa: RUF007
    assert errors[-1] >= -1e-12 and errors[-1] < 1e-6
    assert 0 < errors[3] < 0.1 and errors[4] < 0.01  # measured .019 and 2e-4 here; the start is always the same
    # The gradient is the exact one of the value along the vectors that were found.
    u, s, v = top_triplet(W, 6)
    value, gradient = valued(stable_rank, W, steps=6)
    square = float((W * W).sum())
    assert value == pytest.approx(square / float(s) ** 2, rel=1e-12)
    expected = 2 * W / s**2 - 2 * square / s**3 * torch.outer(u, v)
    assert float(torch.linalg.norm(gradient - expected)) < 1e-12 * float(torch.linalg.norm(expected))
    assert float(u @ W @ v) == pytest.approx(float(s), rel=1e-12)
    # Its scale does not count, so no step along the gradient's own direction changes W's length to first order.
    assert abs(float((gradient * W).sum())) < 1e-9 * value


def test_a_double_top_value_is_met():
    W = with_values([2, 2, 1, 1, 0.5], 12, 9)
    value, gradient = valued(stable_rank, W, steps=9)
    assert value == pytest.approx(10.25 / 4, rel=1e-9)
    # Any unit vectors of the double space give a subgradient; its length is that of all of them.
    assert float(torch.linalg.norm(gradient)) == pytest.approx(float(torch.linalg.norm(twin(stable_rank, W)[1])), 1e-6)


def test_a_descent_along_the_penalty_lowers_the_rank_it_measures():
    W = noise(60, 40).requires_grad_()
    vectors: dict = {}
    before = twin(stable_rank, W.detach())[0]
    step = torch.optim.SGD([W], lr=2.0)
    for _ in range(60):
        step.zero_grad()
        stable_rank([W], 2, vectors).backward()
        step.step()
    after = twin(stable_rank, W.detach())[0]
    assert after < 0.5 * before
    assert stable_rank([W], 2, vectors).item() == pytest.approx(after, rel=1e-3)


def test_vectors_that_are_kept_save_steps():
    W = noise(300, 200).requires_grad_()
    vectors: dict = {}
    exact = twin(stable_rank, W.detach())[0]
    errors = [stable_rank([W], 3, vectors).item() / exact - 1 for _ in range(30)]
    assert len(vectors) == 1
    assert errors[0] > 0.05 and errors[-1] < 0.005 and min(errors) > -1e-9


def test_a_kept_vector_is_not_met_by_another_weight():
    vectors: dict = {}
    W = nn.Parameter(noise(30, 20))
    stable_rank([W], 3, vectors)
    (key,) = vectors
    other = noise(30, 20, seed=5)
    expected = stable_rank([other], 3).item()
    # A new weight may stand where the old one stood in memory: the entry knows whose it is.
    vectors[id(other)] = vectors[key]
    assert stable_rank([other], 3, vectors).item() == pytest.approx(expected, rel=1e-12)
    # One that shrank in place begins anew, and what is gone leaves no entry.
    with torch.no_grad():
        W.data = noise(30, 7)
    assert stable_rank([W], 3, vectors).item() == pytest.approx(stable_rank([W], 3).item(), rel=1e-12)
    del W
    gc.collect()
    stable_rank([other], 1, vectors)
    assert list(vectors) == [id(other)]


def test_a_direction_that_the_kept_vector_is_blind_to_is_found():
    W = nn.Parameter(torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)))
    vectors: dict = {}
    for _ in range(5):
        stable_rank([W], 2, vectors)
    with torch.no_grad():
        W.copy_(torch.diag(torch.tensor([1.0, 2.0, 0.5])))  # the kept vector is a singular vector, no longer the first
    for _ in range(5):
        found = stable_rank([W], 2, vectors)
    assert found.item() == pytest.approx(5.25 / 4, rel=1e-6)


def test_what_is_not_finite_shows_in_the_loss():
    W = torch.ones(4, 3)
    W[1, 1] = math.nan
    assert math.isnan(stable_rank([W, torch.eye(3)]).item())
    assert math.isnan(l1([W]).item()) and math.isnan(l2([W]).item())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(20, 12)
        self.again = self.fc
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.words.weight
        self.attention = nn.MultiheadAttention(16, 2)


@EACH
def test_of_a_module_all_matrices_count_once(penalty):
    torch.manual_seed(0)
    net = Net().double()
    counted = [net.conv.weight, net.fc.weight, net.attention.in_proj_weight, net.attention.out_proj.weight]
    assert penalty(net).item() == pytest.approx(sum(penalty([W]).item() for W in counted), rel=1e-12)
    penalty(net).backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"conv.weight", "fc.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert penalty(net.fc.weight).item() == penalty([net.fc.weight]).item()  # one tensor is not its rows
    for p in net.parameters():
        p.requires_grad_(False)
    assert not penalty(net).requires_grad


def split(net: nn.Module, rank: int) -> nn.Module:
    for name in [site.name for site in of_module(net).sites if site.split]:
        site = next(site for site in of_module(net).sites if site.name == name)
        site.split(*svd(site.get()).truncate(rank).split())
    return net


def test_of_a_split_module_the_halves_are_pairs_for_the_nuclear_norm():
    torch.manual_seed(0)
    net = split(
        nn.ModuleDict({"fc": nn.Linear(20, 12), "conv": nn.Conv2d(4, 9, 3), "mha": nn.MultiheadAttention(16, 2)}), 3
    )
    net["dense"] = nn.Linear(7, 5)
    net = net.double()
    products = [site.get() for site in of_module(net).sites]
    assert len(products) == 7
    exact = sum(torch.linalg.matrix_norm(W, "nuc").item() for W in products)
    # Fresh splits are balanced but for their rounding to float32: the bound is the norm.
    assert nuclear(net).item() == pytest.approx(exact, rel=1e-6)
    assert l2(net).item() == pytest.approx(
        2 * (exact - nuclear([net["dense"].weight]).item()) + l2([net["dense"].weight]).item(), rel=1e-6
    )
    with torch.no_grad():
        net["fc"][0].weight *= 4
        net["fc"][1].weight /= 4
    assert nuclear(net).item() > exact * 1.05
    nuclear(net).backward()
    grads = net["fc"][0].weight.grad
    assert torch.allclose(grads, net["fc"][0].weight)


def test_l2_on_a_pair_comes_to_the_nuclear_norm_of_the_product():
    """Of all pairs with one product the balanced one is the least: sum of squares = 2 x nuclear norm."""
    W = with_values([4, 2, 1], 9, 7)
    left, right = svd(W).truncate(3).split()
    assert l2([left, right]).item() == pytest.approx(14.0)
    for seed in range(20):
        mix = torch.eye(3, dtype=torch.float64) + 0.5 * noise(3, 3, seed)
        assert l2([left @ mix, torch.linalg.solve(mix, right)]).item() >= 14.0 - 1e-9


def test_copies_and_several_calls_do_not_disturb_one_another():
    net, vectors = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10)), {}
    first = stable_rank(net, 3, vectors).item()
    twin_net = copy.deepcopy(net)
    assert stable_rank(twin_net, 3, vectors).item() == pytest.approx(first, rel=1e-6)
    assert len(vectors) == 4


@EACH
@pytest.mark.parametrize("nothing", [nn.ReLU(), nn.Embedding(4, 3), []], ids=["no weight", "embedding", "empty"])
def test_nothing_to_penalise_is_said(penalty, nothing):
    with pytest.raises(ValueError, match="to penalise"):
        penalty(nothing)


def test_what_is_no_matrix_is_refused():
    for penalty in (stable_rank, nuclear):
        with pytest.raises(ValueError, match=r"shape \(3,\): leave it out"):
            penalty([torch.ones(3)])
    with pytest.raises(ValueError, match="steps=0"):
        stable_rank([torch.eye(3)], steps=0)
