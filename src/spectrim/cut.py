"""What an entry of a plan makes of its matrix: the plan prices it and trim carries it out with the same functions."""

from __future__ import annotations

from torch import Tensor

from .inner.alternate import alternate
from .inner.obs import DAMPING, obs, wanda
from .inner.whiten import low_rank
from .linalg import Factors
from .moments import Moment
from .reading import Equalised
from .steps import smallest_to_zero, truncate


def zeroed(
    W: Tensor,
    zeros: int,
    scales: Equalised | None = None,
    moment: Moment | None = None,
    step: str = "magnitude",
    damping: float = DAMPING,
) -> Tensor:
    """Return W with `zeros` entries at zero, chosen by one step; the others stay, or make up for those.

    Args:
        W: rows x cols, any float type.
        zeros: entries, those included that are zero already.
        scales: row and column scales, in which magnitudes are compared; for the step "magnitude" alone.
        moment: of the inputs, for the other steps.
        step: "magnitude", "wanda", "obs" or "alternate"; see `spectrim.inner`.
        damping: share of the mean square of an input that is added to all of them, `Moments.damping`.
    """
    if step == "magnitude":
        return smallest_to_zero(W, zeros, scales)
    if step == "wanda":
        return wanda(W, moment, zeros, "row")
    return {"obs": obs, "alternate": alternate}[step](W, moment, zeros, damping=damping)


def ranked(
    W: Tensor, rank: int, scales: Equalised | None = None, also: tuple[int, ...] = (), moment: Moment | None = None
) -> Factors:
    """Return the factors of W at that rank: by its own values, by those evened out, or in the inner product of inputs.

    Args:
        W: rows x cols, any float type.
        rank: values kept.
        scales: row and column scales, in the equalised basis.
        also: positions of smaller values that are kept first, in the basis of the cut.
        moment: of the inputs.
    """
    return truncate(W, rank, scales, also) if moment is None else low_rank(W, moment, rank)
