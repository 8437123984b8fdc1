"""Every weight matrix of a model as a `Site`: where it stands, how it is read, written and split.

Orientation is decided here and nowhere else: a site's matrix has rows = outputs and cols = inputs, whatever the layer
stores. A stored weight may hold several matrices (q, k and v of a fused projection, the gates of an LSTM, the groups of
a convolution): it is one `Layer` with one `Site` a row block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .linalg import svd

GATES = {4: ("lstm", "ifgo"), 3: ("gru", "rzn")}  # by rows / hidden size; torch's order of the gates
FUSED = ("split", "whole", "heads")
# Attribute names under which libraries keep q, k and v as one projection, each a third of the rows.
FUSED_NAMES = re.compile(
    r"(^|\.)(qkv|qkv_proj|c_attn|in_proj|in_proj_weight|wqkv|to_qkv|query_key_value)$", re.IGNORECASE
)
READ_ONLY = "fp8"  # the kind of a matrix that is read and never written: its numbers are not kept as they are read
INTERLEAVED = "query_key_value"  # GPT-NeoX, BLOOM and Falcon interleave q, k and v head by head


@dataclass(frozen=True)
class Site:
    """One weight matrix of a model: `get` returns it (rows x cols, stored dtype), `put` writes it, `split` factors it.

    `split(left, right)` puts two plain maps, left @ right, where the layer stood (rows x k, k x cols), or is None where
    that cannot be. `params` counts the numbers stored for this matrix now (k (rows + cols) if it is a pair already).
    """

    name: str
    kind: str
    rows: int
    cols: int
    get: Callable[[], Tensor]
    put: Callable[[Tensor], None]
    split: Callable[[Tensor, Tensor], None] | None
    params: int
    note: str = ""
    layer: Layer | None = field(default=None, repr=False, compare=False)
    part: int = 0

    def stored(self) -> tuple[Tensor, ...]:
        """Return the tensors as they are stored: the matrix, or the two halves of a pair."""
        return (self.get(),) if self.pair_rank is None else self.layer.factors(self.part)

    @property
    def pair_rank(self) -> int | None:
        """The inner size if this matrix is stored as a pair already, else None."""
        return self.layer.parts[self.part].rank if self.layer else None


@dataclass(frozen=True)
class Skipped:
    """A tensor that is not read as a weight matrix, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Inventory:
    """Everything a model stores: the sites, what is skipped, and the totals over all its tensors."""

    label: str
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    params: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """One row block of a layer: its label ("q"), its rows, and its inner size if it is stored as a pair."""

    label: str
    rows: int
    rank: int | None = None


