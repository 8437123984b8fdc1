"""What floating-point arithmetic may add to a result: bounds for any order of the sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch

EXACT = 2.0**-53  # unit of rounding of the float64 in which bounds are computed
GROW = 1 + 1e-9  # bounds themselves are rounded: sums of up to 10^6 non-negative float64 numbers err by less
TINY = 1e-30  # subnormal products, in any number


@dataclass(frozen=True)
class Rounding:
    """Units of rounding of the arithmetic in which the cut model runs: of its sums, and of what a layer stores."""

    sums: float
    stored: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Rounding:
        """Return the units of a dtype; sums of 16-bit numbers are taken in float32, as torch's kernels do.

        Example:
            >>> Rounding.of(torch.float32).sums == 2.0**-24
            True
        """
        unit = torch.finfo(dtype).eps / 2
        return cls(min(unit, 2.0**-24), unit)

    def of_sum(self, terms: int) -> float:
        """Return the share of sum |x_i y_i| by which a computed sum of so many products may err.

            gamma_n = n u / (1 - n u), whatever the order of the summation, and one rounding where it is stored

        References:
            N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1.
        """
        return gamma(terms, self.sums) + (self.stored if self.stored > self.sums else 0.0)


def gamma(terms: int, unit: float) -> float:
    """Return n u / (1 - n u), infinite where that is no bound.

    Example:
        >>> gamma(100, 2.0**-24) < 1e-5, gamma(100, 0.01)
        (True, inf)
    """
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else float("inf")
