"""The shift along the mean, and the places where it can be put back: as a bias behind the layer would, exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spectrim.calibrate.places import shift_places
from spectrim.inner.mean_shift import correct, shift
from spectrim.modules import of_module
from spectrim.moments import Moment


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network in double precision with parameters and statistics that are not their defaults."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double()
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if t.is_floating_point():
            t.data = torch.randn(t.shape, generator=generator, dtype=t.dtype) * 0.5
            if name.endswith("running_var"):
                t.data = t.data.abs() + 0.3
    return net.eval()


class BiasBehind(nn.Module):
    """A layer and a constant that is added to its outputs, along dimension 1 (images) or the last."""

    def __init__(self, layer: nn.Module, constant: torch.Tensor, dim: int):
        super().__init__()
        self.layer, self.constant, self.dim = layer, constant, dim

    def forward(self, x):
        out = self.layer(x)
        return out + self.constant.view([-1 if d == self.dim % out.ndim else 1 for d in range(out.ndim)])


def assert_as_a_bias_behind(net: nn.Module, x, names: list[str], dim: int) -> None:
    """Correcting at the places changes the output as constants behind the layers do, which are another program."""
    places = shift_places(net, x)
    assert set(names) <= set(places)
    sizes = {site.name: site.rows for site in of_module(net).sites}
    shifts = {name: made(sizes[name], seed=i + 7).double() for i, name in enumerate(names)}
    twin = copy.deepcopy(net)
    for name, value in shifts.items():
        owner, _, last = name.rpartition(".")
        setattr(twin.get_submodule(owner), last, BiasBehind(twin.get_submodule(name), value, dim))
    before = net(x)
    done = correct(net, places, shifts)
    # double precision: what is left is the order of sums
    torch.testing.assert_close(net(x), twin(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(net(x), before, atol=1e-3)
    done.undo()
    assert torch.equal(net(x), before)


def test_shift_is_the_change_of_the_mean_output():
    W, x = made(5, 7).double(), made(4000, 7, seed=1).double() + 2
    new = W * (W.abs() > 0.5)
    moved = shift(W, new, x.mean(0))
    torch.testing.assert_close(moved, (x @ W.T).mean(0) - (x @ new.T).mean(0))
    assert torch.equal(shift(W, new, Moment(x.T @ x / len(x), x.mean(0), len(x))), moved)
    assert not shift(W, W, x.mean(0)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shift_of_narrow_weights_is_worked_out_in_double(dtype):
    W, m = made(5, 7).to(dtype), made(7, seed=1)
    new = torch.zeros_like(W)
    assert shift(W, new, m).dtype == torch.float64
    torch.testing.assert_close(shift(W, new, m), W.double() @ m.double())
    assert shift(W.numpy() if dtype is not torch.bfloat16 else W, new, m).shape == (5,)


@pytest.mark.parametrize(
    ("new", "mean", "message"),
    [((5, 6), (7,), "one shape"), ((5, 7), (6,), "7 inputs"), ((5, 7), (7, 7), "7 inputs")],
)
def test_shift_refuses_what_does_not_fit(new, mean, message):
    with pytest.raises(ValueError, match=message):
        shift(made(5, 7), made(*new), made(*mean))


def test_own_bias_is_a_place():
    net = stirred(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    assert_as_a_bias_behind(net, made(3, 6).double(), ["0", "2"], -1)
    assert {place.kind for place in shift_places(net, made(1, 6).double()).values()} == {"bias"}


def test_the_norm_that_follows_is_a_place():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    )
    x = made(2, 3, 7, 7).double()
    net = stirred(net)
    assert_as_a_bias_behind(net, x, ["0", "3"], 1)
    kinds = {name: place.kind for name, place in shift_places(net, x).items()}
    assert kinds == {"0": "running_mean", "3": "bias"}


def test_a_norm_of_vectors_and_one_without_gains():
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False), nn.Tanh(), nn.Linear(8, 2))
    assert_as_a_bias_behind(stirred(net), made(4, 6).double(), ["0", "3"], -1)


def test_groups_have_their_own_stretch():
    net = stirred(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)))
    places = shift_places(net, made(1, 4, 6, 6).double())
    assert [(p.start, p.rows) for p in places.values()] == [(0, 3), (3, 3)]
    x = made(2, 4, 6, 6, seed=3).double()
    before, value = net(x), made(3, seed=4).double()
    correct(net, places, {"0[1]": value})
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    expected = before.clone()
    expected[:, 3:] += (scale[3:] * value)[:, None, None]
    torch.testing.assert_close(net(x), expected)


class Two(nn.Module):
    """The output of a layer goes to a norm, and somewhere else besides."""

    def __init__(self, way: str):
        super().__init__()
        self.layer, self.norm, self.other = nn.Linear(5, 5, bias=False), nn.BatchNorm1d(5), nn.BatchNorm1d(5)
        self.way = way

    def forward(self, x):
        y = self.layer(x)
        if self.way == "branch":
            return self.norm(y) + y
        if self.way == "view":
            return self.norm(y) + y.view(-1, 5).sigmoid()
        if self.way == "returned":
            return self.norm(y), y
        if self.way == "named":
            return {"out": self.norm(y), "hidden": [y]}
        if self.way == "two norms":
            return self.norm(y) + self.other(y)
        if self.way == "shared norm":
            return self.norm(y) + self.norm(x)
        if self.way == "called twice":
            return self.norm(y) + self.layer(y)
        if self.way == "activation first":
            return self.norm(y.relu())
        return self.norm(y)


@pytest.mark.parametrize(
    "way",
    ["branch", "view", "returned", "named", "two norms", "shared norm", "called twice", "activation first"],
)
def test_what_is_read_elsewhere_too_has_no_place(way):
    net = stirred(Two(way))
    assert "layer" not in shift_places(net, made(4, 5).double())
    assert "layer" in shift_places(stirred(Two("plain")), made(4, 5).double())


def test_statistics_of_the_batch_are_no_place():
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.BatchNorm1d(5, track_running_stats=False))
    assert shift_places(net, made(4, 5)) == {}


def test_a_bias_of_several_modules_is_no_place():
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].bias = net[0].bias
    assert list(shift_places(net, made(4, 5))) == ["2"]


def test_a_layer_that_never_runs_has_no_place():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.used(x)

    assert list(shift_places(Idle(), made(4, 5))) == ["used"]


def test_attention_holds_three_stretches_of_one_bias():
    layer = stirred(nn.MultiheadAttention(8, 2, batch_first=True))
    x = made(2, 5, 8).double()
    places = shift_places(layer, (x, x, x))
    assert {n: (p.start, p.rows) for n, p in places.items()} == {
        "in_proj_weight[q]": (0, 8),
        "in_proj_weight[k]": (8, 8),
        "in_proj_weight[v]": (16, 8),
        "out_proj": (0, 8),
    }
    value = made(8, seed=2).double()
    before = layer(x, x, x)[0]
    correct(layer, places, {"in_proj_weight[v]": value})
    # the weights of attention sum to one: a constant of the values comes out as it is
    torch.testing.assert_close(layer(x, x, x)[0], before + layer.out_proj.weight @ value)


def test_recurrent_layers_have_a_bias_for_each_matrix():
    net = nn.LSTM(4, 3)
    places = shift_places(net, made(5, 1, 4))
    assert places["weight_ih_l0[f]"].tensor == "bias_ih_l0" and places["weight_ih_l0[f]"].start == 3


def test_a_pair_left_by_a_split_takes_the_shift_behind_its_left_half():
    import spectrim

    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 10)).double()
    spectrim.trim(net, spectrim.plan(spectrim.survey(net), params=0.5))
    places = shift_places(net, made(1, 40).double())
    pairs = [site.name for site in of_module(net).sites if site.pair_rank is not None]
    assert pairs and all(name in places for name in pairs)
    x, value = made(3, 40).double(), made(60).double()
    first = next(name for name in pairs if name.startswith("0"))
    before = net[0](x)
    correct(net, places, {first: value})
    torch.testing.assert_close(net[0](x), before + value)


def test_the_correction_takes_the_mean_error_back():
    """End to end: the mean output of a cut layer is that of the dense one, on the inputs the mean was taken from."""
    net = stirred(nn.Sequential(nn.Linear(12, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)))
    x = made(500, 12).double() + 1
    dense = net[:2](x).mean(0)
    W = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.mul_(W.abs() > 0.4)
    assert (net[:2](x).mean(0) - dense).abs().max() > 0.05
    correct(net, shift_places(net, x[:2]), {"0": shift(W, net[0].weight.detach(), x.mean(0))})
    torch.testing.assert_close(net[:2](x).mean(0), dense)


def test_a_narrow_bias_is_rounded_once():
    net = nn.Linear(3, 2).bfloat16()
    before = net.bias.detach().clone()
    correct(net, shift_places(net, made(1, 3).bfloat16()), {"(model)": torch.tensor([0.1, 0.2])})
    assert torch.equal(net.bias, (before.double() + torch.tensor([0.1, 0.2]).double()).bfloat16())


@pytest.mark.parametrize(("value", "message"), [([1.0], "2 outputs"), ([float("nan"), 0.0], "not finite")])
def test_a_bad_shift_changes_nothing(value, message):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    places = shift_places(net, made(1, 3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        correct(net, places, {"0": torch.ones(4), "1": torch.tensor(value)})
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_what_has_no_place_is_named():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    done = correct(net, shift_places(net, made(1, 3)), {"0": torch.ones(4), "2": torch.ones(2)})
    assert done.without_place == ("0",) and list(done.added) == ["2"]


def test_looking_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    net[0].requires_grad_(False)
    hook = net[3].register_forward_hook(lambda *_: None)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    places = shift_places(net, made(3, 4))
    assert set(places) == {"0", "3"} and all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state) and len(net[3]._forward_hooks) == 1
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    hook.remove()
