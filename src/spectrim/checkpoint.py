"""A checkpoint on disk as sites, read by names and shapes one tensor at a time, and the writer of its trimmed copy.

No model class is needed and nothing of a file is ever executed. What names and shapes leave open is asked of
config.json, of the biases, and of `spectrim.json` (left by an earlier split); what stays open stands in a site's note.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import hub
from .shards import check_headers, check_named, files_of, is_index, named_files, read_json

STATE_DICTS = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (*STATE_DICTS, ".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".npz")  # none of these is a companion
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put the weights
SPLITS = "spectrim.json"
PACKED = "spectrim.packed/1"  # in the metadata of a file, see unpacking.py
FORMS = ("linear", "conv2d", "parameter")
DIMENSIONS = 64  # of a tensor, at most; numpy takes no more


@dataclass(frozen=True)
class Info:
    """What is known of a stored tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str

    @property
    def numel(self) -> int:
        """Number of entries."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size on disk, in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass
class Checkpoint:
    """The tensors of a checkpoint: `infos` tells of all, `read` loads one, `edits` collects what a trim changes."""

    label: str
    infos: dict[str, Info]
    read: Callable[[str], Tensor]
    folder: Path | None = None
    config: Mapping = field(default_factory=dict)
    splits: dict[str, dict] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)  # a name -> the earlier name of the same tensor
    edits: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # stored name -> what takes its place
    files: dict[str, Path] = field(default_factory=dict)  # shard -> its file, where it is one of safetensors
    path: Path | None = None  # that it was opened from, if it is one of safetensors
    index: str | None = None  # the name of the index that names these files, where one does

    @cached_property
    def below(self) -> dict[str, list[str]]:
        """The names under each path, in the order of the checkpoint; a name stands under its last four paths."""
        below: dict[str, list[str]] = {}
        for name in self.infos:
            parts = name.split(".")
            for i in range(max(1, len(parts) - 4), len(parts)):
                below.setdefault(".".join(parts[:i]), []).append(name)
        return below

    @property
    def shards(self) -> dict[str, list[str]]:
        """The names of the tensors in each file."""
        shards: dict[str, list[str]] = {}
        for name, info in self.infos.items():
            shards.setdefault(info.shard, []).append(name)
        return shards

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows start to stop of a tensor, all dimensions but the last taken as its rows; no others are read.

        Of a tensor of E x a x b these are rows of (E a) x b: expert e has rows e a to (e + 1) a.
        """
        if isinstance(self.read, _Reader):
            return self.read.rows(name, start, stop)
        return self.read(name).flatten(0, -2)[start:stop]


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Return the checkpoint at `path`: a folder, file or index of safetensors, or a state dict saved by torch.

    What is no path here and looks like an id of the Hugging Face hub, "owner/model", is fetched from there.

    Raises FileNotFoundError or ValueError with what was found there and what to do about it. Nothing in a file is run.
    """
    name, path = str(path), Path(path)
    if not path.exists() and hub.is_id(name):
        path = hub.fetched(name)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        found = _open_folder(path.resolve())
    elif is_index(path):
        folder = path.parent.resolve()  # a link in a cache leads to a folder of hashes
        found = _open_safetensors(folder.name, named_files(path), folder, path)
    elif path.suffix == ".safetensors":
        found = _open_safetensors(path.name, [path], path.parent if (path.parent / SPLITS).exists() else None)
    elif path.suffix in STATE_DICTS:
        found = of_state(read_state_dict(path), path.name)
    else:
        raise ValueError(
            f"{path} is not a kind of checkpoint that can be read: expected a folder or file of safetensors, or a "
            f"state dict ({', '.join(STATE_DICTS)})"
        )
    found.path = Path(os.path.abspath(path)) if found.files else None
    return found


def of_state(state: Mapping[str, Tensor], label: str = "tensors") -> Checkpoint:
    """Return a checkpoint over tensors in memory (numpy arrays are taken too)."""
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"a dict of matrices needs names for keys, not {name!r}")
        try:
            tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
            tensors[name] = tensor if tensor.layout == torch.strided else tensor.to_dense()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name!r} is not a tensor or an array of numbers: {error}") from None
    first: dict[tuple, str] = {}
    tied = {}
    for name, t in tensors.items():
        place = (t.data_ptr(), t.shape, t.stride(), t.dtype)
        if t.numel() and first.setdefault(place, name) != name:
            tied[name] = first[place]
    infos = {name: Info(tuple(t.shape), t.dtype, "model.safetensors") for name, t in tensors.items()}
    return Checkpoint(label, infos, tensors.__getitem__, tied=tied)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file saved by torch, read with weights_only=True: one that would run code is refused."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle can raise anything
        if blocked := re.search(r"GLOBAL:? (\S+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors ({blocked[1]}): loading it would run code, so it was not loaded. "
                "Convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            ) from None
        why = "" if isinstance(error, pickle.UnpicklingError) else f" ({first_line(error)})"
        raise ValueError(
            f"{path} cannot be read as a state dict: truncated, of another kind, or a pickle that would run code{why}"
        ) from None
    for key in NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a state dict of named tensors")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    inner = {key: value for key, value in loaded.items() if isinstance(value, dict)}
    if nested := [key for key, value in inner.items() if any(isinstance(t, Tensor) for t in value.values())]:
        raise ValueError(
            f"{path} keeps tensors under {', '.join(map(repr, nested[:5]))}, and which of them are the weights is not "
            f"known: save that part alone, torch.save(torch.load(...)[{nested[0]!r}], 'weights.pt')"
        )
    if not tensors:
        raise ValueError(f"{path} holds no tensors (keys: {', '.join(map(str, list(loaded)[:5])) or 'none'})")
    return tensors


def first_line(error: Exception) -> str:
    """Return the first line of a message, without what no terminal should see."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    return "".join(c if c.isprintable() else "?" for c in line)  # it may quote a name of the file's own choice


