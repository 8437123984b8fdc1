"""Checkpoints on disk: the matrices of the live model, the tensors of its trim, and files that are no checkpoint."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim import plan, survey, trim
from spectrim.checkpoint import of_state, open_checkpoint
from spectrim.edges import Bema
from spectrim.factored import describe, load
from spectrim.linalg import svd
from spectrim.modules import of_module
from spectrim.names import of_checkpoint
from spectrim.sites import Inventory
from spectrim.spectrum import NoiseFit
from spectrim.writing import whole_folder, write_tensors
from test_adapters import CASES, Config, fill, made, rand

# What a file cannot tell: heads without a config, the groups of a convolution, a transposed weight under a plain name,
# two linear layers between which something may stand.
UNTOLD = {
    *("mha-heads", "qkv-heads", "conv-groups", "conv-groups-3", "conv-unbatched", "conv1d-gpt2", "conv1d-gpt2-square"),
    *("pair-with-activation", "conv-one-channel"),  # and one input channel may be a depthwise kernel
}
TOLD = {name: case for name, case in CASES.items() if name not in UNTOLD}
TIES = {"tied-embedding", "tied-embedding-head-first", "shared"}

# A model with layers of many kinds, as a file of its own, so that a process without spectrim can build it too.
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 48)
        self.qkv = nn.Linear(48, 144)
        self.attn = nn.MultiheadAttention(48, 4, batch_first=True)
        self.fc = nn.Linear(48, 96)
        self.norm = nn.LayerNorm(96)
        self.lstm = nn.LSTM(96, 32, batch_first=True)
        self.conv = nn.Conv2d(8, 40, 3, padding=1, stride=2)
        self.out = nn.Linear(40, 30, bias=False)

    def forward(self, tokens):
        q, k, v = self.qkv(self.embed(tokens)).chunk(3, -1)
        x = self.lstm(self.norm(self.fc(self.attn(q, k, v, need_weights=False)[0])))[0]
        return self.out(torch.relu(self.conv(x.unflatten(-1, (8, 4)).transpose(1, 2))).mean((-2, -1)))
"""
TOKENS = torch.arange(12).reshape(2, 6)

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spectrim":
            raise ImportError("spectrim is not to be used here")
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """The file that defines Net."""
    file = tmp_path_factory.mktemp("net") / "net.py"
    file.write_text(NET)
    return file


