"""The certificate: bounds that hold, twins, what is refused, and that the cut model is never run."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectrim
from spectrim.certificate import METHODS, Rounding, certify, changed, cut_copy
from spectrim.certificate.chain import Affine, read_chain
from spectrim.certificate.curves import curve_of, enclosure, response
from spectrim.modules import of_module

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

pytestmark = pytest.mark.usefixtures("one_thread")
CURVES = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.7, 1.3), nn.LeakyReLU(0.2), nn.LeakyReLU(1.5), nn.Hardsigmoid()),
    *(nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ELU()),
]
EXACT = Rounding(2.0**-53, 2.0**-53)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(net: nn.Module, seed: int = 0, gain: float = 1.5) -> nn.Module:
    """The net with normal weights, biases and, in norms, statistics, from a generator."""
    g = drawn(seed)
    with torch.no_grad():
        for p in net.parameters():
            fan = p[0].numel() if p.ndim > 1 else 10
            p.normal_(0, gain / fan**0.5, generator=g)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3, generator=g)
                m.running_var.uniform_(0.5, 2, generator=g)
                m.weight.uniform_(0.5, 1.5, generator=g)
    return net.eval()


def mlp(activation: nn.Module, sizes=(12, 24, 16, 5), seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), copy.deepcopy(activation)]
    return started(nn.Sequential(*layers[:-1]), seed)


class Residual(nn.Module):
    """A convolutional net with a branch, a layer called twice, and functions where modules could stand."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6 * 2 * 2, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.twice(F.gelu(self.twice(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = F.dropout(x, 0.5, self.training)
        return self.last(torch.tanh(self.head(x.view(x.size(0), -1))))


CNN = {
    "pools": lambda: nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)),
        *(nn.Conv2d(6, 8, 3, dilation=2, padding="same", bias=False), nn.SiLU(), nn.AvgPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(8 * 9, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4)),
    ),
    "windows that overlap": lambda: nn.Sequential(
        *(nn.Conv2d(2, 6, 3, stride=2), nn.LeakyReLU(0.1), nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 8, (2, 1))),
        *(nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ),
    "residual": Residual,
}


def random_cut(net: nn.Module, g: torch.Generator) -> dict[str, torch.Tensor]:
    """A cut of a kind drawn by chance, of a strength drawn by chance, of some of the matrices."""
    found = {}
    for site in of_module(net).sites:
        W = site.get().clone()
        kind, strength = (float(torch.rand((), generator=g)) for _ in range(2))
        if kind < 0.4:  # zeros by magnitude
            count = int(strength * 0.6 * W.numel())
            W[W.abs() < W.abs().flatten().sort().values[count]] = 0
        elif kind < 0.6:  # zeros by chance
            W[torch.rand(W.shape, generator=g) < strength * 0.2] = 0
        elif kind < 0.8:  # lower rank, rebuilt
            U, s, Vh = torch.linalg.svd(W, full_matrices=False)
            s[int(len(s) * (1 - strength * 0.4)) :] = 0
            W = (U * s) @ Vh
        elif kind < 0.9:
            W = W + strength * 0.05 * W.std() * torch.randn(W.shape, generator=g)
        else:
            continue
        found[site.name] = W
    return found


def points_of_the_ball(x: torch.Tensor, radius: float, g: torch.Generator, count: int):
    """The sample itself, points on the sphere, points within."""
    yield x
    for i in range(count if radius else 0):
        step = torch.randn(x.shape, generator=g)
        length = radius if i % 2 else radius * float(torch.rand((), generator=g))
        step = step / step.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) * (length * (1 - 1e-6))
        yield x + step.to(x.dtype)


def attacked(net: nn.Module, x: torch.Tensor, classes: torch.Tensor, radius: float) -> torch.Tensor:
    """One long step against the margin: the worst point of the ball, were the net linear."""
    x = x.clone().requires_grad_(True)
    scores = net(x)
    margin = scores.gather(1, classes[:, None])[:, 0] - scores.scatter(1, classes[:, None], -torch.inf).amax(1)
    (slope,) = torch.autograd.grad(margin.sum(), x)
    length = slope.flatten(1).norm(dim=1).clamp_min(1e-9).reshape(-1, *[1] * (x.ndim - 1))
    return (x - slope / length * radius * (1 - 1e-6)).detach()


