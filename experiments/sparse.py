"""Accuracy of a trained network against the weights that are not zero, over a grid of thresholds."""

from __future__ import annotations

from typing import Any

from experiments import training
from experiments.data import Images
from torch import nn

from spectrim import sparsify

# Every few of the scripts' 1 / (1 + k), k up to 49, and five below them.
THRESHOLDS = (
    0.0,
    0.002,
    0.005,
    0.0075,
    0.01,
    0.015,
    *(1 / (1 + k) for k in (49, 39, 32, 26, 21, 17, 14, 11, 9, 6, 4, 2)),
)


def curve(net: nn.Module, data: Images, thresholds: tuple[float, ...] = THRESHOLDS) -> dict[str, list[Any]]:
    """Returns thresholds, weights not zero under each, and the test accuracy then; the net stays as it is."""
    points = sparsify.curve(
        net, thresholds, lambda model: training.evaluate(model, data.test, data.test_labels)["accuracy"]
    )
    return {
        "threshold": [point.threshold for point in points],
        "nonzeros": [point.nonzeros for point in points],
        "accuracy": [point.score for point in points],
    }
