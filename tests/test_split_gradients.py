"""The two halves of a full-rank split learn what the theory says: G V sqrt(S) and sqrt(S) U^T G."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrim.linalg import svd
from spectrim.modules import of_module

LAYERS = {
    "linear": (lambda: nn.Linear(24, 40), (16, 24)),
    "wide linear": (lambda: nn.Linear(40, 24, bias=False), (16, 40)),
    "conv": (lambda: nn.Conv2d(5, 14, 3, stride=2, padding=1), (6, 5, 9, 9)),
    "wide conv": (lambda: nn.Conv2d(8, 6, (3, 2), dilation=2, padding="same", padding_mode="reflect"), (6, 8, 9, 9)),
}
# In float64 the only rounding is that of the decomposition. The float32 factors err by 6e-8 an entry.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}


def made(build, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(build(), nn.Flatten(), nn.Tanh()).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    out = model(x)
    labels = torch.arange(len(x)) % 3
    return out, F.cross_entropy(out, labels) + 0.01 * out.square().mean()


def distance(new: Tensor, old: Tensor) -> float:
    return float(torch.linalg.norm(new.double() - old.double()) / torch.linalg.norm(old.double()))


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_outputs_loss_and_gradients_of_a_full_rank_split(layer, dtype):
    build, shape = layer
    model, close = made(build, dtype), CLOSE[dtype]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, loss = loss_of(model, x)
    loss.backward()
    G = model[0].weight.grad.flatten(1).double()
    bias = None if model[0].bias is None else model[0].bias.grad.clone()

    (site,) = of_module(model).sites
    whole = svd(site.get())
    site.split(*whole.split())
    model.zero_grad()
    new_out, new_loss = loss_of(model, x)
    new_loss.backward()
    assert distance(new_out.detach(), out.detach()) < close
    assert abs(new_loss.item() / loss.item() - 1) < close

    right, left = (half.weight.grad.flatten(1) for half in model[0])
    root = whole.s.sqrt()
    # With L = U sqrt(S), R = sqrt(S) V^T and W = L R: dL = G R^T = G V sqrt(S), dR = L^T G = sqrt(S) U^T G.
    assert distance(left, G @ whole.Vh.T * root) < close
    assert distance(right, root[:, None] * (whole.U.T @ G)) < close
    if bias is not None:
        assert distance(model[0].bias.grad, bias) < close


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_product_moves_along_both_gradients_to_first_order(layer):
    """One small step of both halves moves W by -rate (G V S V^T + U S U^T G): not the step that W itself would make."""
    build, shape = layer
    model = made(build, torch.float64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss_of(model, x)[1].backward()
    G = model[0].weight.grad.flatten(1)
    (site,) = of_module(model).sites
    W, whole = site.get().clone(), svd(site.get())
    site.split(*whole.split())
    model.zero_grad()
    loss_of(model, x)[1].backward()
    rate = 1e-6
    torch.optim.SGD(model.parameters(), lr=rate).step()
    (site,) = of_module(model).sites
    moved = (site.get() - W) / rate
    U, S, Vh = whole.U, whole.s, whole.Vh
    expected = -(G @ (Vh.T * S) @ Vh + (U * S) @ U.T @ G)
    assert distance(moved, expected) < 1e-4  # the second order is of the size of the rate
    assert distance(moved, -G) > 0.01


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_low_rank_split_learns_from_the_gradient_at_the_cut_matrix(layer):
    build, shape = layer
    model, cut = made(build, torch.float64), made(build, torch.float64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (site,) = of_module(model).sites
    kept = svd(site.get()).truncate(3)
    site.split(*kept.split())
    (dense,) = of_module(cut).sites
    dense.put(kept.dense())
    for net in (model, cut):
        loss_of(net, x)[1].backward()
    G = cut[0].weight.grad.flatten(1)
    right, left = (half.weight.grad.flatten(1) for half in model[0])
    assert distance(left, G @ kept.Vh.T * kept.s.sqrt()) < 1e-12
    assert distance(right, kept.s.sqrt()[:, None] * (kept.U.T @ G)) < 1e-12