def margins(net: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scores = net(x).double()
    return scores.gather(1, classes[:, None])[:, 0] - scores.scatter(1, classes[:, None], -torch.inf).amax(1)


def assert_holds(net: nn.Module, new, x: torch.Tensor, radius: float, g, points: int = 6, **more) -> tuple[int, int]:
    """No certified prediction changes, and no margin falls below its bound; (certified, samples)."""
    found = certify(net, new, x, radius=radius, **more)
    cut = cut_copy(net, new)
    extra = [attacked(cut, x, found.classes, radius)] if radius else []
    for y in [*points_of_the_ball(x, radius, g, points), *extra]:
        with torch.no_grad():
            same = cut(y).argmax(1) == found.classes
        assert bool(same[found.certified].all())
        assert bool((margins(cut, y, found.classes) >= found.bound - 1e-9).all())
    return int(found.certified.sum()), len(x)


# Curves


@pytest.mark.parametrize("module", CURVES, ids=str)
def test_slopes_and_curvature_are_bounds(module):
    curve = curve_of(module)
    z = torch.linspace(-12, 12, 48001, dtype=torch.float64)
    slope = curve.slope(z)
    assert curve.low <= slope.min() and slope.max() <= curve.high
    assert curve.low > slope.min() - 0.02 and curve.high < slope.max() + 0.02, "needlessly wide"
    if curve.kinks is None:
        second = (slope[1:] - slope[:-1]) / (z[1:] - z[:-1])
        assert second.abs().max() <= curve.curvature < 1.1 * second.abs().max()
    else:
        pieces = torch.bucketize(z, torch.tensor(curve.kinks, dtype=torch.float64))
        for piece in pieces.unique():
            inside = slope[(pieces == piece)][1:-1]
            assert torch.allclose(inside, inside[:1].expand_as(inside))


@pytest.mark.parametrize("band", [response, enclosure])
@pytest.mark.parametrize("module", CURVES, ids=str)
def test_a_band_holds_the_curve(module, band):
    curve, g = curve_of(module), drawn(0)
    z, v, b = (torch.randn(4000, generator=g, dtype=torch.float64) * s for s in (3, 1, 1))
    b = b.abs() * (torch.rand(4000, generator=g) < 0.8)
    shift, slope, half = band(curve, z, v, b)
    for share in torch.linspace(-1, 1, 41, dtype=torch.float64):
        true = curve.f(z + v + share * b) - curve.f(z)
        assert bool(((true - shift - slope * share * b).abs() <= half + 1e-12).all())


def test_a_unit_that_keeps_its_piece_leaves_no_remainder():
    z, v = torch.tensor([2.0, -2.0, 2.0, -2.0]).double(), torch.tensor([-1.0, 1.0, -3.0, 3.0]).double()
    shift, slope, half = response(curve_of(nn.ReLU()), z, v, torch.full_like(z, 0.5))
    # A unit that was at 2 ends at -1.5 or above: the chord between is 6/7 too high at 0, and right at its ends.
    assert slope.tolist() == pytest.approx([1, 0, 2 / 3.5, 1.5 / 3.5])
    assert half.tolist() == pytest.approx([0, 0, 3 / 7, 3 / 7])
    assert shift[:2].tolist() == [-1, 0]


# The bound


def test_two_hundred_plans_and_random_points_of_the_ball():
    """Never a certified prediction that changes: 200 plans on 20 nets, every method, points of the ball, an attack."""
    certified, asked = dict.fromkeys(METHODS, 0), 0
    for i in range(20):
        net, g = mlp(CURVES[i % len(CURVES)], seed=i), drawn(1000 + i)
        for k in range(10):
            x = 2 * torch.randn(12, 12, generator=g)
            radius = (0.0, 0.01, 0.03, 0.1)[k % 4]
            new = random_cut(net, g)
            method = METHODS[(i + k) % 3]
            found, count = assert_holds(net, new, x, radius, g, method=method, refine=k % 5 == 4)
            certified[method] += found
            asked += count
    # A bound that says nothing would pass: the sharper ones certify more than a third of all that they are asked.
    assert certified["response"] > asked / 9 and certified["enclosure"] > asked / 9, certified
    assert 0 < certified["norms"] < certified["response"]


@pytest.mark.parametrize("name", CNN)
@pytest.mark.parametrize("method", METHODS)
def test_convolutions_pools_norms_and_branches(name, method):
    net, g, certified = started(CNN[name](), 3), drawn(5), 0
    for radius in (0.0, 1e-3, 0.05):
        x = torch.randn(16, 2, 8, 8, generator=g)
        certified += assert_holds(net, random_cut(net, g), x, radius, g, method=method)[0]
        certified += assert_holds(net, {}, x, radius, g, method=method)[0]
    assert certified or method == "norms"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_arithmetic(dtype):
    g, net = drawn(2), mlp(nn.ReLU(), seed=4).to(dtype)
    x = (3 * torch.randn(40, 12, generator=g)).to(dtype)
    for k in range(5):
        assert_holds(net, {}, x, 0.0, drawn(k))
    whole, coarse = (certify(net.to(d), {}, x.to(d)) for d in (torch.float64, torch.bfloat16))
    assert float(coarse.rounding.mean()) > 1e6 * float(whole.rounding.mean())
    assert whole.share > coarse.share


def test_rounding_covers_any_order_of_the_sums():
    net, g = mlp(nn.ReLU(), (400, 60, 5), seed=1), drawn(3)
    x = torch.randn(30, 400, generator=g)
    found = certify(net, {}, x)
    exact = copy.deepcopy(net).double()(x.double())
    runner_up = exact.scatter(1, found.classes[:, None], -torch.inf).argmax(1, keepdim=True)

    def margin(scores: torch.Tensor) -> torch.Tensor:
        return (scores.gather(1, found.classes[:, None]) - scores.gather(1, runner_up))[:, 0].double()

    worst = torch.zeros(30, dtype=torch.float64)
    for k in range(20):
        order = torch.randperm(400, generator=drawn(k))
        W = net[0].weight[:, order]
        hidden = torch.zeros(30, 60)
        for j in range(400):  # one product after another, the least favourable of orders
            hidden = hidden + x[:, order[j], None] * W[:, j]
        worst = torch.maximum(worst, (margin(net[2](F.relu(hidden + net[0].bias))) - margin(exact)).abs())
    assert bool((worst < found.rounding).all()) and worst.max() > 0
    assert float(found.rounding.max()) < 0.01


def test_a_near_tie_is_not_certified():
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 1.0 - 2**-24], [1.0, 0.99]])
    assert certify(net, {}, x).certified.tolist() == [False, True]


