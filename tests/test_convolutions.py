"""Convolutions that are split into k x k and 1 x 1: each setting of Conv2d, what is refused, and what stands around."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectrim
from spectrim.factored import Pair, Parts
from spectrim.linalg import svd
from spectrim.modules import of_module

# 1e-5 relative is asked of float32: two roundings of the factors to 6e-8, and sums of a few hundred products.
SETTINGS = {
    "plain": {"kernel_size": 3},
    "no bias": {"kernel_size": 3, "bias": False},
    "stride": {"kernel_size": 3, "stride": 2},
    "stride by side": {"kernel_size": 3, "stride": (1, 3), "padding": (2, 0)},
    "padding": {"kernel_size": 5, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": 4, "padding": "same"},
    "same, dilated": {"kernel_size": 3, "padding": "same", "dilation": (2, 1)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "reflect, same": {"kernel_size": (3, 5), "padding": "same", "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "replicate"},
    "circular, stride": {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
    "dilation": {"kernel_size": 3, "dilation": 3},
    "rectangular": {"kernel_size": (1, 7), "padding": (0, 3)},
    "rectangular, all": {"kernel_size": (4, 2), "stride": (2, 1), "padding": (3, 1), "dilation": (1, 2)},
    "kernel of one": {"kernel_size": 1, "stride": 2, "padding": 1},
    "kernel of the image": {"kernel_size": (11, 12)},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "groups, all": {"kernel_size": (3, 2), "groups": 4, "stride": 2, "padding": 1, "dilation": (2, 1), "bias": False},
    "groups, reflect": {"kernel_size": 3, "groups": 2, "padding": 1, "padding_mode": "reflect"},
}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # a copy of the input, no more
each = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


class Net(nn.Module):
    """A convolution inside a model."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def conv(setting: dict, seed: int = 0, rows: int = 12) -> Net:
    layer = nn.Conv2d(8, rows, **setting)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return Net(layer)


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def split(model: nn.Module, rank: int | None = None) -> None:
    for name in [site.name for site in of_module(model).sites]:
        (site,) = (site for site in of_module(model).sites if site.name == name)
        factors = svd(site.get())
        site.split(*factors.truncate(min(rank or factors.rank, factors.rank)).split())


def distance(new: Tensor, old: Tensor) -> float:
    assert new.shape == old.shape
    return float(torch.linalg.vector_norm(new.double() - old.double()) / torch.linalg.vector_norm(old.double()))


@each
def test_a_full_rank_split_computes_the_same(setting):
    model = conv(setting)
    x = images(3, 8, 11, 12)
    before = model(x).detach()
    bias = model.layer.bias
    split(model)
    assert distance(model(x).detach(), before) < 1e-5
    assert distance(model(x[0]).detach(), before[0]) < 1e-5  # one image without a batch
    parts = list(model.layer) if isinstance(model.layer, Parts) else [model.layer]
    assert len(parts) == setting.get("groups", 1)
    for part in parts:
        first, last = part
        assert isinstance(part, Pair) and first.bias is None and last.kernel_size == last.stride == (1, 1)
        assert first.groups == last.groups == 1 and (last.bias is None) == (bias is None)


@each
def test_a_low_rank_split_is_the_layer_with_the_truncated_kernel(setting):
    """Against torch's own convolution with the kernel that the product makes: one of 2 values a group."""
    model, dense = conv(setting), conv(setting)
    rows = 12 // setting.get("groups", 1)
    kernel = dense.layer.weight.detach()
    pieces = [svd(piece.flatten(1)).truncate(2).dense().float().reshape(piece.shape) for piece in kernel.split(rows)]
    with torch.no_grad():
        dense.layer.weight.copy_(torch.cat(pieces))
    split(model, rank=2)
    x = images(2, 8, 11, 12)
    assert distance(model(x).detach(), dense(x).detach()) < 1e-5
    assert distance(model.layer.weight.detach(), dense.layer.weight.detach()) < 1e-5
    expected = 2 * (kernel[0].numel() * setting.get("groups", 1) + 12)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == expected


def planted(setting: dict) -> Net:
    """A kernel of three directions and noise, so that a plan has something to cut."""
    layer = nn.Conv2d(32, 48, **setting)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(48, generator=generator))
        W = 0.02 * torch.randn(48, layer.weight[0].numel(), generator=generator)
        rows = 48 // layer.groups
        for block in W.split(rows):
            for k in range(3):
                outer = torch.outer(*(torch.randn(side, generator=generator) for side in block.shape))
                block += (2 + k) * outer / outer.norm()
        layer.weight.copy_(W.reshape(layer.weight.shape))
    return Net(layer)


@pytest.mark.parametrize(
    "setting",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 5), "padding": "same", "padding_mode": "reflect", "dilation": (2, 1)},
        {"kernel_size": 3, "groups": 2, "padding": 1},
    ],
    ids=["stride", "reflect", "groups"],
)
def test_survey_plan_and_trim_do_the_same_to_a_convolution(setting):
    model, dense = planted(setting), planted(setting)
    chosen = spectrim.plan(spectrim.survey(model), params=0.3)
    assert [entry.action for entry in chosen.touched] == ["split"] * setting.get("groups", 1)
    done = spectrim.trim(model, chosen)
    with torch.no_grad():
        dense.layer.weight.copy_(model.layer.weight)
    x = images(2, 32, 13, 12)
    assert distance(model(x).detach(), dense(x).detach()) < 1e-5
    assert done.params_after == sum(p.numel() for p in model.parameters()) < 0.35 * done.params_before
    assert distance(dense(x).detach(), planted(setting)(x).detach()) < 0.6  # what is left is the planted part