def build(net: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("net", net)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return fill(module.Net()).eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def as_file(state: dict, folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_folder(state: dict, folder: Path) -> Path:
    (folder / "model").mkdir()
    save_file(state, folder / "model/model.safetensors")
    return folder / "model"


def as_shards(state: dict, folder: Path, biases_first: bool = True) -> Path:
    """Three files: every bias in another one than its weight."""
    out = folder / "sharded"
    out.mkdir()
    shards: dict[str, dict] = {}
    for i, (name, t) in enumerate(state.items()):
        where = i % 2 if t.ndim > 1 else 2
        place = (where + 1) % 3 if biases_first else where
        shards.setdefault(f"model-{place + 1:05d}-of-00003.safetensors", {})[name] = t
    for file, tensors in shards.items():
        save_file(tensors, out / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return out


def as_pt(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def as_nested(state: dict, folder: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, folder / "weights.ckpt")
    return folder / "weights.ckpt"


def as_numpy(state: dict, folder: Path) -> dict:
    return {name: t.numpy() for name, t in state.items()}


def as_dict(state: dict, folder: Path) -> dict:
    return dict(state)


FORMATS = [as_file, as_folder, as_shards, as_pt, as_nested, as_numpy, as_dict]


def config_of(model: nn.Module) -> dict:
    config = getattr(model, "config", None)
    return config.to_dict() if isinstance(config, Config) else {}


def figures(found) -> dict:
    return {r.name: (r.rows, r.cols, r.fingerprint, r.params, r.item) for r in found.matrices}


def hashed(*tensors: Tensor) -> str:
    """The fingerprint written out: type, shape, and the bytes of the entries row by row, of each half of a pair."""
    text = b""
    for W in tensors:
        W = W.detach().contiguous()
        entries = W.view(torch.int16).numpy() if W.element_size() == 2 else W.numpy()
        text += f"{W.dtype} {tuple(W.shape)}".encode() + entries.tobytes()
    return hashlib.sha256(text).hexdigest()


def forms_of(name: str) -> list:
    """Safetensors files hold no tied tensors, numpy has no bfloat16, and a config stands in a folder."""
    forms = [form for form in FORMATS if name not in TIES or form not in (as_file, as_folder, as_shards)]
    if name.startswith("gqa"):
        return [as_folder, as_shards]
    return [form for form in forms if form is not as_numpy or "bfloat16" not in name]


SEEN = [(name, form) for name in TOLD for form in forms_of(name)]


@pytest.mark.parametrize(("name", "form"), SEEN, ids=[f"{name}-{form.__name__}" for name, form in SEEN])
def test_a_file_shows_the_same_matrices_as_the_model(name, form, tmp_path):
    case, model = TOLD[name], made(TOLD[name])
    state = model.state_dict() if name in TIES else state_of(model)
    config = config_of(model)
    path = form(state, tmp_path)
    if config:
        (path / "config.json").write_text(json.dumps(config))
    live, stored = survey(model, fused=case.fused), survey(path, fused=case.fused)
    assert figures(stored) == figures(live)
    hashes = {site.name: hashed(*site.stored()) for site in of_module(model, case.fused).sites}
    assert {r.name: r.fingerprint for r in live.matrices} == hashes
    numbers = {t.data_ptr(): t.numel() for t in state.values()}
    assert stored.params == sum(numbers.values())
    known = {r.name.partition("[")[0] for r in stored.readings}
    pairs = tuple(f"{r.name}." for r in stored.matrices if r.kind == "pair")
    assert all(
        key in known or key.removesuffix(".weight") in known or key.startswith(pairs) for key in state if "." in key
    )
    assert all(r.note for r in stored.readings if r.skipped)


def cut_all(found: Inventory) -> None:
    """Split every layer whose parts can be split, at rank 2, all parts but the last where there are several."""
    layers: dict[str, list] = {}
    for site in found.sites:
        if site.split:
            layers.setdefault(site.layer.name, []).append(site)
    for sites in layers.values():
        cut = sites[:-1] or sites  # one part stays dense: the bias goes along
        sites[0].layer.split(
            {site.part: svd(site.get()).truncate(min(2, site.rows, site.cols)).split() for site in cut}
        )


SPLIT = {name: case for name, case in TOLD.items() if name not in TIES and set(case.sites) - set(case.whole)}
SPLIT = {name: case for name, case in SPLIT.items() if not name.startswith("gqa") and "of-its-own" not in name}


@pytest.mark.parametrize("case", SPLIT.values(), ids=SPLIT)
def test_a_split_on_disk_is_the_split_of_the_model(case):
    model = made(case)
    stored = of_state(state_of(model))
    cut_all(of_checkpoint(stored, case.fused))
    cut_all(of_module(model, case.fused))
    written: dict[str, Tensor] = {}
    for name in stored.infos:
        written |= stored.edits.get(name, {name: stored.read(name)})
    expected = model.state_dict()
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert all(written[name].dtype == expected[name].dtype for name in expected)
    assert stored.splits == describe(model)
    again, live = (
        of_checkpoint(replace(of_state(written), splits=stored.splits), case.fused),
        of_module(model, case.fused),
    )
    assert {s.name: (s.rows, s.cols, s.kind, s.pair_rank, s.params) for s in again.sites} == {
        s.name: (s.rows, s.cols, s.kind, s.pair_rank, s.params) for s in live.sites
    }
    assert {s.name for s in again.skipped} >= {s.name for s in live.skipped}


@pytest.mark.parametrize(
    ("name", "match"), [("conv-groups", "4 groups.*trim the live model"), ("conv-of-its-own", "own")]
)
def test_a_split_that_does_not_fit_its_layer_is_refused_on_loading(name, match, tmp_path):
    """A file does not tell groups, nor what a subclass computes: the model that loads it does."""
    stored = of_state(state_of(made(CASES[name])))
    cut_all(of_checkpoint(stored))
    (tmp_path / "spectrim.json").write_text(json.dumps({"splits": stored.splits}))
    with pytest.raises(ValueError, match=match):
        load(made(CASES[name]), tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_trim_of_a_file_gives_what_trim_of_the_model_gives(form, net, tmp_path):
    model = build(net)
    source = form(state_of(model), tmp_path)
    found = survey(model)
    chosen = plan(found, params=0.5, basis="plain")
    assert {e.action for e in chosen.entries} == {"split", "keep"} or all(e.action == "split" for e in chosen.entries)
    stored = trim(source, chosen, tmp_path / "stored")
    live = trim(model, chosen, tmp_path / "live")
    assert_same_folders(tmp_path / "stored", tmp_path / "live")
    assert [replace(c, seconds=0) for c in stored] and {c.name: replace(c, seconds=0) for c in stored} == {
        c.name: replace(c, seconds=0) for c in live
    }
    assert (stored.params_after, stored.bytes_after) == (live.params_after, live.bytes_after)
    again = survey(tmp_path / "stored")
    assert figures(again) == figures(survey(model))
    assert {r.name for r in again.matrices if r.kind == "pair"} == {e.name for e in chosen.touched}


@pytest.mark.parametrize("biases_first", [True, False])
@pytest.mark.parametrize("how", [{"params": 0.5, "dense": True}, {"zeros": 0.4}, {"params": 0.4}])
def test_shards_stay_shards(how, biases_first, net, tmp_path):
    model = build(net)
    source = as_shards(state_of(model), tmp_path, biases_first)
    chosen = plan(survey(source), **how, **({} if "zeros" in how else {"basis": "equalised"}))
    trim(source, chosen, tmp_path / "stored")
    trim(model, chosen, tmp_path / "live")
    assert_same_folders(tmp_path / "stored", tmp_path / "live")
    files = {file.name for file in source.glob("*.safetensors")}
    assert {file.name for file in (tmp_path / "stored").glob("*.safetensors")} == files
    index = json.loads((tmp_path / "stored/model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "stored" / file)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        here = load_file(file)
        assert not set(here) & set(found)
        found |= here
    return found


def assert_same_folders(a: Path, b: Path) -> None:
    """The same tensors, bit by bit, and the same structure beside them."""
    left, right = tensors_in(a), tensors_in(b)
    assert set(left) == set(right)
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name]), name
    splits = [json.loads((folder / "spectrim.json").read_text())["splits"] for folder in (a, b)]
    assert splits[0] == splits[1]
    assert (a / "modeling_spectrim.py").exists() == (b / "modeling_spectrim.py").exists() == bool(splits[0])


def test_a_trimmed_folder_is_trimmed_again(net, tmp_path):
    model = build(net)
    source = as_shards(state_of(model), tmp_path)
    trim(source, plan(survey(source), params=0.7), tmp_path / "once")
    found = survey(tmp_path / "once")
    second = plan(found, params=0.5)
    trim(tmp_path / "once", second, tmp_path / "twice")
    assert {r.name: (r.rows, r.cols) for r in survey(tmp_path / "twice").matrices} == {
        r.name: (r.rows, r.cols) for r in survey(model).matrices
    }
    loaded = load(build(net), tmp_path / "twice")
    splits = json.loads((tmp_path / "twice/spectrim.json").read_text())["splits"]
    described = describe(loaded)
    assert {name: splits[name] for name in splits} == described
    assert loaded(TOKENS).shape == model(TOKENS).shape


def test_weight_and_bias_of_two_types_keep_their_types(tmp_path):
    state = {"fc.bias": rand(64, dtype=torch.float32), "fc.weight": rand(64, 48, dtype=torch.bfloat16)}
    source = as_folder(state, tmp_path)
    trim(source, plan(survey(source), params=0.5), tmp_path / "out")
    stored = tensors_in(tmp_path / "out")
    assert {name: t.dtype for name, t in stored.items()} == {
        "fc.0.weight": torch.bfloat16,
        "fc.1.weight": torch.bfloat16,
        "fc.1.bias": torch.float32,
    }
    assert torch.equal(stored["fc.1.bias"], state["fc.bias"])


def test_what_hangs_beside_a_weight_is_kept(tmp_path):
    """LoRA, scales and the like: the layer is more than a product, so it is not split, and nothing of it is lost."""
    state = {"fc.weight": rand(64, 64), "fc.lora_A.default": rand(64, 64), "fc.scale": rand(64)}
    state |= {"plain.weight": rand(64, 64)}
    source = as_folder(state, tmp_path)
    found = survey(source)
    notes = {r.name: r.note for r in found.matrices}
    assert "more is stored" in notes["fc"] and not notes["plain"]
    trim(source, plan(found, params=0.6), tmp_path / "out")
    after = tensors_in(tmp_path / "out")
    assert set(after) == set(state) - {"plain.weight"} | {"plain.0.weight", "plain.1.weight"}
    assert all(torch.equal(after[name], state[name]) for name in state if name in after)


@pytest.mark.parametrize("order", [["embed.weight", "head.weight"], ["head.weight", "embed.weight"]])
def test_a_head_tied_to_an_embedding_stays_with_it(order):
    W = rand(60, 50)
    found = survey({name: W for name in order} | {"fc.weight": rand(50, 50, seed=1)})
    assert [r.name for r in found.matrices] == ["fc"]
    assert found.params == 60 * 50 + 50 * 50


def test_a_shared_weight_is_not_split_apart():
    W = rand(60, 50)
    found = survey({"a.weight": W, "b.weight": W})
    assert [(r.name, r.splittable) for r in found.matrices] == [("a", False)]
    assert "shared with b" in found.matrices[0].note


# What loads without spectrim.


def run_apart(script: str, folder: Path, **more) -> dict:
    """Run a script in a process that cannot import spectrim; its last line is JSON."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_MODULES_CACHE": str(folder / "modules"), **more}
    command = [sys.executable, "-c", ABSENT + script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_plain_torch_loads_the_result_without_spectrim(net, tmp_path):
    model = build(net)
    source = as_shards(state_of(model), tmp_path)
    trim(source, plan(survey(source), params=0.5), tmp_path / "stored")
    done = trim(model, plan(survey(model), params=0.5))
    done.save(tmp_path / "live")
    with torch.no_grad():
        torch.save(model(TOKENS), tmp_path / "expected.pt")
    script = f"""
import json, torch
sys.path.insert(0, {str(net.parent)!r})
from net import Net
found = {{}}
for name in ("stored", "live"):
    sys.path.insert(0, name)
    import modeling_spectrim
    del sys.modules["modeling_spectrim"], sys.path[0]
    model = modeling_spectrim.load(Net(), name).eval()
    with torch.no_grad():
        gap = model(torch.arange(12).reshape(2, 6)) - torch.load("expected.pt", weights_only=True)
    found[name] = [float(gap.abs().max()), sum(p.numel() for p in model.parameters())]
print(json.dumps(found))
"""
    # A fresh process may sum in another order; the tensors themselves are equal bit by bit.
    for gap, params in run_apart(script, tmp_path).values():
        assert gap < 1e-5
        assert params == done.params_after


def test_zeros_load_as_ever(net, tmp_path):
    model = build(net)
    source = as_folder(state_of(model), tmp_path)
    trim(source, plan(survey(source), zeros=0.5), tmp_path / "out")
    assert not (tmp_path / "out/modeling_spectrim.py").exists()
    build(net).load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=True)


def transformers_models() -> dict[str, tuple[nn.Module, str]]:
    from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, GPT2Model

    bert = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    bert |= {"vocab_size": 60, "max_position_embeddings": 16}
    gpt2 = {"n_embd": 48, "n_layer": 1, "n_head": 2, "vocab_size": 60, "n_positions": 16}
    return {
        "bert": (fill(BertModel(BertConfig(**bert))).eval(), "AutoModel"),
        "bert-mlm": (fill(BertForMaskedLM(BertConfig(**bert))).eval(), "AutoModelForMaskedLM"),
        "gpt2": (fill(GPT2Model(GPT2Config(**gpt2))).eval(), "AutoModel"),
        "gpt2-lm": (fill(GPT2LMHeadModel(GPT2Config(**gpt2))).eval(), "AutoModelForCausalLM"),
    }


@pytest.fixture(scope="module")
def transformed(tmp_path_factory) -> dict:
    """Tiny transformers trimmed on disk and live, loaded by their Auto classes in one process without spectrim."""
    work = tmp_path_factory.mktemp("transformers")
    wanted, expected = {}, {}
    tokens = torch.arange(10)[None]
    for name, (model, auto) in transformers_models().items():
        model.save_pretrained(work / name)
        found = survey(work / name)
        chosen = plan(found, params=0.5)
        trim(work / name, chosen, work / f"{name}-stored")
        assert figures(found) == figures(survey(model))
        done = trim(model, chosen)
        done.save(work / f"{name}-live")
        with torch.no_grad():
            expected[name] = model(tokens)[0]
        wanted |= {f"{name}-{how}": auto for how in ("stored", "live")}
    torch.save(expected, work / "expected.pt")
    script = f"""
import json, torch, transformers
transformers.logging.set_verbosity_error()
expected = torch.load("expected.pt", weights_only=True)
found = {{}}
for name, auto in {wanted!r}.items():
    load = getattr(transformers, auto).from_pretrained
    model, info = load(name, trust_remote_code=True, local_files_only=True, output_loading_info=True)
    with torch.no_grad():
        out = model.eval()(torch.arange(10)[None])[0]
    found[name] = [
        float((out - expected[name.rpartition("-")[0]]).abs().max()), sum(p.numel() for p in model.parameters()),
        type(model).__name__, sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]])),
    ]
print(json.dumps(found))
"""
    return {"loaded": run_apart(script, work), "folder": work}


@pytest.mark.parametrize("name", ["bert", "bert-mlm", "gpt2", "gpt2-lm"])
def test_transformers_loads_the_result_without_spectrim(name, transformed):
    for how in ("stored", "live"):
        gap, params, kind, misplaced = transformed["loaded"][f"{name}-{how}"]
        assert kind.startswith("Spectrim")
        assert not [key for key in misplaced if "position_ids" not in key]
        achieved = json.loads((transformed["folder"] / f"{name}-{how}" / "spectrim.json").read_text())["achieved"]
        assert params == achieved["params_after"] < achieved["params_before"]
        assert gap < 1e-4  # outputs of order one; another process may sum in another order


def test_companions_come_along_and_weights_do_not(tmp_path):
    source = as_folder({"fc.weight": rand(64, 64)}, tmp_path)
    for name in ("config.json", "tokenizer.json", "README.md", "vocab.txt"):
        (source / name).write_text("{}")
    for name in ("pytorch_model.bin", "tf_model.h5", "model.onnx", "flax_model.msgpack", ".hidden"):
        (source / name).write_bytes(b"old weights")
    trim(source, plan(survey(source), params=0.5), tmp_path / "out")
    stay = {"config.json", "tokenizer.json", "README.md", "vocab.txt"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == stay | {
        "model.safetensors",
        "spectrim.json",
        "modeling_spectrim.py",
    }


# What names and shapes tell, and what they do not.


def test_embeddings_are_never_read(net, tmp_path, monkeypatch):
    source = open_checkpoint(as_shards(state_of(build(net)) | {"wte.weight": rand(80, 8)}, tmp_path))
    read, seen = source.read, []
    monkeypatch.setattr(source, "read", lambda name: seen.append(name) or read(name))
    found = survey(source)
    plan(found, zeros=0.5)
    plan(found, params=0.5)
    skipped = {r.name for r in found.readings if r.skipped}
    assert {"embed.weight", "wte.weight", "norm.weight", "fc.bias"} <= skipped
    assert seen and not {"embed.weight", "wte.weight"} & set(seen)


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("embeddings.word_embeddings.weight", True),
        ("model.embed_tokens.weight", True),
        ("tok_embeddings.weight", True),
        ("transformer.wpe.weight", True),
        ("pos_emb", True),
        ("encoder.char_emb.weight", True),
        ("patch_embed.proj.weight", False),
        ("embeddings_project.weight", False),
        ("ensemble.weight", False),
        ("member.weight", False),
        ("time_embed.0.weight", False),
    ],
)
def test_embeddings_are_told_by_name(name, embedding):
    found = of_checkpoint(of_state({name: rand(40, 30)}))
    assert [s.kind for s in found.skipped] == (["embedding"] if embedding else [])


def conv1d_state(turned: bool, bias: bool, dim: int = 24) -> dict[str, Tensor]:
    sizes = {"attn.c_attn": (3 * dim, dim), "attn.c_proj": (dim, dim), "mlp.c_fc": (4 * dim, dim)}
    sizes |= {"mlp.c_proj": (dim, 4 * dim)}
    state = {}
    for i, (name, (rows, cols)) in enumerate(sizes.items()):
        state[f"h.0.{name}.weight"] = rand(cols, rows, seed=i) if turned else rand(rows, cols, seed=i)
        if bias:
            state[f"h.0.{name}.bias"] = rand(rows)
    return state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_orientation_by_bias_and_siblings(turned, bias):
    """nanoGPT keeps plain linear layers under the names of GPT-2's Conv1D: the square c_proj goes with its siblings."""
    state = conv1d_state(turned, bias)
    sites = {site.name: site for site in of_checkpoint(of_state(state)).sites}
    assert {name: (site.rows, site.cols) for name, site in sites.items()} == {
        **{f"h.0.attn.c_attn[{x}]": (24, 24) for x in "qkv"},
        "h.0.attn.c_proj": (24, 24),
        "h.0.mlp.c_fc": (96, 24),
        "h.0.mlp.c_proj": (24, 96),
    }
    stored = state["h.0.attn.c_proj.weight"]
    assert torch.equal(sites["h.0.attn.c_proj"].get(), stored.T if turned else stored)
    stored = state["h.0.attn.c_attn.weight"]
    assert torch.equal(sites["h.0.attn.c_attn[k]"].get(), (stored.T if turned else stored)[24:48])
    assert {site.kind for site in sites.values()} == {"conv1d" if turned else "linear"}
    assert not any(site.note for site in sites.values())


def test_orientation_by_config_or_not_at_all(tmp_path):
    state = {"h.0.attn.c_proj.weight": rand(24, 24), "h.0.attn.c_proj.bias": rand(24)}
    (site,) = of_checkpoint(of_state(state)).sites
    assert torch.equal(site.get(), state["h.0.attn.c_proj.weight"]) and "transposed" in site.note
    folder = as_folder(state, tmp_path)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (site,) = of_checkpoint(open_checkpoint(folder)).sites
    assert torch.equal(site.get(), state["h.0.attn.c_proj.weight"].T) and not site.note
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (site,) = of_checkpoint(open_checkpoint(folder)).sites
    assert torch.equal(site.get(), state["h.0.attn.c_proj.weight"])


def test_bare_tensors_are_rebuilt_and_not_split(tmp_path):
    state = {"A": rand(60, 50), "block.B": rand(60, 50, seed=1), "weight": rand(60, 50, seed=2)}
    found = survey(state)
    assert [(r.name, r.splittable) for r in found.matrices] == [("A", False), ("block.B", False), ("(model)", False)]
    with pytest.raises(ValueError, match="can be split"):
        plan(found, params=0.5)
    chosen = plan(found, zeros=0.5)
    trim(state, chosen, tmp_path / "out")
    after = tensors_in(tmp_path / "out")
    assert set(after) == set(state)
    assert sum(int((t == 0).sum()) for t in after.values()) == 3 * 60 * 50 // 2


def test_what_is_no_matrix_is_said():
    state = {
        "conv1d.weight": rand(4, 5, 3),
        "deep.weight": rand(8, 1, 3, 3),
        "codes.weight": torch.ones(8, 8, dtype=torch.int8),
        "four.weight_packed": torch.ones(8, 8, dtype=torch.uint8),
        "step": torch.tensor(3.0),
        "norm.weight": rand(8),
        "grouped.weight": rand(8, 2, 3, 3),
    }
    found = of_checkpoint(of_state(state))
    reasons = {s.name: s.reason for s in found.skipped}
    assert "3 dimensions" in reasons["conv1d.weight"] and "depthwise" in reasons["deep"]
    assert "int8" in reasons["codes.weight"] and "uint8" in reasons["four.weight_packed"]
    assert "vector" in reasons["step"] and "vector" in reasons["norm.weight"]
    (site,) = found.sites
    assert site.name == "grouped" and "groups" in site.note
    assert len(found.skipped) + len(found.sites) == len(state)


def test_a_pair_of_another_tool_is_one_matrix():
    state = {"fc.0.weight": rand(6, 40), "fc.1.weight": rand(30, 6), "fc.1.bias": rand(30)}
    found = of_checkpoint(of_state(state))
    (site,) = found.sites
    assert (site.name, site.kind, site.rows, site.cols, site.pair_rank) == ("fc", "pair", 30, 40, 6)
    assert "taken as one matrix" in site.note
    assert torch.equal(site.get(), state["fc.1.weight"] @ state["fc.0.weight"])
    assert [s.name for s in found.skipped] == ["fc.1.bias"]
    longer = of_checkpoint(of_state(state | {"fc.2.weight": rand(10, 30)}))
    assert len(longer.sites) == 3


# Files that are no checkpoint.


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def cut(path: Path, keep: int) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:keep] if keep > 0 else data[: len(data) + keep])
    return path


