"""Base and adapter: together they are the trimmed model, as PEFT adds them up and as two lines of torch do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim import adapter, survey
from spectrim.adapter import config, keys, of_weight, part, refusal
from spectrim.checkpoint import open_checkpoint
from spectrim.modules import of_module
from spectrim.names import layers_by_name
from spectrim.writing import write_tensors


def matrix(rows: int, cols: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (rows, cols))
    return (left @ right.T + torch.randn(rows, cols, generator=generator, dtype=torch.float64)).to(dtype)


def assert_adds_up(T: Tensor, base: Tensor, A: Tensor, B: Tensor) -> None:
    """Exactly computed, base + B A differs from T by the one rounding of the base."""
    gap, limits = (base.double() + B.double() @ A.double() - T.double()).abs(), torch.finfo(T.dtype)
    subnormal = limits.smallest_normal * limits.eps  # the step of the smallest numbers
    allowed = limits.eps / 2 * base.double().abs() * 1.001 + subnormal / 2 + 1e-13 * T.double().abs().max()
    assert (gap <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "cols", "r"), [(40, 30, 1), (30, 70, 7), (25, 25, 25)])
def test_a_base_and_its_pair_are_the_matrix(rows, cols, r, dtype):
    T = matrix(rows, cols, dtype=dtype)
    base, A, B = part(T, r)
    assert (base.shape, A.shape, B.shape) == ((rows, cols), (r, cols), (rows, r))
    assert {t.dtype for t in (base, A, B)} == {dtype} and all(t.is_contiguous() for t in (base, A, B))
    assert_adds_up(T, base, A, B)
    U, s, Vh = np.linalg.svd(T.double().numpy(), full_matrices=False)
    best = torch.from_numpy((U[:, :r] * s[:r]) @ Vh[:r])
    rounding = max(4 * torch.finfo(dtype).eps, 1e-7)
    assert torch.linalg.norm(B.double() @ A.double() - best) <= rounding * s[0] * r**0.5
    left = np.linalg.svd(base.double().numpy(), compute_uv=False)[0]
    assert left <= (s[r] if r < len(s) else 0) + 2 * rounding * s[0]  # nothing of the pair is in the base
    assert torch.allclose(B.double().norm(dim=0), A.double().norm(dim=1), rtol=0.02)  # sqrt(s) in each


def test_the_residual_is_that_of_the_factors_as_they_are_stored():
    T = matrix(60, 50, dtype=torch.bfloat16)
    base, A, B = part(T, 5)
    U, s, Vh = torch.linalg.svd(T.double(), full_matrices=False)
    naive = (T.double() - (U[:, :5] * s[:5]) @ Vh[:5]).bfloat16()  # of the factors before they are rounded
    errors = [float((b.double() + B.double() @ A.double() - T.double()).norm()) for b in (base, naive)]
    assert errors[0] < errors[1] / 2


def test_blocks_of_rows_make_no_difference(monkeypatch):
    T = matrix(90, 40, dtype=torch.float32)
    whole = part(T, 3)
    right = adapter.column_blocks
    monkeypatch.setattr(adapter, "column_blocks", lambda p, n: right(p, n, entries=7 * p))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, part(T, 3), strict=True))


@pytest.mark.parametrize("r", [0, 31])
def test_a_rank_that_the_matrix_has_not_is_refused(r):
    with pytest.raises(ValueError, match="40 x 30 matrix has 1 to 30 values"):
        part(matrix(40, 30), r)


def test_the_three_layers_are_stored_as_peft_stores_them():
    weight = matrix(24, 36, dtype=torch.float32)
    base, A, B = of_weight(weight.T.contiguous(), 4, transposed=True)
    assert base.shape == (36, 24) and base.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip((base.T, A, B), of_weight(weight, 4), strict=True))
    base, A, B = of_weight(weight.reshape(24, 4, 3, 3), 4)
    assert (base.shape, A.shape, B.shape) == ((24, 4, 3, 3), (4, 4, 3, 3), (24, 4, 1, 1))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = nn.functional.conv2d
    for how in ({"stride": 2, "padding": 1}, {"padding": 0}):
        both = conv(x, base, **how) + conv(conv(x, A, **how), B)
        assert torch.allclose(both, conv(x, weight.reshape(24, 4, 3, 3), **how), atol=1e-4)


def test_the_configuration_is_that_of_the_ranks():
    found = config({"a.fc": 3, "b.fc": 3, "c.fc": 5, "c.1x": 1}, others=["head"], base="org/name")
    assert (found["r"], found["lora_alpha"], found["base_model_name_or_path"]) == (3, 3, "org/name")
    assert found["rank_pattern"] == found["alpha_pattern"] == {r"^c\.fc": 5, r"^c\.1x": 1}
    assert found["target_modules"] == ["a.fc", "b.fc", "c.fc", "c.1x"]
    assert json.loads(json.dumps(found)) == found
    # A name that ends the name of a layer without a pair would put one there.
    assert config({"fc": 3, "a.fc": 2}, others=["b.fc", "fc"])["target_modules"] == r"fc|a\.fc"
    assert config({"fc": 3, "a.fc": 2}, others=["bfc"])["target_modules"] == ["fc", "a.fc"]
    for wrong in ({}, {"a": 0}, {"a": 2.0}, {"a": True}):
        with pytest.raises(ValueError, match=r"no layer takes an adapter|a whole number of 1 or more"):
            config(wrong)


class Conv1D(nn.Module):
    """GPT-2's linear layer, which keeps inputs x outputs."""

    def __init__(self, cols: int, rows: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(cols, rows)), nn.Parameter(torch.randn(rows))

    def forward(self, x):
        return x @ self.weight + self.bias


