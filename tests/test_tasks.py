"""The tasks: their files read, their scores what they say, on tiny stand-ins made here; nothing is fetched."""

from __future__ import annotations

import copy
import io
import json
import struct
import sys
import tarfile
import wave
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the experiments are no part of the package

from experiments.data import CIFAR_CLASSES, made_images  # noqa: E402
from experiments.tasks import common, ctranslate2, efficientnet, images, lite, minilm, vit_cifar, vit_s14, whisper  # noqa: E402  # noqa: E402

from spectrim import survey  # noqa: E402
from spectrim.survey import inventory  # noqa: E402
from spectrim.sweep import CONTROLS, Score, Zeros, named, watched  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def filled(model: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(
                1.0 if "norm" in name.rpartition(".")[0][-12:] and name.endswith("weight") else 0.0,
                scale,
                generator=generator,
            )
    return model.eval()


def picture(seed: int, width: int = 32, height: int = 32):
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.NEAREST)


def png(image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cifar") / "cifar.tar"
    with tarfile.open(file, "w") as out:
        for split, each in (("train", 3), ("test", 2)):
            for k, label in enumerate(CIFAR_CLASSES):
                for i in range(each):
                    raw = png(picture(100 * k + 10 * i + (split == "test")))
                    info = tarfile.TarInfo(f"cifar/{split}/{label}/{i}.png")
                    info.size = len(raw)
                    out.addfile(info, io.BytesIO(raw))
    return file


def conforms(task, dense_cosine: float = 1.0) -> dict[str, Score]:
    """What a sweep asks of any task: a dense model in eval mode, scores that repeat, items in pairs, cosine 1."""
    assert task.name and not task.model.training
    with watched(task.model) as seen:  # a sweep counts multiply-adds while it measures the dense model
        first = task.measure(task.model)
    assert seen.executed(inventory(task.model)) > 0
    again = task.measure(copy.deepcopy(task.model))
    assert list(first) == list(again) and "cosine" in first and next(iter(first)) != "cosine"
    for name, score in first.items():
        assert np.array_equal(score.table, again[name].table)
    assert first["cosine"].value == pytest.approx(dense_cosine, abs=1e-6)
    broken = copy.deepcopy(task.model)
    with torch.no_grad():
        for site in inventory(broken).sites:
            if task.only is None or task.only(site.name):
                site.put(torch.zeros(site.rows, site.cols))
    ruined = task.measure(broken)
    for name, score in ruined.items():
        assert score.table.shape == first[name].table.shape  # the same items: models are compared in pairs
        assert np.isfinite(score.table).all()
    assert ruined["cosine"].value < 0.9
    return first


# What they share


def test_cosines_are_those_of_numpy_and_zero_where_there_are_none():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    centre = y.mean(0)
    a, b = (t.numpy() - centre.numpy() for t in (x, y))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert common.cosines(x, y, centre) == pytest.approx(expected, abs=1e-6)
    x[0], x[1], x[2, 3] = 0, float("nan"), float("inf")
    assert common.cosines(x, y)[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        (vit_s14.task, {}, "MODEL is not given"),
        (efficientnet.task, {"model": "no.pth"}, "no file no.pth"),
        (whisper.task, {"model": "nowhere"}, "no folder nowhere"),
        (vit_cifar.task, {"model": "."}, "config.json"),
        (minilm.task, {"model": "nowhere"}, "no folder nowhere"),
    ],
)
def test_what_is_missing_is_named_with_a_way_to_get_it(task, given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as told:
        task(**given)
    assert "pip " in str(told.value) or "python -m" in str(told.value)


def test_options_come_as_text_and_bad_ones_are_refused(tmp_path):
    assert common.whole("20", "n") == common.whole(20, "n") == 20
    for bad in ("2.5", "many", "0", "-3", ""):
        with pytest.raises(ValueError, match="n is a whole number"):
            common.whole(bad, "n")
    with pytest.raises(ValueError, match="dtype is one of"):
        common.choice("float8", "dtype", ("float32",))
    with pytest.raises(ValueError, match="--set cifar=PATH"):
        common.needed(None, "cifar", "an archive")
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="no file"):
        common.needed(tmp_path / "a", "cifar", "an archive")


# Images


