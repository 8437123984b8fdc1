"""One suite over every kind of layer, live: reading and writing, full-rank splits, and nothing silently left out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import spectrim
from spectrim import factored
from spectrim.factored import Pair, Parts, describe, load, restructure
from spectrim.linalg import svd
from spectrim.modules import of_module
from spectrim.sites import Inventory, row_parts

# A full-rank split is exact but for the rounding of its two factors to the stored dtype, one more than the layer itself
# had: 1e-5 is asked of float32; the half types have 2**-11 and 2**-8 a rounding, and a few add up.
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fill(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter values of its own: biases and norms too, so that a lost one is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator) + (0.1 if p.ndim < 2 else 0.0))
    return model


class Run(nn.Module):
    """A layer inside a model, called the way its users call it."""

    def __init__(self, layer: nn.Module, call: Callable | None = None, config: dict | None = None):
        super().__init__()
        self.layer = layer
        self.call = call
        if config is not None:
            self.config = Config(config)

    def forward(self, *inputs):
        return self.layer(*inputs) if self.call is None else self.call(self.layer, *inputs)


class Config:
    def __init__(self, values: dict):
        self.values = values

    def to_dict(self) -> dict:
        return self.values


class FusedAttention(nn.Module):
    """As timm keeps it: one linear layer for q, k and v, the number of heads beside it."""

    def __init__(self, dim: int = 24, heads: int = 4):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Tied(nn.Module):
    def __init__(self, head_first: bool = False):
        super().__init__()
        if head_first:
            self.lm_head = nn.Linear(16, 40, bias=False)
        self.embed = nn.Embedding(40, 16)
        self.fc = nn.Linear(16, 16)
        if not head_first:
            self.lm_head = nn.Linear(16, 40, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.fc(self.embed(tokens))))


class Shared(nn.Module):
    """Two layers with one weight, each with a bias of its own, and one module registered twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
        self.b.weight = self.a.weight
        self.c = nn.Linear(12, 12)
        self.again = self.c

    def forward(self, x):
        return self.again(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


class Scaled(nn.Linear):
    """A subclass that computes something else with its weight."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


class SamePad(nn.Conv2d):
    """As in several image libraries: the padding is worked out from the input."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Activated(nn.Sequential):
    """Looks like a narrow pair of layers, and has an activation between."""

    def forward(self, x):
        return self[1](torch.tanh(self[0](x)))


def gpt2_conv1d(cols: int, rows: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(rows, cols)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=30, n_positions=12, attn_pdrop=0.0))


def first(layer, *inputs):
    return layer(*inputs)[0]


def mha(layer, *inputs):
    query, key, value = inputs if len(inputs) == 3 else inputs * 3
    return layer(query, key, value, need_weights=True)


def gates(name: str, labels: str, hidden: int, cols: int, kind: str) -> dict:
    return {f"layer.{name}[{label}]": (kind, hidden, cols) for label in labels}


@dataclass
class Case:
    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    sites: dict[str, tuple[str, int, int]]  # name -> kind, rows, cols
    fused: str = "split"
    whole: dict[str, str] = field(default_factory=dict)  # sites that cannot be split -> a word of the reason
    skipped: dict[str, str] = field(default_factory=dict)  # tensors that are no sites (vectors aside) -> kind


def linear(bias: bool, dtype: torch.dtype) -> Case:
    return Case(
        lambda: Run(nn.Linear(20, 12, bias=bias)).to(dtype),
        (rand(5, 20, dtype=dtype),),
        {"layer": ("linear", 12, 20)},
    )


def conv(cols: int, *args, rows: int = 10, inputs: int = 6, **kwargs) -> Case:
    return Case(
        lambda: Run(nn.Conv2d(inputs, rows, *args, **kwargs)),
        (rand(2, inputs, 11, 9),),
        {"layer": ("conv2d", rows, cols)},
    )


def qkv(fused: str, sites: dict) -> Case:
    sites = {f"layer.qkv{label}": ("linear", *shape) for label, shape in sites.items()}
    return Case(
        lambda: Run(FusedAttention()), (rand(2, 5, 24),), sites | {"layer.proj": ("linear", 24, 24)}, fused=fused
    )


