"""The D-transform of noise whose law is not known: from its singular values, the map of spikes and its inverse.

Eq. 77 of arXiv 2503.01922, from F. Benaych-Georges and R. R. Nadakuditi, J. Multivariate Anal. 111 (2012) 120, sections
2.3 and 2.4, where the expectation over the law of the noise is a mean over the measured singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """The D-transform of p x n noise, p <= n, with the singular values t_i (p of them, any order) and c = p / n.

        phi(z) = mean of z / (z**2 - t_i**2),   psi(z) = c phi(z) + (1 - c) / z,   D(z) = phi(z) psi(z)

    for z above the largest t_i. A signal of strength theta, in the unit of the t_i, is seen at rho where D(rho) =
    1 / theta**2. The squared cosines of its vectors with those that are seen are -2 phi(rho) / (theta**2 D'(rho)) on
    the side of length p and -2 psi(rho) / (theta**2 D'(rho)) on that of length n.

    The sum has a pole at the largest value, where the law it stands for has none as a rule. So the strength at which
    spikes appear cannot be read off this sum, and `seen` gives a place just above the largest value for weak signals.

    Example:
        >>> few = Transform(np.zeros(4), 8)  # no noise at all
        >>> float(few.seen(3.0).round(6)), float(few.strength(3.0).round(6))
        (3.0, 3.0)
    """

    values: Array
    n: int

    def parts(self, z: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Returns phi, psi and their derivatives at z, any shape."""
        z = np.asarray(z, np.float64)[..., None]
        gap = z**2 - np.asarray(self.values) ** 2
        phi, slope = (z / gap).mean(-1), (-(2 * z**2 - gap) / gap**2).mean(-1)
        c, z = len(self.values) / self.n, z[..., 0]
        return phi, c * phi + (1 - c) / z, slope, c * slope - (1 - c) / z**2

    def __call__(self, z: ArrayLike) -> Array:
        """Returns D(z)."""
        phi, psi, _, _ = self.parts(z)
        return phi * psi

    def strength(self, z: ArrayLike) -> Array:
        """Returns the strength of the signal that is seen at z, D(z)**(-1/2)."""
        return self(z) ** -0.5

    def seen(self, theta: ArrayLike) -> Array:
        """Returns where signals of strength theta are seen, by bisection: D falls from its pole to zero."""
        theta = np.asarray(theta, np.float64)
        low = np.full(theta.shape, float(np.max(self.values)))
        high = low + theta  # ||S + R|| is at most ||S|| + ||R||
        for _ in range(100):
            middle = 0.5 * (low + high)
            with np.errstate(divide="ignore"):  # the pole itself, where nothing lies between any more
                above = self(middle) > theta**-2.0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return high

    def cosines(self, theta: ArrayLike) -> tuple[Array, Array]:
        """Returns the expected squared cosines (short, long) of the vectors of length p and n."""
        theta = np.asarray(theta, np.float64)
        phi, psi, slope, other = self.parts(self.seen(theta))
        falling = theta**2 * (slope * psi + phi * other)
        return -2 * phi / falling, -2 * psi / falling