class Net(nn.Module):
    """Layers of every kind; `fc` ends the name of another that has no pair."""

    def __init__(self):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten()
        self.fc, self.inner = nn.Linear(128, 60), nn.ModuleDict({"fc": nn.Linear(60, 60), "qkv": nn.Linear(60, 180)})
        self.lstm, self.head = nn.LSTM(180, 20, batch_first=True), nn.Linear(20, 10, bias=False)

    def forward(self, x):
        x = self.fc(self.flat(self.conv(x))).relu()
        x = self.inner["qkv"](self.inner["fc"](x).relu()).relu()
        return self.head(self.lstm(x[:, None])[0][:, 0])


RANKS = {"conv": 3, "fc": 9, "inner.qkv": 5, "head": 5}


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def parted(model: nn.Module, ranks, folder, transposed=(), others=()) -> nn.Module:
    """The base of a model, its adapter written to `folder`, and the base as a file beside that."""
    base = copy.deepcopy(model)
    pairs = {}
    for name, r in ranks.items():
        weight = base.get_submodule(name).weight
        weight.data, *pair = of_weight(weight.detach(), r, name in transposed)
        pairs[name] = tuple(pair)
    folder.mkdir()
    adapter.write(folder, pairs, config(ranks, others, bool(transposed)))
    write_tensors(base.state_dict(), folder.with_name("base.safetensors"))
    return base


def inputs() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


BY_HAND = """
import json, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("spectrim", "peft"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    state, pairs = load_file(folder + "/base.safetensors"), load_file(folder + "/adapter/adapter_model.safetensors")
    told = json.load(open(folder + "/adapter/adapter_config.json"))
    for key in pairs:
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            A, B = pairs[key].flatten(1).double(), pairs[key.replace("lora_A", "lora_B")].flatten(1).double()
            scaling = told["alpha_pattern"].get("^" + name.replace(".", "\\."), told["lora_alpha"]) / len(A)
            assert scaling == 1
            weight = state[name + ".weight"]
            state[name + ".weight"] = (weight.double() + (scaling * B @ A).reshape(weight.shape)).to(weight.dtype)
    save_file(state, folder + "/sum.safetensors")
"""


def test_the_sum_is_the_model_without_peft_and_without_us(tmp_path):
    roundings = {torch.float32: 1e-5, torch.bfloat16: 0.02}
    made = {}
    for dtype in roundings:
        folder = tmp_path / str(dtype)
        folder.mkdir()
        made[folder] = dtype, net(dtype), parted(net(dtype), RANKS, folder / "adapter", others=["inner.fc"])
    subprocess.run([sys.executable, "-I", "-c", BY_HAND, *map(str, made)], check=True)
    x = inputs()
    for folder, (dtype, model, base) in made.items():
        again = net(dtype)
        again.load_state_dict(load_file(folder / "sum.safetensors"))
        with torch.no_grad():
            right, found, without = (m.float()(x) for m in (model, again, base))
        allowed = roundings[dtype] * right.abs().max()
        assert (found - right).abs().max() <= allowed
        assert (without - right).abs().max() > 10 * allowed  # the base alone is another model