def _open_folder(folder: Path) -> Checkpoint:
    files, index = files_of(folder)
    if files:
        return _open_safetensors(folder.name, files, folder, index)
    if (folder / "pytorch_model.bin.index.json").exists():
        raise ValueError(
            f"{folder} holds a state dict in several pickled files: convert it, "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )
    states = sorted(f for f in folder.iterdir() if f.suffix in STATE_DICTS)
    states = [f for f in states if f.name == "pytorch_model.bin"] or states  # training arguments stand beside it
    if len(states) == 1:
        checkpoint = of_state(read_state_dict(states[0]), folder.name)
        checkpoint.folder, checkpoint.config = folder, read_json(folder / "config.json")
        return checkpoint
    if states:
        raise ValueError(
            f"{folder} holds several state dicts ({', '.join(f.name for f in states[:4])}): name one of them"
        )
    raise ValueError(f"{folder} holds no *.safetensors and no state dict ({', '.join(STATE_DICTS)})")


def _open_safetensors(label: str, files: list[Path], folder: Path | None, index: Path | None = None) -> Checkpoint:
    check_headers(files)
    infos: dict[str, Info] = {}
    for file in files:
        with _opened(file) as handle:
            if PACKED in (handle.metadata() or {}):
                raise ValueError(
                    f"{file} holds packed zeros: unpack it first, with `load` of the unpack_spectrim.py beside it"
                )
            for name in handle.offset_keys():
                if name in infos:
                    raise ValueError(
                        f"{name!r:.160} stands in {infos[name].shard} and in {file.name}: name one file of "
                        f"{file.parent}"
                    )
                piece = handle.get_slice(name)
                shape = tuple(piece.get_shape())
                # Where one side is zero the others are anybody's guess, and no product of sizes bounds them.
                if len(shape) > DIMENSIONS or math.prod(n for n in shape if n) >= 1 << 63:
                    raise ValueError(f"{file}: no tensor has the shape that it gives to {name!r:.160}: {shape!s:.80}")
                infos[name] = Info(shape, _dtype(piece.get_dtype()), file.name)
    if not infos:
        raise ValueError(f"{files[0].parent if len(files) > 1 else files[0]} holds no tensors")
    if index is not None:
        check_named(index, infos)
    paths = {file.name: file for file in files}
    read = _Reader(paths, infos)
    if folder is None:  # a single file: what stands beside it may say what it is, but is not part of it
        config = read_json(files[0].parent / "config.json")
        return Checkpoint(label, infos, read, config=config if "model_type" in config else {}, files=paths)
    config, splits = read_json(folder / "config.json"), _splits(folder / SPLITS)
    return Checkpoint(label, infos, read, folder, config, splits, files=paths, index=index and index.name)


