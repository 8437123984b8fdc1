"""Inputs made again, bit for bit, of the recipe that a plan or a file of moments holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .inputs import Inputs, synthetic
from .matched import inverted


def replay(model: nn.Module, recipe: Mapping[str, Any]) -> Inputs:
    """Returns the inputs of a recipe, made again; an error if they are not those that it was written of.

    Args:
        model: one that takes the same; the very same one where the inputs were changed by what it has stored.
        recipe: of `synthetic` or `inverted`; what else it holds is not looked at.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4))
        >>> made = synthetic(net, count=4, seed=7)
        >>> bool((replay(net, made.recipe)[0] == made[0]).all())
        True
    """
    if recipe.get("generator") != "synthetic":
        raise ValueError(f"this recipe is of {recipe.get('generator')!r}, not of synthetic inputs")
    settings = {
        key: tuple(value) if isinstance(value, list) else value for key, value in recipe.get("settings", {}).items()
    }
    given = {key: recipe[key] for key in ("count", "seed", "way", "batch", "norms")}
    found = synthetic(model, recipe["kind"], **given, **settings)
    if "inverted" in recipe:
        found = inverted(model, found, **{key: recipe["inverted"][key] for key in ("steps", "rate", "stay")})
    if found.recipe["fingerprint"] != recipe["fingerprint"]:
        differ = [k for k, v in recipe.get("resolved", {}).items() if found.recipe["resolved"].get(k) != v]
        why = f"{', '.join(differ)} differ" if differ else "another processor or version of torch draws other numbers"
        if "inverted" in recipe and not differ:
            why = "another model, processor or version of torch takes other steps"
        raise ValueError(f"the inputs of this recipe cannot be made again here ({why}): make new moments, or load them")
    return found
