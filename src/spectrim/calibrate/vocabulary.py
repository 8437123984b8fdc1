"""The words of a model: how many tokens it knows, which of them are special, and what stands at the ends of a text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

RESERVED = re.compile(r"\[unused\d+\]|<unused\d+>|<extra_id_\d+>|<\|reserved.*\|>|madeupword\d+")
SPECIAL_SETTINGS = ("bos", "eos", "pad", "cls", "sep", "mask", "unk", "decoder_start")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens 0 to size - 1; `special` are not words; `before` and `after` stand at the ends of a text.

    `pad` fills up short rows; None where the model has no such token. `order` are the ordinary tokens, the
    most frequent first, empty where that is not known. `source` says where this was read.
    """

    size: int
    special: frozenset[int] = frozenset()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad: int | None = None
    mask: int | None = None
    order: tuple[int, ...] = ()
    source: str = "config"


def vocabulary(table: nn.Embedding, config: dict[str, Any], folder: str | Path | None = None) -> Vocabulary:
    """Returns the vocabulary of an embedding table, by the tokenizer's file where there is one, and the config.

    Args:
        table: the embedding of the tokens.
        config: of the model; `bos_token_id` and the like are read, and `_name_or_path` if it is a folder.
        folder: with tokenizer.json; an error if it is named and not there.

    Example:
        >>> vocabulary(nn.Embedding(100, 8), {"bos_token_id": 1, "eos_token_id": 2}).special
        frozenset({1, 2})
    """
    size = min(table.num_embeddings, config.get("vocab_size") or table.num_embeddings)
    named: dict[str, int] = {}
    special: set[int] = set()
    for word in SPECIAL_SETTINGS:
        value = config.get(f"{word}_token_id")
        values = value if isinstance(value, list | tuple) else [value]
        found = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < size]
        special |= set(found)
        if found:
            named[word] = found[0]
    if table.padding_idx is not None:
        special.add(table.padding_idx)
        named.setdefault("pad", table.padding_idx)
    before, after = _ends(named)
    order: list[int] = []
    source = "config"
    file = _tokenizer(folder, config)
    if file is not None:
        told = json.loads(file.read_text(encoding="utf8"))
        added = {entry["content"]: entry["id"] for entry in told.get("added_tokens", []) if entry["id"] < size}
        special |= set(added.values())
        words = told.get("model", {}).get("vocab", {})
        falling = {}
        if isinstance(words, list):  # a unigram model lists pairs (word, log-probability)
            falling = {i: -pair[1] for i, pair in enumerate(words)}
            words = {pair[0]: i for i, pair in enumerate(words)}
        special |= {i for word, i in words.items() if i < size and RESERVED.fullmatch(word)}
        order = by_frequency(words, falling, special, size)
        before, after = _template(told.get("post_processor"), {**words, **added}, (before, after))
        for name in ("pad", "mask"):
            for form in (f"[{name.upper()}]", f"<{name}>"):
                if form in added:
                    named[name] = added[form]
        source = "tokenizer.json"
    if len(special) >= size:
        raise ValueError(f"all {size} tokens are special ones: there is nothing to draw")
    return Vocabulary(
        size, frozenset(special), before, after, named.get("pad"), named.get("mask"), tuple(order), source
    )


def by_frequency(words: dict[str, int], falling: dict[int, float], special: set[int], size: int) -> list[int]:
    """Returns the ordinary tokens, the most frequent first, roughly.

    A unigram model keeps log-probabilities. Vocabularies that grew by merging (BPE, WordPiece) begin with the alphabet
    and go on in about the order of frequency: words by their numbers, then single characters.

    Example:
        >>> by_frequency({"!": 0, "a": 1, "the": 2, "##ing": 3, "[PAD]": 4}, {}, {4}, 5)
        [2, 3, 0, 1]
    """
    known = [(word, i) for word, i in words.items() if i < size and i not in special]
    if falling:
        return [i for _, i in sorted(known, key=lambda pair: (falling[pair[1]], pair[1]))]
    bare = [(len(word.removeprefix("##").lstrip("\u0120\u2581")) < 2, i) for word, i in known]
    return [i for _, i in sorted(bare)]


def _ends(named: dict[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start = named.get("cls", named.get("bos"))
    end = named.get("sep")
    return (() if start is None else (start,)), (() if end is None else (end,))


def _tokenizer(folder: str | Path | None, config: dict[str, Any]) -> Path | None:
    if folder is not None:
        place = Path(folder)
        file = place if place.is_file() else place / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}, which tokenizer= names: it is a folder with tokenizer.json")
        return file
    place = config.get("_name_or_path")
    if not place:
        return None
    file = Path(str(place)) / "tokenizer.json"
    return file if file.is_file() else None


def _template(told: Any, numbers: dict[str, int], otherwise: tuple[tuple[int, ...], tuple[int, ...]]):
    """Returns what stands before and after a single text by the file's post-processor."""
    if not isinstance(told, dict):
        return (), ()
    if told.get("type") == "Sequence":
        for part in told.get("processors", []):
            if part.get("type") in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
                return _template(part, numbers, otherwise)
        return (), ()
    if told.get("type") in ("BertProcessing", "RobertaProcessing"):
        return (told["cls"][1],), (told["sep"][1],)
    if told.get("type") != "TemplateProcessing":
        return (), ()
    ends: tuple[list[int], list[int]] = ([], [])
    side = 0
    for piece in told.get("single", []):
        if "Sequence" in piece:
            side = 1
            continue
        name = piece["SpecialToken"]["id"]
        ids = told.get("special_tokens", {}).get(name, {}).get("ids") or [numbers.get(name)]
        ends[side].extend(i for i in ids if i is not None)
    return tuple(ends[0]), tuple(ends[1])
