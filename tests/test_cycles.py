"""The classical cycles: amounts by hand, the authors' loops as literal twins, a whole cycle as a slow one, refusals."""

from __future__ import annotations

import copy
import json
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectrim import onecycle
from spectrim.cycles import classical
from spectrim.decay import Decay, NoClosedForm, decayed
from spectrim.edges import Bema
from spectrim.linalg import svd
from spectrim.modules import of_module
from spectrim.onecycle import Classical, cut_on_grid, treat
from spectrim.planted import planted
from spectrim.spectrum import Spectrum

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = Decay(steps=30)


class Block(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.Module()
        self.attn.qkv, self.attn.proj, self.attn.num_heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, d = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).view(n, t, 3, self.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer of 48 dimensions, every part of it as in the large ones; signal planted in its matrices."""

    def __init__(self, d: int = 48, depth: int = 2):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(torch.zeros(1, 5, d))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, d, 4, 4)
        self.blocks = nn.ModuleList(Block(d, 4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 20)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


LAYERS = ["patch_embed.proj", *(f"blocks.{b}.{n}" for b in (0, 1) for n in ("attn.qkv", "attn.proj")), "head"]
TOKENS = ["cls_token", "pos_embed"]
LAYERS[3:3] = ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
LAYERS[7:7] = ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]


def vit(seed: int = 0, dtype: torch.dtype = torch.float64) -> ViT:
    model, rng = ViT(), np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            sides = (p.shape[0], p[0].numel()) if p.ndim > 1 and p.shape[0] > 1 else (1, p.numel())
            W = rng.normal(scale=0.02, size=sides)
            if min(sides) > 1:
                W = planted(*sides, np.array([0.5, 0.8, 1.5]), 0.03, generator=rng).W
            p.copy_(torch.from_numpy(W).view(p.shape))
    return model.to(dtype)


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach().flatten(1) for name in LAYERS}


# --- amounts: eq. 12 and 13


@pytest.mark.parametrize(
    ("mu", "gamma", "kept"),
    [
        (0, 1, {1: 0.939, 2: 0.880, 5: 0.720, 8: 0.581, 10: 0.500, 15: 0.334, 20: 0.213, 34: 0.046}),
        (0.3, 0.8855, {1: 0.970, 2: 0.928, 5: 0.786, 8: 0.648, 10: 0.564, 15: 0.385, 20: 0.251, 34: 0.056}),
        (0.74, 0.73, {1: 0.995, 2: 0.977, 5: 0.880, 8: 0.759, 10: 0.677, 15: 0.486, 20: 0.330, 34: 0.082}),
    ],
)
def test_what_is_kept_where_misfit_and_bulk_stay(mu, gamma, kept):
    """To all three digits, computed elsewhere from eq. 12 with rho_i = .06 1.02^i."""
    left, found = 1.0, {}
    for i in range(1, 35):
        left *= 1 - Classical().amount(i, mu, gamma)
        found[i] = left
    assert {i: round(found[i], 3) for i in kept} == pytest.approx(kept, abs=1e-9)


def test_the_amount_by_hand():
    # [(1 - .3) .8855]^(3/2) = .61985^1.5 = .61985 * sqrt(.61985) = .61985 * .787306 = .488012
    assert Classical().amount(1, 0.3, 0.8855) == pytest.approx(0.488012 * 0.0612, rel=1e-5)
    assert Classical.text().amount(3, 0.3, 0.8855) == pytest.approx(0.787306 * 0.06, rel=1e-5)
    assert Classical().amount(7, 1.0, 0.9) == 0 and Classical(rho=0.9, growth=2.0).amount(9, 0, 1) == 1
    assert Classical().unit(1, 0.3, 0.8855) == 3 and Classical().unit(3, 0.3, 0.8855) == pytest.approx(4 * 0.787306)


def raised_step_by_step(W: torch.Tensor, i: int, randomness: float, target: float) -> torch.Tensor:
    """The authors' loop: xi from 1e-5 i on, and at each step what lies below 4 [..] xi goes, and then below 3 xi."""
    W, xi = W.clone(), 1e-5 * i
    before = int(W.count_nonzero())
    while before - int(W.count_nonzero()) < target:
        for threshold in (4 * randomness * xi, 3 * xi):
            W *= W.abs() > threshold
        xi += 2e-5
    return W


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("i", [1, 4, 12])
@pytest.mark.parametrize("randomness", [0.2, 0.75, 0.9, 1.0])
def test_the_grid_is_the_authors_loop_and_the_order_statistic_within_one_step(i, randomness, dtype):
    W = 0.02 * torch.randn(64, 96, generator=torch.Generator().manual_seed(i), dtype=dtype)
    W[W.abs() < 1e-3] = 0
    zeros = int((W == 0).sum())
    unit = max(3.0, 4.0 * randomness)
    for target in (0.5, 7, 300, 2500):
        literal = raised_step_by_step(W, i, randomness, target)
        wanted = zeros + math.ceil(target)
        found = cut_on_grid(W, wanted, unit, (1e-5, 2e-5), i)
        assert torch.equal(found, literal)
        # Exactly as many as asked for need a threshold that is lower, by no more than a step of the grid.
        exact = treat_cut(W, wanted)
        assert int((exact == 0).sum()) == wanted <= int((literal == 0).sum())
        top, allowed = (float(W.abs()[cut == 0].max()) for cut in (exact, literal))
        assert top <= allowed <= max(top + unit * 2e-5, unit * 1e-5 * i) * (1 + 1e-6)


def treat_cut(W: torch.Tensor, zeros: int) -> torch.Tensor:
    out = W.clone().view(-1)
    out[out.abs().sort(stable=True).indices[:zeros]] = 0
    return out.view(W.shape)


# --- a whole cycle against a slow one


def literal_cycle(model: nn.Module, settings: Classical, i: int, grid: bool) -> dict[str, tuple[float, float]]:
    """A cycle of the authors' script over the layers of `ViT`: full SVD, loops over vectors, loop over thresholds.

    With `grid` everything as there, the loss of all parameters included; without, the exact order statistic, and the
    decay of the pruned matrices alone at full strength. Returns mu and gamma by layer.
    """
    metrics, rho = {}, settings.rho * settings.growth**i
    for name in LAYERS:
        layer = model.get_submodule(name)
        W = layer.weight.detach().flatten(1).numpy().copy()
        nnz = np.count_nonzero(W) + int(layer.bias.count_nonzero())
        U, s, Vh = np.linalg.svd(W, full_matrices=False)
        fit = settings.edge(Spectrum(s, *W.shape))
        mu, gamma = fit.misfit, float(np.mean(s <= fit.edge))
        metrics[name] = mu, gamma
        if i % 2 == 0:
            theta = 750 * 1.5e-8 * rho * W.size
            for k in range(len(s)):
                T = theta * max(1 / 750, max(0.0, 1 - s[k] / fit.edge) ** 30)
                U[np.abs(U[:, k]) <= T, k] = 0
                Vh[k, np.abs(Vh[k]) <= T] = 0
            W = (U * s) @ Vh
        target, bias = rho * ((1 - mu) * gamma) ** (1.5 / i) * nnz, int(layer.bias.count_nonzero())
        if grid:
            xi = 1e-5 * i
            removed = 0
            while removed < target:
                for threshold in (4 * ((1 - mu) * gamma) ** (1.5 / i) * xi, 3 * xi):
                    W[np.abs(W) <= threshold] = 0
                xi += 2e-5
                removed = nnz - np.count_nonzero(W) - bias
        else:
            for entry in np.argsort(np.abs(W).ravel(), kind="stable"):
                if nnz - np.count_nonzero(W) - bias >= target:
                    break
                W.ravel()[entry] = 0
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(W).view(layer.weight.shape))
    literal_decay(model, settings.decay_of(i), i, metrics, everything=grid)
    return metrics