def bad(folder: Path, what: str):
    state = {"fc.weight": rand(64, 64), "fc.bias": rand(64)}
    match what:
        case "no such path":
            return folder / "nothing"
        case "empty folder":
            (folder / "empty").mkdir()
            return folder / "empty"
        case "folder of other things":
            (folder / "papers").mkdir()
            (folder / "papers/notes.txt").write_text("words")
            return folder / "papers"
        case "header cut":
            return cut(as_file(state, folder), 20)
        case "data cut":
            return cut(as_file(state, folder), -100)
        case "empty file":
            return cut(as_file(state, folder), 1)
        case "folder with a cut file":
            out = as_folder(state, folder)
            cut(out / "model.safetensors", -100)
            return out
        case "missing shards":
            out = as_shards(state, folder)
            next(out.glob("*.safetensors")).unlink()
            return out
        case "index of another kind":
            out = as_shards(state, folder)
            (out / "model.safetensors.index.json").write_text('{"weight_map": ["fc.weight"]}')
            return out
        case "broken index":
            out = as_shards(state, folder)
            (out / "model.safetensors.index.json").write_text('{"weight_map": ')
            return out
        case "the same name twice":
            out = as_folder(state, folder)
            save_file(state, out / "copy.safetensors")
            return out
        case "bomb":
            torch.save({"fc.weight": rand(64, 64), "more": Bomb(folder / "ran")}, folder / "bomb.pt")
            return folder / "bomb.pt"
        case "bomb in a bare pickle":
            (folder / "bomb.bin").write_bytes(pickle.dumps({"w": Bomb(folder / "ran")}))
            return folder / "bomb.bin"
        case "bomb in a folder":
            (folder / "hub").mkdir()
            torch.save({"more": Bomb(folder / "ran")}, folder / "hub/pytorch_model.bin")
            return folder / "hub"
        case "whole model":
            torch.save(nn.Linear(64, 64), folder / "model.pt")
            return folder / "model.pt"
        case "cut state dict":
            return cut(as_pt(state, folder), -200)
        case "empty state dict":
            return cut(as_pt(state, folder), 1)
        case "cut state dict of the old kind":
            torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
            return cut(folder / "old.pt", 200)
        case "no tensors":
            torch.save({"epoch": 3}, folder / "epoch.pt")
            return folder / "epoch.pt"
        case "bad config":
            out = as_folder(state, folder)
            (out / "config.json").write_text('{"model_type": gpt2}')
            return out
        case "config of another kind":
            out = as_folder(state, folder)
            (out / "config.json").write_text("[1, 2]")
            return out
        case "bad record":
            out = as_folder(state, folder)
            (out / "spectrim.json").write_text('{"splits": {"fc": {"form": "linear", "cols": 64, "parts": []}}}')
            return out
        case "record of halves that are not there":
            out = as_folder(state, folder)
            parts = [{"rows": 64, "rank": 5}]
            splits = {"fc": {"form": "linear", "cols": 64, "parts": parts}}
            (out / "spectrim.json").write_text(json.dumps({"splits": splits}))
            return out
        case "text":
            (folder / "notes.txt").write_text("words")
            return folder / "notes.txt"
        case "text called safetensors":
            (folder / "a.safetensors").write_text("words that are no header at all")
            return folder / "a.safetensors"
        case "text called pt":
            (folder / "a.pt").write_text("words that are no pickle at all")
            return folder / "a.pt"
        case "two state dicts":
            (folder / "two").mkdir()
            for name in ("a.pt", "b.pt"):
                torch.save(state, folder / "two" / name)
            return folder / "two"


