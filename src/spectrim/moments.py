"""Second moments of what a layer reads: the inner product in which an error of its matrix is small or large.

A layer sees inputs x. Replacing its matrix W by W' changes its output by (W - W') x, and on average by

    E ||(W - W') x||**2 = tr((W - W') C (W - W')^T),   C = E[x x^T]

of which the part along the mean, (W - W') E[x], can be taken back by a bias. Magnitude pruning and the plain SVD are
the case C = I. Where C comes from is another matter: nothing, the scales of the matrix itself, what the network has
stored, noise run through it, or samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import write_tensors
from .linalg import Matrix, as_tensor
from .reading import Equalised
from .sites import listed

SCHEMA = "spectrim.moments/1"
SOURCES = ("identity", "equalised", "stored", "synthetic", "samples")
OPTIONAL = ("kurtosis", "largest", "rows")  # tensors of a Moment that may be absent


@dataclass(frozen=True, eq=False)
class Moment:
    """The second moment of the inputs of one matrix, their mean, and what is known of their tails.

    Args:
        second: C = E[x x^T], cols x cols, symmetric; or its diagonal alone, (cols,), where the rest counts as zero.
        mean: m = E[x], (cols,).
        count: positions seen (tokens, pixels), >= 0; 0 where C was not measured.
        kurtosis: E[(x - m)^4] / E[(x - m)^2]^2 of each input, (cols,): 3 for a Gaussian, 0 for a constant; or None.
        largest: the largest |x| of each input, (cols,), or None.
        rows: weights of the outputs, (rows,), where they do not all count the same: the cost is then
            tr(diag(rows) (W - W') C (W - W')^T); or None.

    Matrices that read the same inputs (q, k and v) may hold the same object.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> found = Moment(x.T @ x / 2, x.mean(0), count=2)
        >>> found.dense().tolist(), found.covariance().tolist()
        ([[5.0, 1.0], [1.0, 2.0]], [[1.0, -1.0], [-1.0, 1.0]])
    """

    second: Tensor
    mean: Tensor
    count: int
    kurtosis: Tensor | None = None
    largest: Tensor | None = None
    rows: Tensor | None = None

    def __post_init__(self):
        cols = self.mean.numel()
        if self.mean.ndim != 1 or tuple(self.second.shape) not in ((cols,), (cols, cols)):
            raise ValueError(
                f"a second moment is cols x cols or, a diagonal, (cols,), and the mean (cols,): "
                f"got {tuple(self.second.shape)} and {tuple(self.mean.shape)}"
            )
        for name in ("kurtosis", "largest"):
            given = getattr(self, name)
            if given is not None and tuple(given.shape) != (cols,):
                raise ValueError(f"{name} has one figure for each of the {cols} inputs, got {tuple(given.shape)}")
        bad = sum(int((~torch.isfinite(t)).sum()) for t in (self.second, self.mean))
        if bad:
            raise ValueError(f"{bad} entries of the moments are not finite")
        if bool((self.diagonal < 0).any()):
            raise ValueError("the diagonal of a second moment holds means of squares: it cannot be negative")
        if self.count < 0:
            raise ValueError(f"count is a number of positions, >= 0, got {self.count}")

    @property
    def cols(self) -> int:
        """The number of inputs."""
        return self.mean.numel()

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal of C is held."""
        return self.second.ndim == 1

    @property
    def dead(self) -> bool:
        """Whether every input was zero at every position: C has rank 0, and no change of the matrix has a cost."""
        return not bool(self.diagonal.any())

    @property
    def diagonal(self) -> Tensor:
        """The mean squares E[x_j^2], (cols,), float64."""
        return (self.second if self.is_diagonal else self.second.diagonal()).to(torch.float64)

    def dense(self) -> Tensor:
        """Return C, cols x cols, float64."""
        return self.diagonal.diag() if self.is_diagonal else self.second.to(torch.float64)

    def covariance(self) -> Tensor:
        """Return C - m m^T, cols x cols, float64; of a diagonal C the variances, (cols,), none below zero."""
        m = self.mean.to(torch.float64)
        if self.is_diagonal:
            return (self.diagonal - m.square()).clamp_min(0)
        return torch.addr(self.dense(), m, m, alpha=-1)

    def damped(self, share: float) -> Tensor:
        """Return C + share * mean(diag C) * I, float64, in the shape of `second`.

        A dead layer has no scale to take a share of: the identity comes back, so that a step falls back to what it
        would do without moments.

        Args:
            share: of the mean square of an input, >= 0; .01 is usual, more is better where few positions were seen.

        Example:
            >>> Moment(torch.tensor([1.0, 3.0]), torch.zeros(2), 8).damped(0.5).tolist()
            [2.0, 4.0]
        """
        if not 0 <= share < float("inf"):
            raise ValueError(f"share is a share of the mean square of an input, >= 0, got {share!r}")
        if self.dead:
            ones = torch.ones(self.cols, dtype=torch.float64, device=self.second.device)
            return ones if self.is_diagonal else ones.diag()
        more = share * float(self.diagonal.mean())
        if self.is_diagonal:
            return self.diagonal + more
        out = self.second.to(torch.float64, copy=True)
        out.diagonal().add_(more)
        return out

    def loud(self, times: float = 10.0) -> list[int]:
        """Return the inputs whose root mean square is more than `times` the median one, the loudest first.

        Example:
            >>> Moment(torch.tensor([1.0, 4.0e4, 1.0, 1.0]), torch.zeros(4), 8).loud()
            [1]
        """
        level = self.diagonal.sqrt()
        order = torch.argsort(level, descending=True, stable=True)
        return [int(j) for j in order if level[j] > times * level.median()]


