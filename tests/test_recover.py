"""Bringing a cut model back: the error falls, zeros stay, nothing else moves, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import spectrim
from spectrim.calibrate import synthetic
from spectrim.modules import of_module
from spectrim.recover import recover
from spectrim.steps import smallest_to_zero

pytestmark = pytest.mark.usefixtures("one_thread")


class Layer(nn.Module):
    """A block with a norm, an attention and two linear layers; it is handed a mask and gives back a tuple."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, padding=None):
        y = self.norm(x)
        x = x + self.attend(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        return (x + self.drop(self.down(F.gelu(self.up(x)))),)


class Small(nn.Module):
    """Tokens, three blocks, a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids, attention_mask=None):
        x = self.words(input_ids)
        padding = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            (x,) = layer(x, padding=padding)
        return self.head(x)


def tokens(count: int = 6, seed: int = 0, padded: bool = True) -> list[dict]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        batch = {"input_ids": torch.randint(0, 50, (8, 12), generator=g)}
        if padded:
            lengths = torch.randint(4, 13, (8, 1), generator=g)
            batch["attention_mask"] = (torch.arange(12)[None] < lengths).long()
        found.append(batch)
    return found


def made(share: float = 0.5, seed: int = 0, build=Small, only=None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    dense = build().eval()
    cut = copy.deepcopy(dense)
    for site in of_module(cut).sites:
        if only is None or only(site.name):
            site.put(smallest_to_zero(site.get(), round(share * site.rows * site.cols)))
    return dense, cut


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {site.name: site.get() == 0 for site in of_module(model).sites}


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module, batches) -> float:
    told = [(a(**x), b(**x)) if isinstance(x, dict) else (a(x), b(x)) for x in batches]
    return sum(float((p - q).square().sum()) for p, q in told) / sum(float(q.square().sum()) for _, q in told)


def test_both_steps_bring_the_output_back_and_keep_every_zero():
    dense, cut = made()
    inputs, fresh = tokens(), tokens(seed=9)
    before, there = distance(cut, dense, fresh), zeros(cut)
    done = recover(cut, dense, inputs, steps=60)
    assert all(torch.equal(mask, zeros(cut)[name] & mask) for name, mask in there.items())
    assert [b.name for b in done.blocks] == ["layers.0", "layers.1", "layers.2"]
    assert all(b.held[1] < b.held[0] and b.seen[1] < b.seen[0] and not b.note for b in done.blocks)
    assert {f.name for f in done.fits} >= {"layers.0.attend.in_proj_weight[q]", "layers.2.down", "head"}
    assert all(f.after < f.before for f in done.fits if not f.note)
    # On inputs that it has never seen.
    assert distance(cut, dense, fresh) < 0.75 * before
    assert "3 blocks trained" in str(done) and done.to_dict()["blocks"][0]["name"] == "layers.0"


def test_each_step_alone_helps():
    inputs, fresh = tokens(), tokens(seed=9)
    for how in ({"fit": True, "train": False}, {"fit": False, "train": True, "steps": 60}):
        dense, cut = made()
        before = distance(cut, dense, fresh)
        done = recover(cut, dense, inputs, **how)
        assert bool(done.fits) is how["fit"] and bool(done.blocks) is how["train"]
        assert distance(cut, dense, fresh) < 0.9 * before


def test_the_fit_is_least_squares_on_the_inputs():
    dense, cut = made(build=lambda: nn.Sequential(nn.Linear(6, 3, bias=False)))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    mask = cut[0].weight == 0
    recover(cut, dense, x, train=False)
    want = dense[0].weight.detach().double()
    for i in range(3):
        kept = ~mask[i]
        aim = x.double() @ want[i]
        found = torch.linalg.lstsq(x[:, kept].double(), aim[:, None]).solution[:, 0]
        # The damping of the moments, 1 % of the mean square of an input, is all that is between them.
        torch.testing.assert_close(cut[0].weight[i, kept].double(), found, rtol=0.05, atol=0.02)
        error = (x.double() @ cut[0].weight[i].double() - aim).square().mean()
        assert error <= 1.01 * (x[:, kept].double() @ found - aim).square().mean() + 1e-4


def test_a_mask_that_loses_nothing_is_found_back():
    """Planted: two inputs are equal, so the entry of one of them can take over that of the other."""
    dense, cut = made(0.0, build=lambda: nn.Sequential(nn.Linear(4, 3, bias=False)))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    x[:, 3] = x[:, 0]
    with torch.no_grad():
        cut[0].weight[:, 3] = 0
    done = recover(cut, dense, x, train=False)
    torch.testing.assert_close(cut[0].weight[:, 0], dense[0].weight[:, 0] + dense[0].weight[:, 3], rtol=0.03, atol=0.01)
    assert done.fits[0].before > 0.05 and done.fits[0].after < 1e-3


def test_what_is_not_asked_for_does_not_move():
    dense, cut = made()
    state = {name: p.detach().clone() for name, p in cut.named_parameters()}
    dense_state = copy.deepcopy(dense.state_dict())
    recover(cut, dense, tokens(), steps=10, biases=False, only=lambda name: name.startswith("layers.1"))
    moved = {name for name, p in cut.named_parameters() if not torch.equal(p, state[name])}
    weights = ("attend.in_proj_weight", "attend.out_proj.weight", "up.weight", "down.weight")
    assert moved == {f"layers.1.{name}" for name in weights}
    assert all(torch.equal(p, dense_state[name]) for name, p in dense.state_dict().items())
    dense, cut = made()
    recover(cut, dense, tokens(), steps=10, fit=False)
    moved = {name for name, p in cut.named_parameters() if not torch.equal(p, state[name])}
    assert "layers.0.up.bias" in moved and not any("norm" in name or "words" in name for name in moved)
    assert "head.weight" not in moved
    dense, cut = made()
    recover(cut, dense, tokens(), steps=10, fit=False, norms=True)
    assert not torch.equal(cut.layers[0].norm.weight, state["layers.0.norm.weight"])


def test_modes_flags_gradients_hooks_and_generators_are_put_back():
    dense, cut = made()
    cut.train()
    cut.layers[1].eval()
    cut.head.weight.requires_grad_(False)
    cut.layers[0].up.weight.grad = torch.ones_like(cut.layers[0].up.weight)
    state, modes = torch.get_rng_state(), [m.training for m in cut.modules()]
    recover(cut, dense.train(), tokens(), steps=5)
    assert [m.training for m in cut.modules()] == modes and all(m.training for m in dense.modules())
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert not cut.head.weight.requires_grad and cut.layers[0].down.weight.requires_grad
    assert torch.equal(cut.layers[0].up.weight.grad, torch.ones_like(cut.layers[0].up.weight))
    assert cut.layers[0].down.weight.grad is None
    for model in (cut, dense):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_interrupt_leaves_zeros_and_no_hooks():
    dense, cut = made()
    there, seen = zeros(cut), []

    def stop(blocks):
        for name in blocks:
            seen.append(name)
            if len(seen) == 2:
                raise KeyboardInterrupt
            yield name

    with pytest.raises(KeyboardInterrupt):
        recover(cut, dense, tokens(), steps=5, progress=stop)
    assert seen == ["layers.0", "layers.1"]
    assert all(torch.equal(mask, zeros(cut)[name] & mask) for name, mask in there.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in cut.modules())
    assert all(p.requires_grad for p in cut.parameters())


def test_the_same_seed_gives_the_same_model():
    found = []
    for seed in (0, 0, 1):
        dense, cut = made()
        recover(cut, dense, tokens(), steps=5, seed=seed, fit=False)
        found.append(cut.layers[2].up.weight.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_padding_is_left_out():
    dense, cut = made()
    done = recover(cut, dense, tokens(), steps=5, fit=False)
    dense, other = made()
    changed = tokens()
    for batch in changed:  # padding that says something else
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])
    again = recover(other, dense, changed, steps=5, fit=False)
    assert done.blocks[0].held[0] == pytest.approx(again.blocks[0].held[0], rel=1e-4)
    for batch in changed:
        del batch["attention_mask"]
    unmasked = recover(made()[1], dense, changed, steps=5, fit=False)
    assert unmasked.blocks[0].held[0] != pytest.approx(done.blocks[0].held[0], rel=1e-3)


@pytest.mark.parametrize("aim", ["dense", "own"])
def test_a_block_is_taught_by_the_dense_one(aim):
    """The targets, by hand: what the dense block gives on the dense run, or on what the cut model hands it."""
    dense, cut = made()
    inputs = tokens(1, padded=False)  # one batch: trained on and looked at
    with torch.no_grad():
        x = y = dense.words(inputs[0]["input_ids"])
        for layer, other in zip(cut.layers, dense.layers, strict=True):
            wanted = other(y if aim == "dense" else x)[0]
            got = layer(x)[0]
            rows = wanted.reshape(-1, 16)
            error = float((got - wanted).square().mean() / (rows - rows.mean(0)).square().mean())
            x, y = got, other(y)[0]
    # Only the last block is trained, so that what comes before it is as above.
    done = recover(cut, dense, inputs, steps=5, fit=False, aim=aim, blocks=["layers.2"])
    assert done.blocks[0].held[0] == pytest.approx(error, rel=1e-4)
    assert done.blocks[0].held == done.blocks[0].seen


def test_a_training_that_does_not_help_is_undone():
    dense, cut = made(0.0)
    state = copy.deepcopy(cut.state_dict())
    done = recover(cut, dense, tokens(), steps=5)
    assert all(b.note.startswith("undone") for b in done.blocks) and "held-out error" in done.notes[0]
    assert all(torch.equal(p, state[name]) for name, p in cut.state_dict().items())


def test_a_plain_chain_is_one_block():
    dense, cut = made(0.6, build=plain)
    x = torch.randn(128, 12, generator=torch.Generator().manual_seed(3))
    fresh = [torch.randn(64, 12, generator=torch.Generator().manual_seed(4))]
    before = distance(cut, dense, fresh)
    done = recover(cut, dense, x, steps=80)
    assert [b.name for b in done.blocks] == [""] and "(model)" in str(done)
    assert distance(cut, dense, fresh) < 0.7 * before


def test_convolutions_and_pairs():
    def build():
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 6)),
        )

    torch.manual_seed(0)
    dense = build().eval()
    cut = copy.deepcopy(dense)
    spectrim.trim(cut, spectrim.plan(spectrim.survey(cut), params=0.6, gate=1))
    ranks = {site.name: site.pair_rank for site in of_module(cut).sites}
    assert any(rank for rank in ranks.values())
    statistics = cut[1][1].running_mean.clone()
    done = recover(cut, dense, torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), steps=40)
    assert ranks == {site.name: site.pair_rank for site in of_module(cut).sites}
    assert done.blocks[0].name == "0" and done.blocks[0].held[1] < done.blocks[0].held[0]
    assert torch.equal(cut[1][1].running_mean, statistics)


def test_noise_that_restates_norms_takes_the_statistics_of_the_dense_model():
    """A block runs by itself: both models are held at what the dense one's norms take from the batch, by hand here."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 6)),
    ).eval()
    dense[0][1].running_mean.uniform_(-1, 1)
    dense[0][1].running_var.uniform_(0.5, 2)
    noise = synthetic(dense, image_size=8, count=16)
    assert noise.recipe["norms"] == "batch"
    same = recover(copy.deepcopy(dense), dense, noise, steps=1, fit=False)
    assert all(b.held[0] < 1e-9 for b in same.blocks)  # float32: statistics taken, and the same ones given
    cut = copy.deepcopy(dense)
    with torch.no_grad():
        W = cut[0][0].weight
        W.masked_fill_(W.abs() < 0.1, 0)
        x = noise[0].batch
        a, b = dense[0][0](x), cut[0][0](x)
        mean, spread = a.mean((0, 2, 3), keepdim=True), (a.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        want, got = ((y - mean) / spread for y in (a, b))
        want, got = want.relu(), got.relu()
        rows = want.reshape(-1, want.shape[-1])  # the unit: mean squares about the mean over the last axis
        error = float((got - want).square().mean() / (rows - rows.mean(0)).square().mean())
    done = recover(cut, dense, noise, steps=1, fit=False, blocks=["0"])
    assert done.blocks[0].held[0] == pytest.approx(error, rel=1e-3)
    assert torch.equal(cut[0][1].running_mean, dense[0][1].running_mean)


def test_a_bias_that_was_corrected_is_left_to_the_training():
    dense, cut = made(build=plain)
    with torch.no_grad():
        cut[0].bias += 0.1
    fits = {f.name: f for f in recover(cut, dense, torch.randn(64, 12), train=False).fits}
    assert "its bias was corrected" in fits["0"].note and not fits["2"].note


def test_bfloat16_is_fitted_and_not_trained():
    dense, cut = made(build=plain)
    dense, cut = dense.bfloat16(), cut.bfloat16()
    state = copy.deepcopy(cut.state_dict())
    with pytest.raises(ValueError, match="bfloat16 weights are too coarse"):
        recover(cut, dense, torch.randn(64, 12))
    assert all(torch.equal(p, state[name]) for name, p in cut.state_dict().items())
    done = recover(cut, dense, torch.randn(64, 12), train=False)
    assert done.fits[0].after < done.fits[0].before


def test_bad_requests():
    dense, cut = made(build=plain)
    x = torch.randn(32, 12)
    for args, how, kind, why in (
        ((cut, cut, x), {}, ValueError, "share parameters"),
        ((cut, "dense", x), {}, TypeError, "live modules"),
        ((cut, dense, []), {}, ValueError, "holds no batch"),
        ((cut, dense, x), {"steps": 0}, ValueError, "steps is a count"),
        ((cut, dense, x), {"rate": 2}, ValueError, "rate is the share"),
        ((cut, dense, x), {"aim": "both"}, ValueError, "aim is"),
        ((cut, dense, x), {"blocks": ["layer"]}, ValueError, "layer is no module of both"),
        ((cut, dense, x[:, :5]), {}, ValueError, "does not run"),
        ((cut, dense, x), {"only": lambda name: False}, ValueError, "nothing is left to train"),
        ((cut, dense, x), {"only": "0"}, TypeError, "only is a function"),
    ):
        state = copy.deepcopy(cut.state_dict())
        with pytest.raises(kind, match=why):
            recover(*args, **how)
        assert all(torch.equal(p, state[name]) for name, p in cut.state_dict().items())
