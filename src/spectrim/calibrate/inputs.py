"""Inputs for calibration made from what a model takes, with no data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from . import images, leaves, scenes, sounds, tokens
from .image_size import evaluating
from .restated import Restated, stored_norms
from .signature import Images, LogMel, Signature, Tokens, Vectors, caller, signature

COUNT = 128
COUNTS = {"log-mel": 32}  # a spectrum is half a minute of sound, 1500 positions in Whisper's encoder
BATCH, SMALL = 16, 4  # for most models, and of images for those that read no statistics of a batch: the least memory
LEAST = 8  # images whose statistics are worth more than what noise makes of the stored ones
WAYS = {
    "tokens": ("even", "zipf", "written"),
    "images": ("scenes", "dead leaves", "edges", "1/f", "mixture"),
    "log-mel": ("speech-like", "1/f"),
    "vectors": ("normal",),
}
SHARPEN = 6.0  # the most gain of the "edges"


@dataclass(frozen=True, eq=False)
class Inputs(Sequence):
    """Batches as a model takes them, and the recipe that makes them again, bit for bit (`replay`)."""

    batches: tuple[Any, ...]
    recipe: dict[str, Any]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def synthetic(
    model: nn.Module,
    kind: str = "auto",
    count: int | None = None,
    *,
    seed: int = 0,
    way: str = "auto",
    batch: int | None = None,
    norms: str = "auto",
    image_size: int | tuple[int, int] | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    length: int | None = None,
    tokenizer: str | None = None,
) -> Inputs:
    """Returns inputs made from a model's own signature, as batches that it takes, in its dtype and on its device.

    The process's random state is neither read nor changed: the same seed gives the same inputs.

    Args:
        model: a live module.
        kind: "tokens", "images", "log-mel" or "vectors"; "auto" tells it by the model.
        count: rows, images, spectra or vectors; 128, and 32 spectra, if not given.
        seed: of the one generator that everything is drawn from.
        way: how they are drawn, see `WAYS`; "auto" takes the first of the kind's, but for tokens "zipf" where the
            tokenizer's file tells which are frequent.
        batch: of so many at a time; 16, but 4 of images for a model without BatchNorm, if not given.
        norms: "stored" leaves BatchNorm as it is. "batch" gives functions that run the model with each BatchNorm at the
            statistics of the batch, so that behind it the stored mean and scale hold (`Restated`). "auto" is "batch"
            for images in batches of eight or more, where the model has such norms.
        image_size, mean, std, length, tokenizer: what the model does not say, see `signature`.

    Example:
        >>> found = synthetic(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), count=20)
        >>> [tuple(batch.shape) for batch in found], found.recipe["kind"]
        ([(16, 8), (4, 8)], 'vectors')
    """
    for name, value in (("count", COUNT if count is None else count), ("batch", SMALL if batch is None else batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed is a whole number, which a recipe can hold, not {type(seed).__name__}")
    if norms not in ("auto", "batch", "stored"):
        raise ValueError(f"norms is 'auto', 'batch' or 'stored', not {norms!r}")
    if norms == "batch" and not stored_norms(model):
        raise ValueError("norms='batch' needs a BatchNorm with stored statistics, and the model has none")
    given = {"image_size": image_size, "mean": mean, "std": std, "length": length, "tokenizer": tokenizer}
    takes = signature(model, kind, **given)
    name = _kind(takes)
    if batch is None:
        batch = BATCH if name != "images" or stored_norms(model) else SMALL
    count = COUNTS.get(name, COUNT) if count is None else count
    if way == "auto":
        way = _default(takes, name)
    if way not in WAYS[name]:
        raise ValueError(f"way is 'auto' or one of {', '.join(WAYS[name])} for {name}, not {way!r}")
    generator = Generator().manual_seed(seed)
    made = _MAKERS[name](takes, count, way, generator, model, batch)
    if norms == "auto":
        restate = name == "images" and bool(stored_norms(model)) and min(_sizes(made)) >= LEAST
    else:
        restate = norms == "batch"
    recipe = {
        "generator": "synthetic",
        "kind": name,
        "way": way,
        "seed": seed,
        "count": count,
        "batch": batch,
        "norms": "batch" if restate else "stored",
        "settings": {key: _plain(value) for key, value in given.items() if value is not None},
        "resolved": _resolved(takes),
        "fingerprint": fingerprint(made),
    }
    ready = (moved(part, model) for part in made)
    return Inputs(tuple(Restated(part) for part in ready) if restate else tuple(ready), recipe)


def fingerprint(batches: Sequence[Any]) -> str:
    """Returns a hash of the contents of batches: names, shapes and values."""
    found = hashlib.sha256()
    for part in batches:
        for name, tensor in sorted(part.items()) if isinstance(part, Mapping) else [("", part)]:
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def moved(part: Any, model: nn.Module) -> Any:
    """Returns a batch on a model's device, what is not whole numbers in its dtype."""
    own = next((p for p in model.parameters() if p.is_floating_point()), None)
    if own is None:
        return part
    if isinstance(part, Mapping):
        return {name: moved(tensor, model) for name, tensor in part.items()}
    return part.to(own.device, own.dtype if part.is_floating_point() else part.dtype)


