"""The tasks of this experiment, and unlabelled samples for each that are not among the items it scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from experiments.tasks import efficientnet, images, minilm, vit_cifar, vit_s14, whisper

Batches = list[Any]  # as `spectrim.calibrate.gather` takes them
SAMPLES = 128
BATCH = 16
WORDS = 60  # of a background document, as many as a text of the task has


def opened(name: str, given: Mapping[str, Path]) -> tuple[Any, Batches]:
    """Returns the task of a model, and 128 samples, in batches, that it does not score."""
    return {
        "minilm": _minilm,
        "vit_cifar": _vit_cifar,
        "vit_s14": _vit_s14,
        "efficientnet": _efficientnet,
        "whisper": _whisper,
    }[name]({key: str(place) for key, place in given.items()})


def _minilm(at: Mapping[str, str]) -> tuple[Any, Batches]:
    """Samples: the first background documents of the Lee corpus, news as the documents scored are, cut short."""
    from spectrim import demo

    task = minilm.task(None if at["minilm"] == "DEFAULT" else at["minilm"])
    lines = demo._packaged("gensim", "test_data/lee_background.cor").read_text(encoding="latin-1").splitlines()
    texts = [" ".join(line.split()[:WORDS]) for line in lines if line.strip()][:SAMPLES]
    return task, [dict(task.encoder.tokens(texts[i : i + BATCH])) for i in range(0, len(texts), BATCH)]


def _vit_cifar(at: Mapping[str, str]) -> tuple[Any, Batches]:
    """Samples: training images."""
    from experiments.vit_cifar import net

    task = vit_cifar.task(at["vit_cifar"], cifar=at["cifar"])
    shown = images.cifar(Path(at["cifar"]), 130, 10).train[:SAMPLES]
    return task, _images(net.standardised(shown))


def _vit_s14(at: Mapping[str, str]) -> tuple[Any, Batches]:
    """Samples: training images behind those that the probe was fitted on."""
    more = {"cache": at["vit_cache"]} if "vit_cache" in at else {}
    task = vit_s14.task(at["vit"], cifar=at["cifar"], **more)
    shown = images.cifar(Path(at["cifar"]), 2000 + 130, 10, task.pixels.shape[-1]).train[2000 : 2000 + SAMPLES]
    centre, spread = (torch.tensor(v).view(3, 1, 1) for v in (vit_s14.MEAN, vit_s14.SPREAD))
    return task, _images((shown - centre) / spread)


def _efficientnet(at: Mapping[str, str]) -> tuple[Any, Batches]:
    """Samples: 128 of the 500 images, spread over the classes; the other 372 are scored."""
    task = efficientnet.task(at["lite0"], images=at["images"], dtype="bfloat16")
    whole = len(task.labels)
    taken = torch.zeros(whole, dtype=torch.bool)
    taken[[i * whole // SAMPLES for i in range(SAMPLES)]] = True
    scored = replace(task, pixels=task.pixels[~taken], labels=task.labels[~taken], dense=task.dense[~taken])
    return scored, list(task.pixels[taken].split(BATCH))


def _whisper(at: Mapping[str, str]) -> tuple[Any, Batches]:
    """Samples: other prompts of the same voice; the decoder reads what the dense model itself hears in them."""
    task = whisper.task(at["whisper"], speech=at["speech"], transcripts=at["transcripts"], n=40)
    from transformers import WhisperFeatureExtractor

    sounds, text = Path(at["speech"]), Path(at["transcripts"])
    scored = {clip.name for clip in whisper.clips(sounds, text, 40)}
    others = [clip for clip in whisper.clips(sounds, text, 40 + SAMPLES // 2) if clip.name not in scored]
    mel = WhisperFeatureExtractor(feature_size=task.model.config.num_mel_bins)
    chosen = others[: SAMPLES // 2]
    spectra = mel([clip.samples for clip in chosen], sampling_rate=whisper.RATE, return_tensors="pt").input_features
    batches = []
    with torch.no_grad():
        for part in spectra.split(whisper.BATCH):
            heard = whisper.transcribe(task.model, task.model.get_encoder()(part).last_hidden_state, task.limit)
            for i, tokens in enumerate(heard):  # one at a time: no padding to keep out of the decoder's moments
                ids = torch.tensor([[whisper.START, whisper.PLAIN, *tokens]])
                batches.append({"input_features": part[i : i + 1], "decoder_input_ids": ids})
    return task, batches


def _images(pixels: torch.Tensor) -> Batches:
    return [{"pixel_values": part} for part in pixels.split(BATCH)]
