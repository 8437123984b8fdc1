"""Inputs made from a model's signature: what is told, what is drawn, and that a recipe makes it again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from spectrim.calibrate import images, leaves, scenes, sounds, tokens
from spectrim.calibrate.inputs import WAYS, Inputs, fingerprint, pictures, synthetic
from spectrim.calibrate.recipes import replay
from spectrim.calibrate.signature import Images, LogMel, Tokens, Vectors, signature
from spectrim.calibrate.vocabulary import Vocabulary, vocabulary


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bert(**more):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.BertConfig(vocab_size=200, max_position_embeddings=40, **small, **more), transformers


def whisper():
    transformers = pytest.importorskip("transformers")
    config = transformers.WhisperConfig(
        vocab_size=60, num_mel_bins=16, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50,
        max_target_positions=20, decoder_start_token_id=3, pad_token_id=2, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


class LeNet(nn.Module):
    """Runs on 28 x 28 alone."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 5), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.head(self.convs(x).flatten(1))


def convolutional(strides: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for stride in strides:
        layers += [nn.Conv2d(inputs, 4, 3, stride, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
        inputs = 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


class Reader(nn.Module):
    """A language model in plain torch: a table of words, one of positions."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(90, 16), nn.Embedding(24, 16), nn.Linear(16, 90)

    def forward(self, ids):
        return self.out(self.words(ids) + self.places(torch.arange(ids.shape[1])))


# what is told


def test_vectors_are_told_by_the_first_layer():
    assert signature(nn.Sequential(nn.Flatten(), nn.Linear(12, 3))).features == 12
    norm = nn.BatchNorm1d(3)
    norm.running_mean[:] = torch.tensor([5.0, -5.0, 0.0])
    norm.running_var[:] = torch.tensor([4.0, 1.0, 100.0])
    x = torch.cat(list(synthetic(nn.Sequential(norm, nn.Linear(3, 2)), count=4000)))
    # standard errors: .03, .016, .16; five of them
    assert torch.allclose(x.mean(0), torch.tensor([5.0, -5.0, 0.0]), atol=0.8)
    assert torch.allclose(x.std(0), torch.tensor([2.0, 1.0, 10.0]), rtol=0.06)


def test_sequences_of_vectors_need_a_length():
    net = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    with pytest.raises(ValueError, match="length="):
        signature(net)
    found = synthetic(net, count=5, length=7)
    assert found[0].shape == (5, 7, 6) and net(found[0]).shape == (5, 7, 8)
    lstm = nn.LSTM(6, 8)
    assert synthetic(lstm, count=5, length=7)[0].shape == (7, 5, 6)  # time comes first there


def test_images_are_told_by_the_one_size_that_runs():
    found = signature(LeNet())
    assert isinstance(found, Images) and found.side == (28, 28) and found.channels == 1
    assert "only one" in found.note and found.mean == (0.5,)


@pytest.mark.parametrize(("strides", "side"), [((2, 2), 32), ((2, 2, 2, 2, 2), 224), ((2, 2, 2), 64)])
def test_a_net_that_runs_on_any_size_gets_one_that_fits_its_stride_and_says_so(strides, side):
    found = signature(convolutional(strides))
    assert found.side == (side, side) and "assumed" in found.note
    assert found.mean == (0.485, 0.456, 0.406)
    asked = signature(convolutional(strides), image_size=(20, 30), mean=0.5, std=(0.1, 0.2, 0.3))
    assert asked.side == (20, 30) and asked.mean == (0.5,) * 3 and asked.std == (0.1, 0.2, 0.3) and not asked.note


def test_trying_sizes_leaves_the_model_as_it_was():
    net = convolutional((2, 2)).train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    synthetic(net, count=2)
    assert net.training and not net[1].training and net[4].training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in net.modules())


def test_a_large_declared_size_is_cut_down_where_the_model_runs_on_less():
    net = convolutional((2, 2, 2, 2, 2))
    net.image_size = 518
    found = signature(net)
    assert found.side == (224, 224) and "518" in found.note
    fixed = nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(), nn.Linear(2 * 20 * 20, 4))
    fixed.img_size = 320
    assert signature(fixed).side == (320, 320)


def test_attributes_as_timm_writes_them():
    net = convolutional((2,))
    net.pretrained_cfg = {"input_size": (3, 48, 40), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 2)}
    found = signature(net)
    assert found.side == (48, 40) and found.mean == (0.1, 0.2, 0.3) and found.std == (1.0, 1.0, 2.0)


def test_a_model_of_transformers_tells_all():
    config, transformers = bert(pad_token_id=0, bos_token_id=1)
    model = transformers.BertModel(config).eval()
    found = signature(model)
    assert isinstance(found, Tokens) and found.words.size == 200 and found.length == 39
    assert {0, 1} <= found.words.special and found.words.before == (1,)
    batches = synthetic(model, count=20, batch=8)
    assert [len(b["input_ids"]) for b in batches] == [8, 8, 4]
    for batch in batches:
        assert model(**batch).last_hidden_state.shape[:2] == batch["input_ids"].shape
        rows, there = batch["input_ids"], batch["attention_mask"].bool()
        assert bool((rows[:, 0] == 1).all()) and bool((rows[~there] == 0).all())
        assert not bool(torch.isin(rows[:, 1:][there[:, 1:]], torch.tensor(sorted(found.words.special))).any())
    assert len({int(n) for b in batches for n in b["attention_mask"].sum(1)}) > 3  # lengths vary


def test_whisper_gets_spectra_and_the_start_of_a_text():
    model = whisper()
    found = signature(model)
    assert isinstance(found, LogMel) and (found.bins, found.frames) == (16, 100)
    batch = synthetic(model, count=3)[0]
    assert batch["input_features"].shape == (3, 16, 100) and batch["decoder_input_ids"][:, 0].tolist() == [3, 3, 3]
    assert model(**batch).logits.shape == (3, 20, 60)
    assert len(synthetic(model, batch=32)[0]["input_features"]) == 32


def test_a_vision_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.ViTModel(config).eval()
    batch = synthetic(model, count=2)[0]
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and model(**batch).last_hidden_state.shape[1] == 17


def test_plain_token_models_and_their_positions():
    model = Reader()
    found = synthetic(model, count=4)[0]
    assert found.shape == (4, 23) and found.dtype == torch.long and model(found).shape == (4, 23, 90)
    with pytest.raises(ValueError, match="24 positions"):
        synthetic(model, length=30)


class Silent(nn.Module):
    def forward(self, x):
        return x


class Both(Silent):
    def forward(self, input_ids, pixel_values):
        return input_ids


class Sound(Silent):
    def forward(self, input_values):
        return input_values


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        (Silent(), {}, ValueError, "kind="),
        (nn.Conv3d(1, 2, 3), {}, ValueError, "Conv3d"),
        (Both(), {}, ValueError, "tokens and images"),
        (Sound(), {}, ValueError, "raw sound"),
        (nn.Linear(3, 2), {"kind": "tokens"}, ValueError, "embedding"),
        (nn.Linear(3, 2), {"kind": "sound"}, ValueError, "kind is"),
        (nn.Linear(3, 2), {"way": "zipf"}, ValueError, "normal"),
        (nn.Linear(3, 2), {"count": 0}, ValueError, "count"),
        (nn.Linear(3, 2), {"seed": None}, TypeError, "seed"),
        (nn.Linear(3, 2), {"length": -1}, ValueError, "length"),
        (convolutional((2,)), {"image_size": "big"}, ValueError, "image_size"),
        (convolutional((2,)), {"image_size": 32, "std": 0.0}, ValueError, "std"),
        (convolutional((2,)), {"image_size": 32, "mean": (1.0, 2.0)}, ValueError, "3 channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)), {}, ValueError, "image_size="),
        ({"a": torch.zeros(2, 2)}, {}, TypeError, "live model"),
        (Reader(), {"tokenizer": "/nowhere"}, FileNotFoundError, "tokenizer="),
        (Reader(), {"way": "written"}, ValueError, "take 'even'"),
    ],
)
def test_what_cannot_be_told_names_the_argument(model, options, error, said):
    with pytest.raises(error, match=said):
        synthetic(model, **options)


# tokenizer files


def written_tokenizer(folder, model, post=None, added=()):
    told = {"model": model, "post_processor": post, "added_tokens": [{"id": i, "content": w} for w, i in added]}
    (folder / "tokenizer.json").write_text(json.dumps(told))


def test_the_tokenizer_tells_ends_and_frequency(tmp_path):
    words = {
        "[PAD]": 0,
        "[unused0]": 1,
        "[CLS]": 2,
        "[SEP]": 3,
        "[MASK]": 4,
        "!": 5,
        "a": 6,
        "the": 7,
        "of": 8,
        "##s": 9,
    }
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
        "special_tokens": {"[CLS]": {"ids": [2]}, "[SEP]": {"ids": [3]}},
    }
    added = [(w, i) for w, i in words.items() if w.startswith("[") and "unused" not in w]
    written_tokenizer(tmp_path, {"vocab": words}, post, added)
    found = vocabulary(nn.Embedding(10, 4), {}, tmp_path)
    assert (found.before, found.after, found.pad, found.mask) == ((2,), (3,), 0, 4)
    assert found.special == {0, 1, 2, 3, 4} and found.order == (7, 8, 5, 6, 9)
    drawn = tokens.zipf(found, 100, 50, seeded()).flatten().bincount(minlength=10)
    assert drawn[:5].sum() == 0 and drawn[7] > drawn[8] > drawn[5] > drawn[9] > 0
    model = nn.Sequential(nn.Embedding(10, 4))
    assert (
        synthetic(model, tokenizer=str(tmp_path)).recipe["way"] == "zipf" and synthetic(model).recipe["way"] == "even"
    )


def test_a_unigram_tokenizer_tells_its_probabilities(tmp_path):
    written_tokenizer(tmp_path, {"vocab": [["<pad>", 0.0], ["x", -5.0], ["yy", -2.0]]}, added=[("<pad>", 0)])
    assert vocabulary(nn.Embedding(3, 4), {}, tmp_path).order == (2, 1)


def test_a_vocabulary_of_special_tokens_alone_is_refused():
    with pytest.raises(ValueError, match="special"):
        vocabulary(nn.Embedding(2, 4), {"bos_token_id": 0, "eos_token_id": 1})


# what is drawn


def test_even_tokens_are_even_and_zipf_follows_its_law():
    words = Vocabulary(50, frozenset(range(10)))
    flat = tokens.evenly(words, 200, 200, seeded()).flatten().bincount(minlength=50)
    # each count is binomial, 1000 +- 31: six deviations, one chance in 10^7 over all
    assert flat[:10].sum() == 0 and bool(((flat[10:] - 1000).abs() < 190).all())
    found = tokens.zipf(words, 500, 400, seeded(1)).flatten().bincount(minlength=50)[10:]
    law = 1 / (torch.arange(1, 41).double() + 2.7)
    wanted = 200_000 * law / law.sum()
    assert bool(((found - wanted).abs() < 6 * wanted.sqrt()).all())


@pytest.mark.parametrize("causal", [False, True])
def test_a_language_model_writes_what_it_has_learnt(causal):
    # Of a token of number t the model says that t + 1 follows (causal), or that every place is 7 (masked).
    words = Vocabulary(20, frozenset({0, 1}), before=(0,), mask=1)

    def logits(ids):
        wanted = 2 + (ids - 1) % 18 if causal else torch.full_like(ids, 7)
        return 60.0 * nn.functional.one_hot(wanted, 20).float()

    rows = tokens.written(logits, words, 5, 12, seeded(), causal=causal, batch=2)
    if causal:
        assert bool((rows[:, 1:] == 2 + (rows[:, :-1] - 1) % 18).all())
    else:
        assert bool((rows == 7).all())


def test_a_masked_language_model_of_transformers_writes():
    config, transformers = bert(pad_token_id=0, bos_token_id=1, mask_token_id=2)
    model = transformers.BertForMaskedLM(config).eval()
    found = synthetic(model, count=3, length=9, way="written")
    assert found[0]["input_ids"].shape[1] <= 9 and int(found[0]["input_ids"].max()) < 200
    with pytest.raises(ValueError, match="head"):
        synthetic(transformers.BertModel(config).eval(), count=2, way="written")


def radial_slope(x: torch.Tensor) -> float:
    """The exponent of amplitude against frequency, by least squares over rings of a plain two-dimensional spectrum."""
    side = x.shape[-1]
    power = np.abs(np.fft.fft2(x.numpy())) ** 2
    power = power.reshape(-1, side, side).mean(0)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    rings = [(f >= a) & (f < 1.3 * a) for a in np.geomspace(2 / side, 0.35, 8)]
    return float(np.polyfit([np.log(f[r].mean()) for r in rings], [np.log(power[r].mean()) / 2 for r in rings], 1)[0])


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_fields_have_the_exponent_that_they_are_asked_for(exponent):
    x = images.fields(40, 64, seeded(), (exponent, exponent))
    assert abs(radial_slope(x) + exponent) < 0.15  # rings are broad and fields stretched
    assert float(x.mean().abs()) < 1e-5


def test_natural_colours():
    axes = torch.randn(50, 3, 40, 40, generator=seeded())
    x = images.coloured(axes).permute(1, 0, 2, 3).flatten(1)
    values = np.linalg.eigvalsh(np.cov(x.numpy()))[::-1]
    assert np.allclose(values, images.COLOUR_VARIANCES, rtol=0.05)  # 80000 samples: standard error .5 %
    assert torch.allclose(x.mean(1), torch.tensor(images.COLOUR_MEAN), atol=0.02)


def test_leaf_radii_hide_one_another_in_order():
    ids = leaves.leaf_maps(3, 64, seeded(), leaves=40)
    again = leaves.leaf_maps(3, 64, seeded(), leaves=40)
    assert torch.equal(ids, again) and int(ids.min()) >= 0 and int(ids.max()) < 40
    assert all(len(i.unique()) > 10 for i in ids)
    # the literal disc: every pixel within the radius, the later one on top
    canvas = torch.zeros(21, 21, dtype=torch.long)
    leaves.stamp(canvas, 1, 10.0, 10.0, 6.0, 0, 0.0, 1.0)
    leaves.stamp(canvas, 2, 10.0, 13.0, 3.0, 0, 0.0, 1.0)
    for y in range(21):
        for x in range(21):
            wanted = 2 if (y - 10) ** 2 + (x - 13) ** 2 <= 9 else int((y - 10) ** 2 + (x - 10) ** 2 <= 36)
            assert int(canvas[y, x]) == wanted
    leaves.stamp(canvas, 3, -50.0, 5.0, 3.0, 2, 0.4, 0.7)  # outside
    assert int(canvas.max()) == 2


def test_things_lie_on_a_ground_and_bending_moves_no_colour():
    ids = scenes.things(6, 48, seeded(), (0.15, 0.55))
    assert int(ids.max()) <= scenes.PARTS and all(len(i.unique()) >= 3 for i in ids)
    assert bool((ids[:, 0, 0] == 0).float().mean() >= 0.5)
    x = torch.rand(3, 3, 32, 32, generator=seeded())
    assert torch.allclose(scenes.bent(x, seeded(), 0.0), x, atol=1e-5)
    flat = torch.full((2, 3, 32, 32), 0.4)
    assert torch.allclose(scenes.bent(flat, seeded(), 0.3), flat, atol=1e-6)
    assert not torch.allclose(scenes.bent(x, seeded(), 0.3), x, atol=0.05)


def test_a_blur_keeps_the_mean_and_flattens_what_is_fine():
    x = torch.rand(2, 3, 40, 40, generator=seeded())
    y = images.blurred(x, torch.tensor([0.0, 2.0]))
    assert torch.allclose(y[0], x[0], atol=1e-5)
    assert float(y[1].std()) < 0.2 * float(x[1].std())
    flat = images.blurred(torch.full((1, 3, 12, 12), 0.3), torch.tensor([1.5]))
    assert torch.allclose(flat, torch.full_like(flat, 0.3), atol=1e-5)


@pytest.mark.parametrize("way", WAYS["images"])
def test_every_way_gives_pixels_between_0_and_1_that_differ(way):
    x = pictures(20, 32, way, seeded())
    assert x.shape == (20, 3, 32, 32) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert float(x.std((2, 3)).median()) > 0.02 and float(x.mean((1, 2, 3)).std()) > 0.05
    assert torch.equal(x, pictures(20, 32, way, seeded())) and not torch.equal(x, pictures(20, 32, way, seeded(1)))


def test_speech_like_spectra():
    x = sounds.speech_like(16, 80, 600, seeded())
    assert bool((x.amax((1, 2)) <= 1.5).all()) and bool((x.amax((1, 2)) >= 1.0).all())
    assert bool((x.amax((1, 2)) - x.amin((1, 2)) <= 2.0001).all())
    assert bool((x.mean(2)[:, :20].mean(1) > x.mean(2)[:, -20:].mean(1)).float().mean() > 0.8)  # high bins are weaker
    field = sounds.power_law(30, 64, 64, seeded())
    assert abs(radial_slope(field) + 1) < 0.15


# batches, recipes


@pytest.mark.parametrize("way", WAYS["images"])
def test_a_recipe_makes_the_same_inputs_again(way):
    net = convolutional((2, 2))
    found = synthetic(net, count=9, seed=3, way=way, batch=4, image_size=24, mean=(0.5, 0.5, 0.4), norms="stored")
    recipe = json.loads(json.dumps(found.recipe))
    again = replay(net, recipe)
    assert isinstance(again, Inputs) and len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    other = synthetic(net, count=9, seed=4, way=way, batch=4, image_size=24)
    assert other.recipe["fingerprint"] != found.recipe["fingerprint"]


def test_a_recipe_that_gives_other_inputs_is_refused():
    net = convolutional((2, 2))
    recipe = synthetic(net, count=3).recipe
    with pytest.raises(ValueError, match="side, note differ"):
        replay(convolutional((2, 2, 2)), recipe)
    with pytest.raises(ValueError, match="made again"):
        replay(net, {**recipe, "fingerprint": "0"})
    with pytest.raises(ValueError, match="not of synthetic"):
        replay(net, {"generator": "samples"})


def test_fingerprints_see_names_shapes_and_values():
    x = torch.arange(6.0)
    same = fingerprint([{"a": x}])
    assert same == fingerprint([{"a": x.clone()}])
    others = [[{"b": x}], [{"a": x.view(2, 3)}], [{"a": x + 1}], [x], [{"a": x.double()}]]
    assert len({same, *map(fingerprint, others)}) == 6


def test_inputs_come_in_the_dtype_of_the_model():
    net = convolutional((2, 2)).bfloat16()
    found = synthetic(net, count=2)
    assert found[0].dtype == torch.bfloat16 and net(found[0]).dtype == torch.bfloat16
    assert found.recipe["fingerprint"] == synthetic(net.float(), count=2).recipe["fingerprint"]
    ids = synthetic(Reader().double(), count=2)[0]
    assert ids.dtype == torch.long


def test_more_bands_than_three_and_oblong_images():
    net = nn.Sequential(nn.Conv2d(5, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2))
    found = synthetic(net, count=4, image_size=(20, 33))[0]
    assert found.shape == (4, 5, 20, 33) and bool(torch.isfinite(found).all())


def test_vectors_are_the_plain_type():
    assert isinstance(signature(nn.Linear(3, 2)), Vectors)
