"""What a model takes: tokens, images, log-mel spectra or plain vectors, told by its modules and its config.

Nothing here looks at the name of a class. Evidence, in this order: the names of the arguments of `forward` (models of
transformers name what they take), the first module that holds weights, the config and a few attributes under which
libraries keep the size and the range of images. What cannot be told is an error that names the argument that tells it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .image_size import affordable, declared, pair
from .image_size import found as found_size
from .vocabulary import Vocabulary, vocabulary

KINDS = ("tokens", "images", "log-mel", "vectors")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DECODED = 32  # tokens of a decoder that reads a spectrum
TYPES = 8  # a table with no more rows is one of token types, not of positions
CENTRED = (0.5, 0.5)  # pixels in [0, 1] become [-1, 1]
LENGTH = 128  # tokens at most, where nobody says


@dataclass(frozen=True)
class Tokens:
    """Rows of token numbers. `names` are the arguments of `forward` that may be given by name; empty: one tensor."""

    words: Vocabulary
    length: int
    names: frozenset[str] = frozenset()
    decoder_start: int | None = None  # an encoder-decoder's first token


@dataclass(frozen=True)
class Images:
    """Pixels, count x channels x height x width, (x - mean) / std of values in [0, 1]."""

    channels: int
    side: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class LogMel:
    """Log-mel spectra, count x bins x frames, and the tokens that start a decoder."""

    bins: int
    frames: int
    words: Vocabulary | None = None  # of the decoder, where there is one
    decoder_start: int = 0
    decoder_length: int = 0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Vectors:
    """Plain vectors, count x features (count x steps x features where `steps` is told), of these means and scales."""

    features: int
    steps: int | None = None
    mean: Tensor | None = field(default=None, compare=False)
    std: Tensor | None = field(default=None, compare=False)
    batch_first: bool = True


Signature = Tokens | Images | LogMel | Vectors


def signature(
    model: nn.Module,
    kind: str = "auto",
    *,
    image_size: int | tuple[int, int] | None = None,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    length: int | None = None,
    tokenizer: str | None = None,
) -> Signature:
    """Returns what a model takes.

    Args:
        model: a live module. It is run on a few blank images if their size must be found by trying.
        kind: "tokens", "images", "log-mel" or "vectors"; "auto" tells it by the model.
        image_size: pixels, or (height, width), where the model does not say.
        mean, std: what images in [0, 1] are normalised by, where the model does not say; a number or one a channel.
        length: tokens of a row at most, or steps of a sequence of vectors.
        tokenizer: folder with tokenizer.json, which tells the special tokens and what stands at both ends of a text.

    Raises:
        ValueError: what it takes cannot be told; the message names the argument that tells it.

    Example:
        >>> signature(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
        Vectors(features=8, steps=None, mean=None, std=None, batch_first=True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"inputs are made from the modules of a live model, not of {type(model).__name__}")
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind is 'auto' or one of {', '.join(KINDS)}, not {kind!r}")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ValueError(f"length is a whole number of 1 or more, not {length!r}")
    found = told(model) if kind == "auto" else kind
    names = arguments(model)
    config = settings(model)
    if found == "tokens":
        return _tokens(model, config, names, length, tokenizer)
    if found == "log-mel":
        return _log_mel(model, config, names, tokenizer)
    if found == "images":
        return _images(model, config, names, image_size, mean, std)
    return _vectors(model, length)


def arguments(model: nn.Module) -> frozenset[str]:
    """Returns the names of the arguments of a model's `forward`."""
    try:
        return frozenset(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # a scripted forward shows none
        return frozenset()


def settings(model: nn.Module) -> dict[str, Any]:
    """Returns a model's config as a dict: that of transformers, that of timm, or none."""
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if isinstance(config, Mapping):
        return dict(config)
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, name, None)
        if isinstance(config, Mapping):
            return dict(config)
    return {}


def told(model: nn.Module) -> str:
    """Returns the kind of a model's input."""
    names = arguments(model)
    by_name = {"input_ids": "tokens", "pixel_values": "images", "input_features": "log-mel"}
    met = [by_name[name] for name in by_name if name in names]
    if len(met) > 1:
        raise ValueError(
            f"the model takes {' and '.join(met)}: take the part that is to be cut, or give batches of your own"
        )
    if met:
        return met[0]
    if "input_values" in names:
        raise ValueError("the model takes raw sound, which is not made here: give batches of your own")
    first = first_with_weights(model)
    if isinstance(first, nn.Embedding | nn.EmbeddingBag):
        return "tokens"
    if isinstance(first, nn.Conv2d | nn.BatchNorm2d):
        return "images"
    if isinstance(first, nn.Linear | nn.BatchNorm1d | nn.LayerNorm | nn.RNNBase):
        return "vectors"
    what = "it has no weights" if first is None else f"its first layer is {type(first).__name__}"
    raise ValueError(f"what the model takes cannot be told ({what}): say it with kind=, or give batches of your own")


def first_with_weights(model: nn.Module, kinds: tuple[type, ...] = ()) -> nn.Module | None:
    """Returns the first module, in the order of registration, that holds parameters itself and is of these kinds.

    Without kinds: the first layer that torch itself defines; what a module holds besides (tokens, tables of positions)
    is no layer.
    """
    for module in model.modules():
        known = kinds or _LAYERS
        if isinstance(module, known) and any(True for _ in module.parameters(recurse=False)):
            return module
    return None


_LAYERS = (
    *(nn.Embedding, nn.EmbeddingBag, nn.Linear, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
)


def _table(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if callable(getter) else None
    if isinstance(table, nn.Embedding):
        return table
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    if not tables:
        raise ValueError("kind='tokens' needs an embedding table, and the model has none")
    return max(tables, key=lambda t: t.num_embeddings)


def _tokens(model, config, names, length, folder) -> Tokens:
    table = _table(model)
    words = vocabulary(table, config, folder)
    most = config.get("max_position_embeddings") or config.get("n_positions") or config.get("max_source_positions")
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    others = [t for t in tables if t is not table and t.num_embeddings > TYPES]
    if not isinstance(most, int) and others:
        most = min(t.num_embeddings for t in others)
    # RoBERTa numbers positions from the padding's number on, and so has that many fewer.
    room = most - 1 - (words.pad or 0 if (words.pad or 0) < 8 else 0) if isinstance(most, int) else None
    if length is not None and room is not None and length > most:
        raise ValueError(f"length={length} is more than the {most} positions of the model")
    found = length or min(LENGTH, room or LENGTH)
    start = config.get("decoder_start_token_id")
    if config.get("is_encoder_decoder") and start is None:
        start = words.pad if words.pad is not None else 0
    return Tokens(words, max(1, found), names if "input_ids" in names else frozenset(), start)


def _log_mel(model, config, names, folder) -> LogMel:
    first = first_with_weights(model, (nn.Conv1d,))
    bins = config.get("num_mel_bins") or (first.in_channels if first is not None else None)
    if not isinstance(bins, int):
        raise ValueError("kind='log-mel' needs a config with num_mel_bins, or a Conv1d at the input")
    positions = config.get("max_source_positions")
    if not isinstance(positions, int):
        raise ValueError("how many frames the model takes cannot be told: its config has no max_source_positions")
    strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv1d)]
    frames = positions * math.prod(strides[:2] or [1])
    if "decoder_input_ids" not in names:
        return LogMel(bins, frames, names=names)
    words = vocabulary(_table(model), config, folder)
    start, most = config.get("decoder_start_token_id"), config.get("max_target_positions")
    return LogMel(bins, frames, words, start if isinstance(start, int) else 0, min(DECODED, most or DECODED), names)


def _images(model, config, names, image_size, mean, std) -> Images:
    first = first_with_weights(model, (nn.Conv2d,))
    norm = first_with_weights(model, (nn.BatchNorm2d,))
    vision = config.get("vision_config") or {}
    channels = first.in_channels if first is not None else config.get("num_channels") or vision.get("num_channels")
    if channels is None and norm is not None:
        channels = norm.num_features
    if channels is None:
        raise ValueError("kind='images' needs a convolution, or a config with num_channels, to tell the channels")
    named = "pixel_values" in names
    if image_size is not None:
        side, note = pair(image_size), ""
    else:
        size = declared(model, config)
        side, note = (
            found_size(model, channels, named) if size is None else affordable(model, channels, pair(size), named)
        )
    middle = mean if mean is not None else config.get("mean") or config.get("image_mean")
    spread = std if std is not None else config.get("std") or config.get("image_std")
    if middle is None and spread is None and channels == 3:
        middle, spread = IMAGENET
    middle = CENTRED[0] if middle is None else middle
    spread = CENTRED[1] if spread is None else spread
    return Images(channels, side, _each(middle, channels, "mean"), _each(spread, channels, "std"), names, note)


def _each(value, channels: int, name: str) -> tuple[float, ...]:
    found = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(found) != channels or (name == "std" and min(found) <= 0):
        raise ValueError(f"{name} is a number or one for each of the {channels} channels (std positive), not {value!r}")
    return found


def _vectors(model: nn.Module, steps: int | None) -> Vectors:
    first = first_with_weights(model)
    mean = std = None
    batch_first = True
    if isinstance(first, nn.BatchNorm1d):
        features = first.num_features
        if first.running_mean is not None:
            mean = first.running_mean.detach().float().cpu()
            std = (first.running_var.detach().float().cpu() + first.eps).sqrt()
    elif isinstance(first, nn.LayerNorm):
        features = first.normalized_shape[-1]
    elif isinstance(first, nn.RNNBase):
        features, batch_first = first.input_size, first.batch_first
        steps = steps or LENGTH
    elif isinstance(first, nn.Linear):
        features = first.in_features
    else:
        raise ValueError("kind='vectors' needs a first layer that tells how many features there are")
    if steps is None and any(isinstance(m, nn.MultiheadAttention | nn.RNNBase) for m in model.modules()):
        raise ValueError("the model takes sequences of vectors, and how long they are cannot be told: say length=")
    return Vectors(features, steps, mean, std, batch_first)


def caller(signature: Signature) -> Callable[[Tensor], Any]:
    """Returns what makes a batch of a tensor: the tensor itself, or a dict by the name that `forward` gives it."""
    name = {Images: "pixel_values", LogMel: "input_features", Tokens: "input_ids"}.get(type(signature))
    if name is not None and name in signature.names:
        return lambda x: {name: x}
    return lambda x: x