def literal_response(net: nn.Sequential, new: dict, x: torch.Tensor, radius: float) -> torch.Tensor:
    """The bound of a linear, a ReLU and a linear layer, sample by sample and unit by unit, without rounding."""
    W1, b1, W2, b2 = (p.detach().double() for p in net.parameters())
    V1, V2 = new["0"].double(), new["2"].double()
    bounds = []
    for sample in x.double():
        z = W1 @ sample + b1
        hidden = z.clamp_min(0)
        scores = W2 @ hidden + b2
        mine, found = int(scores.argmax()), []
        for other in range(len(scores)):
            if other == mine:
                continue
            row = V2[mine] - V2[other]
            bound = scores[mine] - scores[other] + ((V2 - W2)[mine] - (V2 - W2)[other]) @ hidden
            ball = torch.zeros_like(sample)
            for i in range(len(z)):
                v, b = (V1 - W1)[i] @ sample, radius * V1[i].norm()
                low, high = z[i] + min(0.0, float(v - b)), z[i] + max(0.0, float(v + b))
                slope = 1.0 if low > 0 else 0.0 if high < 0 else float(high / (high - low))
                bound = bound + row[i] * slope * v
                ball = ball + row[i] * slope * V1[i]
                # f(z + t) - f(z) - slope t: largest at the ends, at t = 0 for one, and least at the kink.
                most, least = (float(p.clamp_min(0) - slope * p + slope * z[i] - hidden[i]) for p in (high, 0 * high))
                least = least if low <= 0 <= high else most
                bound = bound + min(float(row[i]) * most, float(row[i]) * least)
            found.append(bound - radius * ball.norm())
        bounds.append(torch.stack(found).min())
    return torch.stack(bounds)


