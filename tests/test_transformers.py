"""Folders of transformers models, split as files: they load as the trimmed live model does, or are refused."""

import json

import pytest
import torch

import spectrim

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TOKENS = torch.arange(12)[None]

CASES = {
    "bert": ("BertModel", transformers.BertConfig(vocab_size=99, **SMALL), {"input_ids": TOKENS}, "AutoModel"),
    "bert mlm": (
        "BertForMaskedLM",
        transformers.BertConfig(vocab_size=99, **SMALL),
        {"input_ids": TOKENS},
        "AutoModelForMaskedLM",
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        transformers.GPT2Config(vocab_size=99, n_embd=48, n_layer=2, n_head=4),
        {"input_ids": TOKENS},
        "AutoModelForCausalLM",
    ),
    "llama": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(vocab_size=99, num_key_value_heads=2, **SMALL),
        {"input_ids": TOKENS},
        "AutoModelForCausalLM",
    ),
    "t5": (
        "T5ForConditionalGeneration",
        transformers.T5Config(vocab_size=99, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4),
        {"input_ids": TOKENS, "decoder_input_ids": TOKENS},
        "AutoModelForSeq2SeqLM",
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        transformers.GPTNeoXConfig(vocab_size=99, **SMALL),
        {"input_ids": TOKENS},
        "AutoModelForCausalLM",
    ),
    "vit": (
        "ViTForImageClassification",
        transformers.ViTConfig(image_size=32, patch_size=8, **SMALL),
        {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        "AutoModelForImageClassification",
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        transformers.WhisperConfig(
            vocab_size=99, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_source_positions=20,
            max_target_positions=20, num_mel_bins=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, begin_suppress_tokens=None,
        ),
        {
            "input_features": torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0)),
            "decoder_input_ids": TOKENS,
        },
        "AutoModelForSpeechSeq2Seq",
    ),
}  # fmt: skip


def first(outputs) -> torch.Tensor:
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@pytest.mark.parametrize("name", CASES)
def test_a_split_folder_loads_as_the_trimmed_model_or_is_refused(name, tmp_path):
    architecture, config, inputs, auto = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(tmp_path / "in")
    found = spectrim.survey(tmp_path / "in")
    chosen = spectrim.plan(found, params=0.6)
    assert len(chosen.touched) >= 6
    try:
        spectrim.trim(tmp_path / "in", chosen, tmp_path / "out")
    except ValueError as error:
        assert "Trim the live model" in str(error)
        assert not (tmp_path / "out").exists()
        # The way out that the message names works.
        live = spectrim.trim(model, spectrim.plan(spectrim.survey(model), params=0.6))
        live.save(tmp_path / "out")
    again = getattr(transformers, auto).from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    reference = getattr(transformers, architecture).from_pretrained(tmp_path / "in").eval()
    spectrim.trim(reference, spectrim.plan(spectrim.survey(reference), params=0.6))
    with torch.no_grad():
        seen, expected = first(again(**inputs)), first(reference(**inputs))
        dense = first(getattr(transformers, architecture).from_pretrained(tmp_path / "in").eval()(**inputs))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen, dense, atol=1e-4)  # it was cut


def test_names_of_an_older_checkpoint_are_refused(tmp_path):
    """What transformers would translate for its own class, it does not translate for the one that a split brings."""
    from safetensors.torch import load_file, save_file

    model = transformers.BertModel(transformers.BertConfig(vocab_size=99, **SMALL))
    model.save_pretrained(tmp_path / "in")
    state = load_file(tmp_path / "in" / "model.safetensors")
    old = {name.replace("attention.self.query", "attention.self.q_lin"): t for name, t in state.items()}
    save_file(old, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    chosen = spectrim.plan(spectrim.survey(tmp_path / "in"), params=0.6)
    with pytest.raises(ValueError, match="q_lin"):
        spectrim.trim(tmp_path / "in", chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dense = spectrim.plan(spectrim.survey(tmp_path / "in"), params=0.6, dense=True)
    spectrim.trim(tmp_path / "in", dense, tmp_path / "out")  # same names as before: nothing to translate anew


def test_the_folders_of_a_sentence_transformer_come_along(tmp_path):
    from safetensors.torch import save_file

    model = transformers.BertModel(transformers.BertConfig(vocab_size=99, **SMALL))
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "2_Dense").mkdir()
    save_file({"linear.weight": torch.eye(48)}, tmp_path / "in" / "2_Dense" / "model.safetensors")
    (tmp_path / "in" / "onnx").mkdir()
    (tmp_path / "in" / "onnx" / "model.onnx").write_bytes(b"the dense model")
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "2_Dense"}]
    (tmp_path / "in" / "modules.json").write_text(json.dumps(modules))
    spectrim.trim(tmp_path / "in", spectrim.plan(spectrim.survey(tmp_path / "in"), params=0.6), tmp_path / "out")
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "onnx").exists()  # it would be the model as it was
