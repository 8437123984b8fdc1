"""Images with the statistics of natural ones, drawn without any image: 1/f spectra, colours, edges.

What a network's inner products need of its calibration images is little: spectra that fall as 1/f, colours that vary
along a few axes, edges, things of many sizes, bright and dark ones. Every function here draws from one generator.

References:
    Field (1987), J. Opt. Soc. Am. A 4, 2379: amplitudes of natural images fall as 1/f.
    Baradad et al., arXiv 2106.05963: such noise is enough to learn features from.
    Krizhevsky, Sutskever and Hinton (2012), section 4.1: the principal axes of colour over ImageNet.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

# Variances and axes (columns) of RGB in [0, 1] over ImageNet, as published with the colour augmentation of AlexNet:
# light and dark, blue against yellow, green against magenta.
COLOUR_VARIANCES = (0.2175, 0.0188, 0.0045)
COLOUR_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
COLOUR_MEAN = (0.485, 0.456, 0.406)


def uniform(low: float, high: float, *shape: int, generator: Generator) -> Tensor:
    """Returns numbers drawn evenly between two ends."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


def standardised(field: Tensor) -> Tensor:
    """Returns fields less their means, over their standard deviations."""
    field = field - field.mean((-2, -1), keepdim=True)
    return field / field.std((-2, -1), keepdim=True).clamp_min(1e-6)


def _frequencies(side: int) -> tuple[Tensor, Tensor]:
    return torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :]


def fields(count: int, side: int, generator: Generator, exponents: tuple[float, float] = (0.7, 1.5)) -> Tensor:
    """Returns Gaussian fields whose amplitude falls as f^-a, each of mean 0 and standard deviation 1.

    Each field draws its own exponent a, and how much longer it is across than along.

    Args:
        count: fields.
        side: pixels.
        generator: of the processor.
        exponents: the range of a; natural images lie about 1.

    Returns:
        count x side x side.

    Example:
        >>> clouds = fields(2, 32, torch.Generator().manual_seed(0))
        >>> tuple(clouds.shape), clouds.std((1, 2)).round(decimals=3).tolist()
        ((2, 32, 32), [1.0, 1.0])
    """
    white = torch.fft.rfft2(torch.randn(count, side, side, generator=generator))
    along, across = _frequencies(side)
    stretch = torch.exp(uniform(-0.4, 0.4, count, 1, 1, generator=generator))
    exponent = uniform(*exponents, count, 1, 1, generator=generator)
    radius = ((along * stretch) ** 2 + (across / stretch) ** 2).sqrt()
    radius[:, 0, 0] = math.inf
    return standardised(torch.fft.irfft2(white * radius**-exponent, s=(side, side)))


def coloured(axes: Tensor) -> Tensor:
    """Returns RGB of fields along the principal axes of natural colours: light, blue-yellow, green-magenta.

    Args:
        axes: count x 3 x height x width, of standard deviation 1; 0 is the mean colour.
    """
    scaled = axes * torch.tensor(COLOUR_VARIANCES).sqrt()[:, None, None]
    return torch.einsum("ck,nkhw->nchw", torch.tensor(COLOUR_AXES), scaled) + torch.tensor(COLOUR_MEAN)[:, None, None]


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Returns each image under a Gaussian blur of its own width, the borders met by their reflections.

    Args:
        images: count x 3 x side x side.
        sigma: count, pixels.
    """
    side = images.shape[-1]
    margin = min(side - 1, 16)
    wide = torch.nn.functional.pad(images, (margin,) * 4, mode="reflect")
    along, across = _frequencies(side + 2 * margin)
    kernel = torch.exp(-2 * math.pi**2 * sigma[:, None, None] ** 2 * (along**2 + across**2))
    found = torch.fft.irfft2(torch.fft.rfft2(wide) * kernel[:, None], s=wide.shape[-2:])
    return found[..., margin:-margin, margin:-margin]


def developed(images: Tensor, generator: Generator, blur: tuple[float, float] = (0.4, 0.4)) -> Tensor:
    """Returns images as a camera gives them: each with a focus, a contrast and a brightness of its own, in [0, 1].

    Args:
        images: count x 3 x side x side, about [0, 1].
        generator: of the processor.
        blur: least and most width of the blur, pixels; drawn evenly in its logarithm.
    """
    count = len(images)
    sigma = torch.exp(uniform(math.log(blur[0]), math.log(blur[1]), count, generator=generator))
    images = blurred(images, sigma)
    level = images.mean((1, 2, 3), keepdim=True)
    gain = torch.exp(uniform(-0.5, 0.3, count, 1, 1, 1, generator=generator))
    target = (0.45 + 0.16 * torch.randn(count, 1, 1, 1, generator=generator)).clamp(0.1, 0.9)
    return ((images - level) * gain + target).clamp(0, 1)


def power_law(count: int, side: int, generator: Generator, sharpen: float = 0.0) -> Tensor:
    """Returns images of 1/f amplitude along each axis of colour, in [0, 1].

    Args:
        count, side: images; pixels.
        generator: of the processor.
        sharpen: 0 leaves the phases random; above it, each field is pressed towards two levels by a gain drawn up to
            this, which aligns phases at the borders between them.

    Returns:
        count x 3 x side x side.
    """
    axes = fields(3 * count, side, generator).view(count, 3, side, side)
    if sharpen:
        gain = uniform(0.2, sharpen, count, 1, 1, 1, generator=generator)
        axes = standardised(torch.tanh(gain * axes) + 0.15 * axes)
    return developed(coloured(0.7 * axes), generator)
