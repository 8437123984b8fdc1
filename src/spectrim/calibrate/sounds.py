"""Log-mel spectra without a sound: noise with the rhythm, the tilt and the silences of speech.

References:
    Voss and Clarke (1975), Nature 258, 317: loudness and pitch of speech and music vary as 1/f.
    Ding et al. (2017), Neuroscience and Biobehavioral Reviews 81, 181: speech is modulated at 2 to 8 Hz, most at 5.
    Radford et al., arXiv 2212.04356: log10 of the mel powers, eight decades below the loudest kept, (x + 4) / 4.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

DECADES = 2.0  # eight decades of power, a quarter each, lie between the loudest and the floor
FRAMES_A_SECOND = 100


def power_law(count: int, bins: int, frames: int, generator: Generator) -> Tensor:
    """Returns fields of 1/f amplitude in time and in frequency, each of mean 0 and standard deviation 1.

    Returns:
        count x bins x frames.
    """
    white = torch.fft.rfft2(torch.randn(count, bins, frames, generator=generator))
    across = torch.fft.fftfreq(bins)[:, None] * bins
    along = torch.fft.rfftfreq(frames)[None, :] * frames
    # A formant is some bins wide and lasts about as many frames: unit steps of both, near enough.
    radius = ((across / bins) ** 2 + (along / frames) ** 2).sqrt().clamp_min(0.5 / max(bins, frames))
    found = torch.fft.irfft2(white / radius, s=(bins, frames))
    found = found - found.mean((1, 2), keepdim=True)
    return found / found.std((1, 2), keepdim=True).clamp_min(1e-6)


def _smooth(count: int, frames: int, low: float, high: float, generator: Generator) -> Tensor:
    """Returns Gaussian noise between two rates (in Hz), count x frames, of standard deviation 1."""
    hertz = torch.fft.rfftfreq(frames) * FRAMES_A_SECOND
    keep = ((hertz >= low) & (hertz <= high)).float()
    if not bool(keep.any()):
        keep[min(1, len(keep) - 1)] = 1.0
    found = torch.fft.irfft(torch.fft.rfft(torch.randn(count, frames, generator=generator)) * keep, n=frames)
    return found / found.std(1, keepdim=True).clamp_min(1e-6)


def speech_like(count: int, bins: int, frames: int, generator: Generator) -> Tensor:
    """Returns log-mel spectra that begin as speech does, in syllables and pauses, and end in silence.

    Level of a frame: modulated at 2 to 8 Hz, with pauses; of a bin: falling towards high ones, with harmonics of a
    gliding pitch below and slow formants; all on the scale on which Whisper reads: the loudest at 1 to 1.5, the floor 2
    below.

    Args:
        count, bins, frames: of the result; 100 frames a second.
        generator: of the processor.

    Example:
        >>> found = speech_like(2, 80, 400, torch.Generator().manual_seed(0))
        >>> tuple(found.shape), bool((found.amax((1, 2)) - found.amin((1, 2)) <= 2.001).all())
        ((2, 80, 400), True)
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    bin_ = torch.linspace(0, 1, bins)[None, :, None]
    syllables = _smooth(count, frames, 2, 8, generator)[:, None]
    phrases = _smooth(count, frames, 0.1, 1, generator)[:, None]
    voiced = torch.sigmoid(4 * _smooth(count, frames, 0.5, 5, generator))[:, None]
    pitch = uniform(0.05, 0.12) * torch.exp(0.1 * _smooth(count, frames, 0.1, 3, generator)[:, None])
    harmonics = torch.cos(2 * math.pi * bin_ / pitch) * torch.exp(-3 * bin_)
    level = uniform(0.2, 0.45) * syllables + uniform(0.1, 0.3) * phrases - uniform(0.2, 0.9) * bin_ * (0.5 + voiced)
    level = level + 0.15 * voiced * harmonics + uniform(0.2, 0.4) * power_law(count, bins, frames, generator)
    level = level + 0.08 * torch.randn(count, bins, frames, generator=generator)
    noise = -uniform(0.9, 1.9) + 0.1 * torch.randn(count, bins, frames, generator=generator)
    level = torch.maximum(level - 0.5, noise)
    end = (uniform(0.07, 1.0) * frames).long()
    level = level.masked_fill(torch.arange(frames)[None, None] >= end, -torch.inf)
    top = level.amax((1, 2), keepdim=True)
    return torch.maximum(level - top, torch.tensor(-DECADES)) + uniform(1.0, 1.5)