def identity(cols: int) -> Moment:
    """Return the moment of white inputs, C = I with mean zero: every entry of a matrix costs the same.

    Example:
        >>> identity(2).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return Moment(torch.ones(cols), torch.zeros(cols), 0)


def equalised(W: Matrix, scales: Equalised) -> Moment:
    """Return the diagonal metric that the scales of a matrix stand for.

        ||D1 (W - W') D2||_F^2 = tr(D1^2 (W - W') C (W - W')^T),   C = D2^2

    so that the error counts in the matrix whose rows and columns are even; D1^2 are the weights of the outputs, `rows`.

    Args:
        W: rows x cols, the matrix that was evened out.
        scales: from `reading.equalize`.

    Example:
        >>> from spectrim.reading import equalize
        >>> W = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        >>> found = equalised(W, equalize(W))
        >>> round(float(found.second[0] / found.second[1]), 2), round(float(found.rows[0] / found.rows[1]), 2)
        (16.0, 4.0)

    References:
        B. Landa and Y. Kluger, arXiv 2103.13840, Algorithm 1, for the scales.
    """
    W = as_tensor(W)
    if tuple(W.shape) != (len(scales.rows), len(scales.cols)):
        raise ValueError(
            f"these scales are of a {len(scales.rows)} x {len(scales.cols)} matrix, this one is {tuple(W.shape)}"
        )
    r, c = (torch.as_tensor(part, dtype=torch.float64, device=W.device).square() for part in (scales.rows, scales.cols))
    return Moment(c, torch.zeros_like(c), 0, rows=r)


@dataclass(frozen=True, eq=False)
class Moments(Mapping[str, Moment]):
    """The moments of a model's matrices, by the names of their sites, and where they come from.

    Args:
        by_name: name of a site -> its moment; the same object where several read the same inputs.
        source: "identity", "equalised", "stored", "synthetic" or "samples".
        recipe: what it takes to make them again, as JSON can hold it: generator, seed, samples, settings, a
            fingerprint of the inputs; `notes` says what is odd about them.
        model: fingerprint of the model that they were taken from.
        missing: name of a site that has none -> the reason.

    Example:
        >>> found = Moments({"fc": identity(3)}, "identity")
        >>> found["fc"].cols, "fc" in found, len(found)
        (3, True, 1)
    """

    by_name: Mapping[str, Moment]
    source: str
    recipe: dict = field(default_factory=dict)
    model: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source is one of {', '.join(SOURCES)}, not {self.source!r}")
        wrong = [name for name, moment in self.by_name.items() if not isinstance(moment, Moment)]
        if wrong:
            raise TypeError(f"each matrix has a Moment; {listed(wrong)} has something else")
        try:  # what comes back from a file is what was put in
            json.dumps(self.recipe, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe must be plain figures, texts and lists, as JSON holds them: {error}") from None

    def __getitem__(self, name: str) -> Moment:
        if name not in self.by_name and name in self.missing:
            raise KeyError(f"{name} has no moments: {self.missing[name]}")
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about these moments, in sentences."""
        return tuple(self.recipe.get("notes", ()))

    @property
    def damping(self) -> float:
        """The share of the mean square of an input that steps add to C: .01, or .1 where it is not of samples."""
        return 0.01 if self.source == "samples" else 0.1

    def distinct(self) -> list[tuple[Moment, list[str]]]:
        """Return each moment once, with the names of the matrices that share it."""
        met: dict[int, tuple[Moment, list[str]]] = {}
        for name, moment in self.by_name.items():
            met.setdefault(id(moment), (moment, []))[1].append(name)
        return list(met.values())

    @property
    def fingerprint(self) -> str:
        """A hash over the names, the figures and the model; not over the recipe and the reasons."""
        digest = hashlib.sha256(f"{self.source} {self.model}".encode())
        for moment, names in self.distinct():
            digest.update(f"{sorted(names)} {moment.count}".encode())
            for key, t in _tensors(moment).items():
                t = t.detach().cpu().contiguous()
                digest.update(f"{key} {t.dtype} {tuple(t.shape)}".encode())
                digest.update(t.view(torch.uint8).numpy())
        return digest.hexdigest()

    def to_rows(self) -> list[dict]:
        """Return a row of figures for each moment: names, inputs, positions, mean part, kurtosis, outlying inputs.

        `mean_share` is the share of E||x||^2 that lies along the mean; `kurtosis` the median and the largest over the
        inputs; `peak` the largest |x| in root mean squares of the layer; `loud` the inputs of more than ten times the
        median level.
        """
        return [_row(moment, names) for moment, names in self.distinct()]

    def save(self, path: str | os.PathLike) -> Path:
        """Write the moments to one file of safetensors, shared ones once, and return its path."""
        path = Path(path)
        tensors, kept = {}, []
        for i, (moment, names) in enumerate(self.distinct()):
            tensors |= {f"{i}.{key}": t.detach().cpu().contiguous() for key, t in _tensors(moment).items()}
            kept.append({"sites": names, "count": moment.count})
        metadata = {
            "schema": SCHEMA,
            "source": self.source,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "moments": json.dumps(kept),
            "order": json.dumps(list(self.by_name)),
            "recipe": json.dumps(self.recipe),
            "missing": json.dumps(self.missing),
        }
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:  # a file is there whole or not at all
            write_tensors(tensors, part, metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Moments:
        """Return the moments in a file that `save` wrote.

        FileNotFoundError or ValueError where there is none, it is something else, or it was changed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such file of moments: {path}")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("schema") != SCHEMA:
                    found = about.get("schema", "weights or something else")
                    raise ValueError(f"{path} holds no moments ({SCHEMA}) but {found}: gather them, and save them")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no iterator
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole file of safetensors: {error}") from None
        try:
            found = {}
            for i, kept in enumerate(json.loads(about["moments"])):
                more = {key: tensors.get(f"{i}.{key}") for key in OPTIONAL}
                moment = Moment(tensors[f"{i}.second"], tensors[f"{i}.mean"], kept["count"], **more)
                found |= {name: moment for name in kept["sites"]}
            ordered = {name: found[name] for name in json.loads(about["order"])}
            recipe, missing = json.loads(about["recipe"]), json.loads(about["missing"])
            out = cls(ordered, about["source"], recipe, about["model"], missing)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not what `save` wrote: {error!r}") from None
        if out.fingerprint != about.get("fingerprint"):
            raise ValueError(f"{path} was changed after it was written: its figures do not have the hash it names")
        return out

    def __str__(self) -> str:
        lines = [f"moments of {len(self)} matrices from {self.source}; {len(self.missing)} have none"]
        for row in self.to_rows():
            tail = f", kurtosis {row['kurtosis'][0]:.1f} (up to {row['kurtosis'][1]:.0f})" if row["kurtosis"] else ""
            peak = f", largest {row['peak']:.0f} rms" if row["peak"] else ""
            loud = f", {len(row['loud'])} loud inputs" if row["loud"] else ""
            what = "all zero" if row["dead"] else f"mean {row['mean_share']:.0%} of the energy{tail}{peak}{loud}"
            lines.append(f"  {listed(row['sites']):<48} {row['cols']} inputs, {row['count']} positions: {what}")
        lines += [f"  {name}: {reason}" for name, reason in self.missing.items()]
        return "\n".join([*lines, *self.notes])


def _tensors(moment: Moment) -> dict[str, Tensor]:
    named = {key: getattr(moment, key) for key in ("second", "mean", *OPTIONAL)}
    return {key: t for key, t in named.items() if t is not None}


def _row(moment: Moment, names: list[str]) -> dict:
    energy = float(moment.diagonal.sum())
    tails, largest = moment.kurtosis, moment.largest
    return {
        "sites": names,
        "cols": moment.cols,
        "count": moment.count,
        "dead": moment.dead,
        "mean_share": float(moment.mean.double().square().sum()) / energy if energy else 0.0,
        "kurtosis": None if tails is None else [float(tails.median()), float(tails.max())],
        "peak": None if largest is None or not energy else float(largest.max()) / (energy / moment.cols) ** 0.5,
        "loud": moment.loud(),
    }
