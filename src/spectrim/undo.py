"""Undo: the original files again, byte for byte, from a trimmed folder and the little that was kept for it.

OUT/undo/undo.json     which files there were, what each tensor was made into, and where its old bytes are
OUT/undo/*.z           the changed tensors, or their XOR with the new ones where these have as many bytes
OUT/undo/headers/      the headers of the original files, as they stood there
OUT/undo/companions/   what stood beside the weights and was changed (config.json, the index)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath

import numpy as np

from .checkpoint import read_record
from .stored import CHUNK, Range, Stored, hash_file, layout, read_range
from .writing import read_trimmed, whole_folder

FOLDER, MANIFEST, SCHEMA = "undo", "undo.json", "spectrim.undo/1"
LEVEL = 1  # of zlib: what is left of a float after the bytes are sorted into planes has little more to give
WIDTHS = {"64": 8, "32": 4, "16": 2}


def kept(
    old: Mapping[tuple[str, int], Range], new: Mapping[str, Stored], dtypes: Mapping[str, str], file: Path
) -> list:
    """Write the old bytes of some tensors to `file`, compressed, and return where in it each of them is.

    Where a new tensor has as many bytes as the old ones, their XOR is kept: it is zero wherever an entry stayed, and
    then compresses best as it is. Otherwise bytes are sorted into planes first, the first byte of every entry, then the
    second: signs and exponents of weights repeat themselves.

    Args:
        old: ranges of the original file, by name of the tensor and offset in it.
        new: what takes their place, by name, in one range of a file.
        dtypes: of the old tensors, as the format names them.
        file: written anew.
    """
    told = []
    with open(file, "wb") as out:
        for (name, offset), range_ in old.items():
            length = range_.stop - range_.start
            there = new.get(name)
            same = there is not None and there.nbytes == length and isinstance(there.pieces[0], Range)
            width = 1 if same and _mostly_the_same(range_, there.pieces[0]) else _width(dtypes[name])
            press, start = zlib.compressobj(LEVEL), out.tell()
            beside = read_range(there.pieces[0]) if same else None
            for chunk in read_range(range_):
                part = np.frombuffer(chunk, np.uint8)
                if same:
                    part = part ^ np.frombuffer(next(beside), np.uint8)
                out.write(press.compress(_planes(part, width)))
            out.write(press.flush())
            how = {"name": name, "offset": offset, "bytes": length, "xor": same, "width": width}
            told.append(how | {"start": start, "stop": out.tell()})
        out.flush()
        os.fsync(out.fileno())
    return told


def manifest(
    folder: Path, source: Path | None, files: Mapping[str, Path], hashes: Mapping[str, str], tensors: Mapping[str, list]
) -> None:
    """Write what `undo` reads first, into the folder of the result, when all else stands there.

    Args:
        folder: of the result, complete but for this.
        source: the folder that the input was, None for a single file.
        files: of the input.
        hashes: their SHA-256.
        tensors: what `kept` returned, by the name of its file.
    """
    place = folder / FOLDER
    (place / "headers").mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (place / "headers" / name).write_bytes(layout(file).header)
    changed = []
    for old in sorted(source.glob("*")) if source else ():
        new = folder / old.name
        index = old.name.endswith(".index.json")
        there = old.is_file() and old.suffix != ".safetensors" and (index or new.is_file())
        if there and (not new.is_file() or old.read_bytes() != new.read_bytes()):
            (place / "companions").mkdir(exist_ok=True)
            shutil.copyfile(old, place / "companions" / old.name)
            changed.append(old.name)
    added = [f.name for f in folder.iterdir() if f.is_file() and not (source and (source / f.name).exists())]
    record = {
        "schema": SCHEMA,
        "files": {name: {"bytes": file.stat().st_size, "sha256": hashes[name]} for name, file in files.items()},
        "tensors": tensors,
        "companions": changed,
        "added": sorted(name for name in added if not name.endswith(".safetensors")),
    }
    (place / MANIFEST).write_text(json.dumps(record, indent=1) + "\n")


def undo(folder: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Return the new folder `out` with the files that a trim was made of, byte for byte, and what stood beside them.

    Every file is held against the hash of the original before `out` appears.

    Args:
        folder: what `trim(..., undo=True)` wrote; it stays as it is.
        out: must not exist, or be empty.

    Raises:
        ValueError: nothing was kept, or the trimmed files were changed since, so that it cannot be undone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not (folder / FOLDER / MANIFEST).is_file():
        made = "its trim kept nothing for that: ask for it, trim(..., undo=True) (--undo)"
        raise ValueError(
            f"{folder} cannot be undone: {made if (folder / 'spectrim.json').is_file() else 'no trim made it'}"
        )
    record = read_record(folder / FOLDER / MANIFEST, "record for undo", SCHEMA)
    now = read_trimmed(folder).get("files", {})
    _check(folder, record, now)
    for name, told in now.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != told["bytes"] or hash_file(file) != told["sha256"]:
            raise ValueError(f"{folder} cannot be undone: {name} was changed or removed since it was trimmed")
    new = {name: t for file in now for name, t in layout(folder / file).tensors.items()}
    old: dict[str, list[dict]] = {}
    for file, parts in record["tensors"].items():
        for part in parts:
            old.setdefault(part["name"], []).append(part | {"file": folder / FOLDER / file})
    with whole_folder(out) as fresh:
        skipped = {FOLDER, *record["added"], *now}
        for file in folder.iterdir():
            if file.name in skipped:
                continue
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, fresh / file.name)
        for name in record["companions"]:
            shutil.copyfile(folder / FOLDER / "companions" / name, fresh / name)
        for name, told in record["files"].items():
            digest = hashlib.sha256()
            with open(fresh / name, "wb") as handle:
                try:
                    for chunk in _original(folder / FOLDER / "headers" / name, new, old):
                        digest.update(chunk)
                        handle.write(chunk)
                except (zlib.error, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                        raise  # of the disk that is written to
                    why = f"what was kept of {name} is damaged ({error})"
                    raise ValueError(f"{folder} cannot be undone: {why}") from None
            if digest.hexdigest() != told["sha256"]:
                raise ValueError(f"{folder} cannot be undone: what comes out for {name} is not the original")
    return Path(out)


def _check(folder: Path, record: dict, now: object) -> None:
    """ValueError where a record is not as `manifest` writes it: it names files, and none outside of its folder."""
    try:
        named = [*record["files"], *record["companions"], *record["added"], *record["tensors"], *now]
        sound = all(isinstance(name, str) and PureWindowsPath(name).name == name != ".." for name in named)
        sound &= all(isinstance(told["sha256"], str) for told in (*record["files"].values(), *now.values()))
        sound &= all(isinstance(part, dict) for parts in record["tensors"].values() for part in parts)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{folder} cannot be undone: its record is not as a trim writes it")


def _original(header: Path, new: Mapping[str, Stored], old: Mapping[str, list[dict]]) -> Iterator[bytes]:
    """The bytes of an original file: its header, then its tensors, in the order of their offsets."""
    yield header.read_bytes()
    for name, tensor in layout(header).tensors.items():
        at, length = 0, tensor.nbytes
        for part in sorted(old.get(name, ()), key=lambda p: p["offset"]):
            yield from _of(new, name, at, part["offset"])
            yield from _restored(part, new)
            at = part["offset"] + part["bytes"]
        yield from _of(new, name, at, length)


def _of(new: Mapping[str, Stored], name: str, start: int, stop: int) -> Iterable[bytes]:
    if start == stop:
        return ()
    whole: Range = new[name].pieces[0]
    return read_range(Range(whole.file, whole.start + start, whole.start + stop))


def _restored(part: dict, new: Mapping[str, Stored]) -> Iterator[bytes]:
    """The old bytes of one range, chunk by chunk: each was compressed as `CHUNK` bytes, the last as what was left."""
    stretch, left = zlib.decompressobj(), part["bytes"]
    beside = _of(new, part["name"], part["offset"], part["offset"] + part["bytes"]) if part["xor"] else None
    ready = bytearray()
    for packed in (*read_range(Range(part["file"], part["start"], part["stop"])), b""):
        while True:
            ready += stretch.decompress(packed, CHUNK)  # no more at a time, whatever it claims to hold
            if len(ready) > left:
                raise zlib.error("it holds more than there was")
            while left and len(ready) >= (size := min(CHUNK, left)):
                plain = _entries(np.frombuffer(bytes(ready[:size]), np.uint8), part["width"])
                del ready[:size]
                left -= size
                yield (plain if beside is None else plain ^ np.frombuffer(next(beside), np.uint8)).tobytes()
            if not (packed := stretch.unconsumed_tail):
                break


def _mostly_the_same(a: Range, b: Range) -> bool:
    """Whether a quarter of the bytes, of the first chunk, are the same: entries were set to zero, the others stayed."""
    first, second = (np.frombuffer(next(iter(read_range(r)), b""), np.uint8) for r in (a, b))
    return len(first) > 0 and float((first == second).mean()) > 0.25


def _width(dtype: str) -> int:
    return next((width for bits, width in WIDTHS.items() if dtype.endswith(bits)), 1)


def _planes(part: np.ndarray, width: int) -> bytes:
    return part.reshape(-1, width).T.tobytes() if len(part) % width == 0 else part.tobytes()


def _entries(part: np.ndarray, width: int) -> np.ndarray:
    return part.reshape(width, -1).T.reshape(-1) if len(part) % width == 0 else part
