"""Moments from inputs that are run through the model: the user's samples, or noise made for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..modules import of_module
from ..moments import Moment, Moments
from ..readings import fingerprint
from ..sites import Site, check_only, listed
from ..survey import hash_of
from .batch import Batch, call, is_function, samples_of
from .watch import NotFinite, Watch

POSITIONS = 1024  # of an image, that a convolution's moments are taken from
SPLIT = 16  # samples of a batch, where one tensor holds them all


def gather(
    model: nn.Module,
    inputs: Iterable[Batch],
    *,
    sites: Sequence[Site] | None = None,
    only: Callable[[str], bool] | None = None,
    device: torch.device | str | None = None,
    positions: int | None = POSITIONS,
    source: str = "samples",
    recipe: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Moments:
    """Return the moments of what each matrix of a model reads while the inputs are run through it.

        C = (1/N) sum_i x_i x_i^T over all N positions (tokens, pixels) of all calls of the layer

    The model is run as it is for evaluation, without gradients; its mode, its hooks and the state of the random
    generator are afterwards what they were. Products are float32, of inputs less a provisional mean, and their sums
    float64; a moment is kept in float32, or in float64 where a mean is more than a hundred times the spread. Memory:
    the sums of the matrices asked for, about cols^2 / 2 numbers in float64 each, shared by those that read the same
    tensor: `streamed` returns the same moments and holds a part of them at a time.

    What a convolution reads are patches, in the order of its weight: channel, row, column. A group has its own. Where
    the model is handed an `attention_mask` that fits the tokens of an input, padding is left out.

    Args:
        model: a live module, on any device, of any float type.
        inputs: batches; each a tensor, a tuple of arguments, a dict of keyword arguments, or a function that is called
            with the model. Labels are not needed. One tensor stands for batches of 16.
        sites: matrices whose moments are wanted, from `modules.of_module`; all that the model has, if not given.
        only: a function of a name, that lets a matrix take part.
        device: where batches are moved to; that of the model's first parameter, if not given.
        positions: of an image, at most about so many are taken by a convolution, on a regular grid; None takes all.
        source: what `Moments.source` is to say, "samples" or "synthetic".
        recipe: figures that `Moments.recipe` is to hold besides its own.
        progress: wraps the iteration over the batches, for instance `tqdm`.

    A matrix whose inputs cannot be seen, or that no batch has reached, is in `Moments.missing` with the reason. What is
    odd (inputs that are the same for every sample, fewer positions than inputs) stands in `Moments.notes`.

    Raises ValueError where a batch does not run, with the model's own error, and where a layer reads NaN.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = gather(net, [torch.eye(3)])
        >>> found["0"].count, round(float(found["0"].dense().trace()), 6)
        (3, 1.0)
    """
    chosen = chosen_sites(model, sites, only)
    watch = Watch(model, chosen, positions)
    digest, samples = hashlib.sha256(), 0
    with quiet(model), watch.attached():
        for i, batch in enumerate((progress or iter)(batches(inputs))):
            batch = moved(model, batch, device)
            samples += samples_of(batch)
            hashed(batch, digest)
            run(model, batch, i, watch)
        if len(watch.reads) == 1:
            raise ValueError("inputs holds no batch: moments need at least one")
    own = {"samples": samples, "inputs": digest.hexdigest(), "positions": positions}
    return moments_of(watch, source, {**own, **(recipe or {})}, model_fingerprint(model))


def moments_of(watch: Watch, source: str, recipe: dict, model: str) -> Moments:
    """Return the moments of what was watched; its sums are spent."""
    seen = Told()
    by_name = {name: moment for names, moment in spent(watch, seen) for name in names}
    order = [name for slot in watch.slots for name in slot.sites if name in by_name]
    return Moments({name: by_name[name] for name in order}, source, seen.added(recipe), model, seen.missing)


@dataclass
class Told:
    """What is told of moments besides their figures, over one `Watch` or several.

    Args:
        names: matrices that have moments.
        missing: name of a matrix that has none -> the reason.
        same: matrices that read the same for every sample.
        few: matrices with fewer positions than inputs.
        padded, masked: whether there was padding, and whether some input was taken without it.
    """

    names: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)
    few: list[str] = field(default_factory=list)
    padded: bool = False
    masked: bool = False

    def ordered(self, names: Sequence[str]) -> Told:
        """Return the same with matrices in the order of these names."""
        lists = ([name for name in names if name in set(given)] for given in (self.names, self.same, self.few))
        missing = {name: self.missing[name] for name in names if name in self.missing}
        return Told(next(lists), missing, *lists, self.padded, self.masked)

    def added(self, recipe: Mapping[str, Any]) -> dict:
        """Return the recipe with what is odd, in sentences."""
        notes = list(recipe.get("notes", ()))
        if self.same and len(self.names) == len(self.same):
            notes.append("the model ignores its input: every matrix reads the same for every sample")
        elif self.same:
            notes.append(f"the same input for every sample: {listed(self.same)}")
        if self.few:
            notes.append(f"fewer positions than inputs, so that C has no full rank: {listed(self.few)}")
        if self.padded and not self.masked:
            notes.append("there is padding, but the mask fits the input of no layer: it was counted")
        return {**recipe, **({"notes": list(dict.fromkeys(notes))} if notes else {})}


def spent(watch: Watch, told: Told) -> Iterator[tuple[list[str], Moment]]:
    """Yield each moment of what was watched, with the names that share it; its sums are gone by then.

    Args:
        watch: after the runs.
        told: takes what there is to tell.
    """
    told.missing |= watch.missing
    met = set()
    for shared in watch.sums():
        names = [name for slot in shared.members for name in slot.sites if name not in told.missing]
        if not names or not shared.running.count:
            continue
        if not shared.varies and shared.samples > 1:
            told.same += names
        if shared.running.count < shared.running.cols:
            told.few += names
        met |= set(names)
        yield names, shared.running.moment()
    order = [name for slot in watch.slots for name in slot.sites]
    told.names += [name for name in order if name in met]
    rest = [name for name in order if name not in met and name not in told.missing]
    told.missing |= dict.fromkeys(rest, "no input of these has reached it")
    told.padded |= watch.padded
    told.masked |= watch.masked


def chosen_sites(model: nn.Module, sites: Sequence[Site] | None, only: Callable[[str], bool] | None) -> list[Site]:
    """Return the sites whose moments are wanted, all of the model where none are named."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"moments are gathered from a live module, not from {type(model).__name__}: load it first")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled: gather from the module that it was made of")
    check_only(only)
    found = list(of_module(model).sites if sites is None else sites)
    found = [site for site in found if only is None or only(site.name)]
    if not found:
        why = "its matrices are all left out by only=" if only is not None else "it has no matrix that is read"
        raise ValueError(f"{type(model).__name__} has nothing to gather moments of: {why}")
    return found