def encoder(train: bool) -> Case:
    def build():
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        return Run(layer)

    sites = {f"layer.self_attn.in_proj_weight[{x}]": ("attention", 16, 16) for x in "qkv"}
    sites |= {"layer.self_attn.out_proj": ("linear", 16, 16)}
    sites |= {"layer.linear1": ("linear", 32, 16), "layer.linear2": ("linear", 16, 32)}
    case = Case(build, (rand(2, 5, 16),), sites)
    case.train = train
    return case


def grouped_query(head_dim: int, hidden: int) -> Case:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    sites = {"layer.qkv_proj[q]": ("linear", 4 * head_dim, hidden)}
    sites |= {f"layer.qkv_proj[{x}]": ("linear", 2 * head_dim, hidden) for x in "kv"}

    def build():
        return Run(nn.ModuleDict({"qkv_proj": nn.Linear(hidden, 8 * head_dim)}), lambda m, x: m["qkv_proj"](x), config)

    return Case(build, (rand(3, hidden),), sites)


def heads_of_groups() -> Case:
    case = grouped_query(8, 30)
    case.fused = "heads"
    counts = {"q": 4, "k": 2, "v": 2}
    case.sites = {f"layer.qkv_proj[{x}.{h}]": ("linear", 8, 30) for x, n in counts.items() for h in range(n)}
    return case