def _sizes(batches: Sequence[Any]) -> list[int]:
    return [len(next(iter(part.values())) if isinstance(part, Mapping) else part) for part in batches]


def _default(takes: Signature, name: str) -> str:
    """Returns the way that is taken if none is named: words by frequency where their order is known."""
    return "zipf" if isinstance(takes, Tokens) and takes.words.order else WAYS[name][0]


def _kind(takes: Signature) -> str:
    return {Tokens: "tokens", Images: "images", LogMel: "log-mel", Vectors: "vectors"}[type(takes)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if isinstance(value, int | float) else str(value)


def _resolved(takes: Signature) -> dict[str, Any]:
    """Returns what was told of a signature, for the recipe: numbers and words alone."""
    if isinstance(takes, Images):
        return {
            "channels": takes.channels,
            "side": list(takes.side),
            "mean": list(takes.mean),
            "std": list(takes.std),
            **({"note": takes.note} if takes.note else {}),
        }
    if isinstance(takes, Vectors):
        return {"features": takes.features, "steps": takes.steps}
    words = takes.words
    if words is None:
        return {"bins": takes.bins, "frames": takes.frames}
    told = {
        "vocabulary": words.size,
        "special": len(words.special),
        "ends": [list(words.before), list(words.after)],
        "words": words.source,
    }
    if isinstance(takes, LogMel):
        return {"bins": takes.bins, "frames": takes.frames, "decoder_length": takes.decoder_length, **told}
    return {"length": takes.length, **told}


def _of_tokens(takes: Tokens, count: int, way: str, generator: Generator, model: nn.Module, batch: int) -> list[Any]:
    words = takes.words
    ends = len(words.before) + len(words.after)
    inner = max(1, takes.length - ends)
    if way == "even":
        drawn = tokens.evenly(words, count, inner, generator)
    elif way == "zipf":
        drawn = tokens.zipf(words, count, inner, generator)
    else:
        logits = _language(model, takes)
        drawn = tokens.written(logits, words, count, inner, generator, causal=is_causal(logits), batch=batch)
    padded = "attention_mask" in takes.names
    counts = tokens.lengths(count, inner, generator) + ends if padded else None
    found, there = tokens.rows(words, drawn, counts)
    parts: list[Any] = []
    for ids, mask in zip(found.split(batch), there.split(batch), strict=True):
        width = int(mask.sum(1).max())
        part: dict[str, Tensor] = {"input_ids": ids[:, :width].contiguous()}
        if padded:
            part["attention_mask"] = mask[:, :width].contiguous()
        if takes.decoder_start is not None and "decoder_input_ids" in takes.names:
            start = torch.full((len(ids), 1), takes.decoder_start)
            part["decoder_input_ids"] = torch.cat([start, tokens.evenly(words, len(ids), inner, generator)], 1)
        parts.append(part if takes.names else part["input_ids"])
    return parts


def _language(model: nn.Module, takes: Tokens) -> Callable[[Tensor], Tensor]:
    """Returns the logits of a language model as a function of rows x places tokens."""
    if "input_ids" not in takes.names or takes.decoder_start is not None:
        raise ValueError("way='written' is for language models of transformers without an encoder: take 'even'")
    device = next(model.parameters()).device

    def logits(ids: Tensor) -> Tensor:
        with evaluating(model):
            out = model(input_ids=ids.to(device))
        found = getattr(out, "logits", None)
        if found is None or found.ndim != 3 or found.shape[-1] < takes.words.size:
            raise ValueError(
                f"way='written' needs a head over the {takes.words.size} tokens, which the model lacks: load it with"
                " its language-model head, or take way='even'"
            )
        return found

    return logits


def is_causal(logits: Callable[[Tensor], Tensor]) -> bool:
    """Returns whether a place of a language model sees only those before it, found by changing the last token."""
    one, other = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[1, 2, 3, 4, 5, 7]])
    return bool(torch.allclose(logits(one)[:, 0].float(), logits(other)[:, 0].float(), atol=1e-5))