def model_fingerprint(model: nn.Module) -> str:
    """Return the hash over the names and values of all matrices of a model, the one that its survey has."""
    return hash_of((site.name, fingerprint(*site.stored())) for site in of_module(model).sites)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Holds a model in evaluation, without gradients; modes and random generators are put back on the way out."""
    modes = {module: module.training for module in model.modules()}
    cuda = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    fast = torch.backends.mha.get_fastpath_enabled()
    configs = {id(c): c for m in modes if getattr(c := getattr(m, "config", None), "use_cache", None) is True}
    with ExitStack() as held:
        held.enter_context(torch.random.fork_rng(devices=cuda))
        held.enter_context(torch.no_grad())
        held.callback(torch.backends.mha.set_fastpath_enabled, fast)
        held.callback(lambda: [setattr(module, "training", mode) for module, mode in modes.items()])
        for config in configs.values():  # keys and values kept for a next token, which nobody asks for
            held.callback(setattr, config, "use_cache", True)
            config.use_cache = False
        torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole layer, in which no hook is called
        for module in modes:
            module.training = False
        yield


def batches(inputs: Iterable[Batch]) -> Iterable[Batch]:
    """Return the batches; one tensor of samples, or one dict, is taken for what it is."""
    if isinstance(inputs, Tensor):
        if inputs.ndim < 2:
            raise ValueError(f"a tensor of inputs is samples x anything, got shape {tuple(inputs.shape)}")
        return inputs.split(SPLIT)
    if isinstance(inputs, Mapping):
        return [inputs]
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable):
        raise TypeError(f"inputs is an iterable of batches, not {type(inputs).__name__}")
    return inputs


def moved(model: nn.Module, batch: Batch, device: torch.device | str | None) -> Batch:
    """Return a batch on the device of the model, its floats in the model's float type where that is but one."""
    first = next(model.parameters(), None)
    device = (first.device if first is not None else None) if device is None else torch.device(device)
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    kind = next(iter(kinds)) if len(kinds) == 1 else None

    def walk(value):
        if isinstance(value, Tensor):
            return value.to(device, kind if kind is not None and value.is_floating_point() else None)
        if isinstance(value, Mapping):
            return {key: walk(v) for key, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(walk, value))
        return type(value)(map(walk, value)) if isinstance(value, tuple | list) else value

    return batch if is_function(batch) else walk(batch)


