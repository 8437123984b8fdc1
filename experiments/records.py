"""What every experiment writes down: its settings, the versions it ran with, its numbers; and means with intervals."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

import spectrim


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the numbers depend on."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "scipy", "torch")},
        "spectrim": spectrim.__version__,
    }


def write(path: Path, config: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes a results file; floats keep six digits, so that two runs can be compared by eye."""
    body = {"config": config, "versions": versions(), "results": rounded(results)}
    # A list of numbers goes on one line: shorter files, and differences that can be read.
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", _on_one_line, json.dumps(body, indent=1))
    path.write_text(text + "\n")


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r",\s+", ", ", found[1]) + "]"


def read(path: Path) -> dict[str, Any]:
    """Returns what `write` wrote."""
    return json.loads(path.read_text())


def rounded(value: Any) -> Any:
    """Returns the value with every float cut to six significant digits, numpy types made plain."""
    if isinstance(value, dict):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(part) for part in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return value


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Returns (mean, half width of its confidence interval by Student's t); the half width of one value is NaN."""
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(student.ppf(0.5 + level / 2, x.size - 1) * x.std(ddof=1) / sqrt(x.size))
