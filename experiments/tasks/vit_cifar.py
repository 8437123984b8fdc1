"""A small vision transformer on CIFAR-10, as `experiments/vit_cifar/train.py` trains it: test accuracy.

python -m spectrim sweep FOLDER --task experiments/tasks/vit_cifar.py --set cifar=ARCHIVE
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from experiments.tasks import images
from experiments.tasks.common import cosines, needed, whole
from experiments.vit_cifar import net
from torch import Tensor, nn

from spectrim.sweep import Score, mean

HOW = "python -m experiments.vit_cifar.train --cifar ARCHIVE --out FOLDER makes it, in about 20 minutes of one core"
BATCH = 500


@torch.no_grad()
def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Returns items x classes."""
    return torch.cat([model(pixel_values=part).logits for part in pixels.split(BATCH)])


@dataclass(frozen=True)
class CifarViT:
    """The task; `dense` are the logits of the dense model."""

    model: nn.Module
    pixels: Tensor
    labels: Tensor
    dense: Tensor
    name: str = "vit_cifar"
    only = None

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Returns the accuracy and the cosine of the logits, less the mean of the dense ones."""
        out = logits(model, self.pixels)
        return {
            "accuracy": Score((out.argmax(1) == self.labels).double().numpy(), mean, chance=0.1),
            "cosine": Score(cosines(out, self.dense, self.dense.mean(0)), mean),
        }


def made(dense: nn.Module, pixels: Tensor, labels: Tensor) -> CifarViT:
    """Returns the task of a model and images in [0, 1]."""
    inputs = net.standardised(pixels)
    return CifarViT(dense, inputs, labels, logits(dense, inputs))


def task(model: str | None = None, cifar: str | None = None, n_test: int | str = 5000) -> CifarViT:
    """Returns the task.

    Args:
        model: folder of the trained network.
        cifar: tar archive of CIFAR-10.
        n_test: test images, a multiple of ten; the archive has 10000.
    """
    folder = needed(model, "MODEL", HOW, folder=True)
    needed(folder / "config.json", "MODEL", HOW)
    archive = needed(cifar, "cifar", f"it is {images.HOW_CIFAR}")
    shown = images.cifar(Path(archive), 0, whole(n_test, "n_test", 10))
    return made(net.load(folder), shown.test, shown.test_labels)
