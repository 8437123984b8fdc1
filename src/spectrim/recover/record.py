"""What was done to bring a cut model back."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fit:
    """One matrix fitted anew: its relative damage on the moments before and after; `note` where it was left alone."""

    name: str
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True)
class Block:
    """One block trained to do as the dense one: squared error over the variance of the target, before and after.

    `seen` on the batches that it was trained on, `held` on those that it was not (of few batches, the same).
    """

    name: str
    seen: tuple[float, float]
    held: tuple[float, float]
    steps: int
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Recovered:
    """What `recover` did: matrices fitted, blocks trained, seconds of both, and what is to be known of it."""

    fits: tuple[Fit, ...]
    blocks: tuple[Block, ...]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """Return the record as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{len(self.fits)} matrices fitted, {len(self.blocks)} blocks trained, {self.seconds:.1f} s"]
        lines += [f"  {note}" for note in self.notes]
        for f in self.fits:
            lines.append(f"  {f.name:<48} {f.note or f'relative damage {f.before:.4f} -> {f.after:.4f}'}")
        for b in self.blocks:
            told = f"error {b.held[0]:.4f} -> {b.held[1]:.4f} (trained on: {b.seen[0]:.4f} -> {b.seen[1]:.4f})"
            lines.append(f"  {b.name or '(model)':<48} {told}, {b.steps} steps{f', {b.note}' if b.note else ''}")
        return "\n".join(lines)
