"""2,000 damaged checkpoints: each is read right or refused in words, soon and in little memory.

Run as a program (`python tests/test_fuzz.py FOLDER COUNT`) this file breaks checkpoints in FOLDER and prints what went
wrong as JSON; the test runs it so, because only a process of its own can say how much memory it took.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

COUNT, SEED = 2000, 7
SECONDS = 10
MIB = 1 << 20
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
SIZES |= {"U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}
INDEX = "model.safetensors.index.json"


# The checkpoint that is damaged ---------------------------------------------------------------------------------------


def packed(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def whole() -> dict[str, bytes]:
    """The files of a sound checkpoint: name -> bytes, random entries."""
    rng = random.Random(SEED)
    shapes = {
        "embed_tokens.weight": ("F32", (40, 16)),
        "layers.0.attn.qkv.weight": ("F32", (48, 16)),
        "layers.0.attn.qkv.bias": ("F32", (48,)),
        "layers.0.fc.weight": ("F16", (24, 16)),
        "layers.0.experts.down_proj": ("F32", (2, 16, 18)),
        "layers.1.conv.weight": ("F32", (12, 4, 3, 3)),
        "layers.1.fc.weight": ("BF16", (24, 16)),
        "layers.1.steps": ("I64", (3,)),
        "head.weight": ("F32", (20, 16)),
    }
    shards: dict[str, dict] = {}
    data: dict[str, bytes] = {}
    weight_map = {}
    for i, (name, (dtype, shape)) in enumerate(shapes.items()):
        file = f"model-{i % 3 + 1:05d}-of-00003.safetensors"
        kind = {"F32": "f", "F16": "e", "I64": "q"}.get(dtype, "f")
        raw = b"".join(struct.pack(f"<{kind}", int(100 * rng.gauss(0, 1))) for _ in range(math.prod(shape)))
        raw = b"".join(raw[k + 2 : k + 4] for k in range(0, len(raw), 4)) if dtype == "BF16" else raw
        at = len(data.get(file, b""))
        shards.setdefault(file, {})[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        data[file] = data.get(file, b"") + raw
        weight_map[name] = file
    files = {file: packed(json.dumps(header).encode(), data[file]) for file, header in shards.items()}
    total = sum(map(len, data.values()))
    files[INDEX] = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}).encode()
    return files | {"config.json": b'{"model_type": "llama", "num_attention_heads": 4}'}


# Damage: each returns whether the checkpoint must still be read (True), must not (False), or may be (None) ---------

Files = dict[str, bytes]
Damage = Callable[[random.Random, Files, Path], bool | None]


def shard_of(rng: random.Random, files: Files) -> str:
    return rng.choice(sorted(name for name in files if name.endswith(".safetensors")))


def parts_of(raw: bytes) -> tuple[dict, bytes]:
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def on_header(change: Callable[[random.Random, dict, bytes], bytes | dict | None], right: bool | None) -> Damage:
    """Damage that changes the header of one shard, as an object (in place or anew) or as text."""

    def damage(rng, files, folder):
        name = shard_of(rng, files)
        header, data = parts_of(files[name])
        new = change(rng, header, data)
        new = header if new is None else new
        files[name] = packed(new if isinstance(new, bytes) else json.dumps(new).encode(), data)
        return right

    damage.__name__ = change.__name__
    return damage


def on_tensor(change: Callable[[random.Random, dict], object], right: bool | None) -> Damage:
    """Damage that changes what the header of one shard says of one tensor."""

    def each(rng, header, data):
        change(rng, header[rng.choice(sorted(header))])

    each.__name__ = change.__name__
    return on_header(each, right)


def flipped_length(rng, files, folder):
    name = shard_of(rng, files)
    raw = bytearray(files[name])
    raw[rng.randrange(8)] ^= 1 << rng.randrange(8)
    files[name] = bytes(raw)
    return False


def flipped_header(rng, files, folder):
    name = shard_of(rng, files)
    raw = bytearray(files[name])
    raw[8 + rng.randrange(struct.unpack("<Q", raw[:8])[0])] ^= 1 << rng.randrange(8)
    files[name] = bytes(raw)


def flipped_data(rng, files, folder):
    name = shard_of(rng, files)
    raw = bytearray(files[name])
    raw[rng.randrange(8 + struct.unpack("<Q", raw[:8])[0], len(raw))] ^= 1 << rng.randrange(8)
    files[name] = bytes(raw)
    return True


def truncated(rng, files, folder):
    name = shard_of(rng, files)
    files[name] = files[name][: rng.randrange(len(files[name]))]
    return False


def appended(rng, files, folder):
    files[shard_of(rng, files)] += rng.randbytes(rng.choice([1, 8, 5000]))
    return False


def renamed(new: Callable[[random.Random], str]) -> Damage:
    def change(rng, header, data):
        old = rng.choice(sorted(header))
        return {new(rng) if name == old else name: told for name, told in header.items()}

    return on_header(change, None)


def twice(rng, header, data):
    name = rng.choice(sorted(header))
    other = dict(header[name]) if rng.random() < 0.5 else rng.choice(list(header.values()))
    text = json.dumps(header)
    return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(other)}}}".encode()


def nested(rng, header, data):
    deep = b"[" * (n := rng.choice([50, 200, 20000])) + b"]" * n
    return json.dumps(header).encode()[:-1] + b', "deep": ' + deep + b"}"


def all_zero(rng, told):
    told["shape"] = rng.choice([[0, 2**63], [2**64 - 1, 0, 7], [0, 2**62, 8], [2**40, 2**40, 0], [2**62, 0]])
    told["data_offsets"] = [told["data_offsets"][0]] * 2


def empty_besides(rng, header, data):
    header["empty"] = {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}
    all_zero(rng, header["empty"])


def odd_names(rng: random.Random) -> str:
    return rng.choice(
        [
            "",
            "..",
            "../../etc/passwd",
            "/abs",
            "a\0b",
            "\x1b[31mred",
            "weight",
            ".weight",
            "..weight",
            "x" * 100_000,
            "0.weight",
            "a.0.weight",
            "\u202e.weight",
            "layers.0.fc.weight_scale",
            "experts.w1",
            "q" * 300 + ".weight",
            "lstm.weight_hh_l0",
            "attn.in_proj_weight",
            "attn.c_attn.weight",
            "__metadata__",
            "\U0001f600.weight",
        ]
    )


def other_dtype(rng, told):
    told["dtype"] = rng.choice([*SIZES, "F4", "F6_E2M3", "f32", "", None, 4, "F8_E4M3FNUZ", "x" * 10000])


def other_shape(rng, told):
    told["shape"] = rng.choice(
        [
            [],
            [-1],
            [2**32, 2**32],
            [2**64],
            [1e400],
            [2.5],
            None,
            "ab",
            {},
            [[2]],
            [True],
            [*told["shape"], 1],
            told["shape"][::-1],
            [math.prod(told["shape"])],
            [*[1] * 70, *told["shape"]],
            [1] * 20_000,
            [10**30],
        ]
    )


def other_offsets(rng, told):
    a, b = told["data_offsets"]
    told["data_offsets"] = rng.choice(
        [
            [-1, b],
            [b, a],
            [a, b + 1],
            [a + 1, b + 1],
            [a, 2**63],
            [2**64 - 8, 2**64],
            [a],
            [a, b, b],
            None,
            [a, a],
            [0, 4],
        ]
    )


def metadata(rng, header, data):
    header["__metadata__"] = rng.choice([{"a": "b"}, {}, {"x": "y" * 10000}])


def bad_metadata(rng, header, data):
    header["__metadata__"] = rng.choice([{"a": 1}, [], "x", {"a": {"b": "c"}}, 3])


def spaced(rng, header, data):
    return json.dumps(header, indent=rng.choice([1, 8])).encode() + b" " * rng.randrange(9)


def reordered(rng, header, data):
    names = list(header)
    rng.shuffle(names)
    return {name: header[name] for name in names}


def not_utf8(rng, header, data):
    text = json.dumps(header).encode()
    at = text.index(b"layers") if b"layers" in text else 3
    return text[:at] + rng.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80"]) + text[at:]


def cut_header(rng, header, data):
    text = json.dumps(header).encode()
    return text[: rng.randrange(len(text))]


def other_json(rng, header, data):
    return rng.choice(
        [b"", b"[]", b"null", b"{", b"\xef\xbb\xbf{}", b"NaN", b'{"a":}', b"1" * 5000, b'{"a": 1}', b'"x"']
    )


def not_a_shard(rng, files, folder):
    files[shard_of(rng, files)] = rng.choice([b"", b"\0" * 8, b"PK\x03\x04" + b"x" * 100, b"\x80\x02}q\0.", b"12345"])
    return False


def shard_gone(rng, files, folder):
    del files[shard_of(rng, files)]
    return False


def shard_is_folder(rng, files, folder):
    name = shard_of(rng, files)
    del files[name]
    (folder / name).mkdir()
    return False


def shard_is_pipe(rng, files, folder):
    name = shard_of(rng, files)
    del files[name]
    os.mkfifo(folder / name)
    return False


def shard_by_link(rng, files, folder):
    """As the cache of the Hugging Face hub keeps its snapshots."""
    name = shard_of(rng, files)
    blobs = folder.with_name("blobs")
    blobs.mkdir(exist_ok=True)
    (blobs / "0a1b2c").write_bytes(files.pop(name))
    (folder / name).symlink_to("../blobs/0a1b2c")
    return True


def link_to_nothing(rng, files, folder):
    name = shard_of(rng, files)
    del files[name]
    (folder / name).symlink_to(rng.choice(["nowhere", name]))
    return False


def on_index(change: Callable[[random.Random, dict, Path], bytes | dict | None], right: bool | None) -> Damage:
    def damage(rng, files, folder):
        index = json.loads(files[INDEX])
        new = change(rng, index, folder)
        new = index if new is None else new
        files[INDEX] = new if isinstance(new, bytes) else json.dumps(new).encode()
        return right

    damage.__name__ = change.__name__
    return damage


def flipped_index(rng, files, folder):
    raw = bytearray(files[INDEX])
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    files[INDEX] = bytes(raw)


def leads_out(rng, index, folder):
    """Every one of these files is there, and sound."""
    name = rng.choice(sorted(index["weight_map"]))
    out = folder.with_name("outside")
    out.mkdir(exist_ok=True)
    (out / "x.safetensors").write_bytes(packed(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"))
    (folder / "sub").mkdir(exist_ok=True)
    shutil.copy(out / "x.safetensors", folder / "sub")
    index["weight_map"][name] = rng.choice(
        [
            "../outside/x.safetensors",
            str(out / "x.safetensors"),
            "sub/x.safetensors",
            "./sub/../sub/x.safetensors",
            "..",
            ".",
            "/",
            "",
            "sub",
            "C:x.safetensors",
            "sub\\x.safetensors",
            f"../{folder.name}/{INDEX}",
        ]
    )


def strange_file(rng, index, folder):
    index["weight_map"][rng.choice(sorted(index["weight_map"]))] = rng.choice(
        ["gone.safetensors", "a\0b", "x" * 5000, "\ud800", "config.json", INDEX, 3, None, [], {}, True, 1.5, "\x1b[2J"]
    )


def no_map(rng, index, folder):
    return rng.choice([{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}, {"weight_map": "x"}, {"w": 1}])


def other_index(rng, index, folder):
    deep = rng.choice([500, 5000, 100_000])
    return rng.choice(
        [
            b"",
            b"[]",
            b"NaN",
            b"\xff\xfe",
            b"{",
            b'{"weight_map": NaN}',
            b"[" * deep,
            b'{"a":' * deep,
            b"9" * 5000,
            b'"x"',
            b"[" * deep + b"]" * deep,
            b'{"weight_map": {"a": Infinity}}',
            b"\0" * 100,
            b'{"weight_map": ' + b"9" * 9999 + b"}",
        ]
    )


def cut_index(rng, index, folder):
    text = json.dumps(index).encode()
    return text[: rng.randrange(len(text))]


def wrong_shard(rng, index, folder):
    names = sorted(index["weight_map"])
    files = sorted(set(index["weight_map"].values()))
    for name in rng.sample(names, rng.randrange(1, 4)):
        index["weight_map"][name] = rng.choice(files)
    for file, name in zip(files, names, strict=False):  # each file is still named by one
        index["weight_map"][name] = file


def left_out(rng, index, folder):
    files = Counter(index["weight_map"].values())
    name = rng.choice(sorted(n for n, file in index["weight_map"].items() if files[file] > 1))
    del index["weight_map"][name]


def in_no_shard(rng, index, folder):
    index["weight_map"][odd_names(rng) + "?"] = rng.choice(sorted(set(index["weight_map"].values())))


def wrong_total(rng, index, folder):
    index["metadata"] = rng.choice([{"total_size": n} for n in (-1, 10**30, "x", None, 1.5)] + [None, [], "x", {}])


def listed_twice(rng, index, folder):
    text = json.dumps(index)
    name = rng.choice(sorted(index["weight_map"]))
    file = rng.choice(sorted(set(index["weight_map"].values())))
    return text.replace('"weight_map": {', f'"weight_map": {{{json.dumps(name)}: {json.dumps(file)}, ').encode()


def index_is_folder(rng, files, folder):
    del files[INDEX]
    (folder / INDEX).mkdir()
    return False


def index_is_pipe(rng, files, folder):
    del files[INDEX]
    os.mkfifo(folder / INDEX)
    return False


def same_tensor_twice(rng, files, folder):
    one, two = rng.sample(sorted(name for name in files if name.endswith(".safetensors")), 2)
    files[two] = files[one]
    return False


def odd_config(rng, files, folder):
    key = rng.choice(["num_attention_heads", "num_key_value_heads", "head_dim", "model_type", "multi_query"])
    key = rng.choice([key, "text_config", "quantization_config"])
    value = rng.choice([0, -3, "x", [], {}, None, 1.5, 10**30, True, {"model_type": []}, {"weight_block_size": [0, 0]}])
    files["config.json"] = json.dumps({"num_attention_heads": 4, key: value}).encode()
    return True


def odd_splits(rng, files, folder):
    part = {"label": "", "rows": 24, "rank": rng.choice([None, 3, 0, -1, "x", 10**20])}
    spec = {
        "form": rng.choice(["linear", "conv2d", "parameter", "x", []]),
        "cols": rng.choice([16, 17]),
        "parts": [part],
    }
    name = rng.choice(["layers.0.fc", "layers.1.fc.weight", "layers.1.conv", "", "head"])
    splits = rng.choice([{name: spec}, {name: spec, "head": spec}, [], "x", {name: []}, {name: {"parts": [{}]}}])
    files["spectrim.json"] = json.dumps({"splits": splits}).encode()


HEADERS: list[Damage] = [
    flipped_length,
    flipped_header,
    flipped_header,
    flipped_header,
    flipped_data,
    truncated,
    appended,
    on_header(cut_header, False),
    on_header(not_utf8, False),
    on_header(twice, None),
    on_header(nested, False),
    on_header(other_json, False),
    on_header(metadata, True),
    on_header(bad_metadata, False),
    on_header(spaced, True),
    on_header(reordered, True),
    on_header(empty_besides, None),
    on_tensor(all_zero, False),
    on_tensor(other_dtype, None),
    on_tensor(other_shape, None),
    on_tensor(other_offsets, None),
    renamed(odd_names),
    not_a_shard,
    shard_gone,
    shard_is_folder,
    shard_is_pipe,
    shard_by_link,
    link_to_nothing,
    same_tensor_twice,
    odd_config,
    odd_splits,
]
INDEXES: list[Damage] = [
    flipped_index,
    flipped_index,
    index_is_folder,
    index_is_pipe,
    on_index(leads_out, False),
    on_index(strange_file, False),
    on_index(no_map, False),
    on_index(other_index, False),
    on_index(cut_index, False),
    on_index(wrong_shard, True),
    on_index(left_out, True),
    on_index(in_no_shard, False),
    on_index(wrong_total, True),
    on_index(listed_twice, True),
]


# What is right, by a reader of its own --------------------------------------------------------------------------------


def held(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of each tensor in the files of a folder, read by the description of the format alone."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        header, data = parts_of(file.read_bytes())
        header.pop("__metadata__", None)
        for name, told in header.items():
            a, b = told["data_offsets"]
            assert 0 <= a <= b <= len(data)
            if told["dtype"] in SIZES:
                assert b - a == SIZES[told["dtype"]] * math.prod(told["shape"])
            found[name] = (told["dtype"], tuple(told["shape"]), data[a:b])
    return found


# The run --------------------------------------------------------------------------------------------------------------


class Late(BaseException):
    """Ten seconds have passed."""


def _late(*_) -> None:
    raise Late


def memory(reset: bool = False) -> int:
    """The highest resident size since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    high = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return high