class Block(nn.Sequential):
    """A convolution with its norm, in a net."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
        )


def test_the_norm_after_a_split_stays_where_it_was_with_its_statistics():
    torch.manual_seed(0)
    model = Block()
    for seed in range(5):
        model(images(8, 3, 16, 16, seed=seed))
    norms = [model[1], model[5]]
    before = copy.deepcopy(model)
    split(model)
    assert [type(module).__name__ for module in model] == [
        "Pair",
        "BatchNorm2d",
        "ReLU",
        "MaxPool2d",
        "Pair",
        "BatchNorm2d",
    ]
    assert model[1] is norms[0] and model[5] is norms[1]
    assert all(
        torch.equal(a, b)
        for norm, old in zip(norms, (before[1], before[5]), strict=True)
        for a, b in zip(norm.state_dict().values(), old.state_dict().values(), strict=True)
    )
    assert norms[0].running_var.min() > 0 and int(norms[0].num_batches_tracked) == 5
    x = images(4, 3, 16, 16, seed=9)
    assert distance(model.eval()(x).detach(), before.eval()(x).detach()) < 1e-5
    # In training the norm still sees what it saw, and goes on from its running figures.
    assert distance(model.train()(x).detach(), before.train()(x).detach()) < 1e-5
    assert torch.allclose(norms[1].running_mean, before[5].running_mean, rtol=1e-4, atol=1e-6)
    assert int(norms[1].num_batches_tracked) == 6


@each
def test_channels_last(setting):
    model = conv(setting).to(memory_format=torch.channels_last)
    x = images(2, 8, 11, 12).contiguous(memory_format=torch.channels_last)
    plain = conv(setting)
    before = plain(images(2, 8, 11, 12)).detach()
    for site, same in zip(of_module(model).sites, of_module(plain).sites, strict=True):
        assert torch.equal(site.get(), same.get())  # the matrix does not hang on the layout
        site.put(site.get().clone())
    assert distance(model(x).detach(), before) < 1e-5
    split(model)
    assert distance(model(x).detach(), before) < 1e-5
    split(model.to(memory_format=torch.channels_last), rank=3)  # and once more, the halves laid out anew
    split(plain, rank=3)
    assert distance(model(x).detach(), plain(x).detach()) < 1e-5


def test_a_second_split_keeps_stride_and_padding():
    setting = {
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (1, 2),
        "dilation": (1, 2),
        "padding_mode": "circular",
    }
    model, dense = conv(setting), conv(setting)
    for rank in (12, 7, 3):
        split(model, rank)
        assert len(model.layer[0].weight) == rank
    x = images(2, 8, 11, 12)
    with torch.no_grad():
        dense.layer.weight.copy_(svd(dense.layer.weight.flatten(1)).truncate(3).dense().reshape(12, 8, 3, 2))
    assert distance(model(x).detach(), dense(x).detach()) < 1e-5
    assert len(list(model.modules())) == 4  # the net, the pair, its two halves: none inside another


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 8, 3), (2, 6, 9)),
        (nn.Conv3d(4, 6, 2), (1, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(6, 8, 3), (2, 6, 9)),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), (1, 6, 5, 5)),
        (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3)),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6)),
        (nn.Conv2d(8, 16, 3, groups=8, padding=1), (1, 8, 6, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_no_matrix_between_channels_is_skipped_and_said(layer, shape):
    model = nn.ModuleDict({"layer": layer, "fc": nn.Linear(40, 30)})
    x = images(*shape)
    before, state = layer(x).detach(), copy.deepcopy(layer.state_dict())
    found = spectrim.survey(model)
    assert [reading.name for reading in found.readings if reading.fit is not None] == ["fc"]
    (why,) = (s.reason for s in of_module(model).skipped if s.name.startswith("layer") and len(s.shape) > 1)
    assert "depthwise" in why if isinstance(layer, nn.Conv2d) else type(layer).__name__ in why
    done = spectrim.trim(model, spectrim.plan(found, params=0.5))
    assert [change.name for change in done] == ["fc"]
    assert model["layer"] is layer and torch.equal(layer(x), before)
    assert all(torch.equal(layer.state_dict()[name], state[name]) for name in state)


def test_a_lazy_convolution_asks_for_a_batch_first():
    model = nn.Sequential(nn.LazyConv2d(8, 3))
    with pytest.raises(ValueError, match="run a batch through the model first"):
        of_module(model)
    model(images(1, 5, 8, 8))
    (site,) = of_module(model).sites
    assert (site.rows, site.cols) == (8, 45)


def test_the_kernel_is_read_outputs_by_inputs_times_places():
    """The matrix form of a convolution: the patches of the image, written out, times W^T."""
    model = conv({"kernel_size": (3, 2), "stride": 2, "padding": 1, "dilation": (1, 2)})
    x = images(2, 8, 11, 12)
    (site,) = of_module(model).sites
    patches = F.unfold(x, (3, 2), dilation=(1, 2), padding=1, stride=2)
    out = (site.get() @ patches + model.layer.bias.detach()[:, None]).reshape(2, 12, 6, -1)
    assert distance(out, model(x).detach()) < 1e-5
