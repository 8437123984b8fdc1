"""The edge among whitened values: no spikes in coloured noise, planted ones found, the plain edge without colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectrim.edges import Bema, Known, ScreeNot
from spectrim.inner.edge import whitened_edge
from spectrim.inner.whiten import whitened_values
from spectrim.moments import Moment
from spectrim.spectrum import Spectrum


def coloured(cols: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    Q = torch.linalg.qr(torch.randn(cols, cols, generator=generator, dtype=torch.float64)).Q
    C = (Q * torch.exp(spread * torch.randn(cols, generator=generator, dtype=torch.float64))) @ Q.T
    return (C + C.T) / 2


def test_noise_has_no_spikes_where_an_edge_for_even_noise_sees_many():
    found, even = [], []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        W, C = torch.randn(120, 150, generator=generator), coloured(150, 0.8, generator)
        rows = torch.rand(120, generator=generator) + 0.5
        fit = whitened_edge(W, C, rows=rows)
        assert fit.sigma == pytest.approx(1, abs=0.05)
        found.append(fit.spikes)
        even.append(Bema()(Spectrum(whitened_values(W, C, rows=rows).numpy(), 120, 150)).spikes)
    assert np.mean([n > 0 for n in found]) <= 0.25  # odds of .1: five of twenty or fewer with probability .99
    assert np.mean(even) > 8


@pytest.mark.parametrize("diagonal", [False, True])
def test_planted_directions_are_found(diagonal):
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 6, generator=generator)).Q for n in (200, 300))
    W = 5 * 300**0.5 * U @ V.T + torch.randn(200, 300, generator=generator)
    C = coloured(300, 0.5, generator)
    C = C.diagonal().clone() if diagonal else C
    assert whitened_edge(W, C).spikes == 6
    assert whitened_edge(W, Moment(C, torch.zeros(300), 9)).spikes == 6
    assert whitened_edge(W, C, sigma=20.0).spikes == 0  # of noise that loud


@pytest.mark.parametrize("C", [None, 3 * torch.eye(40)])
def test_without_colour_it_is_the_edge_of_the_matrix(C):
    W = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    own = Spectrum(torch.linalg.svdvals(W.double()).numpy(), 30, 40)
    expected = Known(Bema()(own).sigma)(own)
    assert whitened_edge(W, C).edge == pytest.approx(expected.edge, rel=1e-12)
    assert whitened_edge(W, C).spikes == expected.spikes
    assert whitened_edge(W, C, "screenot").edge == pytest.approx(ScreeNot()(own).edge, rel=1e-9)


def test_a_second_moment_of_few_samples():
    generator = torch.Generator().manual_seed(0)
    W, X = torch.randn(60, 90, generator=generator), torch.randn(20, 90, generator=generator)
    for noise in ("coloured", "screenot"):
        assert whitened_edge(W, X.T @ X / 20, noise, rank_bound=3).spikes == 0


def test_what_cannot_be_measured():
    W = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="'coloured' or 'screenot'"):
        whitened_edge(W, None, "bema")
    with pytest.raises(ValueError, match="beta must lie"):
        whitened_edge(W, torch.ones(40) + torch.arange(40), beta=2.0)
    with pytest.raises(ValueError, match="too small"):
        whitened_edge(W[:5], torch.ones(40))