BAD = {
    "no such path": "no such file or folder",
    "empty folder": r"holds no \*.safetensors and no state dict",
    "folder of other things": r"holds no \*.safetensors",
    "header cut": "truncated or not a safetensors file",
    "data cut": "truncated or not a safetensors file",
    "empty file": "truncated or not a safetensors file",
    "folder with a cut file": "model.safetensors is truncated",
    "missing shards": r"names files that are not there: 'model-0000\d-of-00003.safetensors'",
    "index of another kind": "no weight_map",
    "broken index": "index.json is not valid JSON",
    "the same name twice": "stands in copy.safetensors and in model.safetensors",
    "bomb": "would run code.*Convert it",
    "bomb in a bare pickle": "would run code",
    "bomb in a folder": "would run code.*Convert it",
    "whole model": "would run code.*Convert it",
    "cut state dict": "cannot be read as a state dict",
    "empty state dict": "cannot be read as a state dict",
    "cut state dict of the old kind": "cannot be read as a state dict",
    "no tensors": r"holds no tensors \(keys: epoch\)",
    "bad config": "config.json is not valid JSON",
    "config of another kind": "config.json holds a list",
    "bad record": "spectrim.json: its splits are not",
    "record of halves that are not there": "its halves are not there",
    "text": "not a kind of checkpoint",
    "text called safetensors": "truncated or not a safetensors file",
    "text called pt": "cannot be read as a state dict: truncated",
    "two state dicts": "several state dicts.*name one of them",
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_in_words(what, tmp_path):
    path = bad(tmp_path, what)
    before = sorted(tmp_path.rglob("*"))
    good = plan(survey({"fc.weight": rand(64, 64)}), params=0.5)
    for act in (lambda: survey(path), lambda: trim(path, good, tmp_path / "deep/out")):
        with pytest.raises((ValueError, FileNotFoundError), match=BAD[what]) as raised:
            act()
        assert len(str(raised.value)) < 700 and "\n" not in str(raised.value)
        assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, "empty"),
        ({3: rand(4, 4)}, "names for keys"),
        ({"a": "words"}, "'a' is not a tensor"),
        ({"a": np.array(["x"])}, "'a' is not a tensor"),
    ],
)
def test_bad_dicts_are_refused_in_words(state, match):
    with pytest.raises(ValueError, match=match):
        survey(state)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="not int"):
        survey(3)