@dataclass(frozen=True)
class Layer:
    """One stored weight and its matrices. `load(key)` and `store(tensors, spec)` reach its tensors by relative key.

    `load_rows(key, start, stop)`, where there is one, reads some rows of a tensor that holds several matrices, alone.
    """

    name: str
    kind: str
    form: str  # "linear" | "conv2d" | "parameter", see factored.py
    cols: int
    parts: tuple[Part, ...]
    load: Callable[[str], Tensor]
    store: Callable[[dict[str, Tensor], dict | None], None]
    bias: bool = False
    kernel: tuple[int, ...] = ()  # trailing shape of a convolution's weight: (inputs of a group, height, width)
    transposed: bool = False  # GPT-2 Conv1D keeps inputs x outputs
    splittable: bool = True
    note: str = ""
    load_rows: Callable[[str, int, int], Tensor] | None = None

    @property
    def stored_as_parts(self) -> bool:
        """Whether an earlier split left more than the one dense tensor."""
        return any(part.rank is not None for part in self.parts)

    def sites(self) -> list[Site]:
        """Return one site for each row block."""
        return [self._site(i, part) for i, part in enumerate(self.parts)]

    def _site(self, i: int, part: Part) -> Site:
        return Site(
            name=(f"{self.name}[{part.label}]" if part.label else self.name) or "(model)",
            kind="pair" if part.rank is not None else self.kind,
            rows=part.rows,
            cols=self.cols,
            get=partial(self.read, i),
            put=lambda W: self.write({i: W}),
            split=(lambda left, right: self.split({i: (left, right)})) if self.splittable else None,
            params=part.rows * self.cols if part.rank is None else part.rank * (part.rows + self.cols),
            note=self.note,
            layer=self,
            part=i,
        )

    # The keys of a layer's tensors, relative to its name (form "parameter": to its module).
    def key(self, i: int, half: int | None = None) -> str:
        """Return the key of part i, or of its right (0) or left (1) half."""
        if self.form == "parameter":
            tensor = self.name.rpartition(".")[2]
            if not self.stored_as_parts:
                return tensor
            before = sum(1 if part.rank is None else 2 for part in self.parts[:i])
            return f"parametrizations.{tensor}.original{before + (half is not None and 1 - half)}"
        place = f"{i}." if len(self.parts) > 1 and self.stored_as_parts else ""
        return f"{place}weight" if half is None else f"{place}{half}.weight"

    def _as_matrix(self, tensor: Tensor) -> Tensor:
        return tensor.T if self.transposed else tensor.flatten(1)

    def factors(self, i: int) -> tuple[Tensor, Tensor]:
        """Return (left, right) of a part that is stored as a pair."""
        return self.load(self.key(i, 1)).flatten(1), self.load(self.key(i, 0)).flatten(1)

    def read(self, i: int) -> Tensor:
        """Return the matrix of part i, rows x cols, in the stored dtype."""
        if self.parts[i].rank is not None:
            left, right = self.factors(i)
            return left @ right
        if self.stored_as_parts or len(self.parts) == 1:
            return self._as_matrix(self.load(self.key(i)))
        start = sum(part.rows for part in self.parts[:i])
        stop = start + self.parts[i].rows
        if self.load_rows is not None and not self.transposed:
            return self.load_rows(self.key(i), start, stop)
        return self._as_matrix(self.load(self.key(i)))[start:stop]

    def write(self, new: Mapping[int, Tensor]) -> None:
        """Write the matrices of some parts, in place and in the stored dtype; a pair keeps its inner size."""
        tensors: dict[str, Tensor] = {}
        for i, W in new.items():
            part = self.parts[i]
            if tuple(W.shape) != (part.rows, self.cols):
                raise ValueError(f"{self.name}: a {part.rows} x {self.cols} matrix belongs here, not {tuple(W.shape)}")
            if part.rank is not None:
                if not torch.equal(W, self.read(i)):
                    left, right = svd(W).truncate(part.rank).split()
                    tensors |= self._pair(i, left, right)
            elif self.stored_as_parts or len(self.parts) == 1:
                tensors[self.key(i)] = self._as_stored(W, dense=True)
            else:
                whole = tensors.get(self.key(i))
                whole = self._as_matrix(self.load(self.key(i)) if whole is None else whole).clone()
                start = sum(part.rows for part in self.parts[:i])
                whole[start : start + part.rows] = W.to(whole.dtype)
                tensors[self.key(i)] = self._as_stored(whole, dense=True)
        if tensors:
            self.store(tensors, None)

    def split(self, new: Mapping[int, tuple[Tensor, Tensor] | Tensor]) -> None:
        """Replace the layer by parts: a pair (left, right) or a dense matrix for each named, the others as they are."""
        if not self.splittable:
            raise ValueError(f"{self.name} cannot be split: {self.note}")
        pieces = []
        for i, part in enumerate(self.parts):
            piece = new.get(i)
            if piece is None:
                piece = self.factors(i) if part.rank is not None else self.read(i)
            pieces.append(piece)
        shaped = [
            Part(part.label, part.rows, None if isinstance(piece, Tensor) else piece[0].shape[1])
            for part, piece in zip(self.parts, pieces, strict=True)
        ]
        after = replace(self, parts=tuple(shaped), transposed=False)
        tensors: dict[str, Tensor] = {}
        for i, piece in enumerate(pieces):
            if isinstance(piece, Tensor):
                tensors[after.key(i)] = after._as_stored(piece, dense=True)
            else:
                tensors |= after._pair(i, *piece)
        if self.bias and self.form != "parameter":
            tensors |= after._biases(self._whole_bias())
        self.store(tensors, after.spec())

    def replace(self, new: Mapping[int, tuple[Tensor, Tensor] | Tensor]) -> None:
        """Write some parts, dense matrices or pairs (left, right): in place where all are dense, else by a split."""
        if any(isinstance(piece, tuple) for piece in new.values()):
            self.split(new)
        else:
            self.write(new)

    def spec(self) -> dict:
        """Return this layer's entry of `splits`, see factored.py."""
        parts = [{"label": part.label, "rows": part.rows, "rank": part.rank} for part in self.parts]
        if len(parts) == 1:
            del parts[0]["label"]
        return {"form": self.form, "cols": self.cols, "parts": parts}

    def _whole_bias(self) -> Tensor:
        if not self.stored_as_parts:
            return self.load("bias")
        return torch.cat([self.load(key) for key in self._bias_keys()])

    def _bias_keys(self) -> list[str]:
        keys = []
        for i, part in enumerate(self.parts):
            place = f"{i}." if len(self.parts) > 1 else ""
            keys.append(f"{place}bias" if part.rank is None else f"{place}1.bias")
        return keys

    def _biases(self, bias: Tensor) -> dict[str, Tensor]:
        pieces = bias.split([part.rows for part in self.parts])
        return dict(zip(self._bias_keys(), pieces, strict=True))

    def _pair(self, i: int, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        if self.form == "conv2d":
            right = right.reshape(-1, *self.kernel)
            left = left[:, :, None, None]
        return {self.key(i, 0): right, self.key(i, 1): left}

    def _as_stored(self, W: Tensor, dense: bool) -> Tensor:
        if self.kernel and dense:
            return W.reshape(-1, *self.kernel)
        return W.T if self.transposed else W


def row_parts(
    name: str, rows: int, cols: int, fused: str = "split", config: Mapping | None = None
) -> tuple[tuple[Part, ...], str]:
    """Return the row blocks of a linear weight, and a note where the names leave a doubt.

    A weight whose attribute is called qkv, c_attn, in_proj ... is q, k and v: equal thirds, or, where config tells of
    fewer heads for k and v (num_key_value_heads, multi_query), the blocks of grouped-query attention.
    """
    if fused not in FUSED:
        raise ValueError(f"fused must be one of {', '.join(FUSED)}, not {fused!r}")
    whole = (Part("", rows),)
    if fused == "whole" or not FUSED_NAMES.search(name):
        return whole, ""
    config = config or {}
    heads = next((config[k] for k in ("num_attention_heads", "n_head", "num_heads") if config.get(k)), None)
    groups = 1 if config.get("multi_query") else config.get("num_key_value_heads") or heads
    fewer = bool(heads) and groups != heads and rows % (heads + 2 * groups) == 0
    size = rows // (heads + 2 * groups) if fewer else 0
    doubt = ""
    if name.endswith(INTERLEAVED):
        return whole, "q, k and v are interleaved head by head here: judged as one matrix"
    if fewer and (rows != 3 * cols or size == config.get("head_dim")):
        sizes = (heads * size, groups * size, groups * size)
    elif rows == 3 * cols or (rows % 3 == 0 and groups == heads):
        sizes = (rows // 3,) * 3
        if rows != 3 * cols and not heads:
            doubt = "taken as equal thirds, q, k and v: neither its shape nor a count of heads tells"
    else:
        return whole, "looks like a fused q, k, v, but the head counts that would tell its blocks are not known"
    if fused == "split":
        return tuple(Part(label, size) for label, size in zip("qkv", sizes, strict=True)), doubt
    if not heads or sizes[0] % heads or sizes[1] % groups:
        return tuple(Part(label, size) for label, size in zip("qkv", sizes, strict=True)), (
            "the number of heads is not known: split into q, k and v only"
        )
    counts = (heads, groups, groups)
    return tuple(
        Part(f"{label}.{h}", size // count)
        for label, size, count in zip("qkv", sizes, counts, strict=True)
        for h in range(count)
    ), ""


def gate_parts(rows: int, hidden: int, fused: str = "split") -> tuple[str, tuple[Part, ...]]:
    """Return the kind of a recurrent weight (lstm, gru, rnn), told by rows / hidden size, and its gates, row blocks."""
    kind, labels = GATES.get(rows // hidden, ("rnn", ""))
    if fused == "whole" or not labels or rows % len(labels):
        return kind, (Part("", rows),)
    return kind, tuple(Part(label, rows // len(labels)) for label in labels)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """Return the first three names of a list, and how many more there are, for a message.

    Example:
        >>> listed(["a", "b", "c", "d"])
        'a, b, c and 1 more'
    """
    return between.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def skipped_vector(name: str, shape: tuple[int, ...]) -> Skipped:
    """Return the record of a tensor with fewer than two dimensions."""
    kind = "bias" if "bias" in name.rpartition(".")[2] else "norm"
    return Skipped(name, kind, shape, "a vector (bias, norm scale), not a matrix")


def skipped_embedding(name: str, shape: tuple[int, ...]) -> Skipped:
    """Return the record of an embedding table."""
    return Skipped(name, "embedding", shape, "an embedding is a table of rows, not a map with a noise bulk")


def check_only(only: Callable[[str], bool] | None) -> None:
    """Return nothing; TypeError where what is to choose matrices by their names is no function."""
    if not (only is None or callable(only)):
        raise TypeError(f"only is a function of a matrix's name, such as lambda name: name != 'head', not {only!r}")