def test_some_of_an_archive_by_turns(archive):
    found = images.cifar(archive, 20, 10)
    assert found.train_labels.tolist() == [*range(10), *range(1, 10), 0]
    assert found.test_labels.tolist() == list(range(10))
    for half in (found.train_labels[::2], found.train_labels[1::2]):  # a sweep chooses by one, and reports on the other
        assert sorted(half.tolist()) == list(range(10))
    expected = torch.from_numpy(np.array(picture(300))).permute(2, 0, 1) / 255.0
    assert torch.equal(found.train[3], expected)
    assert images.cifar(archive, 0, 10, side=28).test.shape == (10, 3, 28, 28)
    assert torch.equal(images.cifar(archive, 0, 20).test[:10], found.test)  # a part is the beginning of the whole
    with pytest.raises(ValueError, match="multiple of ten"):
        images.cifar(archive, 15, 10)
    with pytest.raises(ValueError, match="fewer than 4 images of train/airplane"):
        images.cifar(archive, 40, 10)


def test_a_zip_by_class(tmp_path):
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as out:
        for k, (width, height) in enumerate([(40, 32), (32, 48), (64, 64), (32, 32)]):
            out.writestr(f"some/{7 * k:04d}_n0{k}.png", png(picture(k, width, height)))
    found, labels = images.by_class(file, 32, 32)
    assert found.shape == (4, 3, 32, 32) and labels.tolist() == [0, 7, 14, 21]
    whole = torch.from_numpy(np.array(picture(0, 40, 32))).permute(2, 0, 1) / 255.0
    assert torch.equal(found[0], whole[:, :, 4:36])
    assert images.by_class(file, 32, 32, most=2)[1].tolist() == [0, 14]
    with zipfile.ZipFile(file, "a") as out:
        out.writestr("cat.png", png(picture(9)))
    with pytest.raises(ValueError, match="CCCC"):
        images.by_class(file, 32, 32)


# MiniLM


@pytest.fixture(scope="module")
def similar():
    pytest.importorskip("transformers")
    try:
        return minilm.task()
    except ImportError as missing:
        pytest.skip(str(missing))


def test_the_judgements_are_scored_as_by_the_demo(similar):
    from spectrim import demo

    met: dict[tuple[str, ...], torch.Tensor] = {}

    def once(model: nn.Module, texts: list[str]) -> torch.Tensor:
        return met.setdefault(tuple(texts), similar.encoder(model, texts) if tuple(texts) not in met else None)

    judged = replace(similar.judged, words={minilm.WORDS: similar.judged.words[minilm.WORDS]})
    task = replace(similar, encoder=once)
    scores = task.measure(task.model)
    theirs = demo.score(task.model, once, judged)
    assert len(met) == 2  # words and documents, encoded once
    assert scores["cosine"].table.tolist() == task.measure(task.model)["cosine"].table.tolist()
    assert scores["wordsim353"].value == pytest.approx(theirs.tasks["WordSim-353"][0], abs=1e-6)
    assert scores["lee50"].value == pytest.approx(theirs.tasks["Lee-50"][0], abs=1e-6)
    assert scores["wordsim353"].value > 0.7 and scores["cosine"].value == pytest.approx(1, abs=1e-6)
    assert task.items == sum(map(len, met))  # what went through the model
    assert scores["lee50"].square and len(scores["wordsim353"].table) == 353
    names = [site.name for site in inventory(similar.model).sites]
    assert [name for name in names if not similar.only(name)] == ["pooler.dense"]


# EfficientNet


