"""The record of a certificate."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Certificate:
    """Which predictions a cut provably leaves as they are: everything x within `radius` (l2) of a sample included.

    `bound` is a lower bound of the margin that the cut model has on all of the ball, the score of the dense class minus
    the best other; where it is above 0 the cut model must predict the dense class. With the methods "response" and
    "enclosure" it is a sum, sample by sample, for the class that comes nearest:

        bound = margin + sum of damage - sum of remainder - ball - rounding

    Args:
        model: what was certified, a label.
        method: "norms", "response" or "enclosure".
        radius: of the ball, l2, in the unit of the samples.
        classes: the dense predictions.
        margin: the dense margin to the class that comes nearest.
        bound: see above; -inf where nothing can be said.
        damage: by layer, the change of that margin that is known; negative hurts.
        remainder: by layer, what its units may add because their activation bends, at most.
        ball: what moving within the ball may take off the margin, at most.
        rounding: the same of the arithmetic.
        fixed: by activation or pooling layer, the share of units that provably do not leave their linear piece.
        seconds: what it took.
    """

    model: str
    method: str
    radius: float
    classes: Tensor
    margin: Tensor
    bound: Tensor
    damage: dict[str, Tensor] = field(repr=False)
    remainder: dict[str, Tensor] = field(repr=False)
    ball: Tensor = field(repr=False)
    rounding: Tensor = field(repr=False)
    fixed: dict[str, float]
    seconds: float

    @property
    def certified(self) -> Tensor:
        """For each sample, whether the cut model provably predicts the dense class, on all of the ball."""
        return self.bound > 0

    @property
    def share(self) -> float:
        """The share of samples that are certified."""
        return float(self.certified.double().mean())

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: not one prediction is certified."""
        return not bool(self.certified.any())

    def layers(self) -> dict[str, tuple[float, float]]:
        """Return for each layer (damage, remainder), means over the samples."""
        names = {**self.damage, **self.remainder}
        found = {}
        for name in names:
            pair = (self.damage.get(name), self.remainder.get(name))
            found[name] = tuple(0.0 if part is None else float(part.mean()) for part in pair)
        return found

    def to_dict(self) -> dict:
        """Return the record as JSON holds it, samples summed up."""
        return {
            "model": self.model,
            "method": self.method,
            "radius": self.radius,
            "samples": len(self.classes),
            "certified": int(self.certified.sum()),
            "share": self.share,
            "vacuous": self.vacuous,
            "median_margin": _median(self.margin),
            "median_bound": _median(self.bound),
            "ball": float(self.ball.mean()),
            "rounding": float(self.rounding.mean()),
            "layers": {name: {"damage": damage, "remainder": rest} for name, (damage, rest) in self.layers().items()},
            "fixed": self.fixed,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        count, n = int(self.certified.sum()), len(self.classes)
        where = f" within {self.radius:g} (l2) of the sample" if self.radius else ""
        lines = [f"{count} of {n} predictions of {self.model} ({count / n:.1%}) provably stay as they are{where}"]
        if self.vacuous:
            lines[0] = f"vacuous: of {n} predictions of {self.model} none is certified{where}"
        lines[0] += f"; method {self.method!r}, {self.seconds:.1f} s"
        lines.append(f"  median margin {_median(self.margin):.4g}, its bound after the cut {_median(self.bound):.4g}")
        if self.damage:
            lines.append("  means over the samples, on the way to the class that comes nearest:")
            for name, (damage, rest) in self.layers().items():
                fixed = f", {self.fixed[name]:.1%} of its units keep their piece" if name in self.fixed else ""
                parts = [f"{damage:+.4g} known"] if damage else []
                parts += [f"{rest:.4g} not known"] if rest else []
                lines.append(f"  {name or '(model)':<32} {', '.join(parts) or 'nothing'}{fixed}")
            lines.append(f"  {'the ball':<32} {float(self.ball.mean()):.4g} not known")
            lines.append(f"  {'rounding':<32} {float(self.rounding.mean()):.4g} not known")
        return "\n".join(lines)


def _median(values: Tensor) -> float:
    return float(torch.nan_to_num(values, neginf=-1e300).median())
