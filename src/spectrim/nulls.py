"""The null of a matrix from the matrix itself: its entries, shuffled, are noise of the same values in no order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .edges import Edge
from .linalg import Matrix, as_tensor, without_zero_lines
from .metrics import misfit_of_rest
from .reading import equalize as even_out
from .reading import read_spectrum
from .spectrum import NoiseFit, Spectrum


def shuffled(W: Matrix, generator: np.random.Generator, equalize: bool = False) -> Spectrum:
    """Returns the spectrum of a matrix with the entries of W in random places.

    Zero rows and columns are left out first, for they are not measured either. With `equalize` the entries of the
    equalised W~ are shuffled, and the outcome is made even once more, so that chance differences between rows and
    columns are missing from the null as they are from W~. Unlike an estimator this depends on the entries, not on the
    singular values alone: it keeps their law, heavy tails included, and destroys all that ties them together.

    What it destroys and what it keeps both limit it. Signal stays in the entries, so it inflates the noise level of the
    null: of sixty strong directions of 128, three quarters are hidden by the others. Row and column scales are lost, so
    on a plain matrix with uneven rows they show as spikes, as they do with every estimator for even noise. Its best use
    is the other way round: where an estimator finds spikes in the null itself, the entries alone mislead it.

    Args:
        W: rows x cols, any float type, numpy or torch.
        generator: source of the randomness.
        equalize: whether to shuffle what is left after the row and column mean squares were made even.

    Example:
        >>> W = np.outer(np.arange(1.0, 21.0), np.arange(1.0, 31.0))
        >>> shuffled(W, np.random.default_rng(0)).s[1] > 100  # rank one no more
        np.True_

    References:
        A. Buja and N. Eyuboglu, Multivariate Behav. Res. 27 (1992) 509, who permute within columns: parallel analysis.
    """
    kept = without_zero_lines(as_tensor(W))[0]
    entries = (even_out(kept).apply(kept) if equalize else kept).flatten()
    order = generator.permutation(entries.numel())
    return read_spectrum(entries[order].reshape(kept.shape), equalize=equalize)


def against(spectrum: Spectrum, null: Spectrum, edge: Edge) -> NoiseFit:
    """Returns the verdict on a spectrum by the edge that is found on its null.

    sigma and edge are those of the null; spikes are counted, and the misfit measured, on the spectrum.

    Args:
        spectrum: what was measured.
        null: the same matrix without its order, as from `shuffled`.
        edge: the estimator that is shown the null.

    Example:
        >>> from spectrim.edges import Bema
        >>> from spectrim.planted import critical, planted
        >>> W = planted(60, 90, [3 * critical(60, 90)], generator=np.random.default_rng(0)).W
        >>> null = shuffled(W, np.random.default_rng(1))
        >>> against(read_spectrum(W), null, Bema()).spikes
        1

    References:
        Buja and Eyuboglu (1992).
    """
    if (spectrum.rows, spectrum.cols, spectrum.equalised) != (null.rows, null.cols, null.equalised):
        raise ValueError(f"the null of {spectrum!r} must have its shape and treatment, got {null!r}")
    found = edge(null)
    spikes = int(np.count_nonzero(spectrum.s > found.edge))
    fit = None if found.sigma is None else misfit_of_rest(spectrum, found.sigma, spikes)
    return replace(found, misfit=fit, spikes=spikes, method=f"against(shuffled, {found.method})")