def test_padding_is_that_of_tensorflow():
    for kernel, stride, side in ((3, 1, 12), (3, 2, 12), (5, 1, 12), (5, 2, 12)):
        outputs = -(-side // stride)
        total = max((outputs - 1) * stride + kernel - side, 0)  # as TensorFlow documents SAME
        before, after = total // 2, total - total // 2
        x = torch.arange(side * side, dtype=torch.float32).reshape(1, 1, side, side)
        found = lite.padded(kernel, stride)(x)
        assert torch.equal(found, F.pad(x, (before, after, before, after)))
        assert F.conv2d(found, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1] == outputs


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("lite") / "lite0.pth"
    torch.save(filled(lite.Lite0(classes=30), scale=0.2).state_dict(), file)
    return file


def test_lite0_has_the_size_and_the_names_of_the_checkpoint():
    with torch.device("meta"):
        model = lite.Lite0()
    assert sum(p.numel() for p in model.parameters()) == 4652008
    state = model.state_dict()
    assert state["_blocks.1._expand_conv.weight"].shape == (96, 16, 1, 1)
    assert state["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1) and "_blocks.16._bn0.bias" not in state


def test_the_task_of_efficientnet(lite0, tmp_path):
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as out:
        for k in range(4):
            out.writestr(f"{k:04d}_x.png", png(picture(k, 256, 256)))
    task = efficientnet.task(str(lite0), images=str(file), n="3")
    scores = conforms(task)
    assert len(scores["top1"].table) == 3
    net = lite.load(lite0)
    pixels, labels = images.by_class(file, 256, 224, 3)
    with torch.no_grad():
        right = (net((pixels - 127 / 255) / (128 / 255)).argmax(1) == labels).float().mean()
    assert scores["top1"].value == pytest.approx(float(right), abs=1e-6)
    names = [site.name for site in inventory(task.model).sites]
    assert not task.only("_conv_stem") and "_conv_stem" in names and "_blocks.0._depthwise_conv" not in names
    with pytest.raises(ValueError, match="no checkpoint"):
        torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
        lite.load(tmp_path / "a.pth")


# ViT-S/14


def dino(width: int = 64) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=1, patch_size=14, image_size=518
    )
    model = filled(transformers.Dinov2Model(config), scale=0.2)
    with torch.no_grad():
        model.embeddings.mask_token.zero_()
    return model


def as_onnx(model: nn.Module, file: Path) -> None:
    """Writes what of an export the loader reads: named vectors, nameless transposed matrices, nodes with names."""
    onnx = pytest.importorskip("onnx")
    tensors, nodes = {}, []
    theirs = {ours: name for name, ours in vit_s14.NAMES.items()}
    for name, t in model.state_dict().items():
        t = t.numpy()
        plain = name.removesuffix(".weight")
        if name == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_1": t[:, :1], "onnx::Reshape_2": t[:, 1:]}
            continue
        if name == "embeddings.mask_token":
            continue
        for ours, other in theirs.items():
            name, plain = (s.replace(f".{ours}", f".{other}") for s in (name, plain))
        if name.endswith("weight") and t.ndim == 2:
            place = f"onnx::MatMul_{len(nodes)}"
            tensors[place] = np.ascontiguousarray(t.T)
            node = "/backbone/" + plain.replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", place], [f"y{len(nodes)}"], name=node))
        else:
            tensors[f"backbone.{name}"] = t
            if t.ndim == 4:
                node = "/backbone/" + plain.replace(".", "/") + "/Conv"
                nodes.append(onnx.helper.make_node("Conv", ["x", f"backbone.{name}"], [f"y{len(nodes)}"], name=node))
    initializers = [onnx.numpy_helper.from_array(t, name) for name, t in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(file))


def test_the_backbone_of_an_onnx_file(tmp_path):
    model = dino()
    as_onnx(model, tmp_path / "vit.onnx")
    found = vit_s14.load(tmp_path / "vit.onnx")
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(found(x).last_hidden_state, model(x).last_hidden_state, atol=1e-6)


def test_the_probe_is_a_ridge_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 8, generator=generator) * 3 + 1, torch.arange(60) % 10
    probe = vit_s14.fitted(x, y, x)
    z = ((x - x.mean(0)) / x.std(0)).numpy()
    theirs = linear_model.Ridge(alpha=vit_s14.RIDGE * 60).fit(z, np.eye(10)[y.numpy()])
    ours = probe.standardised(x) @ probe.weights + probe.intercept
    assert torch.allclose(ours, torch.from_numpy(theirs.predict(z)).float(), atol=1e-5)


def test_the_task_of_the_vit_and_its_cache(archive, tmp_path):
    as_onnx(dino(), tmp_path / "vit.onnx")
    given = {"cifar": str(archive), "n_train": "20", "n_test": "10", "pixels": "28", "dtype": "float32"}
    task = vit_s14.task(str(tmp_path / "vit.onnx"), **given, cache=str(tmp_path / "kept"))
    scores = conforms(task)
    assert len(scores["accuracy"].table) == 10 and scores["accuracy"].chance == 0.1
    kept = vit_s14.task(str(tmp_path / "vit.onnx"), **given, cache=str(tmp_path / "kept.npz"))
    assert torch.equal(kept.probe.weights, task.probe.weights) and torch.equal(kept.probe.dense, task.probe.dense)
    other = vit_s14.task(str(tmp_path / "vit.onnx"), **given | {"n_train": "30"}, cache=str(tmp_path / "kept"))
    assert not torch.equal(other.probe.weights, task.probe.weights)  # what was kept is of other settings
    with pytest.raises(ValueError, match="multiple of the patch"):
        vit_s14.task(str(tmp_path / "vit.onnx"), **given | {"pixels": "32"})


