"""Finished cells as files, so that a sweep that was stopped goes on where it was.

A cell is two files: its tables (npz, plain arrays, nothing in it is run) and what was counted (json), written under a
name of its own only when whole, the json last. The name holds a hash of all that the cell depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ..readings import fingerprint
from ..writing import write_whole
from .score import Table

SCHEMA = "spectrim.cell/1"


def model_fingerprint(model: nn.Module) -> str:
    """Return a hash over the names and values of everything that a model stores, buffers included."""
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    lines = (f"{name} {tuple(t.shape)} {fingerprint(t.reshape(-1))}" for name, t in sorted(state.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def candidates_fingerprint(candidates: Iterable[tuple[str, int]]) -> str:
    """Return a hash over the names and entries of the matrices that may be touched."""
    return hashlib.sha256(json.dumps(list(candidates)).encode()).hexdigest()


def label(method: object) -> str:
    """Return the configuration of a method as text: its repr, or the name of a function, whose repr has its address."""
    name = getattr(method, "__qualname__", None)
    return f"{getattr(method, '__module__', '')}.{name}" if name else repr(method)


class Folder:
    """The cells of one sweep in a folder; None for a folder keeps nothing.

    Args:
        place: the folder; made if it is not there.
        setting: what all cells of the sweep depend on: {"task", "options", "model" (a fingerprint), "seed", "version"},
            and "candidates" once they are known.
    """

    def __init__(self, place: str | os.PathLike | None, setting: Mapping):
        self.place, self.setting = None if place is None else Path(place), dict(setting)
        if self.place is None:
            return
        if self.place.exists() and not self.place.is_dir():
            raise ValueError(f"{self.place} is a file: name a folder for the finished cells")
        self.place.mkdir(parents=True, exist_ok=True)
        self._refuse_another_model()

    def _refuse_another_model(self) -> None:
        for file in sorted(self.place.glob("*.json")):
            told = _json(file).get("of", {})
            same = all(told.get(key) == self.setting[key] for key in ("task", "options"))
            if same and told.get("model") != self.setting["model"]:
                raise ValueError(
                    f"{self.place} holds cells of task {told['task']!r} for another model (fingerprint "
                    f"{str(told.get('model'))[:12]}, this one has {self.setting['model'][:12]}): name another folder, "
                    "or remove this one"
                )

    def _file(self, name: str, method: str, rate: float) -> tuple[Path, dict]:
        of = self.setting | {"name": name, "method": method, "rate": rate}
        key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:20]
        return self.place / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())[:40]}-{rate:g}-{key}.json", of

    def load(self, name: str, method: str, rate: float) -> tuple[dict, dict[str, Table]] | None:
        """Return what was counted and the tables of a finished cell, None where none can be read whole."""
        if self.place is None:
            return None
        file, of = self._file(name, method, rate)
        told = _json(file)
        if told.get("schema") != SCHEMA or told.get("of") != of:
            return None
        try:
            raw = file.with_suffix(".npz").read_bytes()
            if hashlib.sha256(raw).hexdigest() != told["tables_sha256"]:
                return None
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as tables:
                return told["counted"], {key: tables[f"t{i}"] for i, key in enumerate(told["scores"])}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return None

    def save(self, name: str, method: str, rate: float, counted: dict, tables: Mapping[str, Table]) -> None:
        """Write a finished cell."""
        if self.place is None:
            return
        file, of = self._file(name, method, rate)
        part = file.with_name(f".{file.stem}.{secrets.token_hex(4)}.npz")
        try:
            np.savez_compressed(part, **{f"t{i}": table for i, table in enumerate(tables.values())})
            told = {
                "schema": SCHEMA,
                "of": of,
                "scores": list(tables),
                "counted": counted,
                "tables_sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
            }
            part.replace(file.with_suffix(".npz"))
        finally:
            part.unlink(missing_ok=True)
        write_whole(file, json.dumps(told, indent=1) + "\n")


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
