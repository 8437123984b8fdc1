"""A small vision transformer for CIFAR-10, its start, and its images; the model is one of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from experiments.data import Images
from torch import Tensor, nn

MEAN, SPREAD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, channel by channel


@dataclass(frozen=True)
class Size:
    """Sizes: tokens are patches of `patch` x `patch` pixels, blocks are `width` wide, their MLP 4 times that."""

    side: int = 32
    patch: int = 8
    width: int = 128
    blocks: int = 4
    heads: int = 2
    classes: int = 10


def network(size: Size, generator: torch.Generator) -> nn.Module:
    """Returns the network at its start: weights and tokens N(0, .02^2) within two deviations, biases zero."""
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError as missing:
        raise ImportError("this network is one of transformers: pip install 'spectrim[demo]'") from missing
    config = ViTConfig(
        image_size=size.side,
        patch_size=size.patch,
        hidden_size=size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=size.classes,
        attn_implementation="eager",  # with so few tokens twice as fast here as the fused attention of torch
    )
    net = ViTForImageClassification(config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04, generator=generator)
            else:
                p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return net


def load(folder: str | Path) -> nn.Module:
    """Returns a trained network, in evaluation mode, from the folder that `train.py` wrote."""
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(Path(folder), local_files_only=True).eval()


def standardised(pixels: Tensor) -> Tensor:
    """Returns pixels in [0, 1] less the mean of their channel, over its deviation: what the network takes."""
    mean, spread = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SPREAD))
    return (pixels - mean) / spread


def prepared(images: Images) -> Images:
    """Returns the images as the network takes them."""
    return Images(standardised(images.train), images.train_labels, standardised(images.test), images.test_labels)


def moved(pixels: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Returns each image shifted by up to `most` pixels both ways, zeros coming in, and half of them flipped."""
    count, _, side, _ = pixels.shape
    wide = nn.functional.pad(pixels, (most,) * 4)
    down, along = torch.randint(0, 2 * most + 1, (2, count, 1), generator=generator)
    rows, cols = down + torch.arange(side), along + torch.arange(side)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    cols = torch.where(flip, cols.flip(1), cols)
    return wide[torch.arange(count)[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