def literal_decay(model: nn.Module, how: Decay, i: int, metrics: dict, everything: bool) -> None:
    strength = {name: 1 / (1 + 10000 * mu / i) for name, (mu, _) in metrics.items()}
    parameters = list(model.parameters()) if everything else [model.get_submodule(name).weight for name in LAYERS]
    adam = torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=how.steps)
    for _ in range(how.steps):
        model.zero_grad()
        loss = how.l1 * sum(p.abs().sum() for p in parameters) + how.l2 * sum(p.pow(2).sum() for p in parameters)
        layers = [(s, p) for name, s in strength.items() for p in model.get_submodule(name).parameters()]
        if everything:
            loss = loss + sum(s / 1e6 * p.pow(2).sum().sqrt() for s, p in layers)
        loss.backward()
        for s, p in layers:
            if everything:
                p.grad *= s
        for p in parameters:
            p.grad *= p.detach() != 0
        adam.step()
        cosine.step()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("variant", ["as executed", "as executed, step by step", "default"])
def test_a_whole_cycle_is_the_slow_one(variant):
    """Four cycles (step by step two), every other with vectors: the same zeros, and weights within 1e-4 of a decay."""
    script = Classical.as_executed(loop="step" in variant)
    settings = {"default": Classical(decay=SHORT, more_steps=10)}.get(
        variant, onecycle.replace(script, decay=SHORT, more_steps=10, rounded=False)
    )
    model, twin = vit(), vit()
    for cycle in classical(model, settings, cycles=2 if "step by step" in variant else 4):
        metrics = literal_cycle(twin, settings, cycle.number, grid=variant != "default")
        for name, W in matrices(twin).items():
            found = matrices(model)[name]
            assert torch.equal(found == 0, W == 0), name
            assert cycle.misfits[name] == pytest.approx(metrics[name][0], abs=1e-7)
            assert cycle.bulk_shares[name] == pytest.approx(metrics[name][1], abs=1e-12)
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            # Thirty steps move a weight by 7.7e-7 at most.
            torch.testing.assert_close(p, q, atol=1e-10, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        assert [change.name for change in cycle.changes] == list(matrices(model))
        assert [change.zeros for change in cycle.changes] == [int((W == 0).sum()) for W in matrices(model).values()]
        assert list(cycle.kept) == TOKENS
    assert cycle.share > 0.08


def test_every_matrix_loses_what_the_equation_says():
    model = vit(1, torch.float32)
    zeros = dict.fromkeys(LAYERS, 0)
    for cycle in classical(model, Classical(decay=None), cycles=5):
        for change in cycle.changes:
            layer = model.get_submodule(change.name)
            nnz = layer.weight.numel() - zeros[change.name] + int(layer.bias.count_nonzero())
            mu, gamma = cycle.misfits[change.name], cycle.bulk_shares[change.name]
            target = ((1 - mu) * gamma) ** (1.5 / cycle.number) * 0.06 * 1.02**cycle.number * nnz
            zeros[change.name] += math.ceil(target)
            assert change.zeros == zeros[change.name] == int((layer.weight == 0).sum())
        assert cycle.zeros == sum(zeros.values())
        assert cycle.entries == sum(W.numel() for W in matrices(model).values())
        assert cycle.params - cycle.nonzeros == cycle.zeros
        assert set(cycle.seconds) == {"reading", "vectors", "pruning", "decay"} and cycle.elapsed > 0
        assert str(cycle).count("\n") == len(LAYERS + TOKENS) and f"cycle {cycle.number}: {cycle.zeros} of" in str(
            cycle
        )


def test_zeros_come_back_with_the_vectors_and_only_then():
    large = Classical(decay=None, scale=0.1)  # so that eq. 11 is felt in matrices of this size
    model = vit(2)
    returned, before = [], {}
    for cycle in classical(model, large, cycles=6):
        now = {name: W == 0 for name, W in matrices(model).items()}
        if before:
            back = sum(int((before[name] & ~now[name]).sum()) for name in now)
            assert cycle.returned == back
            returned.append(back)
        before = now
    assert all(returned[0::2]) and not any(returned[1::2])  # cycles 2, 4, 6 and 3, 5
    model = vit(2)
    before = None
    for cycle in classical(model, onecycle.replace(large, refill=False), cycles=6):
        now = {name: W == 0 for name, W in matrices(model).items()}
        assert cycle.returned == 0 and (before is None or all((now[n] | ~before[n]).all() for n in now))
        before = now


# --- what is touched, and what is not


def test_only_the_matrices_change_unless_all_parameters_decay():
    for settings, everything in (
        (Classical(decay=SHORT), False),
        (Classical.text(), False),
        (Classical.as_executed(), True),
    ):
        model = vit(3, torch.float32)
        before = copy.deepcopy(model.state_dict())
        objects = [id(p) for p in model.parameters()]
        list(classical(model, settings, cycles=1))
        assert objects == [id(p) for p in model.parameters()]
        pruned = {f"{name}.weight" for name in LAYERS}
        for name, p in model.named_parameters():
            changed = not torch.equal(p, before[name])
            assert changed or name not in pruned
            if name not in pruned:
                assert changed is everything, name
                assert (p.abs() <= before[name].abs()).all()
        assert model(torch.randn(2, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_whose_lasso_has_no_closed_form_takes_the_steps(dtype):
    """Three judged layers with biases of a few shifts: there the cycle in one pass and the loop are the same."""
    settings = onecycle.replace(Classical.as_executed(), decay=Decay(steps=30, lr=1e-6, lasso=0.1))
    small = ("head", "blocks.0.mlp.fc1", "blocks.1.attn.proj")
    models, made = (vit(14, dtype), vit(14, dtype)), []
    for model, how in zip(models, (settings, onecycle.replace(settings, rounded=False, loop=True)), strict=True):
        for name in small:
            bias = model.get_submodule(name).bias.data
            bias.copy_(torch.linspace(1, 4, len(bias)) * 2e-5)
        made.extend(classical(model, how, cycles=1))
    passed, stepped = ({name: p.detach() for name, p in model.named_parameters()} for model in models)
    s = settings.strength_of(1, made[0].misfits["head"])
    with pytest.raises(NoClosedForm):
        decayed(vit(14, dtype).head.bias.detach().new_tensor(np.linspace(1, 4, 20) * 2e-5), settings.decay, s)
    for name in small:
        assert torch.equal(passed[f"{name}.bias"], stepped[f"{name}.bias"]) and stepped[f"{name}.bias"].any()
    assert made[0].zeros == made[1].zeros


def test_what_only_refuses_is_not_touched_at_all():
    model = vit(4)
    before = copy.deepcopy(model.state_dict())
    settings = onecycle.replace(Classical.as_executed(), decay=SHORT)
    (cycle,) = classical(model, settings, cycles=1, only=lambda name: "mlp" in name)
    assert [change.name for change in cycle.changes] == [name for name in LAYERS if "mlp" in name]
    for name, p in model.named_parameters():
        refused = name.rpartition(".")[0] in LAYERS and "mlp" not in name
        assert torch.equal(p, before[name]) is refused, name


def test_fused_projections_as_one_matrix_or_as_three():
    whole, split = vit(5), vit(5)
    (one,) = classical(whole, Classical(decay=None), cycles=1)
    (three,) = classical(split, Classical(decay=None, fused="split"), cycles=1)
    names = [change.name for change in three.changes]
    assert "blocks.0.attn.qkv" in one.misfits and "blocks.0.attn.qkv[k]" in names and len(names) == len(LAYERS) + 4
    qkv = split.blocks[0].attn.qkv
    for part, letter in enumerate("qkv"):
        name, rows = f"blocks.0.attn.qkv[{letter}]", slice(48 * part, 48 * part + 48)
        nnz = 48 * 48 + int(qkv.bias[rows].count_nonzero())
        goal = math.ceil(Classical().amount(1, three.misfits[name], three.bulk_shares[name]) * nnz)
        assert int((qkv.weight[rows] == 0).sum()) == goal
    assert not torch.equal(whole.blocks[0].attn.qkv.weight, qkv.weight)
    assert torch.equal(whole.head.weight, split.head.weight)


class Zoo(nn.Module):
    """Every kind of layer, and what cannot be pruned."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 24)
        self.attention = nn.MultiheadAttention(24, 2)
        self.gates = nn.LSTM(24, 24)
        self.grouped = nn.Conv2d(24, 24, 3, groups=2)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.tiny = nn.Linear(24, 4)
        self.empty = nn.Linear(24, 24)
        self.bare = nn.Linear(24, 36, bias=False)
        self.pair = nn.Linear(24, 30)
        self.same = self.bare


def test_every_kind_of_layer():
    model = Zoo()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1, generator=generator)
        model.empty.weight.zero_()
    (site,) = (site for site in of_module(model).sites if site.name == "pair")
    site.split(*svd(site.get()).truncate(4).split())
    before = copy.deepcopy(model.state_dict())
    for cycle in classical(model, Classical(decay=None), cycles=2):
        assert set(cycle.kept) == {"depthwise", "tiny", "empty", "pair"}
    assert "all zero" in cycle.kept["empty"] and "takes no zeros" in cycle.kept["pair"]
    assert [c.name for c in cycle.changes] == [
        *("attention.in_proj_weight", "attention.out_proj", "gates.weight_ih_l0", "gates.weight_hh_l0"),
        *("grouped[0]", "grouped[1]", "bare"),
    ]
    for name, p in model.state_dict().items():
        pruned = any(name.startswith(c.name.partition("[")[0]) and "weight" in name for c in cycle.changes)
        assert ((p == 0).any() and not torch.equal(p, before[name])) == (pruned or name.startswith("same")) or (
            name == "empty.weight"
        )
    assert cycle.zeros == sum(
        int((p == 0).sum()) for name, p in model.named_parameters() if name != "empty.weight" and p.ndim > 1
    )
    # And a decay of everything reaches all of it once: the embedding, the halves of the pair, the biases of the gates.
    settings = Classical(everything=True, strength=1e4)
    (cycle,) = classical(model, onecycle.replace(settings, decay=Decay(steps=100, lr=1e-6)), cycles=1)
    reach = Decay(steps=100, lr=1e-6).reach
    for name in ("words.weight", "pair.0.weight", "tiny.bias", "depthwise.weight"):
        moved = (before[name].abs() - model.state_dict()[name].abs()).max()
        assert float(moved) == pytest.approx(reach, rel=0.05), name
    # A judged layer's bias moves at the layer's strength, far less.
    moved = (before["attention.in_proj_bias"].abs() - model.state_dict()["attention.in_proj_bias"].abs()).max()
    assert 0 < float(moved) < 0.5 * reach


# --- a generator


def test_it_stops_when_told_and_goes_on_where_it_was():
    model, straight = vit(6), vit(6)
    settings = Classical(decay=SHORT)
    last = None
    for cycle in classical(model, settings):
        last = cycle
        if cycle.number == 2:
            break
    later = list(classical(model, settings, first=3, cycles=2))
    whole = list(classical(straight, settings, cycles=4))
    assert [c.number for c in (last, *later)] == [2, 3, 4] and len(whole) == 4
    for p, q in zip(model.parameters(), straight.parameters(), strict=True):
        assert torch.equal(p, q)


def test_nothing_happens_before_the_first_turn_and_nothing_leaks_between_turns():
    model = vit(7)
    before = copy.deepcopy(model.state_dict())
    turns = classical(model, Classical(decay=SHORT), cycles=2)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    next(turns)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    model(torch.randn(1, 3, 8, 8, dtype=torch.float64)).sum().backward()  # a step of one's own between cycles
    assert model.head.weight.grad is not None
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert next(turns).number == 2 and next(turns, None) is None


def test_the_default_number_of_cycles_is_that_of_the_script():
    model = nn.Sequential(nn.Linear(12, 14))
    assert [c.number for c in classical(model, Classical(decay=None, every=0))] == list(range(1, 35))


def test_several_threads_come_to_the_same():
    one, two = vit(8), vit(8)
    list(classical(one, Classical(decay=SHORT), cycles=2))
    torch.set_num_threads(3)
    try:
        seen = []

        def progress(sites):
            for site in sites:
                seen.append(site.name)
                yield site

        cycles = list(classical(two, Classical(decay=SHORT), cycles=2, progress=progress))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert seen == LAYERS * 2 and [c.name for c in cycles[1].changes] == LAYERS
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p == 0, q == 0)
        torch.testing.assert_close(p, q, atol=1e-12, rtol=0)


def test_one_matrix_in_factors_at_a_time(monkeypatch):
    alive: list[weakref.ref] = []
    counts = []

    def watched(W, k):
        counts.append(sum(ref() is not None for ref in alive))
        found = leading(W, k)
        alive.extend(map(weakref.ref, (found.U, found.Vh)))
        return found

    leading = onecycle.leading
    monkeypatch.setattr(onecycle, "leading", watched)
    list(classical(vit(9), Classical(decay=None), cycles=2))
    assert counts == [0] * len(LAYERS)


def test_text_and_script_differ_where_they_say():
    text, script = Classical.text(), Classical.as_executed()
    assert text.share(9) == 0.06 and script.share(9) == pytest.approx(0.06 * 1.02**9)
    assert [text.decay_of(i).steps for i in (1, 2, 8, 9, 30)] == [5, 10, 40, 40, 40]
    assert [script.decay_of(i).steps for i in (1, 2, 30)] == [5000, 6000, 34000]
    assert text.decay_of(1).shift() == pytest.approx(script.decay_of(1).reach, rel=1e-3)
    assert text.strength_of(1, 0.3) is None and script.strength_of(2, 0.3) == pytest.approx(1 / 1501)
    assert script.edge == Bema(0.25, 0.8, "authors") and text.edge == Bema(0.25, 0.8)
    assert eval(repr(script)) == script


# --- refusals


def test_what_cannot_be_pruned_is_refused_at_once():
    class Sharded(nn.Parameter):
        placements = ()

    sharded = nn.Sequential(nn.Linear(12, 12))
    sharded[0].weight = Sharded(torch.zeros(12, 12))
    half = vit(0, torch.bfloat16)
    compiled = nn.Sequential(nn.ReLU())
    compiled._orig_mod = vit()  # what torch.compile makes
    for call, error, message in (
        (lambda: classical({}), TypeError, "live module"),
        (lambda: classical(nn.Sequential(nn.ReLU())), ValueError, "no linear or convolutional layer"),
        (lambda: classical(vit(), only=lambda name: False), ValueError, "only= lets none"),
        (lambda: classical(vit(), only="head"), TypeError, "only is a function"),
        (lambda: classical(vit(), SHORT), TypeError, "settings are a Classical"),
        (lambda: classical(vit(), cycles=-1), ValueError, "cycles is a count"),
        (lambda: classical(vit(), first=0), ValueError, "numbered from 1"),
        (lambda: classical(compiled), ValueError, "compiled"),
        (lambda: classical(nn.DataParallel(vit())), ValueError, "its .module"),
        (lambda: classical(sharded), ValueError, "DTensor"),
        (lambda: classical(half, Classical.as_executed()), ValueError, "model.float()"),
        (lambda: classical(vit(), Classical(decay=Decay(l1=0.0))), ValueError, "no closed form"),
        (lambda: classical(nn.Sequential(nn.LazyLinear(4))), ValueError, "lazy"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_a_weight_that_is_not_finite_stops_the_cycle_before_it_changes_anything():
    model = vit(10)
    turns = classical(model, Classical(decay=SHORT))
    next(turns)
    with torch.no_grad():
        model.head.weight[3, 4] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="cycle 2: head hold NaN"):
        next(turns)
    assert all(torch.equal(torch.nan_to_num(p), torch.nan_to_num(before[n])) for n, p in model.state_dict().items())


def test_an_estimator_without_a_verdict_leaves_the_matrix_alone():
    def refuses(spectrum):
        if spectrum.p < 30:
            raise ValueError("too small for me")
        return Bema()(spectrum)

    model = vit(11)
    (cycle,) = classical(model, Classical(decay=SHORT, edge=refuses), cycles=1)
    assert list(cycle.kept) == [*TOKENS, "head"] and cycle.kept["head"] == "too small for me"
    assert not (model.head.weight == 0).any()
    # Where most values are spikes there is an edge, and no misfit that an amount could go by.
    settings = Classical(decay=SHORT, edge=lambda spectrum: onecycle.replace(Bema()(spectrum), misfit=None))
    (cycle,) = classical(model, settings, cycles=1)
    assert set(LAYERS) < set(cycle.kept) and not cycle.changes and cycle.share == 0


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"rho": 1.5}, ValueError),
        ({"growth": 0}, ValueError),
        ({"exponent": math.inf}, ValueError),
        ({"every": -1}, ValueError),
        ({"more_steps": 0.5}, ValueError),
        ({"grid": (1e-5, 0)}, ValueError),
        ({"factors": (0, 4)}, ValueError),
        ({"edge": Bema}, TypeError),
        ({"strength": -1}, ValueError),
        ({"fused": "thirds"}, ValueError),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, error):
    with pytest.raises(error):
        Classical(**wrong)


def test_sixteen_bits_are_pruned_as_exactly():
    model = vit(12, torch.bfloat16)
    (cycle,) = classical(model, cycles=1)
    for change in cycle.changes:
        layer = model.get_submodule(change.name)
        assert layer.weight.dtype == torch.bfloat16 and change.zeros == int((layer.weight == 0).sum())
        amount = Classical().amount(1, cycle.misfits[change.name], cycle.bulk_shares[change.name])
        assert change.zeros >= math.ceil(amount * (layer.weight.numel() + layer.bias.numel()))


def test_a_matrix_is_not_changed_by_being_treated():
    W = torch.randn(40, 60, generator=torch.Generator().manual_seed(13))
    before = W.clone()
    for cycle in (1, 2):
        found = treat(W, Classical(decay=SHORT), cycle)
        assert torch.equal(W, before) and found.W.shape == W.shape and found.W.dtype == W.dtype
        moved = torch.linalg.norm((found.W - W).double()) / torch.linalg.norm(W.double())
        assert found.moved == pytest.approx(float(moved), rel=1e-6)


def test_the_figures_of_the_page_are_those_of_the_benchmark():
    root = Path(__file__).parents[1]
    record = json.loads((root / "benchmarks/results/classical_cycle.json").read_text())
    page = (root / "docs/cycles.md").read_text()
    assert not record["quick"]
    for row in record["vectors"]:
        told = f"| {row['name']}, {row['rows']} x {row['cols']} | {row['theta']:.2g} | {row['floor']:.1e} | "
        assert (
            told + f"{row['risen']} of" in page
            and f"| {row['eq11']['moved']:.4f} | {row['free']['U']:.1%}".replace("%", " %") in page
        )
    for strength, row in record["float32"]["loop"].items():
        told = " | ".join(f"{x:.2f}" if x else "0" for x in row)
        assert f"| {float(strength):g}: {record['float32']['shift'][strength]:.1e} | {told} |" in page
    for number in ("1", "2"):
        assert f"{record['best_cpu'][number]:.0f}" in page and f"{record['best_elapsed'][number]:.0f}" in page
    assert f"{round(record['decay']['ratio'], -2):,.0f} times as long" in page