@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_the_bound_is_that_of_the_literal_twin(radius):
    net, g = mlp(nn.ReLU(), (9, 14, 4), seed=2), drawn(7)
    x = torch.randn(25, 9, generator=g)
    new = {
        site.name: site.get() + 0.1 * torch.randn(site.rows, site.cols, generator=g) for site in of_module(net).sites
    }
    found = certify(net, new, x, radius=radius, rounding=EXACT)
    # Of float64 and the slack of 1e-9 that the bound keeps for it.
    torch.testing.assert_close(found.bound, literal_response(net, new, x, radius), rtol=1e-7, atol=1e-7)


def test_the_bound_is_the_sum_that_it_says():
    net, g = started(CNN["pools"](), 1), drawn(1)
    found = certify(net, random_cut(net, g), torch.randn(9, 2, 8, 8, generator=g), radius=0.01)
    total = found.margin + sum(found.damage.values()) - sum(found.remainder.values()) - found.ball - found.rounding
    torch.testing.assert_close(found.bound, total, rtol=1e-7, atol=1e-7)
    assert set(found.remainder) == {"2", "3", "6", "11"} == set(found.fixed)
    assert all(bool((part >= 0).all()) for part in (*found.remainder.values(), found.ball, found.rounding))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()], ids=str)
def test_the_enclosure_at_radius_0_is_what_the_cut_model_computes(activation):
    net, g = mlp(activation, seed=3).double(), drawn(3)
    x, new = torch.randn(20, 12, generator=g).double(), random_cut(net, g)
    found = certify(net, new, x, method="enclosure")
    torch.testing.assert_close(found.bound, margins(cut_copy(net, new), x, found.classes), rtol=0, atol=1e-6)
    assert bool((certify(net, new, x, method="response").bound <= found.bound + 1e-6).all())


def test_more_freedom_certifies_less_and_refining_more():
    net, g = mlp(nn.ReLU(), (12, 30, 30, 30, 5), seed=6), drawn(6)
    x, new = torch.randn(20, 12, generator=g), random_cut(net, g)
    for method in METHODS:
        bounds = [certify(net, new, x, radius=r, method=method).bound for r in (0.0, 0.01, 0.1, 0.5)]
        # Sample by sample only without bands: a chord over a longer way may happen to suit a pair of classes better.
        assert all(bool((a >= b).all()) if method == "norms" else a.mean() > b.mean() for a, b in pairwise(bounds))
    plain, fine = (certify(net, new, x, radius=0.1, refine=refine) for refine in (False, True))
    assert bool((fine.bound >= plain.bound - 1e-9).all()) and fine.bound.mean() > plain.bound.mean() + 0.01


def test_no_cut_and_no_ball_leave_the_margin():
    net, x = mlp(nn.ReLU()).double(), torch.randn(10, 12, generator=drawn(0)).double()
    found = certify(net, {}, x)
    torch.testing.assert_close(found.bound, margins(net, x, found.classes), rtol=0, atol=1e-6)
    assert all(share == 1 for share in found.fixed.values())


def test_norms_of_maps_are_bounds():
    g = drawn(0)
    net = started(CNN["pools"](), 2).double()
    shape, steps = torch.randn(1, 2, 8, 8, generator=g).double(), read_chain(net, net).steps
    checked = 0
    for step, module in zip(steps, net, strict=True):
        if isinstance(step, Affine):
            inputs = shape.numel()
            eye = torch.eye(inputs, dtype=torch.float64).reshape(inputs, *shape.shape[1:])
            with torch.no_grad():
                matrix = (module(eye) - module(torch.zeros_like(eye[:1]))).flatten(1)
            assert step.norm >= torch.linalg.matrix_norm(matrix, 2) * (1 - 1e-9)
            checked += 1
        shape = module(shape).detach()
    assert checked == 7


