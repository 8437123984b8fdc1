"""What the tasks share: files that must be there, options from a command line, cosines to the dense outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def needed(path: str | Path | None, option: str, how: str, folder: bool = False) -> Path:
    """Returns the path if it is there; else says which option names it and how it is got.

    Args:
        path: as the user gave it, or None.
        option: the option's name, as in `--set option=PATH`; "MODEL" for the model itself.
        how: where such a file comes from, in words.
        folder: whether it must be a folder.
    """
    place = "MODEL" if option == "MODEL" else f"the option {option!r} (on a command line --set {option}=PATH)"
    if path is None:
        raise ValueError(f"{place} is not given: {how}")
    found = Path(path).expanduser()
    if not (found.is_dir() if folder else found.is_file()):
        kind = "folder" if folder else "file"
        raise FileNotFoundError(f"there is no {kind} {found}, which {place} names: {how}")
    return found


def whole(value: int | str, option: str, least: int = 1) -> int:
    """Returns an option that is a whole number, given as such or as text."""
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least or str(number) != str(value).strip():
        raise ValueError(f"{option} is a whole number, {least} at least, not {value!r}")
    return number


def choice(value: str, option: str, among: tuple[str, ...]) -> str:
    """Returns an option that is one of a few words."""
    if value not in among:
        raise ValueError(f"{option} is one of {', '.join(among)}, not {value!r}")
    return value


def cosines(out: Tensor, dense: Tensor, centre: Tensor | None = None) -> NDArray[np.float64]:
    """Returns the cosine of each row to that of the dense model, `centre` taken from both; 0 where there is none.

    A row of zeros, infinities or NaN, as a broken model gives, has no direction in common with anything: 0.

    Args:
        out, dense: items x features.
        centre: features, what all outputs of the dense model have in common, such as their mean.

    Example:
        >>> cosines(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])).round(4).tolist()
        [0.7071, 0.0]
    """
    x, y = (t.double() if centre is None else t.double() - centre.double() for t in (out, dense))
    found = torch.nn.functional.cosine_similarity(x, y, dim=1)
    return torch.nan_to_num(found, nan=0.0).numpy()