class _Reader:
    """Reads one tensor by name. The file is closed, and its pages with it, once `KEPT` bytes of it were mapped.

    Opening a file parses its header, which is slow for thousands of small tensors; keeping it open keeps every page
    that was touched in memory, which is a whole model in the end.
    """

    KEPT = 1 << 24

    def __init__(self, paths: dict[str, Path], infos: dict[str, Info]):
        self.paths, self.infos = paths, infos
        self.opened: tuple[str, ExitStack, Any] | None = None
        self.mapped = 0
        self._one = threading.Lock()  # threads that cut matrices side by side read in turn

    def __call__(self, name: str) -> Tensor:
        return self._read(name, lambda tensor: tensor)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows of a tensor, all its dimensions but the last taken together; see `Checkpoint.read_rows`."""
        return self._read(name, lambda tensor: tensor.flatten(0, -2)[start:stop])

    def _read(self, name: str, wanted: Callable[[Tensor], Tensor]) -> Tensor:
        with self._one:
            shard = self.infos[name].shard
            if self.opened is None or self.opened[0] != shard:
                self.close()
                stack = ExitStack()
                self.opened = (shard, stack, stack.enter_context(_opened(self.paths[shard])))
            tensor = wanted(self.opened[2].get_tensor(name)).clone()  # until here it is a view of the file
            self.mapped += tensor.nbytes
            if self.mapped > self.KEPT:
                self.close()
            return tensor

    def __getstate__(self) -> dict:
        """Return what a copy or a pickle takes along: all but the file that is open."""
        return self.__dict__ | {"opened": None, "mapped": 0, "_one": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_one": threading.Lock()}

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self.opened is not None:
            self.opened[1].close()
        self.opened, self.mapped = None, 0


def _splits(file: Path) -> dict[str, dict]:
    found = read_json(file).get("splits", {})
    try:
        for spec in found.values():
            counts = [spec["cols"], *(n for part in spec["parts"] for n in (part["rows"], part["rank"] or 1))]
            labels = [part.get("label", "") for part in spec["parts"]]
            known = all(type(n) is int and n > 0 for n in counts) and all(isinstance(label, str) for label in labels)
            if len(counts) < 3 or spec["form"] not in FORMS or not known:
                raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: its splits are not as a trim writes them") from None
    return found


@contextmanager
def _opened(file: Path) -> Iterator:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file ({first_line(error)})") from None


def _dtype(name: str) -> torch.dtype:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    names |= {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)} | {f"U{n}": f"uint{n}" for n in (8, 16, 32, 64)}
    names |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64": "complex64"}
    names |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}
    return getattr(torch, names.get(name, "uint8"))


def read_record(path: str | os.PathLike, kind: str, schema: str) -> dict:
    """Return the JSON object in a file that says of itself that it has this schema. ValueError where it is none.

    Args:
        path: of the file.
        kind: what such a file is called in a message: "plan".
        schema: what it has to say: "spectrim.plan/1".
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also what is no text
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    told = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
    if not isinstance(raw, dict) or told != schema:
        raise ValueError(f"{path} is not a {kind} of schema {schema!r} (found {told!r})")
    return raw