# Cuts


def test_a_plan_the_weights_and_the_cut_model_are_one():
    net, x = mlp(nn.ReLU(), (40, 64, 48, 5)), torch.randn(15, 40, generator=drawn(0))
    before = copy.deepcopy(net.state_dict())
    found = spectrim.survey(net)
    plan = spectrim.plan(found, zeros=0.3)
    other = copy.deepcopy(net)
    spectrim.trim(other, plan)
    new = {site.name: site.get() for site in of_module(other).sites}
    one, two, three = (certify(net, cut, x) for cut in (plan, new, other))
    assert torch.equal(one.bound, two.bound) and torch.equal(one.bound, three.bound)
    assert torch.equal(changed(net, plan, x), changed(net, other, x))
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_layers_that_were_split(name):
    net = (
        mlp(nn.ReLU(), (40, 64, 48, 5))
        if name == "mlp"
        else started(
            nn.Sequential(nn.Conv2d(2, 30, 3), nn.ReLU(), nn.Conv2d(30, 40, 3), nn.Flatten(), nn.Linear(640, 5)), 2
        )
    )
    x = torch.randn(10, *((40,) if name == "mlp" else (2, 8, 8)), generator=drawn(0))
    plan = spectrim.plan(spectrim.survey(net), params=0.9, gate=1)
    assert any(entry.action == "split" for entry in plan.entries)
    for method in METHODS:
        assert_holds(net, plan, x, 0.01, drawn(1), method=method)
    whole = certify(net, plan, x, rounding=EXACT, method="enclosure").bound
    cut = cut_copy(net, plan).double()
    torch.testing.assert_close(whole, margins(cut, x.double(), certify(net, {}, x).classes), rtol=0, atol=1e-6)


def test_biases_and_statistics_of_a_cut_model_count():
    net, g = started(CNN["pools"](), 5), drawn(5)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].bias += 0.1
        other[1].running_mean += 0.05
        other[10].bias -= 0.05
    x = torch.randn(12, 2, 8, 8, generator=g)
    assert_holds(net, other, x, 0.01, g)
    enclosed = certify(net, other, x, method="enclosure")
    torch.testing.assert_close(enclosed.bound, margins(other, x, enclosed.classes), rtol=0, atol=1e-2)


def test_the_cut_model_is_never_run(monkeypatch):
    net, x = mlp(nn.ReLU()), torch.randn(6, 12, generator=drawn(0))
    dense = [m.weight.detach().clone() for m in net if isinstance(m, nn.Linear)]
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in other.parameters():
            p *= 1.01
    seen, forward = [], nn.Linear.forward

    def watched(module, inputs):
        seen.append(module.weight.detach().clone())
        return forward(module, inputs)

    watched_class = type("Linear", (nn.Linear,), {})
    assert watched_class is not nn.Linear
    monkeypatch.setattr(nn.Linear, "forward", watched)
    for method in METHODS:
        certify(net, other, x, method=method, radius=0.1)
    assert len(seen) == 3 * len(dense)
    assert all(any(torch.equal(W, D) for D in dense) for W in seen)
    changed(net, other, x)
    assert any(not any(torch.equal(W, D) for D in dense) for W in seen), "the watch sees a run of the cut model"


def test_modes_hooks_and_generators_stay_as_they_are():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    state, x = torch.get_rng_state(), torch.randn(5, 6, generator=drawn(0))
    found = certify(net, {}, x)
    assert net.training and net[2].training and torch.equal(state, torch.get_rng_state())
    assert torch.equal(found.classes, net.eval()(x).argmax(1))