def pictures(count: int, side: int, way: str, generator: Generator) -> Tensor:
    """Returns images in [0, 1], count x 3 x side x side, drawn in one of the ways."""
    if way == "mixture":
        shares = [count * k // 4 for k in range(5)]
        parts = zip(WAYS["images"][:4], shares, shares[1:], strict=False)
        found = torch.cat([pictures(b - a, side, of, generator) for of, a, b in parts if b > a])
        return found[torch.randperm(count, generator=generator)]
    draw: dict[str, Callable[[int], Tensor]] = {
        "scenes": lambda n: scenes.scenes(n, side, generator),
        "dead leaves": lambda n: leaves.dead_leaves(n, side, generator),
        "edges": lambda n: images.power_law(n, side, generator, SHARPEN),
        "1/f": lambda n: images.power_law(n, side, generator),
    }
    return torch.cat([draw[way](min(BATCH, count - i)) for i in range(0, count, BATCH)])


def _of_images(takes: Images, count: int, way: str, generator: Generator, model: nn.Module, batch: int) -> list[Any]:
    height, width = takes.side
    found = pictures(count, max(height, width), way, generator)[..., :height, :width]
    if takes.channels == 1:
        found = found.mean(1, keepdim=True)
    elif takes.channels != 3:  # more bands of the same scene: mixtures of the three
        mix = torch.softmax(2 * torch.randn(takes.channels, 3, generator=generator), 1)
        found = torch.einsum("kc,nchw->nkhw", mix, found)
    mean, std = (torch.tensor(v)[:, None, None] for v in (takes.mean, takes.std))
    make = caller(takes)
    parts = ((found - mean) / std).chunk(-(-count // batch))  # even ones: a norm may take the statistics of each
    return [make(part.contiguous()) for part in parts]


def _of_sounds(takes: LogMel, count: int, way: str, generator: Generator, model: nn.Module, batch: int) -> list[Any]:
    parts: list[Any] = []
    for i in range(0, count, batch):
        size = min(batch, count - i)
        if way == "speech-like":
            x = sounds.speech_like(size, takes.bins, takes.frames, generator)
        else:
            x = 0.4 * sounds.power_law(size, takes.bins, takes.frames, generator)
        part: dict[str, Tensor] = {"input_features": x}
        if "decoder_input_ids" in takes.names:
            ids = tokens.evenly(takes.words, size, takes.decoder_length - 1, generator)
            part["decoder_input_ids"] = torch.cat([torch.full((size, 1), takes.decoder_start), ids], 1)
        parts.append(part if takes.names else x)
    return parts


def _of_vectors(takes: Vectors, count: int, way: str, generator: Generator, model: nn.Module, batch: int) -> list[Any]:
    shape = (count, takes.features) if takes.steps is None else (count, takes.steps, takes.features)
    x = torch.randn(*shape, generator=generator)
    if takes.mean is not None:
        x = x * takes.std + takes.mean
    parts = x.split(batch)
    return [part if takes.batch_first or takes.steps is None else part.transpose(0, 1).contiguous() for part in parts]


_MAKERS = {"tokens": _of_tokens, "images": _of_images, "log-mel": _of_sounds, "vectors": _of_vectors}