def emptied(folder: Path) -> Path:
    """The folder with nothing in it; it stays where it is, for a disk may take milliseconds to remove one."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    return folder


def written(files: Files, folder: Path) -> None:
    for name, raw in files.items():
        if (folder / name).is_symlink() or not (folder / name).exists():
            (folder / name).write_bytes(raw)


def read(folder: Path) -> tuple[dict, object]:
    """What the program makes of a folder: shape and bytes of each tensor, and its survey."""
    import torch

    from spectrim import survey
    from spectrim.checkpoint import open_checkpoint
    from spectrim.spectrum import NoiseFit

    def edge(spectrum) -> NoiseFit:
        return NoiseFit(
            sigma=None, edge=float(spectrum.s[0]) / 2, edge_interval=None, misfit=None, spikes=1, method="half"
        )

    source = open_checkpoint(folder)
    tensors = {}
    for name, info in source.infos.items():
        t = source.read(name)
        tensors[name] = (info.shape, bytes(t.contiguous().reshape(-1).view(torch.uint8).numpy()) if t.numel() else b"")
    found = survey(source, edge, equalize=False)
    return tensors, found


def told(run: Callable[[], object]) -> tuple[object, str]:
    """What a run returned, or the words in which it refused; "!" before what is no refusal."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        return run(), ""
    except (ValueError, FileNotFoundError) as error:
        words = str(error)
        clear = 10 < len(words) < 600 and words.isprintable() and type(error) in (ValueError, FileNotFoundError)
        return None, words if clear else f"! unclear {type(error).__name__}: {words!r:.300}"
    except Late:
        return None, f"! more than {SECONDS} s"
    except BaseException as error:
        return None, f"! {type(error).__name__}: {error!s:.300}"
    finally:
        signal.alarm(0)


