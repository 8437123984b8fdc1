"""Inputs moved towards what a network has stored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrim.calibrate import gather
from spectrim.calibrate.inputs import synthetic
from spectrim.calibrate.matched import distance, inverted, patch_entropy
from spectrim.calibrate.recipes import replay
from spectrim.calibrate.restated import Restated, of_the_batch, stored_norms


def net(seed: int = 0) -> nn.Module:
    """A small net whose norms have stored what real-looking inputs gave."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(seed)
    found = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    found.train()
    for m in stored_norms(found):
        m.momentum = 1.0
    x = 0.7 * torch.randn(64, 3, 24, 24).cumsum(3) / 3 + 1
    with torch.no_grad():
        found(x)
    torch.set_rng_state(torch_state)
    return found.eval()


def state(model: nn.Module) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict, modes: list) -> None:
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_restated_inputs_meet_the_stored_mean_and_scale_behind_a_norm():
    model = net()
    model.train()  # the mode is the user's
    before, modes = state(model), [m.training for m in model.modules()]
    found = synthetic(model, count=32, batch=32, image_size=24)
    seen = []
    handle = model[1].register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    model.eval()
    found[0](model)
    model.train()
    handle.remove()
    out = seen[0].transpose(0, 1).flatten(1)
    assert torch.allclose(out.mean(1), model[1].bias, atol=1e-4)
    assert torch.allclose(out.std(1), model[1].weight, atol=1e-2)  # eps beside the variance
    assert found.recipe["norms"] == "batch"
    assert_untouched(model, before, modes)


def test_norms_are_restated_where_batches_are_large_enough_and_nobody_says_otherwise():
    model = net()

    def kinds(**options):
        return [isinstance(part, Restated) for part in synthetic(model, image_size=24, **options)]

    assert kinds(count=17) == [True, True]  # 9 and 8 images
    assert kinds(count=1) == [False] and kinds(count=16, norms="stored") == [False]
    assert kinds(count=4, norms="batch") == [True]


def test_moments_of_restated_inputs_are_those_of_the_norms_and_the_model_is_untouched():
    model = net()
    before, modes = state(model), [m.training for m in model.modules()]
    bare = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)).eval()
    bare[1].weight.data[:], bare[1].bias.data[:] = torch.linspace(0.5, 2, 6), torch.linspace(-1, 1, 6)
    found = gather(bare, synthetic(bare, count=16, image_size=8, norms="batch"))["2"]
    assert torch.allclose(found.mean, bare[1].bias, atol=1e-4)
    spread = (found.dense().diagonal() - found.mean.double() ** 2).sqrt()
    assert torch.allclose(spread, bare[1].weight.double(), rtol=1e-2)
    gather(model, synthetic(model, count=16, image_size=24))
    assert_untouched(model, before, modes)


def test_statistics_come_back_after_an_error():
    model = net()
    before, modes = state(model), [m.training for m in model.modules()]
    with pytest.raises(RuntimeError), of_the_batch(model):
        model(torch.zeros(1, 5, 24, 24))
    assert_untouched(model, before, modes)


def test_distance_is_0_for_inputs_that_the_norms_were_filled_with_and_follows_its_formula():
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]) + 4
    model[0].running_mean[:], model[0].running_var[:] = x.mean(0), x.var(0, unbiased=False)
    assert distance(model, x).item() < 1e-10
    y = 2 * x + 1
    m, v = x.mean(0), x.var(0, unbiased=False) + model[0].eps
    by_hand = ((y.mean(0) - m) ** 2 + ((y.var(0, unbiased=False) + model[0].eps).sqrt() - v.sqrt()) ** 2) / v
    assert torch.allclose(distance(model, y), by_hand.mean(), rtol=1e-4)


def test_inverted_inputs_come_nearer_and_are_the_same_for_a_seed():
    model = net()
    before, modes = state(model), [m.training for m in model.modules()]
    start = synthetic(model, count=16, image_size=24, norms="stored")
    found = inverted(model, start, steps=15)
    own = found.recipe["inverted"]
    assert own["after"] < 0.7 * own["before"] and own["goal"] == "norms"
    assert distance(model, found[0]).item() == pytest.approx(own["after"], rel=1e-4)
    assert torch.equal(found[0], inverted(model, start, steps=15)[0])
    assert not torch.equal(found[0], start[0])
    assert found.recipe["fingerprint"] != start.recipe["fingerprint"]
    assert_untouched(model, before, modes)


def test_recipes_of_matched_inputs_make_them_again():
    model = net()
    found = inverted(model, synthetic(model, count=16, batch=8, image_size=24, seed=2), steps=3)
    again = replay(model, found.recipe)
    assert all(isinstance(part, Restated) for part in again)
    assert all(torch.equal(a.batch, b.batch) for a, b in zip(found, again, strict=True))
    with pytest.raises(ValueError, match="another model"):
        replay(net(seed=1), found.recipe)


def test_frozen_parameters_stay_frozen_and_no_grad_outside_does_no_harm():
    model = net()
    model[0].weight.requires_grad_(False)
    with torch.no_grad():
        found = inverted(model, synthetic(model, count=4, image_size=24), steps=3)
    assert not found[0].requires_grad and not model[0].weight.requires_grad and model[3].weight.requires_grad


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 4, 4)
        self.norm = nn.LayerNorm(24)

    def forward(self, x):
        return self.norm(self.embed(x).flatten(2).transpose(1, 2))


def test_the_entropy_of_patches_is_low_where_all_are_alike_and_high_where_they_are_not():
    model = Patches().eval()
    flat = torch.ones(2, 3, 32, 32)
    mixed = synthetic(model, count=2, image_size=32)[0]

    def entropy(x):
        return patch_entropy(model, x, torch.Generator().manual_seed(0)).item()

    # all cosines 1: the density at each is that of the kernel's middle
    assert entropy(flat) == pytest.approx(-torch.log(torch.tensor(1 / (0.05 * (2 * torch.pi) ** 0.5))).item(), abs=1e-4)
    assert entropy(mixed) > entropy(flat) + 1
    found = inverted(model, synthetic(model, count=4, image_size=32), steps=10)
    own = found.recipe["inverted"]
    assert own["goal"] == "patch entropy" and own["after"] < own["before"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: synthetic(nn.Linear(3, 2), count=2, norms="batch"), "needs a BatchNorm"),
        (lambda: synthetic(nn.Linear(3, 2), count=2, norms="none"), "norms is"),
        (lambda: inverted(nn.Linear(3, 2), synthetic(nn.Linear(3, 2), count=2)), "neither BatchNorm nor LayerNorm"),
        (lambda: inverted(net(), synthetic(net(), count=2, image_size=24), steps=0), "steps"),
        (lambda: inverted(nn.Embedding(9, 2), synthetic(nn.Embedding(9, 2), count=2)), "one tensor of floats"),
    ],
)
def test_what_cannot_be_matched_says_so(call, said):
    with pytest.raises(ValueError, match=said):
        call()
