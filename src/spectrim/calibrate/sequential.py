"""Moments of one group of layers after another, each taken after the earlier ones were cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..moments import Moments
from ..sites import Site, listed
from .gather import POSITIONS, Batch, batches, chosen_sites, describe_all, model_fingerprint, moments_of, moved, quiet
from .gather import run as run_batch
from .stacks import Call, Seen, main_tensor, verified
from .watch import Enough, Slot, Watch

Cut = Callable[[list[Site], Moments], None]


@dataclass(frozen=True)
class Passes:
    """How a sequential run went.

    Args:
        groups: names of the matrices of each group, in the order in which they were cut.
        chained: stacks whose blocks were run one at a time on the outputs of the block before.
        anew: how often the whole model was run for a group of its own.
        missing: name of a matrix that was in no group -> the reason.
        notes: what is odd about the moments, in sentences.
    """

    groups: tuple[tuple[str, ...], ...]
    chained: tuple[str, ...] = ()
    anew: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def sequential(
    model: nn.Module,
    inputs: Iterable[Batch],
    cut: Cut,
    *,
    sites: Sequence[Site] | None = None,
    only: Callable[[str], bool] | None = None,
    device: torch.device | str | None = None,
    positions: int | None = POSITIONS,
    earlier: str = "cut",
    source: str = "samples",
    recipe: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> Passes:
    """Return how the run went, in which `cut(sites, moments)` was called for each group of layers as they come.

    A group is what reads the same tensor: q, k and v; then the map after them; and so on. Its moments are those of the
    model as it is when its turn comes, with all earlier groups cut. Only the sums of one group are held at a time.

    Where blocks stand in a stack that hands on one tensor, the outputs of each block are kept and only the block itself
    is run for its groups. A stack is taken for one when, on the first batch, every block is called once and in order,
    the output of each is the very input of the next, a block that is run by itself gives what it gave in the model, and
    nothing else that a block is handed changes when the outputs of the earlier ones are disturbed. The model is run as
    a whole for all other groups, up to the point where they have read what they read.

    Args:
        model: a live module; `cut` may write to the matrices of its group, or split them.
        inputs: batches as `gather` takes them; they are held, for they are run several times.
        cut: called with the sites of a group and their moments.
        earlier: "cut" takes the moments of a group after all earlier ones were cut; "dense" those of the dense model,
            as `gather` has them, with the sums of one block in memory at a time.
        sites, only, device, positions, source, recipe: as `gather` takes them.
        progress: wraps the iteration over the groups, for instance `tqdm`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> def halve(sites, moments):
        ...     print([site.name for site in sites], round(float(moments[sites[0].name].dense().trace()), 3))
        ...     sites[0].put(torch.eye(2) / 2)
        >>> sequential(net, [torch.ones(1, 2)], halve).groups
        ['0'] 2.0
        ['1'] 0.5
        (('0',), ('1',))

    References:
        E. Frantar and D. Alistarh, arXiv 2301.00774, section 3, prune block after block on the outputs of cut blocks.
    """
    if earlier not in ("cut", "dense"):
        raise ValueError(f"earlier layers are 'cut' or 'dense' when moments are taken, not {earlier!r}")
    chosen = {site.name: site for site in chosen_sites(model, sites, only)}
    held = [moved(model, batch, device) for batch in batches(inputs)]
    if not held:
        raise ValueError("inputs holds no batch: moments need at least one")
    own = {**describe_all(held), "positions": positions, "earlier": earlier, **(recipe or {})}
    dense = model_fingerprint(model)

    def taken(watch: Watch) -> Moments:
        return moments_of(watch, source, own, dense)

    with quiet(model):
        work = _Work(model, held, chosen, positions, cut, taken)
        groups = work.trace()
        bar = iter((progress or iter)(range(len(groups))))
        work.step = lambda: next(bar, None)
        if earlier == "cut":
            work.process(model, work.whole, groups)
        else:
            work.of_dense(groups)
        next(bar, None)
    notes: dict[str, list[str]] = {}
    for note in work.notes:  # one a group: what they have in common is said once
        what, _, names = note.partition(": ")
        notes.setdefault(what, []).append(names)
    told = tuple(f"{what}: {listed(names)}" if all(names) else what for what, names in notes.items())
    return Passes(tuple(work.done), tuple(work.chained), work.anew, work.missing, told)


@dataclass
class _Group:
    """Slots that read one tensor, each with its place in the order of the first reads."""

    slots: list[tuple[int, Slot]]

    @property
    def names(self) -> list[str]:
        """The matrices."""
        return [name for _, slot in self.slots for name in slot.sites]

    def reads(self, of_batch: dict[str, int]) -> dict[str, int]:
        """How often each slot reads something in a batch, of all the counts of that batch."""
        return {slot.sites[0]: of_batch.get(slot.sites[0], 0) for _, slot in self.slots}

    def apart(self, stack: nn.Module) -> dict[int | None, _Group] | None:
        """The group by the blocks of a stack, None for what stands elsewhere; None where a slot is in several."""
        blocks = [set(block.modules()) for block in stack]
        found: dict[int | None, list[tuple[int, Slot]]] = {}
        for order, slot in self.slots:
            places = {next((i for i, b in enumerate(blocks) if m in b), None) for m in slot.modules}
            if len(places) != 1:
                return None
            found.setdefault(places.pop(), []).append((order, slot))
        return {place: _Group(slots) for place, slots in found.items()}


class _Work:
    """The state of a sequential run."""

    def __init__(self, model, held, sites, positions, cut, taken):
        self.model, self.held, self.sites, self.positions = model, held, sites, positions
        self.cut, self.taken = cut, taken
        self.masks: list[dict[str, Tensor]] = [{} for _ in held]
        self.done: list[tuple[str, ...]] = []
        self.chained: list[str] = []
        self.anew, self.notes, self.missing = 0, [], {}
        self.step: Callable[[], Any] = lambda: None
        self.names = {module: name for name, module in model.named_modules()}

    def whole(self, b: int, watch: Watch | None = None) -> None:
        """Run the model on a batch."""
        run_batch(self.model, self.held[b], b, watch)

    def trace(self) -> list[_Group]:
        """Find what reads what, and in which order, from a run over all batches."""
        watch = Watch(self.model, list(self.sites.values()), self.positions, trace=True)
        with watch.attached():
            for b in range(len(self.held)):
                self.whole(b, watch)
                self.masks[b] = watch.masks_before
        self.missing |= watch.missing
        groups: dict[int, list[tuple[int, Slot]]] = {}
        for i, slot in enumerate(watch.order):
            groups.setdefault(id(slot.shared), []).append((i, slot))
        for slot in watch.slots:
            if slot.shared is None and not set(slot.sites) & set(self.missing):
                self.missing |= {name: "no input of these has reached it" for name in slot.sites}
        self.reads = watch.reads
        return [_Group(slots) for slots in groups.values()]

    def process(self, module: nn.Module, run: Callable, groups: list[_Group]) -> None:
        """Take the groups inside a module in turn, which `run(b, watch)` runs on batch b."""
        waiting, refused = list(groups), set()
        while waiting:
            stack, inside = self._stack(module, run, waiting, refused)
            if stack is None:
                self._take(run, waiting.pop(0), module is self.model)
            elif self._chain(stack, run, inside):
                waiting = inside.get(None, [])
            else:
                refused.add(stack)

    def _take(self, run: Callable, group: _Group, whole: bool) -> None:
        moments = self._gathered(run, group, whole)
        self._cut(group, moments)

    def _gathered(self, run: Callable, group: _Group, whole: bool, keep: list[Tensor] | None = None) -> Moments:
        """Moments of what the slots of a group read; `keep` takes the main output of every batch."""
        watch = Watch(self.model, [self.sites[name] for name in group.names], self.positions)
        with watch.attached():
            for b in range(len(self.held)):
                watch.masks = dict(self.masks[b])
                if keep is None:
                    watch.until = group.reads(self.reads[b])
                if keep is not None or any(watch.until.values()):
                    with suppress(Enough):
                        out = run(b, watch)
                        if keep is not None:
                            keep[b] = main_tensor(out)
                    watch.end_of_batch()
        self.anew += whole
        moments = self.taken(watch)
        self.notes += moments.notes
        self.missing |= moments.missing
        return moments

    def _cut(self, group: _Group, moments: Moments) -> None:
        self.done.append(tuple(group.names))
        self.step()
        self.cut([self.sites[name] for name in group.names], moments)

    def of_dense(self, groups: list[_Group]) -> None:
        """Take the groups with moments of the dense model: what is in no stack first, then block after block."""
        waiting, refused, loose = list(groups), set(), []
        stacks = []
        while waiting:
            stack, inside = self._stack(self.model, self.whole, waiting, refused)
            if stack is None:
                loose.append(waiting.pop(0))
            elif (kept := self._kept(stack, self.whole, inside)) is None:
                refused.add(stack)
            else:  # all stacks are entered before anything is cut
                stacks.append((stack, inside, *kept))
                waiting = inside.get(None, [])
        if loose:
            together = _Group([slot for group in loose for slot in group.slots])
            self._cut_all(loose, self._gathered(self.whole, together, True))
        for stack, inside, calls, hidden in stacks:
            self.chained.append(self.names.get(stack, type(stack).__name__))
            last = max(i for i in inside if i is not None)
            for i in range(last + 1):
                alone = self._alone(stack, i, calls, hidden)
                together = _Group([slot for group in inside.get(i, []) for slot in group.slots])
                moments = self._gathered(alone, together, False, keep=hidden)
                self._cut_all(inside.get(i, []), moments)

    def _cut_all(self, groups: list[_Group], moments: Moments) -> None:
        for group in groups:
            self._cut(group, replace(moments, by_name={name: moments[name] for name in group.names}))

    def _chain(self, stack: nn.Module, run: Callable, inside: dict[int | None, list[_Group]]) -> bool:
        """Take the groups of a stack, block after block on kept outputs; False where a batch does not allow it."""
        kept = self._kept(stack, run, inside)
        if kept is None:
            return False
        calls, hidden = kept
        self.chained.append(self.names.get(stack, type(stack).__name__))
        last = max(i for i in inside if i is not None)
        for i in range(last + 1):
            alone = self._alone(stack, i, calls, hidden)
            if i in inside:
                self.process(stack[i], alone, inside[i])
            if i < last:
                for b in range(len(self.held)):
                    hidden[b] = main_tensor(alone(b))
        return True

    @staticmethod
    def _alone(stack: nn.Module, i: int, calls: list[list[Call]], hidden: list[Tensor]) -> Callable:
        """A run of one block by itself on what it was handed."""

        def run(b: int, watch: Watch | None = None) -> Any:
            args, kwargs = calls[b][i].handed(hidden[b].clone())
            return stack[i](*args, **kwargs)  # a cut may have put another module in its place

        return run

    def _kept(self, stack: nn.Module, run: Callable, inside: dict) -> tuple[list[list[Call]], list[Tensor]] | None:
        """What the blocks of a stack are handed in each batch, and the main input of the first; None if no chain."""
        last = max(i for i in inside if i is not None)
        calls: list[list[Call]] = []
        hidden: list[Tensor] = []
        for b in range(len(self.held)):
            seen = Seen(list(stack)[: last + 1], stop=True)
            with seen.attached(), suppress(Enough):
                run(b)
            if (first := seen.chain()) is None:
                return None
            calls.append(first)
            hidden.append(seen.copies[0])
        return calls, hidden

    def _stack(
        self, module: nn.Module, run: Callable, waiting: list[_Group], refused: set[nn.Module]
    ) -> tuple[nn.Module | None, dict[int | None, list[_Group]]]:
        """The outermost stack that the next group stands in and that may be run block by block; its groups by block."""
        for candidate in module.modules() if len(waiting) > 1 else ():
            if not isinstance(candidate, nn.Sequential | nn.ModuleList) or len(candidate) < 2 or candidate in refused:
                continue
            apart = [group.apart(candidate) for group in waiting]
            if apart[0] is None or set(apart[0]) == {None}:
                continue
            inside: dict[int | None, list[_Group]] = {}
            for places in apart:
                for place, group in (places or {None: None}).items():
                    inside.setdefault(place, []).append(group)
            blocks = [i for i in inside if i is not None]
            if None not in apart and sum(len(inside[i]) for i in blocks) > 1:
                # What stands elsewhere and is yet to be cut must not tell a block anything either.
                aside = [m for group in inside.get(None, []) for _, slot in group.slots for m in slot.modules]
                if verified(candidate, run, aside):
                    return candidate, {i: sorted(gs, key=lambda g: g.slots[0][0]) for i, gs in inside.items()}
            refused.add(candidate)
        return None, {}
