"""The moments of all matrices of a model, in memory or read from a file one at a time, and where they come from."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .moment import OPTIONAL, Moment, equalised, identity
from .sites import listed
from .writing import write_tensors

__all__ = ["Filed", "Moment", "Moments", "Place", "equalised", "identity"]

SCHEMA = "spectrim.moments/1"
ROWS = "rows."  # before the name of a matrix, of the weights of its outputs in a file
SOURCES = ("identity", "equalised", "stored", "synthetic", "samples")


@dataclass(frozen=True)
class Place:
    """Where a moment stands on disk.

    Args:
        file: of safetensors.
        prefix: of the names of its tensors there.
        count: positions seen.
        digest: `Moment.digest` of what was written.
    """

    file: Path
    prefix: str
    count: int
    digest: str

    @classmethod
    def of(cls, moment: Moment, file: Path) -> Place:
        """Write a moment to a file of its own, and return where it stands."""
        write_tensors(moment.tensors(), file)
        return cls(file, "", moment.count, moment.digest)

    def read(self) -> Moment:
        """Return the moment; FileNotFoundError where its file is gone, ValueError where it is not what was written."""
        if not self.file.is_file():
            raise FileNotFoundError(
                f"{self.file}, which held moments, is gone: take them anew, and `save` keeps them in a file of your own"
            )
        with safe_open(self.file, framework="pt") as file:
            there = set(file.keys())
            named = {key: file.get_tensor(self.prefix + key).clone() for key in ("second", "mean")}
            named |= {key: file.get_tensor(self.prefix + key).clone() for key in OPTIONAL if self.prefix + key in there}
        found = Moment(count=self.count, **named)
        if found.digest != self.digest:
            raise ValueError(f"{self.file} was changed after it was written: its figures do not have the hash they had")
        return found


def given_back() -> None:
    """Hand memory that is free back to the system, of which glibc would keep as much as a model takes."""
    with suppress(AttributeError, OSError, TypeError):  # other systems do so unasked
        ctypes.CDLL(None).malloc_trim(0)


class Filed(Mapping[str, Moment]):
    """Moments on disk by the names of their sites: each is read when it is asked for, and held by whoever asked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = Filed({"fc": Place.of(identity(3), Path(folder, "fc.safetensors"))})
        ...     found["fc"].cols, found["fc"] is found["fc"]
        (3, False)
    """

    def __init__(self, places: Mapping[str, Place]):
        self.places = dict(places)

    def __getitem__(self, name: str) -> Moment:
        given_back()
        return self.places[name].read()

    def __contains__(self, name: object) -> bool:  # Mapping would read the file for it
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __deepcopy__(self, memo: dict) -> Filed:
        return self  # files may go with the one that they were made for, and nothing in it changes


@dataclass(frozen=True, eq=False)
class Moments(Mapping[str, Moment]):
    """The moments of a model's matrices, by the names of their sites, and where they come from.

    Args:
        by_name: name of a site -> its moment; the same object where several read the same inputs. `Filed` has them on
            disk: what asks for one at a time (`plan`, `trim`) then holds one at a time.
        source: "identity", "equalised", "stored", "synthetic" or "samples".
        recipe: what it takes to make them again, as JSON can hold it: generator, seed, samples, settings, a
            fingerprint of the inputs; `notes` says what is odd about them.
        model: fingerprint of the model that they were taken from.
        missing: name of a site that has none -> the reason.
        rows: name of a site -> weights of its outputs, (rows,), > 0, from `calibrate.weighed`; `moments[name]` has
            them. They belong to a matrix and not to what it reads, so that q, k and v share a moment all the same.

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
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        if strange := [name for name in self.rows if name not in self.by_name]:
            raise ValueError(f"weights of outputs go with moments; {listed(strange)} has none")
        if self.source not in SOURCES:
            raise ValueError(f"source is one of {', '.join(SOURCES)}, not {self.source!r}")
        held = {} if isinstance(self.by_name, Filed) else self.by_name
        wrong = [name for name, moment in held.items() if not isinstance(moment, Moment)]
        if wrong:
            raise TypeError(f"each matrix has a Moment; {listed(wrong)} has something else")
        try:  # what comes back from a file is what was put in
            json.dumps(self.recipe, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe must be plain figures, texts and lists, as JSON holds them: {error}") from None

    def __getitem__(self, name: str) -> Moment:
        if name not in self.by_name and name in self.missing:
            raise KeyError(f"{name} has no moments: {self.missing[name]}")
        moment = self.by_name[name]
        return replace(moment, rows=self.rows[name]) if name in self.rows else moment

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def lacking(self, name: str, cols: int) -> str:
        """Return why a matrix has no moments that a cut could be measured in; an empty text where it has.

        ValueError where they have another number of inputs than the matrix.
        """
        if name not in self:
            return "it has no moments" + (f": {self.missing[name]}" if name in self.missing else "")
        moment = self.by_name[name]
        if moment.cols != cols:
            raise ValueError(
                f"{name} has {cols} inputs and its moments {moment.cols}: they are of another model, gather anew"
            )
        return "its inputs were zero at every position" if moment.dead else ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about these moments, in sentences."""
        return tuple(self.recipe.get("notes", ()))

    @property
    def damping(self) -> float:
        """The share of the mean square of an input that steps add to C: .01, or .1 where it is not of samples."""
        return 0.01 if self.source == "samples" else 0.1

    def distinct(self) -> Iterator[tuple[Moment, list[str]]]:
        """Yield each moment once, with the names of the matrices that share it."""
        for names in self._shared().values():
            yield self.by_name[names[0]], names

    def _shared(self) -> dict:
        places = self.by_name.places if isinstance(self.by_name, Filed) else None
        met: dict = {}
        for name in self.by_name:
            met.setdefault(id(self.by_name[name]) if places is None else places[name], []).append(name)
        return met

    @property
    def fingerprint(self) -> str:
        """A hash over the names, the figures and the model; not over the recipe, the reasons, and who shares what."""
        if isinstance(self.by_name, Filed):
            digests = {name: place.digest for name, place in self.by_name.places.items()}
        else:
            digests = {name: digest for m, names in self.distinct() for digest in [m.digest] for name in names}
        lines = [f"{self.source} {self.model}", *sorted(f"{name} {digest}" for name, digest in digests.items())]
        for name in sorted(self.rows):
            lines.append(f"{name} {hashlib.sha256(self.rows[name].double().cpu().numpy().tobytes()).hexdigest()}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

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
            tensors |= {f"{i}.{key}": t for key, t in moment.tensors().items()}
            kept.append({"sites": names, "count": moment.count, "digest": moment.digest})
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
        tensors |= {f"{ROWS}{name}": rows.detach().cpu().contiguous() for name, rows in self.rows.items()}
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:  # a file is there whole or not at all
            write_tensors(tensors, part, metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, *, held: bool = True) -> Moments:
        """Return the moments in a file that `save` wrote.

        FileNotFoundError or ValueError where there is none, it is something else, or it was changed.

        Args:
            path: of the file.
            held: False leaves them in the file, to be read one at a time (`Filed`).
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
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole file of safetensors: {error}") from None
        try:
            by_name: dict = {}
            for i, kept in enumerate(json.loads(about["moments"])):
                place = Place(path.resolve(), f"{i}.", kept["count"], kept["digest"])
                by_name |= dict.fromkeys(kept["sites"], place.read() if held else place)
            by_name = {name: by_name[name] for name in json.loads(about["order"])}
            recipe, missing = json.loads(about["recipe"]), json.loads(about["missing"])
            with safe_open(path, framework="pt") as file:
                weights = [key for key in file.keys() if key.startswith(ROWS)]  # noqa: SIM118, no iterator
                rows = {key.removeprefix(ROWS): file.get_tensor(key).clone() for key in weights}
            filed = by_name if held else Filed(by_name)
            out = cls(filed, about["source"], recipe, about["model"], missing, rows)
        except (KeyError, TypeError, SafetensorError) as error:
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