CASES = {
    **{
        f"linear-{str(dtype)[6:]}-{'bias' if bias else 'plain'}": linear(bias, dtype)
        for dtype in CLOSE
        for bias in (True, False)
    },
    "conv": conv(54, 3),
    "conv-no-bias": conv(54, 3, bias=False),
    "conv-stride-padding": conv(54, 3, stride=2, padding=1),
    "conv-same": conv(54, 3, padding="same"),
    "conv-same-dilated": conv(54, 3, padding="same", dilation=2),
    "conv-valid": conv(54, 3, padding="valid"),
    "conv-reflect": conv(54, 3, padding=1, padding_mode="reflect"),
    "conv-circular-rectangular": conv(72, (3, 4), padding=(1, 2), padding_mode="circular"),
    "conv-dilation": conv(54, 3, dilation=(2, 1)),
    "conv-rectangular": conv(30, (1, 5), stride=(2, 3)),
    "conv-1x1": conv(6, 1),
    "conv-one-channel": conv(9, 3, inputs=1),
    "conv-groups": Case(
        lambda: Run(nn.Conv2d(8, 12, 3, groups=4, padding=1, stride=2)),
        (rand(2, 8, 7, 7),),
        {f"layer[{g}]": ("conv2d", 3, 18) for g in range(4)},
    ),
    "conv-groups-3": Case(  # three groups are not q, k and v
        lambda: Run(nn.Conv2d(6, 9, 3, groups=3, bias=False)),
        (rand(2, 6, 7, 7),),
        {f"layer[{g}]": ("conv2d", 3, 18) for g in range(3)},
    ),
    "conv-depthwise": Case(
        lambda: Run(nn.Conv2d(8, 16, 3, groups=8)), (rand(2, 8, 7, 7),), {}, skipped={"layer": "depthwise"}
    ),
    "conv-unbatched": Case(
        lambda: Run(nn.Conv2d(8, 12, 3, groups=4)),
        (rand(8, 7, 7),),
        {f"layer[{g}]": ("conv2d", 3, 18) for g in range(4)},
    ),
    "conv1d-gpt2": Case(lambda: Run(gpt2_conv1d(10, 14)), (rand(3, 10),), {"layer": ("conv1d", 14, 10)}),
    "conv1d-gpt2-square": Case(lambda: Run(gpt2_conv1d(10, 10)), (rand(3, 10),), {"layer": ("conv1d", 10, 10)}),
    "gpt2": Case(
        lambda: Run(gpt2(), first),
        (torch.arange(10)[None],),
        {f"layer.h.0.attn.c_attn[{x}]": ("conv1d", 16, 16) for x in "qkv"}
        | {"layer.h.0.attn.c_proj": ("conv1d", 16, 16)}
        | {"layer.h.0.mlp.c_fc": ("conv1d", 64, 16), "layer.h.0.mlp.c_proj": ("conv1d", 16, 64)},
        skipped={"layer.wte.weight": "embedding", "layer.wpe.weight": "embedding"},
    ),
    "mha": Case(
        lambda: Run(nn.MultiheadAttention(16, 4, batch_first=True), mha),
        (rand(2, 5, 16),),
        {f"layer.in_proj_weight[{x}]": ("attention", 16, 16) for x in "qkv"} | {"layer.out_proj": ("linear", 16, 16)},
    ),
    "mha-whole": Case(
        lambda: Run(nn.MultiheadAttention(16, 4, bias=False), mha),
        (rand(2, 5, 16),),
        {"layer.in_proj_weight": ("attention", 48, 16), "layer.out_proj": ("linear", 16, 16)},
        fused="whole",
    ),
    "mha-heads": Case(
        lambda: Run(nn.MultiheadAttention(16, 4), mha),
        (rand(2, 5, 16),),
        {f"layer.in_proj_weight[{x}.{h}]": ("attention", 4, 16) for x in "qkv" for h in range(4)}
        | {"layer.out_proj": ("linear", 16, 16)},
        fused="heads",
    ),
    "mha-kdim-vdim": Case(
        lambda: Run(nn.MultiheadAttention(16, 4, kdim=10, vdim=12, add_bias_kv=True, batch_first=True), mha),
        (rand(2, 5, 16), rand(2, 6, 10, seed=1), rand(2, 6, 12, seed=2)),
        {
            "layer.q_proj_weight": ("attention", 16, 16),
            "layer.k_proj_weight": ("attention", 16, 10),
            "layer.v_proj_weight": ("attention", 16, 12),
            "layer.out_proj": ("linear", 16, 16),
        },
        skipped={"layer.bias_k": "other", "layer.bias_v": "other"},
    ),
    "qkv-split": qkv("split", {f"[{x}]": (24, 24) for x in "qkv"}),
    "qkv-whole": qkv("whole", {"": (72, 24)}),
    "qkv-heads": qkv("heads", {f"[{x}.{h}]": (6, 24) for x in "qkv" for h in range(4)}),
    "gqa": grouped_query(8, 30),
    "gqa-three-times": grouped_query(12, 32),  # its rows are three times its columns, and yet no equal thirds
    "gqa-heads": heads_of_groups(),
    "lstm": Case(
        lambda: Run(nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True), lambda m, x: m(x)),
        (rand(2, 5, 6),),
        {
            name: shape
            for layer, cols in ((0, 6), (1, 16))
            for end in ("", "_reverse")
            for name, shape in {
                **gates(f"weight_ih_l{layer}{end}", "ifgo", 8, cols, "lstm"),
                **gates(f"weight_hh_l{layer}{end}", "ifgo", 8, 8, "lstm"),
            }.items()
        },
    ),
    "lstm-proj": Case(
        lambda: Run(nn.LSTM(6, 8, proj_size=4, bias=False), lambda m, x: m(x)),
        (rand(5, 2, 6),),
        {
            **gates("weight_ih_l0", "ifgo", 8, 6, "lstm"),
            **gates("weight_hh_l0", "ifgo", 8, 4, "lstm"),
            "layer.weight_hr_l0": ("lstm", 4, 8),
        },
    ),
    "lstm-whole": Case(
        lambda: Run(nn.LSTM(6, 8), first),
        (rand(5, 2, 6),),
        {"layer.weight_ih_l0": ("lstm", 32, 6), "layer.weight_hh_l0": ("lstm", 32, 8)},
        fused="whole",
    ),
    "gru": Case(
        lambda: Run(nn.GRU(6, 8), lambda m, x: m(x)),
        (rand(5, 2, 6),),
        {**gates("weight_ih_l0", "rzn", 8, 6, "gru"), **gates("weight_hh_l0", "rzn", 8, 8, "gru")},
    ),
    "rnn": Case(
        lambda: Run(nn.RNN(6, 8), lambda m, x: m(x)),
        (rand(5, 2, 6),),
        {"layer.weight_ih_l0": ("rnn", 8, 6), "layer.weight_hh_l0": ("rnn", 8, 8)},
    ),
    "lstm-cell": Case(
        lambda: Run(nn.LSTMCell(6, 8), lambda m, x: m(x)),
        (rand(5, 6),),
        {**gates("weight_ih", "ifgo", 8, 6, "lstm"), **gates("weight_hh", "ifgo", 8, 8, "lstm")},
    ),
    "gru-cell": Case(
        lambda: Run(nn.GRUCell(6, 8)),
        (rand(5, 6),),
        {**gates("weight_ih", "rzn", 8, 6, "gru"), **gates("weight_hh", "rzn", 8, 8, "gru")},
    ),
    "encoder-eval": encoder(train=False),
    "encoder-train": encoder(train=True),
    "tied-embedding": Case(
        Tied,
        (torch.arange(7)[None],),
        {"fc": ("linear", 16, 16)},
        skipped={"embed.weight": "embedding", "lm_head": "tied"},
    ),
    "tied-embedding-head-first": Case(
        lambda: Tied(head_first=True),
        (torch.arange(7)[None],),
        {"fc": ("linear", 16, 16)},
        skipped={"lm_head": "tied"},
    ),
    "shared": Case(
        Shared,
        (rand(3, 12),),
        {"a": ("linear", 12, 12), "c": ("linear", 12, 12)},
        whole={"a": "shared"},
        skipped={"b": "tied"},
    ),
    "pair": Case(
        lambda: Run(nn.Sequential(nn.Linear(16, 5, bias=False), nn.Linear(5, 12))),
        (rand(3, 16),),
        {"layer": ("pair", 12, 16)},
    ),
    "pair-conv": Case(
        lambda: Run(nn.Sequential(nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), nn.Conv2d(5, 10, 1))),
        (rand(2, 6, 9, 9),),
        {"layer": ("pair", 10, 54)},
    ),
    "pair-with-bias-inside": Case(
        lambda: Run(nn.Sequential(nn.Linear(16, 5), nn.Linear(5, 12))),
        (rand(3, 16),),
        {"layer.0": ("linear", 5, 16), "layer.1": ("linear", 12, 5)},
    ),
    "pair-with-activation": Case(
        lambda: Run(Activated(nn.Linear(16, 5, bias=False), nn.Linear(5, 12))),
        (rand(3, 16),),
        {"layer.0": ("linear", 5, 16), "layer.1": ("linear", 12, 5)},
    ),
    "linear-of-its-own": Case(
        lambda: Run(Scaled(16, 12)), (rand(3, 16),), {"layer": ("linear", 12, 16)}, whole={"layer": "forward"}
    ),
    "conv-of-its-own": Case(
        lambda: Run(SamePad(6, 10, 3)), (rand(2, 6, 9, 9),), {"layer": ("conv2d", 10, 54)}, whole={"layer": "forward"}
    ),
    "bare": Case(lambda: nn.Linear(16, 12), (rand(3, 16),), {"(model)": ("linear", 12, 16)}, whole={"(model)": "wrap"}),
    "bilinear": Case(
        lambda: Run(nn.Bilinear(6, 7, 8)), (rand(3, 6), rand(3, 7)), {}, skipped={"layer.weight": "other"}
    ),
    "conv1d": Case(lambda: Run(nn.Conv1d(6, 8, 3)), (rand(2, 6, 9),), {}, skipped={"layer.weight": "other"}),
    "conv3d": Case(lambda: Run(nn.Conv3d(4, 6, 2)), (rand(1, 4, 5, 5, 5),), {}, skipped={"layer.weight": "other"}),
    "transposed-conv": Case(
        lambda: Run(nn.ConvTranspose2d(6, 8, 3)), (rand(1, 6, 5, 5),), {}, skipped={"layer.weight": "other"}
    ),
}
LIVE = {name: case for name, case in CASES.items() if set(case.sites) - set(case.whole)}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # slower, no less right
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_split = pytest.mark.parametrize("case", LIVE.values(), ids=LIVE)