# The writer.


def test_a_folder_is_whole_or_absent(tmp_path):
    with whole_folder(tmp_path / "a/b/out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a/b/out").exists()
    assert [f.name for f in (tmp_path / "a/b").iterdir()] == ["out"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "a/b/out").stat().st_mode & 0o777 == 0o777 & ~umask
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), whole_folder(tmp_path / "c/d/out") as folder:
            (folder / "x").write_text("1")
            raise error
        assert sorted(f.name for f in tmp_path.iterdir()) == ["a"]


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:  # an empty one may be filled
        (folder / "x").write_text("1")
    for _ in range(2):
        with pytest.raises(ValueError, match="exists already"), whole_folder(tmp_path / "out"):
            raise AssertionError
    (tmp_path / "file").write_text("1")
    with pytest.raises(ValueError, match="exists already"), whole_folder(tmp_path / "file"):
        raise AssertionError
    assert (tmp_path / "out/x").read_text() == "1"


def test_views_of_one_storage_are_written(tmp_path):
    whole = rand(8, 8)
    write_tensors({"a": whole[:4], "b": whole[4:], "c": whole.T, "d": whole}, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["c"], whole.T) and torch.equal(found["b"], whole[4:])


def test_messages_name_files_and_not_tracebacks(tmp_path):
    path = bad(tmp_path, "data cut")
    with pytest.raises(ValueError) as raised:
        open_checkpoint(path)
    assert re.search(re.escape(str(path)), str(raised.value))