def judged(damage: Damage, rng: random.Random, sound: Files, before: dict, place: Path) -> tuple[str, str]:
    """("read" | "refused", "") of one damaged checkpoint, or ("wrong", what is wrong)."""
    folder = emptied(place / "model")
    files = dict(sound)
    right = damage(rng, files, folder)
    written(files, folder)
    result, words = told(lambda: read(folder))
    if words.startswith("!"):
        return "wrong", words
    if words:
        return ("wrong", f"refused, though sound: {words}") if right else ("refused", words)
    if right is False:
        return "wrong", "read, though broken"
    tensors, found = result
    there = held(folder)
    if tensors != {name: held[1:] for name, held in there.items()}:
        return "wrong", f"not what stands there: {sorted(set(tensors) ^ set(there))!s:.200}"
    same = {name for name, held in there.items() if before["tensors"].get(name) == held}
    for r in found.matrices:
        of = before["matrices"].get(r.name)
        if of and of[0] in same and of[1] != r.fingerprint and "spectrim.json" not in files:
            return "wrong", f"{r.name} has other values than before"
    return "read", ""


def heavy() -> Iterator[tuple[str, dict[str, bytes], bool]]:
    """Small weights, and much that is said of them: name, files, and whether it must be read. One at a time."""
    one = packed(b'{"a.weight":{"dtype":"F32","shape":[16,16],"data_offsets":[0,1024]}}', os.urandom(1024))
    model = {"model.safetensors": one}

    def beside(file: str, raw: bytes) -> dict[str, bytes]:
        return {**model, file: raw}

    def crowd(count: int, shape: str, nbytes: int) -> dict[str, bytes]:
        told = ",".join(
            f'"{i}.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[{i * nbytes},{(i + 1) * nbytes}]}}'
            for i in range(count)
        )
        return {"model.safetensors": packed(f"{{{told}}}".encode(), bytes(count * nbytes))}

    last = b'"__metadata__":{"a":"b"}}'
    dims = b'{"a":{"dtype":"U8","shape":[' + b"1," * 1_000_000 + b'1],"data_offsets":[0,1]}}'
    yield "index of lists", beside(INDEX, b"[" + b"[]," * (33 * MIB) + b"[]]"), False
    yield "index of strings", beside(INDEX, b'{"weight_map":{' + b'"ab":"c",' * (MIB) + b'"a":"b"}}'), False
    yield "index at the limit", beside(INDEX, b"[" + b"[[[]]]," * (MIB // 16) + b"[]]"), False
    yield "config of lists", beside("config.json", b'{"a":[' + b"[]," * (3 * MIB) + b"[]]}"), False
    yield "config at the limit", beside("config.json", b'{"a":[' + b"[]," * (MIB // 6 - 9) + b"[]]}"), True
    yield "splits of lists", beside("spectrim.json", b'{"splits":[' + b"[]," * (3 * MIB) + b"[]]}"), False
    yield "header of spaces", {"model.safetensors": packed(b'{"a":' + b" " * (20 * MIB) + b"{}}", b"")}, False
    yield "a long name", {"model.safetensors": packed(b'{"' + b"x" * (20 * MIB) + b'":{},' + last, b"")}, False
    yield "a million dimensions", {"model.safetensors": packed(dims, b"1")}, False
    yield "many dimensions", {"model.safetensors": packed(dims.replace(b"1," * 800_000, b""), b"1")}, False
    yield "a huge claim", {"model.safetensors": packed(b"{}", b"", 99_999_999)}, False
    yield "many empty tensors", crowd(100_000, "[0]", 0), False
    yield "many empty tensors, at the limit", crowd(6_500, "[0]", 0), True
    yield "many small matrices, at the limit", crowd(6_500, "[12,12]", 576), True


def command(folder: Path) -> tuple[int, str]:
    """Exit status and output of `spectrim survey FOLDER` in a process of its own, forked with everything imported."""
    log = folder.with_name("log")
    if (child := os.fork()) == 0:
        out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(out, 1), os.dup2(out, 2)
        sys.argv = ["spectrim", "survey", str(folder)]
        from spectrim.cli import main

        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text(errors="replace")


def main(place: Path, count: int) -> dict:
    import torch

    import spectrim.cli  # noqa: F401 - before the processes are forked

    torch.set_num_threads(1)
    sound = whole()
    folder = place / "sound"
    folder.mkdir(parents=True)
    written(sound, folder)
    tensors, found = read(folder)
    there = held(folder)
    assert tensors == {name: told[1:] for name, told in there.items()}
    owner = {
        r.name: next(n for n in tensors if n.removesuffix(".weight") == r.name.partition("[")[0])
        for r in found.matrices
    }
    before = {
        "tensors": there,
        "matrices": {r.name: (owner[r.name], r.fingerprint) for r in found.matrices},
    }
    base, begun = memory(reset=True), time.perf_counter()
    wrong, counts, slowest, peak, messages = [], Counter(), 0.0, 0, set()
    for i in range(count):
        rng = random.Random(SEED * 1_000_003 + i)
        damage = (INDEXES if i % 3 == 0 else HEADERS)[
            (i // 3 if i % 3 == 0 else i) % (len(INDEXES) if i % 3 == 0 else len(HEADERS))
        ]
        start = time.perf_counter()
        what, words = judged(damage, rng, sound, before, place / "light")
        slowest = max(slowest, time.perf_counter() - start)
        counts[what] += 1
        messages.add(words.replace(str(place), "").partition(":")[0][:60])
        if what == "wrong":
            wrong.append([i, damage.__name__, words])
    took = [time.perf_counter() - begun]
    gc.collect()
    peak = memory(reset=True) - base
    largest = []
    for name, files, right in heavy() if count == COUNT else ():
        folder = emptied(place / "heavy")
        written(files, folder)
        size = sum(map(len, files.values()))
        del files
        gc.collect()
        memory(reset=True)
        start = time.perf_counter()
        result, words = told(lambda folder=folder: read(folder))
        seconds = time.perf_counter() - start
        used = memory() - base
        largest.append([name, size, used, round(seconds, 2), words])
        if words.startswith("!") or (result is not None) is not right or used > 2 * size + 64 * MIB:
            wrong.append([name, f"{used / MIB:.0f} MiB for {size / MIB:.0f}", words or "read"])
        result = None
    took.append(time.perf_counter() - begun)
    statuses = Counter()
    for i in range(20 if count >= 20 else 0):
        rng = random.Random(i)
        damage = [*HEADERS, *INDEXES][i * 2]
        judged(damage, rng, sound, before, place / "cli")
        status, out = command(place / "cli" / "model")
        statuses[status] += 1
        if status not in (0, 1, 2) or "Traceback" in out or (status and out.count("error:") != 1):
            wrong.append(["command", damage.__name__, f"{status}: {out[-300:]}"])
    took.append(time.perf_counter() - begun)
    return {
        "seconds": took,
        "wrong": wrong,
        "counts": counts,
        "slowest": slowest,
        "peak": peak,
        "heavy": largest,
        "statuses": statuses,
        "messages": len(messages),
    }


def test_two_thousand_damaged_checkpoints_are_read_right_or_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert sum(told["counts"].values()) == COUNT
    assert told["counts"]["read"] > COUNT / 5  # a reader that refuses everything is no reader
    assert told["counts"]["refused"] > COUNT / 3
    assert told["messages"] > 30  # of different beginnings: each says what is wrong
    assert told["peak"] < 64 * MIB
    assert sum(told["statuses"].values()) == 20
    assert set(told["statuses"]) == {"0", "2"}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