def made(case: Case) -> nn.Module:
    return fill(case.build()).train(getattr(case, "train", False))


def outputs(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """Every tensor that the model returns."""

    def flat(value):
        if isinstance(value, Tensor):
            return [value]
        return [t for piece in value for t in flat(piece)] if isinstance(value, tuple | list) else []

    found = flat(model(*inputs))
    assert found
    return found


def split_one_by_one(model: nn.Module, fused: str, rank: int | None = None) -> None:
    """Split every site through `Site.split`, the inventory taken anew after each: layers pass half-split states."""
    for name in [site.name for site in of_module(model, fused).sites if site.split]:
        site = next(site for site in of_module(model, fused).sites if site.name == name)
        factors = svd(site.get())
        site.split(*factors.truncate(min(rank or factors.rank, factors.rank)).split())


def split_by_layer(model: nn.Module, fused: str) -> None:
    layers: dict[int, list] = {}
    for site in of_module(model, fused).sites:
        if site.split:
            layers.setdefault(id(site.layer), []).append(site)
    for sites in layers.values():
        sites[0].layer.split({site.part: svd(site.get()).split() for site in sites})


def shapes(found: Inventory) -> dict[str, tuple[int, int]]:
    return {site.name: (site.rows, site.cols) for site in found.sites}


def assert_accounted(model: nn.Module, found: Inventory) -> None:
    """Every number of the model is in exactly one site or in exactly one skipped tensor."""
    stored = {id(p): p.numel() for p in model.parameters()}
    skipped = sum(torch.Size(s.shape).numel() for s in found.skipped if s.kind != "tied")
    tied_embedding = [s for s in found.skipped if s.reason == "the same tensor as an embedding"]
    skipped += sum(torch.Size(s.shape).numel() for s in tied_embedding)
    assert sum(site.params for site in found.sites) + skipped == sum(stored.values()) == found.params
    assert all(s.reason for s in found.skipped)
    names = [site.name for site in found.sites] + [s.name for s in found.skipped]
    assert len(names) == len(set(names))


def assert_same_outputs(before: list[Tensor], after: list[Tensor], tolerance: float) -> None:
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        old, new = old.detach().double(), new.detach().double()
        gap = torch.linalg.vector_norm(old - new) / torch.linalg.vector_norm(old)
        assert float(gap) <= tolerance, float(gap)


def tolerance(model: nn.Module) -> float:
    return CLOSE[next(model.parameters()).dtype]


@each
def test_names_kinds_shapes_and_reasons(case):
    model = made(case)
    found = of_module(model, case.fused)
    assert {s.name: (s.kind, s.rows, s.cols) for s in found.sites} == case.sites
    for site in found.sites:
        assert tuple(site.get().shape) == (site.rows, site.cols)
        assert (site.split is None) == (site.name in case.whole)
        assert case.whole.get(site.name, "") in site.note
        assert "noted" not in site.note
    assert {s.name: s.kind for s in found.skipped if len(s.shape) > 1} == case.skipped
    assert_accounted(model, found)


@each
def test_put_of_get_changes_nothing(case):
    model = made(case)
    before = copy.deepcopy(model.state_dict())
    kept = {name: id(p) for name, p in model.named_parameters()}
    for site in of_module(model, case.fused).sites:
        site.put(site.get())
        site.put(site.get().clone())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(p) for name, p in model.named_parameters()} == kept