def hashed(batch: Batch, digest) -> None:
    """Take the tensors of a batch into a hash."""
    batch = getattr(batch, "batch", batch)  # what a function of the model runs it on, where it says so
    if isinstance(batch, Tensor):
        digest.update(f"{batch.dtype} {tuple(batch.shape)}".encode())
        digest.update(batch.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if isinstance(batch, Mapping):
        for key in batch:
            digest.update(str(key).encode())
        batch = list(batch.values())
    if isinstance(batch, tuple | list):
        for value in batch:
            if isinstance(value, Tensor | tuple | list | Mapping):
                hashed(value, digest)


def describe_all(held: Sequence[Batch]) -> dict:
    """Return how many samples some batches hold, and their hash."""
    digest = hashlib.sha256()
    for batch in held:
        hashed(batch, digest)
    return {"samples": sum(map(samples_of, held)), "inputs": digest.hexdigest()}


def check_batch(batch: Batch, i: int) -> None:
    """Return nothing; TypeError where something is no batch, ValueError where it is an empty one."""
    if not isinstance(batch, Tensor | tuple | list | Mapping) and not callable(batch):
        raise TypeError(
            f"batch {i} is {type(batch).__name__}: a batch is a tensor, a tuple of arguments, a dict of keyword "
            "arguments, or a function of the model"
        )
    if not samples_of(batch):
        raise ValueError(f"batch {i} holds no sample: its first tensor is empty")


def run(model: nn.Module, batch: Batch, i: int, watch: Watch | None = None) -> Any:
    """Run one batch through a model, watched or not, and return its output; ValueError where it does not run."""
    check_batch(batch, i)
    try:
        out = call(model, batch)
    except NotFinite as error:
        raise ValueError(
            f"{error} (batch {i}): look for NaN in the inputs and in the weights before it, or run the model in a "
            "wider float type"
        ) from None
    except Exception as error:
        where = f", after {watch.last} had been reached" if watch is not None and watch.last else ""
        raise ValueError(
            f"batch {i} ({shape_of(batch)}) does not run through {type(model).__name__}{where}: {error}. A batch is "
            "what the model takes: a tensor, a tuple of arguments, a dict of keyword arguments, or a function of the "
            "model; labels are not needed"
        ) from error
    if watch is not None:
        watch.end_of_batch()
    return out


def shape_of(batch: Batch) -> str:
    """Return what a batch is, in a few words."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return ", ".join(f"{key}: {shape_of(value)}" for key, value in batch.items())
    if isinstance(batch, tuple | list):
        return ", ".join(shape_of(value) for value in batch)
    return getattr(batch, "__name__", type(batch).__name__)