def test_peft_makes_the_model_of_it(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    model = net()
    base = parted(model, RANKS, tmp_path / "adapter", others=["inner.fc"])
    x = inputs()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of pairs that it has no place for
        right, loaded = model(x), peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert (loaded(x) - right).abs().max() < 1e-5
        with loaded.disable_adapter():
            assert (loaded(x) - right).abs().max() > 1e-3
        ranks = {
            n.removeprefix("base_model.model."): m.r["default"] for n, m in loaded.named_modules() if hasattr(m, "r")
        }
        assert ranks == RANKS  # and none on inner.fc, whose name ends like fc
        assert (loaded.merge_and_unload()(x) - right).abs().max() < 1e-5


def test_peft_makes_gpt2_of_it(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 100, "n_positions": 32}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    names = [name for name, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    base = parted(model, {name: 2 + i for i, name in enumerate(names)}, tmp_path / "adapter", transposed=names)
    tokens = torch.arange(20)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        right = model(tokens).logits
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert (loaded(tokens).logits - right).abs().max() < 1e-5
        with loaded.disable_adapter():
            assert (loaded(tokens).logits - right).abs().max() > 1e-2


def reasons(model: nn.Module, tmp_path, **how) -> tuple[dict[str, str], dict[str, str]]:
    """Why each layer takes no pair, of the live model and of its file."""
    names = set(model.state_dict())
    live = {s.layer.name: refusal(s.layer, names, **how) for s in of_module(model).sites}
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    stored = {layer.name: refusal(layer, checkpoint.infos, **how) for layer in layers_by_name(checkpoint)[0]}
    return live, stored


def test_what_takes_no_adapter_says_why(tmp_path):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
    extra = {"conv": nn.Conv2d(4, 8, 3), "one": nn.Conv2d(8, 8, 1), "lstm": nn.LSTM(8, 8), "qkv": nn.Linear(16, 48)}
    model = nn.ModuleDict({"encoder": encoder, "out_proj": nn.Linear(16, 16), **extra})
    for found in reasons(model, tmp_path):
        assert {name for name, why in found.items() if not why} == {"out_proj", "one", "qkv"}
        inside = "encoder.layers.0."
        assert all("kernel" in found[inside + name] for name in ("self_attn.out_proj", "linear1", "linear2"))
        assert "kernel" in found["lstm.weight_ih_l0"] and "kernel" in found[inside + "self_attn.in_proj_weight"]
        assert "dilation" in found["conv"]
    for found in reasons(model, tmp_path, plain=True):
        assert found["conv"] == ""


def test_a_kernel_is_known_by_a_weight_that_was_split(tmp_path):
    encoder = nn.TransformerEncoderLayer(32, 4, 64)
    layer = next(s.layer for s in of_module(encoder).sites if s.layer.name == "self_attn.in_proj_weight")
    layer.split({0: (torch.ones(32, 4), torch.ones(4, 32))})
    live = {s.layer.name: refusal(s.layer, set(encoder.state_dict())) for s in of_module(encoder).sites}
    assert "kernel" in live["linear1"] and "kernel" in live["self_attn.out_proj"]


def test_a_convolution_with_groups_and_a_shared_weight_take_none(tmp_path):
    model = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, groups=2), "a": nn.Linear(16, 16), "b": nn.Linear(16, 16)})
    model["b"].weight = model["a"].weight
    live = {s.layer.name: refusal(s.layer, set(model.state_dict()), plain=True) for s in of_module(model).sites}
    assert "groups" in live["conv"] and "shared" in live["a"]


def test_what_is_refused_would_be_wrong(tmp_path):
    """PEFT puts a pair there without a word, and the model is another one: a control of `refusal`."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 32)
    for name in ("layers.0.self_attn.out_proj", "layers.0.linear1", "layers.0.linear2"):
        base = parted(model, {name: 4}, tmp_path / name)
        with torch.no_grad():
            assert (peft.PeftModel.from_pretrained(base, tmp_path / name).eval()(x) - model(x)).abs().max() > 0.1
    conv = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")).eval()
    base, x = parted(conv, {"0": 3}, tmp_path / "conv"), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        assert (peft.PeftModel.from_pretrained(base, tmp_path / "conv").eval()(x) - conv(x)).abs().max() > 0.1


def test_the_names_are_those_of_peft(tmp_path):
    assert keys("a.b") == ("base_model.model.a.b.lora_A.weight", "base_model.model.a.b.lora_B.weight")
    parted(net(), {"fc": 2}, tmp_path / "adapter")
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {name: tuple(t.shape) for name, t in stored.items()} == dict(
        zip(keys("fc"), ((2, 128), (60, 2)), strict=True)
    )
    assert {r.name for r in survey(net()).readings} >= {"fc", "inner.qkv[q]"}  # the names are those of the survey