@each
def test_put_writes_this_matrix_and_no_other(case):
    model = made(case)
    sites = of_module(model, case.fused).sites
    for changed in sites:
        before = {site.name: site.get().clone() for site in sites}
        new = before[changed.name].clone()
        new[0, -1] += 1
        if changed.pair_rank is not None:
            new = svd(new).truncate(changed.pair_rank).dense().to(new.dtype)
        changed.put(new)
        for site in sites:
            if site is not changed:
                assert torch.equal(site.get(), before[site.name])
            elif site.pair_rank is None:
                assert torch.equal(site.get(), new)
            else:
                assert torch.allclose(site.get(), new, atol=1e-5)
    with pytest.raises(ValueError, match="belongs here"):
        for site in sites:
            site.put(torch.zeros(site.cols + 1, site.rows))
        raise ValueError("no site: nothing belongs here") if not sites else AssertionError


@each_split
@pytest.mark.parametrize("how", ["one by one", "layer by layer"])
def test_full_rank_split_computes_the_same(case, how):
    model = made(case)
    found = of_module(model, case.fused)
    with torch.no_grad():
        before = outputs(model, case.inputs)
    split_one_by_one(model, case.fused) if how == "one by one" else split_by_layer(model, case.fused)
    with torch.no_grad():
        after = outputs(model, case.inputs)
    assert_same_outputs(before, after, tolerance(model))
    again = of_module(model, case.fused)
    assert shapes(again) == shapes(found)
    assert {s.name for s in again.sites if s.kind == "pair"} == set(case.sites) - set(case.whole)
    assert_accounted(model, again)
    for site in again.sites:
        if site.pair_rank is not None:
            assert site.pair_rank == min(site.rows, site.cols, site.pair_rank)
            assert site.params == site.pair_rank * (site.rows + site.cols)
    assert all(module.training == getattr(case, "train", False) for module in model.modules())