def test_a_full_disk_costs_no_older_file(tmp_path, monkeypatch):
    from spectrim.writing import write_whole

    file = tmp_path / "plan.json"
    write_whole(file, "the plan of yesterday")
    monkeypatch.setattr(Path, "write_text", lambda *args, **more: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "the plan of today")
    assert file.read_text() == "the plan of yesterday" and [f.name for f in tmp_path.iterdir()] == ["plan.json"]


def test_weights_kept_under_an_unknown_key_are_asked_for(tmp_path):
    torch.save({"step": torch.tensor(3), "weights": {"a.weight": torch.randn(20, 30)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="keeps tensors under 'weights'"):
        open_checkpoint(tmp_path / "x.pt")


def test_the_weights_of_a_trainer_folder_are_told_from_its_arguments(tmp_path):
    torch.save({"a.weight": torch.randn(20, 30)}, tmp_path / "pytorch_model.bin")
    torch.save({"lr": 0.1}, tmp_path / "training_args.bin")
    assert list(open_checkpoint(tmp_path).infos) == ["a.weight"]


def test_a_tensor_that_cannot_be_read_does_not_end_the_survey():
    checkpoint = of_state({"a.weight": torch.randn(20, 30), "b.weight": torch.randn(20, 30)})
    read = checkpoint.read

    def broken(name):
        if name == "a.weight":
            raise OSError(5, "Input/output error")
        return read(name)

    checkpoint.read = broken
    first, second = survey(checkpoint).matrices
    assert first.fit is None and "could not be read" in first.note and second.fit is not None


def test_a_link_is_followed_and_a_device_stays_one(tmp_path):
    from spectrim.writing import write_whole

    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink() and real.read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, "-c", f"print(open({str(pipe)!r}).read())"], stdout=subprocess.PIPE)
    write_whole(pipe, "through")
    assert reader.communicate()[0].strip() == b"through" and pipe.is_fifo()


def test_a_survey_of_a_file_can_be_copied_and_pickled(tmp_path):
    save_file({"a.weight": torch.randn(40, 60, generator=torch.Generator().manual_seed(0))}, tmp_path / "m.safetensors")
    found = survey(tmp_path / "m.safetensors")
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert plan(again, zeros=0.5).zeros == plan(found, zeros=0.5).zeros == 1200


@pytest.mark.parametrize("edge", ["bema", Bema])
def test_what_is_no_estimator_is_refused(edge):
    with pytest.raises(TypeError, match="estimator such as"):
        survey({"a": torch.eye(20)}, edge)


def nothing(spectrum):
    return NoiseFit(1.0, float("nan"), None, None, 0, "nothing")


def wrong(spectrum):
    raise KeyError("mine")


@pytest.mark.parametrize(("edge", "note"), [(nothing, "no finite edge"), (wrong, "KeyError"), (len, "TypeError")])
def test_an_estimator_of_ones_own_that_fails_does_not_end_the_survey(edge, note):
    found = survey({"a": torch.randn(30, 40, generator=torch.Generator().manual_seed(0))}, edge)
    assert not found.fitted and note in found.matrices[0].note
    assert found.to_json() and found.edge == edge.__qualname__
