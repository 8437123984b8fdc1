"""Moments from what a network has stored: against Monte Carlo, closed forms, and the network itself on constants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from spectrim.calibrate.stored import law as laws
from spectrim.calibrate.stored import maps, rules, stored
from spectrim.calibrate.stored.law import Law, Spread
from spectrim.calibrate.stored.memory import Memory
from spectrim.calibrate.stored.run import run


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if t.is_floating_point():
            t.data = torch.randn(t.shape, generator=generator, dtype=t.dtype) / max(1, t[0].numel()) ** 0.5
            if name.endswith("running_var"):
                t.data = t.data.abs() + 0.3
    return net.eval()


def gaussian(K: int, seed: int = 0) -> Law:
    A = made(K, K, seed=seed).double()
    return Law(made(K, seed=seed + 1).double(), A @ A.T / K, 0, 0)


def spread(law: Law) -> Spread:
    return Spread(torch.arange(law.size), law)


# ---------------------------------------------------------------- functions of one variable

FUNCTIONS = [
    F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.elu, F.mish, F.softplus,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.leaky_relu(x, 0.1),
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.5, 0.4), (2.0, 3.0)])
def test_means_and_variances_against_adaptive_quadrature(function, mean, deviation):
    law = Law(torch.tensor([mean]).double(), torch.tensor([[deviation**2]]).double(), 0, 0)
    found = spread(law).pointwise(function).law()

    def moment(k):
        def integrand(z):
            return float(function(torch.tensor(mean + deviation * z, dtype=torch.float64))) ** k * stats.norm.pdf(z)

        kinks = [(at - mean) / deviation for at in (-3.0, 0.0, 3.0, 6.0)]
        kinks = [k for k in kinks if abs(k) < 9]
        return integrate.quad(integrand, -9, 9, points=kinks, limit=200)[0]

    first = moment(1)
    # a kink of slope 1 costs the rule of the grid up to step^2 / 12 = 8e-5 deviations; the square twice that, times x
    assert float(found.mean) == pytest.approx(first, abs=1e-4 * deviation)
    assert float(found.var) == pytest.approx(moment(2) - first**2, abs=1e-3 * deviation**2)


def test_closed_forms_of_relu_and_gelu():
    mean, deviation = made(40).double(), made(40, seed=1).double().abs() + 0.1
    law = Law(mean, deviation**2, 0, 0)
    z = mean / deviation
    normal = torch.distributions.Normal(0.0, 1.0)
    relu = mean * normal.cdf(z) + deviation * normal.log_prob(z).exp()
    torch.testing.assert_close(spread(law).pointwise(F.relu).law().mean, relu, atol=2e-4, rtol=0)
    t = (1 + deviation**2).sqrt()
    gelu = mean * normal.cdf(mean / t) + deviation**2 / t * normal.log_prob(mean / t).exp()
    torch.testing.assert_close(spread(law).pointwise(F.gelu).law().mean, gelu, atol=1e-9, rtol=0)  # smooth


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.2, 0.6, 0.9])
def test_covariance_behind_relu_against_the_arc_cosine_kernel(rho):
    law = Law(torch.zeros(2).double(), torch.tensor([[1, rho], [rho, 1]]).double(), 0, 0)
    found = spread(law).pointwise(F.relu).law()
    kernel = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi)  # Cho and Saul 2009
    # the series stops at order 6: at |rho| = .9 the terms behind it come to .001
    assert float(found.cov[0, 1]) == pytest.approx(kernel - 1 / (2 * math.pi), abs=2e-3)


def test_a_function_of_a_constant_is_a_constant():
    law = Law(torch.tensor([1.0, -2.0]).double(), torch.zeros(2, 2).double(), 0, 0)
    found = spread(law).pointwise(F.gelu).law()
    torch.testing.assert_close(found.mean, F.gelu(law.mean))
    assert not found.cov.abs().max() > 1e-12


def test_covariances_stay_positive_semidefinite():
    found = gaussian(30)
    for function in (F.relu, F.gelu, torch.tanh):
        found = spread(found).pointwise(function).law()
        assert np.linalg.eigvalsh(found.cov.numpy()).min() > -1e-9


# ---------------------------------------------------------------- the network itself on constants


class Moves(nn.Module):
    """Every kind of move and sum; on an input that never changes, the mean is the output itself."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(12, 8), nn.Parameter(made(8))

    def forward(self, x):
        a, b, c = x.chunk(3, -1)
        y = torch.cat([a, c.flip(-1), b * b.sigmoid()], -1)
        y = torch.stack([y, 2 * y - 1], 1).transpose(1, 2).reshape(len(x), -1)[:, ::2]
        y = self.inner(y) * self.scale
        y = torch.roll(y.view(-1, 2, 4), 1, dims=2).permute(0, 2, 1).flatten(1)
        y = F.hardtanh(y.clone(), -1, 1, inplace=True) + y / 3 - (1 - y)
        z = y.unsqueeze(1).expand(-1, 3, -1).mean(1)
        return z[:, [3, 1, 0]] @ made(3, 5, seed=4) + z.sum(-1, keepdim=True) + F.pad(z[:, :2], (1, 2))


