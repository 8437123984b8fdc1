"""What goes on disk: folders and files that are whole or absent, and what stands beside weights."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import WEIGHTS, first_line, read_record
from .shards import is_index

os.umask(UMASK := os.umask(0))  # once: to ask for it is to change it, which threads would see
TRIMMED = "spectrim.trimmed/1"  # the schema of spectrim.json


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
        raise OSError(f"{file} could not be written: {first_line(error)}") from None
    file.chmod(0o666 & ~UMASK)  # safetensors makes files that only their owner can read


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


def write_index(folder: Path, shards: Mapping[str, list[str]], nbytes: int, name: str | None = None) -> None:
    """Write the index that tells in which file each tensor is, where there is more than one file, or it has a name."""
    if len(shards) > 1 or name is not None:
        weight_map = {key: shard for shard, keys in shards.items() for key in keys}
        index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
        (folder / (name or "model.safetensors.index.json")).write_text(json.dumps(index, indent=2))


def copy_companions(source: Path | None, folder: Path) -> None:
    """Copy what stands beside the weights (config, tokenizer, modeling files), weights and indexes left out.

    The folders of a sentence-transformers model are part of it, weights included: modules.json names them.
    """
    listed = source / "modules.json" if source else None
    parts = json.loads(listed.read_text()) if listed and listed.is_file() else []
    inside = {str(part.get("path", "")).partition("/")[0] for part in parts if isinstance(part, dict)} - {""}
    undo = source is not None and (source / "undo/undo.json").exists()  # of an earlier trim: it speaks of other files
    for file in sorted(source.rglob("*")) if source else ():
        place = file.relative_to(source)
        weights = file.suffix in WEIGHTS or is_index(file)
        weights = weights and place.parts[0] not in inside
        weights |= undo and place.parts[0] == "undo"
        if file.is_file() and not weights and not any(part.startswith(".") for part in place.parts):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)


def read_trimmed(folder: str | os.PathLike) -> dict:
    """Return the record of a folder that `trim` wrote. ValueError where no trim did."""
    file = Path(folder) / "spectrim.json"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not file.is_file():
        raise ValueError(f"{folder} holds no spectrim.json: no trim wrote it")
    return read_record(file, "record of a trim", TRIMMED)
