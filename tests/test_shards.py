"""What a folder of shards may hold: which files count, stacked experts, and weights of 8-bit floats."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim import plan, survey, trim
from spectrim.checkpoint import open_checkpoint
from spectrim.experts import LEAST, MOST
from spectrim.modules import of_module
from spectrim.names import of_checkpoint

INDEX = "model.safetensors.index.json"


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shards(folder: Path, stem: str = "model", seed: int = 0, variant: str = "") -> dict[str, Tensor]:
    """Two shards and no index."""
    folder.mkdir(exist_ok=True)
    tensors = {name: rand(20, 16, seed=seed + i) for i, name in enumerate(("a.weight", "b.weight", "c.weight"))}
    for i, names in enumerate((("a.weight",), ("b.weight", "c.weight"))):
        file = folder / f"{stem}{variant}-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, file)
    return tensors


def index(folder: Path, stem: str = "model", name: str = "", files: dict[str, str] | None = None, **more) -> Path:
    one, two = (f"{stem}-{i:05d}-of-00002.safetensors" for i in (1, 2))
    weight_map = {"a.weight": one, "b.weight": two, "c.weight": two} | (files or {})
    out = folder / (name or f"{stem}.safetensors.index.json")
    out.write_text(json.dumps({"metadata": {}, "weight_map": weight_map} | more))
    return out


def same(found: Path, tensors: dict[str, Tensor]) -> None:
    source = open_checkpoint(found)
    assert set(source.infos) == set(tensors)
    assert all(torch.equal(source.read(name), t) for name, t in tensors.items())


# Which files count ----------------------------------------------------------------------------------------------------


def test_the_files_know_better_than_the_index_where_a_tensor_is(tmp_path):
    tensors = shards(tmp_path)
    index(
        tmp_path, files={"a.weight": "model-00002-of-00002.safetensors", "b.weight": "model-00001-of-00002.safetensors"}
    )
    same(tmp_path, tensors)
    index(tmp_path, metadata={"total_size": 12})  # a sum that was never right in many folders
    same(tmp_path, tensors)


def test_a_file_that_the_index_does_not_name_is_no_part_of_it(tmp_path):
    tensors = shards(tmp_path)
    index(tmp_path)
    save_file({"layers.0.wq.weight": rand(8, 8)}, tmp_path / "consolidated.safetensors")
    save_file({"a.weight": rand(3, 3)}, tmp_path / "old.safetensors")
    same(tmp_path, tensors)


def test_a_tensor_in_two_files_is_asked_about(tmp_path):
    shards(tmp_path)
    save_file({"a.weight": rand(20, 16), "b.weight": rand(20, 16)}, tmp_path / "model-00001-of-00002.safetensors")
    index(tmp_path)
    with pytest.raises(ValueError, match=r"'b.weight' stands in model-00001.* and in model-00002.*: name one file"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_only_the_index_knows_is_missed(tmp_path):
    shards(tmp_path)
    index(tmp_path, files={"d.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(
        ValueError, match=r"names 1 tensors that are in none of its files: 'd.weight'.*Remove the index"
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "model.fp16.safetensors.index.json",
        "model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.index.json",
        "pytorch_model.safetensors.index.json",
    ],
)
def test_an_index_of_any_name_counts(name, tmp_path):
    tensors = shards(tmp_path)
    index(tmp_path, name=name)
    save_file({"x.weight": rand(4, 4)}, tmp_path / "other.safetensors")
    same(tmp_path, tensors)
    same(tmp_path / name, tensors)


def test_an_index_without_a_variant_goes_before_one_with(tmp_path):
    tensors = shards(tmp_path)
    index(tmp_path)
    half = shards(tmp_path, "model.fp16", seed=9)
    named = index(tmp_path, "model.fp16")
    same(tmp_path, tensors)
    same(named, half)


def test_two_indexes_as_good_are_asked_about(tmp_path):
    shards(tmp_path, "unet")
    index(tmp_path, "unet")
    text = shards(tmp_path, "text", seed=5)
    named = index(tmp_path, "text")
    with pytest.raises(ValueError, match=r"several checkpoints: name one of 'text.safetensors.index.json', 'unet"):
        open_checkpoint(tmp_path)
    same(named, text)
    tensors = shards(tmp_path, seed=3)
    index(tmp_path)
    same(tmp_path, tensors)  # but this is the name that every library looks for


def test_a_whole_file_beside_the_index_of_others_is_asked_about(tmp_path):
    tensors = shards(tmp_path)
    named = index(tmp_path)
    save_file(whole := {"a.weight": rand(5, 5)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds model.safetensors and the shards of model.*: name one of the two"):
        open_checkpoint(tmp_path)
    same(named, tensors)
    same(tmp_path / "model.safetensors", whole)


def test_without_an_index_all_shards_must_be_there(tmp_path):
    tensors = shards(tmp_path)
    same(tmp_path, tensors)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 files of 'model': number 1 is missing"):
        open_checkpoint(tmp_path)
    same(tmp_path / "model-00002-of-00002.safetensors", {name: tensors[name] for name in ("b.weight", "c.weight")})


@pytest.mark.parametrize("beside", ["model.fp16", "consolidated", "consolidated.00", "adapter_model"])
def test_without_an_index_copies_and_additions_are_left_out(beside, tmp_path):
    save_file(tensors := {"a.weight": rand(20, 16)}, tmp_path / "model.safetensors")
    save_file(other := {"a.weight": rand(20, 16, seed=1)}, tmp_path / f"{beside}.safetensors")
    same(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    same(tmp_path, other)  # where it is all that there is, it is what was meant


def test_parts_under_names_of_their_own_are_all_read(tmp_path):
    save_file(one := {"a.weight": rand(20, 16)}, tmp_path / "encoder.safetensors")
    save_file(two := {"b.weight": rand(20, 16)}, tmp_path / "decoder.v2.safetensors")
    same(tmp_path, one | two)


def test_a_snapshot_of_links_is_read_and_trimmed(tmp_path):
    tensors = shards(tmp_path / "made")
    index(tmp_path / "made")
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((tmp_path / "made").iterdir())):
        shutil.move(file, tmp_path / "blobs" / f"{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    same(snapshot, tensors)
    same(snapshot / INDEX, tensors)
    assert open_checkpoint(snapshot / INDEX).folder == snapshot
    trim(snapshot, plan(survey(snapshot), zeros=0.5), tmp_path / "out")
    assert sum(int((t == 0).sum()) for t in load_file(tmp_path / "out/model-00002-of-00002.safetensors").values()) > 100
    (tmp_path / "blobs" / f"{0:064x}").unlink()
    with pytest.raises(ValueError, match=r"names files that are not there: 'model-00001-of-00002.safetensors'"):
        open_checkpoint(snapshot)
    (snapshot / INDEX).unlink()
    with pytest.raises(ValueError, match="is no file, or a link that leads nowhere"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/x.safetensors", "sub/x.safetensors", "sub\\x.safetensors", "..", ""]
)
def test_an_index_names_plain_files_of_its_folder_only(file, tmp_path):
    model = tmp_path / "model"
    shards(model)
    (model / "sub").mkdir()
    for place in (tmp_path, model / "sub"):
        save_file({"a.weight": rand(20, 16)}, place / "x.safetensors")
    named = str(tmp_path / "x.safetensors") if file.startswith("/") else file
    index(model, files={"a.weight": named})
    with pytest.raises(ValueError, match=f"names {re.escape(repr(named))}: an index may name plain files of its own"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("pipe", "opened"),
    [
        *(("model.safetensors", ""), ("model.safetensors", "model.safetensors"), ("model.pt", "model.pt")),
        *((INDEX, ""), (INDEX, INDEX), ("config.json", ""), ("spectrim.json", "")),
    ],
)
def test_a_pipe_is_not_waited_for(pipe, opened, tmp_path):
    save_file({"a.weight": rand(20, 16)}, tmp_path / "sound.safetensors")
    os.mkfifo(tmp_path / pipe)
    with pytest.raises(ValueError, match=rf"{pipe}'?,? (is not a file|which is no file)"):
        open_checkpoint(tmp_path / opened)


def test_a_convolution_before_a_norm_is_no_pair(tmp_path):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(8, 24, 3, bias=False), nn.BatchNorm2d(24)))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert [r.name for r in survey(tmp_path).matrices] == ["0.0"]


# Stacked experts ------------------------------------------------------------------------------------------------------


def moe(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 99,
    }
    make = {
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**sizes, intermediate_size=32, num_local_experts=3)
        ),
        "qwen3": lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**sizes, moe_intermediate_size=24, num_experts=4, head_dim=12)
        ),
        "gpt-oss": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(**sizes, intermediate_size=32, num_local_experts=3, head_dim=12)
        ),
    }
    torch.manual_seed(0)
    model = make[kind]().eval()
    for i, p in enumerate(model.parameters()):  # some are made empty
        p.data = rand(*p.shape, seed=i) * 0.02
    return model


def saved(model: nn.Module, folder: Path) -> Path:
    """The model's own tensors in two files, the experts in the second: `save_pretrained` would take them apart."""
    folder.mkdir()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    second = {name for name in state if "experts" in name}
    weight_map = {name: f"model-{1 + (name in second):05d}-of-00002.safetensors" for name in state}
    for file in sorted(set(weight_map.values())):
        save_file({name: t for name, t in state.items() if weight_map[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    return folder


@pytest.fixture(scope="module", params=["mixtral", "qwen3", "gpt-oss"])
def mixture(request, tmp_path_factory) -> tuple[str, nn.Module, Path]:
    model = moe(request.param)
    return request.param, model, saved(model, tmp_path_factory.mktemp(request.param) / "model")


def test_experts_of_a_file_are_those_of_the_model(mixture):
    kind, model, folder = mixture
    live, stored = of_module(model), of_checkpoint(open_checkpoint(folder))
    # A router is a module of its own kind, which a live model's types do not tell; in a file it is one more weight.
    router = {f"model.layers.0.mlp.{'router' if kind == 'gpt-oss' else 'gate'}"}
    assert {s.name for s in live.sites} | router == {s.name for s in stored.sites}
    assert (live.params, live.bytes) == (stored.params, stored.bytes)
    sites = {s.name: s for s in stored.sites}
    for site in live.sites:
        twin = sites[site.name]
        assert (twin.kind, twin.rows, twin.cols, twin.split is None) == (
            site.kind,
            site.rows,
            site.cols,
            site.split is None,
        )
        assert torch.equal(site.get(), twin.get())
    # The same by hand: what the name of each site says, taken out of the parameter.
    path = "model.layers.0.mlp.experts"
    down, gate_up = (model.state_dict()[f"{path}.{name}"] for name in ("down_proj", "gate_up_proj"))
    for e in range(len(down)):
        assert torch.equal(sites[f"{path}.down_proj[{e}]"].get(), down[e])
        if kind == "gpt-oss":
            site = sites[f"{path}.gate_up_proj[{e}]"]
            assert torch.equal(site.get(), gate_up[e])
            assert "kept inputs x outputs" in site.note and "interleaved" in site.note
        else:
            gate, up = gate_up[e].chunk(2)
            assert torch.equal(sites[f"{path}.gate_up_proj[{e}.gate]"].get(), gate)
            assert torch.equal(sites[f"{path}.gate_up_proj[{e}.up]"].get(), up)
    skipped = {s.name: s for s in stored.skipped}
    if kind == "gpt-oss":
        assert skipped[f"{path}.gate_up_proj_bias"].kind == "bias"


def test_zeros_of_experts_are_as_planned_in_the_file_and_in_the_model(mixture, tmp_path):
    kind, _, folder = mixture
    chosen = plan(survey(folder, equalize=False), zeros=0.3)
    assert any(".experts." in entry.name for entry in chosen.touched)
    trim(folder, chosen, tmp_path / "out")
    before, after = (
        {k: t for file in sorted(place.glob("*.safetensors")) for k, t in load_file(file).items()}
        for place in (folder, tmp_path / "out")
    )
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in after.items()}
    planned: dict[str, int] = {}
    for entry in chosen.touched:
        if ".experts." in entry.name:
            tensor = entry.name.partition("[")[0]
            planned[tensor] = planned.get(tensor, 0) + entry.zeros
    assert {name: int((after[name] == 0).sum()) for name in planned} == planned
    for name, t in after.items():
        kept = t != 0
        assert torch.equal(t[kept], before[name][kept])
    done = trim(live := moe(kind), plan(survey(live, equalize=False), zeros=0.3))
    assert len(done) == len(chosen.touched)
    state = live.state_dict()
    assert all(torch.equal(state[name], t) for name, t in after.items())


def test_one_expert_is_read_without_the_others(tmp_path, monkeypatch):
    stacked = rand(6, 32, 40)
    save_file({"mlp.experts.w1": stacked}, tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path)
    monkeypatch.setattr(type(source.read), "__call__", lambda *_: pytest.fail("the whole tensor was read"))
    sites = of_checkpoint(source).sites
    assert [s.name for s in sites] == [f"mlp.experts.w1[{e}]" for e in range(6)]
    assert all(torch.equal(site.get(), stacked[e]) for e, site in enumerate(sites))
    assert torch.equal(source.read_rows("mlp.experts.w1", 20, 100), stacked.flatten(0, 1)[20:100])


def test_one_part_of_a_fused_weight_is_read_without_the_others(tmp_path, monkeypatch):
    save_file({"attn.qkv.weight": (fused := rand(48, 16))}, tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path)
    monkeypatch.setattr(type(source.read), "__call__", lambda *_: pytest.fail("the whole tensor was read"))
    assert all(torch.equal(a.get(), b) for a, b in zip(of_checkpoint(source).sites, fused.chunk(3), strict=True))


def names_of(state: dict[str, Tensor], config: dict, folder: Path, fused: str = "split") -> dict[str, str]:
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return {s.name: s.note for s in of_checkpoint(open_checkpoint(folder), fused).sites}


def test_how_experts_are_kept_is_told_by_shapes_then_by_the_config(tmp_path):
    gate_up, down = {"experts.gate_up_proj": rand(2, 64, 40)}, {"experts.down_proj": rand(2, 40, 32)}
    halves = {f"experts.gate_up_proj[{e}.{half}]" for e in (0, 1) for half in ("gate", "up")}
    whole = {f"experts.gate_up_proj[{e}]" for e in (0, 1)}
    assert set(names_of(gate_up | down, {}, tmp_path)) >= halves
    assert set(names_of(gate_up | down, {}, tmp_path, "whole")) >= whole
    alone = names_of(gate_up, {}, tmp_path)
    assert set(alone) == whole and all("nobody tells how" in note for note in alone.values())
    llama = names_of(gate_up, {"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}, tmp_path)
    assert set(llama) == whole and all("side by side" in note and "transpose" in note for note in llama.values())
    # Llama 4 by its shapes alone: hidden 64, inner 20, both kept inputs x outputs.
    turned = names_of({"experts.gate_up_proj": rand(2, 64, 40), "experts.down_proj": rand(2, 20, 64)}, {}, tmp_path)
    assert all("kept inputs x outputs" in note for note in turned.values()) and set(turned) >= whole


def test_what_is_no_stack_of_experts(tmp_path):
    state = {
        "conv.weight": rand(32, 32, 20),
        "experts.3.conv.weight": rand(32, 32, 20),
        "experts.small": rand(5, LEAST - 1, 40),
        "experts.crowd": torch.zeros(MOST + 1, LEAST, LEAST, dtype=torch.float16),
    }
    save_file(state, tmp_path / "model.safetensors")
    found = of_checkpoint(open_checkpoint(tmp_path))
    assert not found.sites and {s.name for s in found.skipped} == set(state)


# fp8 ------------------------------------------------------------------------------------------------------------------

FP8 = torch.float8_e4m3fn


def quantised(W: Tensor, tall: int, wide: int) -> tuple[Tensor, Tensor]:
    """(fp8, scales) of a matrix with a scale a block, entry by entry: slow and plain."""
    scales = torch.zeros(-(-W.shape[0] // tall), -(-W.shape[1] // wide))
    out = torch.zeros_like(W)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide))
            scales[i, j] = W[block].abs().max() / 448
            out[block] = W[block] / scales[i, j]
    return out.to(FP8), scales


def read_fp8(state: dict[str, Tensor], folder: Path, config: dict | None = None) -> dict[str, Tensor]:
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {}))
    sites = of_checkpoint(open_checkpoint(folder)).sites
    assert all(s.kind == "fp8" and s.split is None and "read only" in s.note for s in sites)
    return {s.name: s.get() for s in sites}


@pytest.mark.parametrize(
    ("tall", "wide", "config"),
    [
        (128, 128, {}),
        (128, 128, {"quantization_config": {"weight_block_size": [128, 128]}}),
        (50, 30, {"quantization_config": {"weight_block_size": [50, 30]}}),
        (60, 45, {}),
        (300, 180, {}),
        (1, 180, {}),
    ],
)
def test_fp8_is_read_with_the_scale_of_each_block(tall, wide, config, tmp_path):
    W = rand(300, 180) * torch.linspace(0.1, 30, 300)[:, None]
    kept, scales = quantised(W, tall, wide)
    (read,) = read_fp8({"fc.weight": kept, "fc.weight_scale_inv": scales}, tmp_path, config).values()
    expected = torch.empty(300, 180)
    for i in range(300):
        for j in range(0, 180, 7):
            expected[i, j] = float(kept[i, j]) * scales[i // tall, j // wide]
    assert torch.equal(read[:, ::7], expected[:, ::7])
    assert read.dtype == torch.float32
    assert ((read - W).abs() <= W.abs() / 16 + scales.max() * 2**-9).all()  # half a step: three bits of mantissa


@pytest.mark.parametrize(
    "scales", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]]), torch.tensor([126], dtype=torch.uint8)]
)
def test_fp8_with_one_scale(scales, tmp_path):
    kept = rand(40, 24).to(FP8)
    (read,) = read_fp8({"fc.weight": kept, "fc.weight_scale": scales}, tmp_path).values()
    assert torch.equal(read, kept.float() * 0.5)


