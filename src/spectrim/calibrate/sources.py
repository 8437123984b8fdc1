"""Moments by the name of their source, and the same ones again: what a plan asks for, and its replay."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..moments import Moments
from .gather import POSITIONS
from .inputs import synthetic
from .recipes import replay
from .sensitivity import weighed
from .stored import stored
from .streamed import streamed

WITHOUT_DATA = ("stored", "synthetic")
CONFIG = "config.json"


def moments_of(
    model: nn.Module,
    source: str,
    *,
    count: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    only: Callable[[str], bool] | None = None,
    weigh: bool = True,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Moments:
    """Return the moments that a model yields without data.

    Args:
        model: a live module.
        source: "stored", from the figures that the network carries; "synthetic", from inputs made for its signature.
        count: synthetic inputs; see `calibrate.synthetic`.
        seed: of their generator.
        image_size: side of synthetic images, where yours are of another size than the model says of itself.
        only: a function of a name, that lets a matrix take part.
        weigh: whether synthetic inputs also tell what the outputs of each matrix weigh, see `weighed`; a note says why
            where they do not.
        progress: wraps the iteration over the batches.
    """
    if source == "stored":
        return stored(model, only=only)
    if source != "synthetic":
        raise ValueError(f"without data moments come from one of {', '.join(WITHOUT_DATA)}, not {source!r}")
    inputs = synthetic(model, count=count, seed=seed, image_size=image_size)
    found = streamed(model, inputs, only=only, source="synthetic", recipe=inputs.recipe, progress=progress)
    if not weigh:
        return found
    try:
        return weighed(found, model, inputs, progress=progress)
    except ValueError as error:  # a model of pairs, or that gives indices: its inputs are known all the same
        notes = [*found.notes, f"the outputs are not weighed: {error}"]
        return replace(found, recipe={**found.recipe, "notes": notes})


def again(
    model: nn.Module,
    source: str,
    recipe: Mapping[str, Any],
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Moments:
    """Return moments made again by their recipe, on the same inputs bit for bit.

    Their figures may differ in the last digits from machine to machine, and their hash with them.

    Args:
        model: the live module that they were made of.
        source: `Moments.source`.
        recipe: `Moments.recipe`.
        progress: wraps the iteration over the batches.
    """
    if source == "stored":
        return stored(model)
    if source != "synthetic":
        raise ValueError(f"moments from {source} cannot be made again without them: save them, and give the file")
    inputs, weights = replay(model, recipe), recipe.get("rows")
    if weights is not None and (not isinstance(weights, Mapping) or set(weights) != {"samples", "seed"}):
        raise ValueError(f"the recipe of the moments was changed: rows holds samples and seed, not {weights!r:.60}")
    found = streamed(
        model,
        inputs,
        positions=recipe.get("positions", POSITIONS),
        source=source,
        recipe=recipe,
        progress=progress,
    )
    return found if weights is None else weighed(found, model, inputs, **weights, progress=progress)


def live(path: str | os.PathLike) -> nn.Module:
    """Return the model of a transformers folder, in evaluation mode, as inputs can be run through it.

    Args:
        path: a folder with config.json, whose `architectures` names a class of transformers.
    """
    folder = Path(path)
    config = folder / CONFIG
    hint = "gather moments in Python, calibrate.gather(model, inputs).save(FILE), and give --moments FILE"
    if not config.is_file():
        raise ValueError(
            f"{path} is no transformers folder (it has no {CONFIG}), so no input can be run through: {hint}"
        )
    try:
        import transformers
    except ImportError:
        raise ImportError(
            f"inputs are run through {path} by transformers: pip install transformers, or {hint}"
        ) from None
    named = (json.loads(config.read_text()).get("architectures") or [""])[0]
    kind = getattr(transformers, named, None) or transformers.AutoModel
    return kind.from_pretrained(folder, local_files_only=True).eval()
