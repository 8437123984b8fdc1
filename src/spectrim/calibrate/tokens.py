"""Rows of tokens without a text: drawn evenly, by Zipf's law, or by the model itself where it is a language model.

References:
    Zipf (1949), Human Behavior and the Principle of Least Effort: the r-th most frequent word has frequency 1 / r.
    Mandelbrot (1953): 1 / (r + 2.7), which flattens the head.
    LLM-QAT, Liu et al., arXiv 2305.17888: calibration texts that the model writes itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from .vocabulary import Vocabulary

SHIFT = 2.7  # Mandelbrot's
SWEEPS = 4  # over a row, in which a masked language model fills in all its tokens


def ordinary(words: Vocabulary) -> Tensor:
    """Returns the numbers of the tokens that are not special, ascending."""
    keep = torch.ones(words.size, dtype=torch.bool)
    keep[list(words.special)] = False
    return keep.nonzero()[:, 0]


def lengths(count: int, most: int, generator: Generator, least: int = 4) -> Tensor:
    """Returns how long the rows are, drawn evenly between `least` and `most`, one of them the most."""
    found = torch.randint(min(least, most), most + 1, (count,), generator=generator)
    found[0] = most
    return found


def evenly(words: Vocabulary, count: int, length: int, generator: Generator) -> Tensor:
    """Returns count x length tokens, every ordinary one as likely as another.

    Example:
        >>> words = Vocabulary(10, special=frozenset({0, 1}))
        >>> int(evenly(words, 4, 16, torch.Generator().manual_seed(0)).min()) >= 2
        True
    """
    among = ordinary(words)
    return among[torch.randint(0, len(among), (count, length), generator=generator)]


def zipf(words: Vocabulary, count: int, length: int, generator: Generator) -> Tensor:
    """Returns count x length tokens of frequency 1 / (rank + 2.7), the ranks being those of `words.order`.

    Where that is not known the numbers of the tokens are taken for ranks, which most vocabularies are near to.

    Args:
        words: the vocabulary.
        count, length: rows; tokens.
        generator: of the processor.
    """
    among = torch.tensor(words.order) if words.order else ordinary(words)
    mass = torch.cumsum(1 / (torch.arange(1, len(among) + 1, dtype=torch.float64) + SHIFT), 0)
    drawn = torch.rand(count, length, generator=generator, dtype=torch.float64) * mass[-1]
    return among[torch.searchsorted(mass, drawn).clamp_max(len(among) - 1)]


def written(
    logits: Callable[[Tensor], Tensor],
    words: Vocabulary,
    count: int,
    length: int,
    generator: Generator,
    *,
    causal: bool,
    batch: int = 16,
) -> Tensor:
    """Returns count x length tokens that a language model writes itself, at temperature 1.

    A causal model continues an evenly drawn token. A masked one starts from masks and fills in a quarter of the places
    at a time, in an order drawn for each row, twice over: a few sweeps of Gibbs' sampler.

    Args:
        logits: from rows x places tokens to rows x places x vocabulary; dense attention, no padding.
        words: the vocabulary; a masked model needs its `mask`.
        count, length: rows; tokens of a row, without those at its ends.
        generator: of the processor.
        causal: whether a place sees only those before it.
        batch: rows at a time.
    """
    if not causal and words.mask is None:
        raise ValueError("a masked language model writes from masks: name its tokenizer (tokenizer=), which tells it")
    banned = torch.zeros(words.size, dtype=torch.bool)
    banned[list(words.special)] = True
    rows = evenly(words, count, length, generator)
    before = torch.tensor(words.before, dtype=torch.long)
    after = torch.tensor(() if causal else words.after, dtype=torch.long)
    skip = len(before)

    def drawn(scores: Tensor) -> Tensor:  # ... x vocabulary
        scores = scores[..., : words.size].float().cpu().masked_fill(banned, -torch.inf)
        share = torch.softmax(scores, -1)
        return torch.multinomial(share.flatten(0, -2), 1, generator=generator).view(share.shape[:-1])

    def whole(part: Tensor) -> Tensor:
        return torch.cat([before.expand(len(part), -1), part, after.expand(len(part), -1)], 1)

    for part in rows.split(batch):  # views: what is written here stands in `rows`
        if causal:
            for place in range(1, length):
                part[:, place] = drawn(logits(whole(part[:, :place]))[:, -1])
            continue
        for sweep in range(2):
            turn = torch.rand(part.shape, generator=generator).argsort(1)
            if sweep == 0:
                part.fill_(words.mask)
            for step in range(SWEEPS):
                now = (turn * SWEEPS // length) == step
                part[now] = words.mask
                part[now] = drawn(logits(whole(part))[:, skip : skip + length])[now]
    return rows


def rows(words: Vocabulary, tokens: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns rows between the tokens at both ends, cut to their lengths and padded, and the mask of what is there.

    Args:
        words: the vocabulary.
        tokens: rows x length.
        count: tokens of each row with its ends; all of them where it is not given.

    Example:
        >>> words = Vocabulary(10, frozenset({0, 1, 2}), before=(1,), after=(2,), pad=0)
        >>> found, there = rows(words, torch.tensor([[5, 6, 7], [8, 9, 9]]), torch.tensor([5, 3]))
        >>> found.tolist(), there.tolist()
        ([[1, 5, 6, 7, 2], [1, 8, 2, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    """
    before, after = (torch.tensor(end, dtype=torch.long) for end in (words.before, words.after))
    total = tokens.shape[1] + len(before) + len(after)
    found = torch.full((len(tokens), total), words.pad if words.pad is not None else 0)
    there = torch.zeros(len(tokens), total, dtype=torch.long)
    for i, row in enumerate(tokens):
        size = total if count is None else max(int(count[i]), len(before) + len(after) + 1)
        inner = row[: size - len(before) - len(after)]
        full = torch.cat([before, inner, after])
        found[i, : len(full)] = full
        there[i, : len(full)] = 1
    return found, there
