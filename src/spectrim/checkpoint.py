"""A checkpoint on disk as sites, read by names and shapes one tensor at a time, and the writer of its trimmed copy.

No model class is needed and nothing of a file is ever executed. What names and shapes leave open is asked of
config.json, of the biases, and of `spectrim.json` (left by an earlier split); what stays open stands in a site's note.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

STATE_DICTS = (".pt", ".pth", ".bin", ".ckpt")
WEIGHTS = (*STATE_DICTS, ".safetensors", ".h5", ".msgpack", ".onnx", ".gguf", ".npz")  # none of these is a companion
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put the weights
SPLITS = "spectrim.json"
FORMS = ("linear", "conv2d", "parameter")


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

    @property
    def shards(self) -> dict[str, list[str]]:
        """The names of the tensors in each file."""
        shards: dict[str, list[str]] = {}
        for name, info in self.infos.items():
            shards.setdefault(info.shard, []).append(name)
        return shards


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Return the checkpoint at `path`: a folder or file of safetensors, or a state dict saved by torch.

    Raises FileNotFoundError or ValueError with what was found there and what to do about it. Nothing in a file is run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        return _open_folder(path.resolve())
    if path.suffix == ".safetensors":
        return _open_safetensors(path.name, [path], path.parent if (path.parent / SPLITS).exists() else None)
    if path.suffix in STATE_DICTS:
        return of_state(read_state_dict(path), path.name)
    raise ValueError(
        f"{path} is not a kind of checkpoint that can be read: expected a folder or file of safetensors, or a state "
        f"dict ({', '.join(STATE_DICTS)})"
    )


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
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle can raise anything
        if blocked := re.search(r"GLOBAL:? (\S+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors ({blocked[1]}): loading it would run code, so it was not loaded. "
                "Convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            ) from None
        why = "" if isinstance(error, pickle.UnpicklingError) else f" ({_first_line(error)})"
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _open_folder(folder: Path) -> Checkpoint:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError(f"{index} has no weight_map from tensors to files")
        files = sorted(set(weight_map.values()))
        missing = [name for name in files if not (folder / name).is_file()]
        if missing or not files:
            raise ValueError(f"{index} names files that are not there: {', '.join(missing[:3]) or 'it names none'}")
        return _open_safetensors(folder.name, [folder / name for name in files], folder)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return _open_safetensors(folder.name, files, folder)
    if (folder / "pytorch_model.bin.index.json").exists():
        raise ValueError(
            f"{folder} holds a state dict in several pickled files: convert it, "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )
    states = sorted(f for f in folder.iterdir() if f.suffix in STATE_DICTS)
    states = [f for f in states if f.name == "pytorch_model.bin"] or states  # training arguments stand beside it
    if len(states) == 1:
        checkpoint = of_state(read_state_dict(states[0]), folder.name)
        checkpoint.folder, checkpoint.config = folder, _json(folder / "config.json")
        return checkpoint
    if states:
        raise ValueError(
            f"{folder} holds several state dicts ({', '.join(f.name for f in states[:4])}): name one of them"
        )
    raise ValueError(f"{folder} holds no *.safetensors and no state dict ({', '.join(STATE_DICTS)})")


def _json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not an object")
    return loaded


def _open_safetensors(label: str, files: list[Path], folder: Path | None) -> Checkpoint:
    infos: dict[str, Info] = {}
    for file in files:
        with _opened(file) as handle:
            for name in handle.offset_keys():
                if name in infos:
                    raise ValueError(
                        f"{name} stands in {infos[name].shard} and in {file.name}: name one file of {file.parent}"
                    )
                piece = handle.get_slice(name)
                infos[name] = Info(tuple(piece.get_shape()), _dtype(piece.get_dtype()), file.name)
    if not infos:
        raise ValueError(f"{files[0].parent if len(files) > 1 else files[0]} holds no tensors")
    read = _Reader({file.name: file for file in files}, infos)
    if folder is None:  # a single file: what stands beside it may say what it is, but is not part of it
        config = _json(files[0].parent / "config.json")
        return Checkpoint(label, infos, read, config=config if "model_type" in config else {})
    return Checkpoint(label, infos, read, folder, _json(folder / "config.json"), _splits(folder / SPLITS))


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

    def __call__(self, name: str) -> Tensor:
        shard = self.infos[name].shard
        if self.opened is None or self.opened[0] != shard:
            self.close()
            stack = ExitStack()
            self.opened = (shard, stack, stack.enter_context(_opened(self.paths[shard])))
        tensor = self.opened[2].get_tensor(name).clone()
        self.mapped += self.infos[name].nbytes
        if self.mapped > self.KEPT:
            self.close()
        return tensor

    def __getstate__(self) -> dict:
        """Return what a copy or a pickle takes along: all but the file that is open."""
        return self.__dict__ | {"opened": None, "mapped": 0}

    def close(self) -> None:
        """Close the file that is open, if one is."""
        if self.opened is not None:
            self.opened[1].close()
        self.opened, self.mapped = None, 0


def _splits(file: Path) -> dict[str, dict]:
    found = _json(file).get("splits", {})
    try:
        for spec in found.values():
            counts = [spec["cols"], *(n for part in spec["parts"] for n in (part["rows"], part["rank"] or 1))]
            if len(counts) < 3 or spec["form"] not in FORMS or not all(type(n) is int and n > 0 for n in counts):
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
        raise ValueError(f"{file} is truncated or not a safetensors file ({_first_line(error)})") from None


def _dtype(name: str) -> torch.dtype:
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    names |= {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)} | {f"U{n}": f"uint{n}" for n in (8, 16, 32, 64)}
    names |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    return getattr(torch, names.get(name, "uint8"))


@contextmanager
def whole_folder(out: str | os.PathLike) -> Iterator[Path]:
    """Yield a fresh folder beside `out` that takes its name when the block ends well, and vanishes when it does not.

    So `out` is absent or whole, whatever happens in between: an error, a full disk, Ctrl-C.
    """
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it first")
    work = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    above = [folder for folder in out.parents if not folder.exists()]  # made for `out`, the innermost first
    try:
        work.mkdir(parents=True)
        yield work
        for file in work.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if out.exists():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for folder in above:
            with suppress(OSError):  # it is not empty: it holds `out`, or something of somebody else's
                folder.rmdir()


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; raises OSError when the disk does not take it."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    met: set[int] = set()
    for name, t in tensors.items():  # a file takes no two tensors of one storage
        place = t.untyped_storage().data_ptr()
        tensors[name] = t.clone() if place in met else t
        met.add(place)
    try:
        save_file(tensors, file, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {_first_line(error)}") from None
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)  # safetensors makes files that only their owner can read


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Write a text file under its name only when all of it is on disk, so that a full disk costs no older file.

    A link is followed, and what is no file (a device, a pipe) is written to as it is: nothing of that takes the place
    of what was there.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # before links are followed: that of a pipe leads nowhere by name
        with open(path, "w", encoding="utf8") as handle:
            handle.write(text)
        return
    whole = path.resolve()
    part = whole.with_name(f".{whole.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(text, encoding="utf8")
        part.replace(whole)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None  # not the name of the part
    finally:
        part.unlink(missing_ok=True)


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


def write_index(folder: Path, shards: Mapping[str, list[str]], nbytes: int) -> None:
    """Write the index that tells in which file each tensor is, where there is more than one file."""
    if len(shards) > 1:
        weight_map = {name: shard for shard, names in shards.items() for name in names}
        index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def copy_companions(source: Path | None, folder: Path) -> None:
    """Copy what stands beside the weights (config, tokenizer, modeling files), weights and indexes left out.

    The folders of a sentence-transformers model are part of it, weights included: modules.json names them.
    """
    listed = source / "modules.json" if source else None
    parts = json.loads(listed.read_text()) if listed and listed.is_file() else []
    inside = {str(part.get("path", "")).partition("/")[0] for part in parts if isinstance(part, dict)} - {""}
    for file in sorted(source.rglob("*")) if source else ():
        place = file.relative_to(source)
        weights = file.suffix in WEIGHTS or file.name.endswith(".index.json")
        weights = weights and place.parts[0] not in inside
        if file.is_file() and not weights and not any(part.startswith(".") for part in place.parts):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)
