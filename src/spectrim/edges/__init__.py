"""Estimators of the edge between noise and signal: each a frozen dataclass, called with a Spectrum, giving a NoiseFit.

    Edge = Callable[[Spectrum], NoiseFit]

Any function of that signature will do in their place.
"""

import ast
from collections.abc import Callable

from spectrim.edges.bema import Bema
from spectrim.edges.broadening import Broadening
from spectrim.edges.gamma import BemaGamma
from spectrim.edges.gavish_donoho import GavishDonoho
from spectrim.edges.known import Known
from spectrim.edges.median import Median
from spectrim.edges.screenot import ScreeNot
from spectrim.spectrum import NoiseFit, Spectrum

Edge = Callable[[Spectrum], NoiseFit]

__all__ = ["Bema", "BemaGamma", "Broadening", "Edge", "GavishDonoho", "Known", "Median", "ScreeNot", "from_repr"]


def from_repr(text: str) -> Edge:
    """Returns the estimator whose repr this is; nothing of the text is run.

    Args:
        text: the repr of an estimator of ours, as plans and surveys hold it.

    Example:
        >>> from_repr("Bema(alpha=0.3, beta=0.1)")
        Bema(alpha=0.3, beta=0.1)
    """
    try:
        call = ast.parse(text, mode="eval").body
        member = globals()[call.func.id] if call.func.id in __all__ else None
        return member(*map(ast.literal_eval, call.args), **{k.arg: ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, AttributeError, ValueError, TypeError):
        raise ValueError(f"{text!r} is no estimator of spectrim.edges") from None