def test_fp8_with_a_scale_a_row_or_none(tmp_path):
    kept, scales = rand(40, 24).to(torch.float8_e5m2), rand(40).abs()
    (read,) = read_fp8({"fc.weight": kept, "fc.weight_scale": scales}, tmp_path).values()
    assert torch.equal(read, kept.float() * scales[:, None])
    (read,) = read_fp8({"fc.weight": kept}, tmp_path).values()
    assert torch.equal(read, kept.float())


@pytest.mark.parametrize("each", [True, False])
def test_fp8_experts_are_read_one_by_one(each, tmp_path):
    made = [quantised(rand(40, 24, seed=e), 16, 8) for e in range(3)]
    scales = torch.stack([s for _, s in made]) if each else made[0][1]
    state = {"experts.down_proj": torch.stack([k for k, _ in made]), "experts.down_proj_scale_inv": scales}
    read = read_fp8(state, tmp_path, {"quantization_config": {"weight_block_size": [16, 8]}})
    for e, (kept, own) in enumerate(made):
        S = (own if each else scales).repeat_interleave(16, 0)[:40].repeat_interleave(8, 1)[:, :24]
        assert torch.equal(read[f"experts.down_proj[{e}]"], kept.float() * S)


def test_scales_are_no_matrices_and_must_fit(tmp_path):
    state = {"fc.weight": rand(40, 24).to(FP8), "fc.weight_scale_inv": rand(7, 5)}
    save_file(state, tmp_path / "model.safetensors")
    found = of_checkpoint(open_checkpoint(tmp_path))
    assert not found.sites
    assert {s.name: s.reason for s in found.skipped} == {
        "fc.weight": "fp8: scales of shape (7, 5) fit no blocks of it: 40 into 7",
        "fc.weight_scale_inv": "the scales of fc.weight",
    }