def known_output(net: nn.Module, x: torch.Tensor):
    memory = Memory(lambda *_: None)
    index = torch.arange(x.numel()).view(x.shape)
    memory.put(x, Spread(index, Law(x.double().flatten(), torch.zeros(x.numel()).double(), 0, 0)))
    out = run(net, x, memory.seen)
    return out, memory.get(out)


def test_on_constants_the_mean_is_the_output():
    net, x = Moves().eval(), made(1, 12, seed=2)
    out, found = known_output(net, x)
    assert isinstance(found, Spread), found
    law = found.law()
    torch.testing.assert_close(law.mean[found.index].float(), out, rtol=1e-4, atol=1e-5)
    assert float(law.var.max()) < 1e-9


def test_writing_in_place_forgets_the_other_views():
    class Written(nn.Module):
        def forward(self, x):
            y = x * 2
            y[:, 0] = 5.0
            return y

    _, found = known_output(Written(), made(1, 4))
    assert not isinstance(found, Spread)  # unknown, and never wrong

    class Filled(nn.Module):
        def forward(self, x):
            y = torch.zeros(1, 4)
            y[:, :2] = x[:, :2]
            return y

    _, found = known_output(Filled(), made(1, 4))
    assert found is not None and not isinstance(found, Spread)


def test_one_feature_twice_is_one_feature():
    law = gaussian(4)
    two = rules.combined(spread(law), spread(law), (4,), torch.add, laws.added).law()
    torch.testing.assert_close(two.cov, 4 * law.cov)
    other = gaussian(4, seed=9)
    apart = rules.combined(spread(law), spread(other), (4,), torch.add, laws.added).law()
    torch.testing.assert_close(apart.cov, law.cov + other.cov)
    torch.testing.assert_close(apart.mean, law.mean + other.mean)


# ---------------------------------------------------------------- whole networks against Monte Carlo


def measured(net: nn.Module, name: str, x: torch.Tensor):
    caught = []
    hook = net.get_submodule(name).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        net.eval()(x)
    hook.remove()
    return caught[0].double()


def test_linear_networks_are_exact_on_white_inputs():
    net = stirred(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)))
    found = stored(net)
    A = net[1].weight.double() @ net[0].weight.double()
    m = net[1](net[0].bias).double()
    torch.testing.assert_close(found["2"].mean.double(), m, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["2"].second.double(), A @ A.T + torch.outer(m, m), atol=1e-5, rtol=1e-5)


def test_behind_a_norm_the_stored_figures_hold_whatever_comes_in():
    net = stirred(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.ReLU6(), nn.Linear(6, 3)))
    norm = net[1]
    found = stored(net)
    torch.testing.assert_close(found["2"].mean, norm.bias)
    variance = norm.weight**2 * norm.running_var / (norm.running_var + norm.eps)
    torch.testing.assert_close(found["2"].covariance().diagonal().float(), variance, rtol=1e-4, atol=1e-5)
    assert found.recipe["trust"] == {"0": "approximate", "2": "exact", "4": "approximate"}
    x = norm.bias + made(40_000, 8, seed=5) * variance.sqrt()
    with torch.no_grad():
        y = F.relu6(net[2](x))
    scaled = stored(nn.Sequential(nn.Identity(), *net[1:]), made(2, 8))
    # 40000 draws: errors of .5 % of a deviation; five of them
    torch.testing.assert_close(scaled["4"].mean, y.mean(0), atol=0.03, rtol=0.0)