@each_split
def test_gradients_reach_every_factor(case):
    model = made(case).train()
    split_by_layer(model, case.fused)
    sum(out.double().square().sum() for out in outputs(model, case.inputs) if out.requires_grad).backward()
    assert list(model.parameters())
    for name, p in model.named_parameters():
        assert p.requires_grad
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    halves = [p for name, p in model.named_parameters() if p.ndim >= 2 and "bias_" not in name]
    assert any(bool(p.grad.any()) for p in halves)


@each_split
def test_frozen_layers_stay_frozen(case):
    model = made(case).requires_grad_(False)
    split_by_layer(model, case.fused)
    assert not any(p.requires_grad for p in model.parameters())


@each_split
def test_state_of_a_split_model_fills_a_fresh_one(case, tmp_path):
    model = made(case)
    split_one_by_one(model, case.fused, rank=3)
    with torch.no_grad():
        expected = outputs(model, case.inputs)
    splits = json.loads(json.dumps(describe(model)))
    fresh = restructure(made(case), splits)
    assert describe(fresh) == describe(model)
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(outputs(fresh, case.inputs), expected, strict=True))
    from safetensors.torch import save_model

    (tmp_path / "spectrim.json").write_text(json.dumps({"splits": splits}))
    save_model(model, str(tmp_path / "model.safetensors"))  # tied weights once
    loaded = load(made(case), tmp_path)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, case.inputs), expected, strict=True))
    (tmp_path / "spectrim.json").write_text(json.dumps({"splits": {}}))
    if splits:
        with pytest.raises((ValueError, RuntimeError), match=r"does not fit this model|size mismatch"):
            load(made(case), tmp_path)


@each_split
def test_a_split_model_is_split_again(case):
    model = made(case)
    split_by_layer(model, case.fused)
    names = shapes(of_module(model, case.fused))
    with torch.no_grad():
        full = outputs(model, case.inputs)
    dense = {site.name: site.get() for site in of_module(model, case.fused).sites}
    split_one_by_one(model, case.fused, rank=2)
    again = of_module(model, case.fused)
    assert shapes(again) == names
    for site in again.sites:
        if site.split:
            assert site.pair_rank == min(2, site.rows, site.cols)
            best = svd(dense[site.name]).truncate(site.pair_rank).dense()
            gap = torch.linalg.norm(site.get().double() - best) / torch.linalg.norm(best)
            assert float(gap) < max(10 * tolerance(model), 1e-5)
    with torch.no_grad():
        lower = outputs(model, case.inputs)
    assert [t.shape for t in lower] == [t.shape for t in full]
    assert_accounted(model, again)


@each_split
def test_putting_into_a_split_model_keeps_its_ranks(case):
    model = made(case)
    split_one_by_one(model, case.fused, rank=2)
    before = copy.deepcopy(model.state_dict())
    for site in of_module(model, case.fused).sites:
        site.put(site.get())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ranks = {site.name: site.pair_rank for site in of_module(model, case.fused).sites}
    for site in of_module(model, case.fused).sites:
        site.put(2 * site.get())
        if site.pair_rank is not None:
            assert site.pair_rank == ranks[site.name]


def test_the_fused_fast_path_of_an_encoder_sees_the_split(monkeypatch):
    """In eval without gradients torch reads the weights of the layer itself: a split must not be passed by."""
    called = []
    fast = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a, **k: called.append(1) or fast(*a, **k))
    case = CASES["encoder-eval"]
    model = made(case)
    with torch.no_grad():
        before = outputs(model, case.inputs)
    assert called
    split_one_by_one(model, "split", rank=3)
    with torch.no_grad():
        quick = outputs(model, case.inputs)
    slow = outputs(model.train(), case.inputs)
    assert_same_outputs(slow, quick, 1e-5)
    assert float((before[0] - quick[0]).abs().max()) > 1e-3