def test_four_bits_stay_skipped(tmp_path):
    state = {
        "fc.weight": torch.zeros(64, 8, dtype=torch.int32),
        "up.weight_packed": torch.zeros(64, 8, dtype=torch.uint8),
    }
    save_file(state, tmp_path / "model.safetensors")
    found = of_checkpoint(open_checkpoint(tmp_path))
    assert not found.sites and all("is not read" in s.reason for s in found.skipped)


def test_fp8_is_judged_kept_by_a_plan_and_never_cut(tmp_path):
    kept, scales = quantised(rand(256, 130), 128, 128)
    state = {"fp.weight": kept, "fp.weight_scale_inv": scales, "half.weight": rand(60, 40, dtype=torch.bfloat16)}
    (folder := tmp_path / "model").mkdir()
    save_file(state, folder / "model.safetensors")
    found = survey(folder)
    assert {r.name for r in found.fitted} == {"fp", "half"}
    for wanted in ({"zeros": 0.5}, {"params": 0.7}, {"params": 0.7, "dense": True}):
        chosen = plan(found, **wanted, **({"gate": 1} if "params" in wanted else {}))
        (entry,) = (e for e in chosen.entries if e.name == "fp")
        assert entry.action == "keep" and "read only" in entry.reason and not entry.candidate
        assert {e.name for e in chosen.touched} == {"half"}
    chosen = plan(found, zeros=0.5)
    trim(folder, chosen, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert int((after["half.weight"] == 0).sum()) == 1200
    for name in ("fp.weight", "fp.weight_scale_inv"):
        assert after[name].dtype == state[name].dtype
        assert torch.equal(after[name].view(torch.uint8), state[name].view(torch.uint8))
    forced = [
        e.model_copy(update={"action": "zeros", "zeros": 9, "decided": ""}) if e.name == "fp" else e
        for e in chosen.entries
    ]
    with pytest.raises(ValueError, match="fp cannot be cut: kept as fp8: read only, convert it to a float of 16 bits"):
        trim(folder, chosen.model_copy(update={"entries": tuple(forced)}), tmp_path / "forced")
    assert not (tmp_path / "forced").exists()


def test_a_model_of_fp8_alone_has_nothing_to_cut(tmp_path):
    save_file({"fp.weight": rand(60, 40).to(FP8)}, tmp_path / "model.safetensors")
    found = survey(tmp_path)
    with pytest.raises(ValueError, match="kept as fp8, which is read only: convert them first"):
        plan(found, zeros=0.5)
    with pytest.raises(ValueError, match="read only"):
        plan(found, params=0.5, gate=1)