def test_trust():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Conv2d(8, 4, 1),
        nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    found = stored(stirred(net), torch.zeros(1, 3, 16, 16))
    assert found.recipe["trust"] == {"0": "approximate", "2": "exact", "4": "approximate", "9": "gaussian"}
    assert {name: moment.count for name, moment in found.items()} == dict.fromkeys(found, 0)
    assert found.source == "stored" and not found.missing


class Bottleneck(nn.Module):
    """The block of a MobileNet: 1 x 1, depthwise, 1 x 1, a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.norm1 = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.project, self.norm3 = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm0(self.stem(x))
        y = F.relu6(self.norm1(self.expand(x)))
        y = F.relu6(self.norm2(self.depth(y)))
        return self.head((x + self.norm3(self.project(y))).mean((2, 3)))


def test_a_mobile_network_against_its_own_statistics():
    """Statistics gathered from noise; the analytic means are those that a forward pass of other noise shows."""
    net = stirred(Bottleneck())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.weight.data = 0.5 + made(len(module.weight)).abs() / 2
            module.bias.data = 1 + made(len(module.bias), seed=8) / 2  # most channels are on
    with torch.no_grad():
        net.train()(made(32, 3, 28, 28, seed=3))
    found = stored(net, torch.zeros(1, 3, 28, 28))
    x = made(32, 3, 28, 28, seed=4)
    assert found.recipe["trust"] == {
        "stem": "approximate", "expand": "exact", "project": "gaussian", "head": "exact",
    }  # fmt: skip
    for name in ("expand", "project", "head"):
        seen = measured(net, name, x)
        seen = seen.transpose(0, 1).flatten(1).T if seen.ndim == 4 else seen
        # noise of 32 images, and maps that are Gaussian only nearly
        assert float((found[name].mean.double() - seen.mean(0)).norm() / seen.mean(0).norm()) < 0.1, name


def test_patches_with_padding_stride_and_groups_against_unfold():
    """Means of what a convolution reads on a field of constants, the zeros of the border counted in."""
    x = made(1, 4, 9, 8).double()
    law = Law(torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), torch.eye(4).double(), 0, 0)
    index = torch.arange(4).view(1, 4, 1, 1).expand(x.shape)
    for stride, padding, dilation in [((1, 1), (1, 1), (1, 1)), ((2, 3), (2, 0), (1, 1)), ((1, 2), (1, 2), (2, 1))]:
        how = maps.Convolution(stride, padding, dilation, 1)
        field = law.mean[index]
        literal = F.unfold(field, (3, 2), dilation=dilation, padding=padding, stride=stride).mean(2)[0]
        torch.testing.assert_close(maps.patch_means(Spread(index, law), (3, 2), how).flatten(), literal)
        W, b = made(6, 4, 3, 2).double(), made(6).double()
        out = F.conv2d(field, W, b, stride, padding, dilation)
        found = maps.convolution(Spread(index, law), W, b, how, tuple(out.shape)).law()
        torch.testing.assert_close(found.mean, out.mean((0, 2, 3)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_against_their_covariance_written_out(groups):
    """The covariance of a kernel's outputs where channels and taps vary as is assumed, entry by entry."""
    law = gaussian(4)
    W = made(8, 4 // groups, 3, 3).double()
    near = maps.taps((3, 3))
    index = torch.arange(4).view(1, 4, 1, 1).expand(1, 4, 5, 5)
    how = maps.Convolution((1, 1), (0, 0), (1, 1), groups)
    found = maps.convolution(Spread(index, law), W, None, how, (1, 8, 3, 3)).law()
    flat, each, out = W.flatten(2), 4 // groups, 8 // groups
    for o in range(8):
        part = slice(o // out * each, (o // out + 1) * each)
        var = torch.einsum("ct,cd,ts,ds->", flat[o], law.cov[part, part], near, flat[o])
        if groups == 2:  # correlations between channels are left out there
            var = torch.einsum("ct,c,ts,cs->", flat[o], law.cov[part, part].diagonal(), near, flat[o])
        assert float(found.var[o]) == pytest.approx(float(var), rel=1e-9)


def test_layer_norm_against_monte_carlo():
    law = gaussian(60)
    found = rules.normalised(law, 1e-5, True)
    L = np.linalg.cholesky(law.cov.numpy() + 1e-9 * np.eye(60))
    x = law.mean.numpy() + np.random.default_rng(0).standard_normal((40_000, 60)) @ L.T
    z = F.layer_norm(torch.tensor(x), (60,))
    # the scale of one x is put for by its mean over x: wrong by its relative spread, here about 5 %
    torch.testing.assert_close(found.mean, z.mean(0), atol=0.1, rtol=0)
    assert np.corrcoef(found.mean, z.mean(0))[0, 1] > 0.995
    assert np.corrcoef(found.var, z.var(0))[0, 1] > 0.95
    assert float(found.mean.sum()) == pytest.approx(0, abs=1e-9)
    assert float((found.mean**2 + found.var).mean()) == pytest.approx(1, abs=1e-4)


def test_doubt_draws_a_law_towards_white():
    law = gaussian(6)
    same, half, none = (rules.doubted(law, share) for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(same.mean, law.mean)
    torch.testing.assert_close(same.cov, law.cov)
    torch.testing.assert_close(half.var, law.var.sqrt())
    deviation = [x.var.sqrt() for x in (law, half)]
    rho = [x.cov / torch.outer(d, d) for x, d in zip((law, half), deviation, strict=True)]
    torch.testing.assert_close(rho[1] - torch.eye(6).double() / 2, rho[0] / 2)
    torch.testing.assert_close(none.cov, torch.eye(6).double())
    assert not none.mean.any()


def test_attention_with_even_scores_hands_on_the_mean_of_the_values():
    block = stirred(nn.MultiheadAttention(8, 2, batch_first=True))
    with torch.no_grad():
        block.in_proj_weight[:8] = 0  # queries that tell nothing
        block.in_proj_bias[:8] = 0
    x = torch.zeros(1, 6, 8)
    found = stored(block, (x, x, x))
    value = block.in_proj_bias[16:].detach()
    torch.testing.assert_close(found["out_proj"].mean, value, atol=1e-6, rtol=1e-5)
    assert found["in_proj_weight[q]"] is found["in_proj_weight[v]"]


def test_attention_tilts_the_values_along_the_keys():
    """Jointly normal keys and values, many positions, small scores: E[v | q] = E v + scale C_vk q, in a simulation."""
    source = gaussian(6)
    A = {key: made(4, 6, seed=20 + i).double() * 0.4 for i, key in enumerate("qkv")}
    n = 4000
    shape = (1, 1, n, 4)
    spreads = [laws.spread_of(source.mapped(A[key]), shape) for key in "qkv"]
    law = maps.attention(*spreads, 0.5, shape).law()
    L = np.linalg.cholesky(source.cov.numpy() + 1e-12 * np.eye(6))
    x = torch.tensor(source.mean.numpy() + np.random.default_rng(1).standard_normal((n, 6)) @ L.T)
    q, k, v = (x @ A[key].T for key in "qkv")
    out = torch.softmax(0.5 * q @ k.T, 1) @ v
    plain = v.mean(0)
    tilt = (out.mean(0) - plain).norm()
    assert float((law.mean - out.mean(0)).norm()) < 0.35 * float(tilt) and tilt > 0.1
    assert np.corrcoef(law.cov.flatten(), torch.cov(out.T).flatten())[0, 1] > 0.95


def test_embeddings_have_the_moments_of_their_table():
    net = nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 4))
    table = net[0].weight.detach().double()
    found = stored(net, torch.zeros(1, 7, dtype=torch.long))
    torch.testing.assert_close(found["1"].second.double(), table.T @ table / 50, atol=1e-6, rtol=1e-5)


def test_positions_count_as_drawn_at_random():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places, self.out = nn.Embedding(50, 6), nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, ids):
            return self.out(self.words(ids) + self.places(torch.arange(ids.shape[1])))

    net = Placed()
    found = stored(net, torch.zeros(1, 9, dtype=torch.long))
    tables = [t.weight.detach().double() for t in (net.words, net.places)]
    mean = sum(t.mean(0) for t in tables)
    cov = sum(torch.cov(t.T, correction=0) for t in tables)
    torch.testing.assert_close(found["out"].mean.double(), mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["out"].covariance(), cov, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------- odd models


class Odd(nn.Module):
    """An operation that no rule knows, and a norm behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.behind, self.norm, self.last = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        return self.last(self.norm(self.behind(torch.cumsum(self.first(x), -1))))


def test_behind_an_unknown_operation_a_norm_starts_anew():
    found = stored(stirred(Odd()), torch.zeros(1, 6))
    assert set(found) == {"first", "last"} and "cumsum" in found.missing["behind"]
    assert found.recipe["trust"]["last"] == "exact" and "cumsum" in found.notes[0]


def test_layers_called_twice_tied_or_never():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
            self.tied = nn.Linear(5, 5)
            self.tied.weight = self.a.weight

        def forward(self, x):
            return self.tied(self.b(self.a(self.a(x)).relu()))

    net = stirred(Shared())
    found = stored(net, torch.zeros(1, 5))
    assert set(found) == {"a", "b"} and "no operation" in found.missing["idle"]
    one = stored(nn.Sequential(net.a), torch.zeros(1, 5))
    assert not torch.allclose(found["a"].second, one["0"].second)  # the mixture of three inputs


def test_models_are_left_as_they_were_and_in_any_dtype():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 3)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    found = stored(net)
    assert all(module.training for module in net.modules()) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    half = stored(net.bfloat16())
    torch.testing.assert_close(half["4"].mean, found["4"].mean, atol=0.02, rtol=0)
    assert found.model and torch.is_grad_enabled()


def test_what_a_model_reads_in_groups_and_stretches():
    net = stirred(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)))
    found = stored(net, torch.zeros(1, 4, 6, 6))
    assert set(found) == {"1[0]", "1[1]"} and found["1[0]"].cols == 18
    torch.testing.assert_close(found["1[1]"].mean, net[0].bias[2:].repeat_interleave(9))


@pytest.mark.parametrize("net", [nn.LSTM(6, 4), nn.GRU(6, 4)])
def test_recurrent_layers_do_not_stop_the_run(net):
    found = stored(net, torch.zeros(3, 1, 6))
    assert set(found) | set(found.missing) == {f"weight_{k}_l0[{g}]" for k in ("ih", "hh") for g in found_gates(net)}


def found_gates(net):
    return "ifgo" if isinstance(net, nn.LSTM) else "rzn"


def test_an_example_that_does_not_run_is_refused_and_none_that_can_be_made_is_told():
    net = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(ValueError, match="example"):
        stored(net, torch.zeros(1, 7))

    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, input_values):
            return self.fc(input_values)

    found = stored(Raw())
    assert not found and "sound" in found.missing["fc"]


def test_only_shapes_of_the_example_count():
    net = stirred(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3)))
    found = [stored(net, x) for x in (torch.zeros(1, 3, 6, 6), made(1, 3, 6, 6) * 100)]
    assert all(torch.equal(found[0][name].second, found[1][name].second) for name in found[0])


def test_written_out_attention_is_that_of_the_fused_one():
    class Attention(nn.Module):
        def __init__(self, fused: bool):
            super().__init__()
            self.qkv, self.out, self.fused = nn.Linear(8, 24), nn.Linear(8, 8), fused

        def forward(self, x):
            q, k, v = (t.view(1, -1, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            if self.fused:
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                y = torch.softmax(q @ k.transpose(-1, -2) / 2 + torch.zeros(5, 5), -1) @ v
            return self.out(y.transpose(1, 2).reshape(1, -1, 8))

    nets = [stirred(Attention(fused)) for fused in (True, False)]
    found = [stored(net, torch.zeros(1, 5, 8)) for net in nets]
    torch.testing.assert_close(found[0]["out"].second, found[1]["out"].second)


def test_moments_save_and_load(tmp_path):
    from spectrim.moments import Moments

    found = stored(stirred(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))))
    again = Moments.load(found.save(tmp_path / "m.safetensors"))
    assert again.fingerprint == found.fingerprint and again.recipe == found.recipe