def test_a_softmax_at_the_end_keeps_the_order():
    net, x = mlp(nn.ReLU()), torch.randn(40, 12, generator=drawn(0))
    plain = certify(net, {}, x)
    for tail in (nn.Softmax(1), nn.LogSoftmax(-1)):
        found = certify(nn.Sequential(*net, tail), {}, x)
        assert bool((found.bound <= plain.bound).all()) and bool((found.bound > plain.bound - 1e-3).all())


def test_batches_and_progress():
    net, x = mlp(nn.ReLU()), torch.randn(30, 12, generator=drawn(0))
    from spectrim.certificate import certify as verb

    module = sys.modules[verb.__module__]
    whole, seen = certify(net, {}, x, radius=0.1), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ENTRIES", 5 * 24 * 7)
        apart = certify(net, {}, x, radius=0.1, progress=lambda parts: [seen.append(len(p)) or p for p in parts])
    assert seen == [7, 7, 7, 7, 2]
    torch.testing.assert_close(apart.bound, whole.bound, rtol=1e-9, atol=1e-9)


def test_what_it_says():
    net, x = mlp(nn.ReLU()), 2 * torch.randn(30, 12, generator=drawn(0))
    found = certify(net, {}, x)
    assert found.share == found.to_dict()["share"] > 0.9 and not found.vacuous
    assert "provably stay as they are" in str(found) and "units keep their piece" in str(found)
    nothing = certify(net, {}, x, radius=1e3)
    assert nothing.vacuous and str(nothing).startswith("vacuous: of 30 predictions of Sequential none is certified")
    wild = {site.name: 1e200 * site.get().double() for site in of_module(net.double()).sites}
    assert certify(net, wild, x.double()).vacuous


# What is refused


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(6, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.fc(x)
        return self.act(x) + x


def test_what_no_bound_is_known_for():
    x = torch.randn(4, 6, generator=drawn(0))
    for net, why in (
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "no bound is known for 1: LayerNorm"),
        (nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 3)), "no bound is known for 1: PReLU"),
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)), "no running statistics"),
        (Branching(), "cannot be followed layer by layer"),
        (nn.Sequential(nn.Linear(6, 1)), "two or more classes, not \\(4, 1\\)"),
    ):
        with pytest.raises(ValueError, match=why):
            certify(net, {}, x)
    with pytest.raises(RuntimeError, match="in place"):
        certify(started(InPlace()), {}, x)
    hooked = mlp(nn.ReLU(), (6, 8, 3))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0 has hooks"):
        certify(hooked, {}, x)


def test_bad_requests():
    net, x = mlp(nn.ReLU(), (6, 8, 3)), torch.randn(4, 6, generator=drawn(0))
    W = torch.zeros(8, 6)
    for cut, why in (
        ({"fc": W}, "fc is no matrix of this model .* there are 0, 2"),
        ({"0": W.T}, "0 takes a 8 x 6 matrix, not \\(6, 8\\)"),
        ({"0": W + torch.nan}, "0.weight of the cut model holds NaN"),
        (mlp(nn.GELU(), (6, 8, 3)), "1 is ReLU in the model and GELU in the cut one"),
        (mlp(nn.ReLU(), (6, 9, 3)), "0 is \\(8, 6\\) in the model and \\(9, 6\\) in the cut one"),
        (Branching(), "the cut model is a Branching"),
    ):
        with pytest.raises(ValueError, match=why):
            certify(net, cut, x)
    for samples, kind, why in (
        (x[:, :5], ValueError, "does not take samples of shape \\(5,\\)"),
        (x + torch.nan, ValueError, "samples hold NaN"),
        (x[:0], ValueError, "n >= 1"),
        (x.long(), TypeError, "floating-point"),
        ([x], TypeError, "floating-point"),
    ):
        with pytest.raises(kind, match=why):
            certify(net, {}, samples)
    with pytest.raises(ValueError, match="radius is the l2 distance"):
        certify(net, {}, x, radius=-1)
    with pytest.raises(ValueError, match="method is one of norms, response, enclosure"):
        certify(net, {}, x, method="interval")
    with pytest.raises(TypeError, match="a cut is a Plan"):
        certify(net, 0.5, x)
    with pytest.raises(TypeError, match="live module"):
        certify("model", {}, x)
