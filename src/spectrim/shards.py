"""Which safetensors files of a folder are its checkpoint, and how much may be said of them.

The headers of the files tell what they hold; an index tells which files belong together. What either says is not
trusted: an index names plain files of its own folder, and neither may be far larger than the weights that it is about,
because what is read of it fills memory many times its own size.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

SUFFIX = ".safetensors"
# "model.safetensors.index.json", and with a variant where one library or another puts it.
INDEX = re.compile(r"(?P<stem>.+)\.safetensors(?P<a>\.[\w-]+)?\.index(?P<b>\.[\w-]+)?\.json")
NUMBERED = re.compile(r"(?P<base>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<variant>\..*)?")
# Copies and additions that stand beside a model's weights and are no part of them: Mistral's own format, an adapter.
BESIDE = re.compile(r"consolidated(\.\d+)?|adapter_model")
FREE = 1 << 19  # bytes of JSON that any checkpoint may have
SHARE = 40  # beyond that, one byte of JSON for so many bytes of weights; real ones have 1 for 100,000


def is_index(path: Path) -> bool:
    """Return whether a file is called as an index of safetensors files is.

    Example:
        >>> is_index(Path("model.safetensors.index.json")), is_index(Path("config.json"))
        (True, False)
    """
    return INDEX.fullmatch(path.name) is not None


def files_of(folder: Path) -> tuple[list[Path], Path | None]:
    """Return the safetensors files that are the checkpoint in a folder, and the index that names them, if one does.

    An index is preferred to what else stands there, and one without a variant ("fp16") to one with. Without an index
    all files count but variants of others, an adapter and a copy in Mistral's own format beside the model.

    Args:
        folder: of any files.

    Raises ValueError where two choices are as good, or where files are missing.
    """
    names = sorted(entry.name for entry in os.scandir(folder))
    indexes = [name for name in names if is_index(Path(name))]
    indexes = [name for name in indexes if not _variant(name)] or indexes
    if len(indexes) > 1 and "model.safetensors.index.json" in indexes:
        indexes = ["model.safetensors.index.json"]
    if len(indexes) > 1:
        raise ValueError(f"{folder} holds several checkpoints: name one of {_some(indexes)} in it")
    if indexes:
        files = named_files(folder / indexes[0])
        whole = folder / f"{INDEX.fullmatch(indexes[0])['stem']}{SUFFIX}"
        if whole.is_file() and whole not in files:
            raise ValueError(f"{folder} holds {whole.name} and the shards of {indexes[0]}: name one of the two in it")
        return files, folder / indexes[0]
    files = [name for name in names if name.endswith(SUFFIX)]
    if lost := [name for name in files if not os.path.isfile(folder / name)]:
        raise ValueError(f"{folder} holds {_some(lost)}, which is no file, or a link that leads nowhere")
    bases = {name: _base(name) for name in files}
    own = [n for n in files if not ("." in bases[n] and bases[n].partition(".")[0] in bases.values())]
    own = [n for n in own if not BESIDE.fullmatch(bases[n])] or own
    _check_complete(folder, own)
    return [folder / name for name in own], None


def named_files(index: Path) -> list[Path]:
    """Return the files that an index names, in order; ValueError where one is not there or is elsewhere."""
    files = sorted(set(weight_map(index).values()))
    if strange := [name for name in files if PureWindowsPath(name).name != name or name in ("", ".", "..")]:
        raise ValueError(f"{index} names {_some(strange)}: an index may name plain files of its own folder only")
    missing = [name for name in files if not os.path.isfile(index.parent / name)]
    if missing or not files:
        raise ValueError(f"{index} names files that are not there: {_some(missing) if missing else 'it names none'}")
    return [index.parent / name for name in files]


def weight_map(index: Path) -> dict[str, str]:
    """Return what an index says: the file of each tensor, by its name. ValueError where it says something else."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    return found


def check_named(index: Path, there: Iterable[str]) -> None:
    """Return nothing; ValueError where an index names tensors that its files do not hold.

    In which of them a tensor stands is asked of the files, which know, and so is what the index leaves out.

    Args:
        index: that was read before.
        there: the names of the tensors in all files that it names.
    """
    if lost := sorted(weight_map(index).keys() - set(there)):
        raise ValueError(
            f"{index} names {len(lost)} tensors that are in none of its files: {_some(lost)}. Is a file of another "
            "model among them? Remove the index to read the files as they are"
        )


def check_headers(files: Sequence[Path]) -> None:
    """Return nothing; ValueError where a safetensors file is none, or its header is out of proportion to its weights.

    Args:
        files: all files of a checkpoint.
    """
    headers = weights = 0
    for file in files:
        if not os.path.isfile(file):  # a pipe would be waited for
            raise ValueError(f"{file} is not a file")
        size = file.stat().st_size
        with open(file, "rb") as handle:
            headers += min(int.from_bytes(handle.read(8), "little"), size)
        weights += size
    if headers > FREE + weights // SHARE:
        who = files[0] if len(files) == 1 else f"the {len(files)} files of {files[0].parent}"
        raise ValueError(
            f"{who}: {headers:,} bytes of header for {weights:,} bytes in all is no model: so many names of next to "
            "nothing would only fill the memory"
        )


def read_json(path: Path) -> dict:
    """Return the JSON object in a file that stands beside weights, {} where there is no such file.

    Raises ValueError where it is no object, or larger than anything that is told of the weights beside it.
    """
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    size = path.stat().st_size
    if size > FREE:
        beside = sum(f.stat().st_size for f in path.parent.iterdir() if f.suffix != ".json" and f.is_file())
        if size > FREE + beside // SHARE:
            raise ValueError(
                f"{path} has {size:,} bytes, for {beside:,} bytes of weights beside it: it is no {path.name}"
            )
    try:
        loaded = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also what is no text
        raise ValueError(f"{path} is not valid JSON: {str(error)[:160]}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not an object")
    return loaded


def _variant(index: str) -> bool:
    found = INDEX.fullmatch(index)
    return "." in found["stem"] or bool(found["a"] or found["b"])


def _base(file: str) -> str:
    """The name of a file without its number among the shards: "model" or "model.fp16"."""
    stem = file.removesuffix(SUFFIX)
    found = NUMBERED.fullmatch(stem)
    return f"{found['base']}{found['variant'] or ''}" if found else stem


def _check_complete(folder: Path, files: Sequence[str]) -> None:
    sets: dict[tuple[str, int], set[int]] = {}
    for name in files:
        if found := NUMBERED.fullmatch(name.removesuffix(SUFFIX)):
            sets.setdefault((_base(name), int(found["total"])), set()).add(int(found["number"]))
    for (base, total), numbers in sets.items():
        if len(numbers) < total:
            lost = next(n for n in range(1, total + 1) if n not in numbers)
            raise ValueError(
                f"{folder} holds {len(numbers)} of the {total} files of {base!r}: number {lost} is missing. Fetch the "
                "rest, or name one file"
            )


def _some(names: Sequence[str]) -> str:
    """The first three names for a message, with what no terminal should be sent, and however long they are."""
    return ", ".join(repr(name)[:120] for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