def test_a_module_registered_twice_is_replaced_in_both_places():
    model = fill(Shared())
    split_by_layer(model, "split")
    assert isinstance(model.c, Pair) and model.c is model.again
    assert isinstance(model.a, nn.Linear) and model.a.weight is model.b.weight


def test_whatever_hangs_on_weight_and_bias_still_finds_them():
    model = fill(FusedAttention())
    dense = copy.deepcopy(model)
    split_by_layer(model, "split")
    assert isinstance(model.qkv, Parts) and isinstance(model.proj, Pair)
    for module, old in ((model.qkv, dense.qkv), (model.proj, dense.proj)):
        assert torch.allclose(module.weight, old.weight, atol=1e-5)
        assert torch.equal(module.bias, old.bias)


def test_what_cannot_be_read_is_said():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8, device="meta")})
    model["a"].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    found = of_module(model)
    reasons = {s.name: s.reason for s in found.skipped}
    assert not found.sites
    assert "int8" in reasons["a"] and "meta device" in reasons["b"]
    normed = nn.ModuleDict({"n": nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))})
    found = of_module(normed)
    assert not found.sites and any("parametri" in s.reason for s in found.skipped)
    assert_accounted(normed, found)


def test_fused_must_be_a_known_word():
    with pytest.raises(ValueError, match="split, whole, heads"):
        of_module(FusedAttention(), "thirds")


@pytest.mark.parametrize(
    ("name", "rows", "cols", "config", "sizes", "doubt"),
    [
        ("attn.qkv", 72, 24, {}, [24, 24, 24], ""),
        ("attn.qkv_proj", 64, 24, {"num_attention_heads": 4, "num_key_value_heads": 2}, [32, 16, 16], ""),
        ("attn.qkv_proj", 60, 24, {}, [20, 20, 20], "thirds"),  # divisible by three, and nothing more is known
        ("attn.qkv", 64, 24, {}, [64], "head counts"),
        ("c_attn", 16 * 18, 16 * 16, {"n_head": 16, "multi_query": True}, [256, 16, 16], ""),
        ("attn.query_key_value", 72, 24, {"num_attention_heads": 4}, [72], "interleaved"),
        ("mlp.fc1", 72, 24, {}, [72], ""),
        ("qkvless", 72, 24, {}, [72], ""),
    ],
)
def test_blocks_of_a_fused_weight(name, rows, cols, config, sizes, doubt):
    parts, note = row_parts(name, rows, cols, "split", config)
    assert [part.rows for part in parts] == sizes
    assert doubt in note if doubt else not note


def test_heads_without_a_count_say_so():
    parts, note = row_parts("attn.qkv", 72, 24, "heads", {})
    assert [part.label for part in parts] == ["q", "k", "v"] and "number of heads" in note


@pytest.mark.parametrize("hang", ["forward hook", "pre-hook", "forward of its own"])
def test_what_hangs_on_a_module_is_not_lost_in_a_split(hang):
    model = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24))
    if hang == "forward hook":
        model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    elif hang == "pre-hook":
        model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        model[0].forward = lambda x: nn.functional.linear(x, model[0].weight)
    first, second = of_module(model).sites
    assert first.split is None and "hooks" in first.note and second.split is not None


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_model_is_saved_for_the_plain_one(wrap, tmp_path):
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30))
    wrapped = wrap(model)
    done = spectrim.trim(wrapped, spectrim.plan(spectrim.survey(wrapped), params=0.5), tmp_path / "out")
    assert len(done) == 2
    fresh = factored.load(nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 30)), tmp_path / "out")
    x = torch.randn(3, 40)
    torch.testing.assert_close(fresh(x), model(x))


def test_a_split_layer_still_tells_its_sizes():
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU())
    spectrim.trim(model, spectrim.plan(spectrim.survey(model), params=0.5))
    assert (model[0].in_features, model[0].out_features) == (40, 60)
    assert model[0].weight.shape == (60, 40) and model[0].bias.shape == (60,)