# Whisper


def write_ctranslate2(file: Path, tensors: dict[str, np.ndarray], aliases: dict[str, str], half: bool = True) -> None:
    def text(s: str) -> bytes:
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, t in tensors.items():
        kind = {"f": 4 if half else 0, "i": 1 if t.itemsize == 1 else 2}[t.dtype.kind]
        raw = t.astype({0: "<f4", 1: "<i1", 2: "<i2", 4: "<f2"}[kind]).tobytes()
        out += text(name) + struct.pack(f"<B{t.ndim}I", t.ndim, *t.shape) + struct.pack("<BI", kind, len(raw)) + raw
    out += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    file.write_bytes(out)


def as_ctranslate2(model: nn.Module, file: Path) -> None:
    """Writes a Whisper model as a converter would: q, k and v stacked, keys with a bias of zeros."""
    state = {
        name.removeprefix("model."): t.numpy() for name, t in model.state_dict().items() if name != "proj_out.weight"
    }
    tensors = {"encoder/num_heads": np.int16(2).reshape(()), "decoder/num_heads": np.int16(2).reshape(())}
    tensors["decoder/pre_norm"] = np.int8(1).reshape(())

    def norm(ours: str, theirs: str) -> None:
        tensors[f"{theirs}/gamma"], tensors[f"{theirs}/beta"] = state[f"{ours}.weight"], state[f"{ours}.bias"]

    def linear(ours: list[str], theirs: str) -> None:
        tensors[f"{theirs}/weight"] = np.concatenate([state[f"{name}.weight"] for name in ours])
        biases = [state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), np.float32)) for name in ours]
        tensors[f"{theirs}/bias"] = np.concatenate(biases)

    for part in ("encoder", "decoder"):
        for i in range(1):
            ours, theirs = f"{part}.layers.{i}", f"{part}/layer_{i}"
            linear([f"{ours}.self_attn.{k}_proj" for k in "qkv"], f"{theirs}/self_attention/linear_0")
            linear([f"{ours}.self_attn.out_proj"], f"{theirs}/self_attention/linear_1")
            norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if part == "decoder":
                linear([f"{ours}.encoder_attn.q_proj"], f"{theirs}/attention/linear_0")
                linear([f"{ours}.encoder_attn.{k}_proj" for k in "kv"], f"{theirs}/attention/linear_1")
                linear([f"{ours}.encoder_attn.out_proj"], f"{theirs}/attention/linear_2")
                norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            linear([f"{ours}.fc1"], f"{theirs}/ffn/linear_0")
            linear([f"{ours}.fc2"], f"{theirs}/ffn/linear_1")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        norm(f"{part}.layer_norm", f"{part}/layer_norm")
        tensors[f"{part}/position_encodings/encodings"] = state[f"{part}.embed_positions.weight"]
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            tensors[f"encoder/{name}/{kind}"] = state[f"encoder.{name}.{kind}"]
    tensors["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    write_ctranslate2(file, tensors, {"decoder/projection/weight": "decoder/embeddings/weight"})


@pytest.fixture(scope="module")
def listener(tmp_path_factory) -> tuple[nn.Module, Path]:
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=51864, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=32,
        decoder_start_token_id=whisper.START,
    )  # fmt: skip
    model = filled(transformers.WhisperForConditionalGeneration(config), scale=0.3)
    model = model.half().float()  # as the file holds it
    folder = tmp_path_factory.mktemp("whisper")
    as_ctranslate2(model, folder / "model.bin")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["the", "press", "one", "two", "[x]"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[x]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model, folder


def test_a_model_of_ctranslate2_is_the_model_that_was_written(listener):
    model, folder = listener
    found = whisper.load(folder)
    generator = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(1, 80, 3000, generator=generator), torch.tensor([[whisper.START, whisper.PLAIN, 5]])
    with torch.no_grad():
        ours, theirs = (m(input_features=x, decoder_input_ids=tokens).logits for m in (found, model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert found.proj_out.weight is found.model.decoder.embed_tokens.weight


def test_files_of_ctranslate2_that_are_none(tmp_path):
    file = tmp_path / "model.bin"
    write_ctranslate2(file, {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"b": "a"}, half=False)
    name, tensors = ctranslate2.read(file)
    assert name == "WhisperSpec" and np.array_equal(tensors["b"], np.arange(6).reshape(2, 3))
    raw = file.read_bytes()
    for cut in (3, 30, len(raw) - 40):
        file.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match="cut short"):
            ctranslate2.read(file)
    file.write_bytes(b"PK\3\4" + raw)
    with pytest.raises(ValueError, match="version"):
        ctranslate2.read(file)


def by_recursion(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(by_recursion(a[1:], b) + 1, by_recursion(a, b[1:]) + 1, by_recursion(a[1:], b[1:]) + (a[0] != b[0]))


def test_word_errors_are_those_of_the_definition():
    draw = np.random.default_rng(0)
    for _ in range(60):
        a, b = ([*"abc"[: draw.integers(1, 4)]] * 2 for _ in range(2))
        a, b = (list(draw.permutation(x)[: draw.integers(0, 6)]) for x in (a, b))
        assert whisper.errors(a, b) == by_recursion(a, b)


def sound(file: Path, seconds: float, seed: int, rate: int = 8000) -> None:
    x = np.random.default_rng(seed).normal(0, 3000, int(seconds * rate)).astype("<i2")
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(x.tobytes())


def test_the_task_of_whisper(listener, tmp_path):
    lines = {
        "a": "Press one now.",
        "b": "Press two, please!",
        "c": "[a beep of some kind]",
        "d": "Two words",
        "e": "not there at all",
        "f": "far too long a clip",
    }
    for k, name in enumerate("abcdf"):
        sound(tmp_path / f"{name}.wav", 20 if name == "f" else 0.6 + k / 10, k)
    text = tmp_path / "said.txt"
    text.write_text("; a remark\n\n" + "".join(f"{name}: {line}\n" for name, line in lines.items()))
    given = {"speech": str(tmp_path), "transcripts": str(text), "n": "2", "limit": "4", "dtype": "float32"}
    task = whisper.task(str(listener[1]), **given)
    assert task.said == (("press", "one", "now"), ("press", "2", "please"))
    scores = conforms(task)
    wer = scores["wer"]
    assert wer.better == "lower" and wer.table[:, 1].tolist() == [3, 3] and 0 <= wer.value <= 1
    with pytest.raises(ValueError, match="2 clips that fit"):
        whisper.task(str(listener[1]), **given | {"n": "5"})


def test_greedy_words_are_those_of_the_whole_decoder_run_anew_for_each(listener):
    model = listener[0]
    x = torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = model.get_encoder()(x).last_hidden_state
        found = whisper.transcribe(model, states, 6)
        for i, given in enumerate(found):
            tokens = [whisper.START, whisper.PLAIN]
            for token in given:
                out = model(encoder_outputs=(states[i : i + 1],), decoder_input_ids=torch.tensor([tokens])).logits[
                    0, -1
                ]
                assert int(out[: whisper.END + 1].argmax()) == token
                tokens.append(token)
            assert len(given) <= 6


# The small vision transformer


def test_the_task_of_the_small_transformer_through_a_sweep():
    pytest.importorskip("transformers")
    from experiments.vit_cifar import net, run

    shown = made_images(channels=3)
    model = run.toy(shown)
    task = vit_cifar.made(model, shown.test, shown.test_labels)
    scores = conforms(task)
    with torch.no_grad():
        right = model(pixel_values=net.standardised(shown.test)).logits.argmax(1) == shown.test_labels
    assert scores["accuracy"].value == pytest.approx(float(right.float().mean()))
    assert scores["accuracy"].value > 0.2  # it has learned something: ten classes
    losses = []
    for method in named(CONTROLS).values():
        cut = copy.deepcopy(model)
        method(cut, survey(cut), 0.5, torch.Generator().manual_seed(0))
        losses.append(task.measure(cut)["cosine"].value)
    assert losses[1] > losses[2] and losses[0] > losses[2]  # magnitude before chance
    assert all(a != b for a, b in pairwise(losses))


def test_a_saved_folder_is_a_task(archive, tmp_path):
    pytest.importorskip("transformers")
    from experiments.vit_cifar import net

    model = net.network(net.Size(width=32, blocks=1), torch.Generator().manual_seed(0)).eval()
    model.save_pretrained(tmp_path / "model")
    task = vit_cifar.task(str(tmp_path / "model"), cifar=str(archive), n_test="20")
    assert len(conforms(task)["accuracy"].table) == 20
    assert json.loads((tmp_path / "model/config.json").read_text())["patch_size"] == 8
    assert isinstance(next(iter(named(["lamp"]).values())), Zeros)
