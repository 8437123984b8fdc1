"""The classifiers of the recipe, from files on the disk: folders of transformers, checkpoints of timm and others.

A model is named on the command line as NAME=WHERE. WHERE is a folder of transformers; `timm:ARCHITECTURE:FILE`, a
checkpoint for timm; `lite0:FILE`, the checkpoint of EfficientNet-Lite0 of `experiments/tasks/efficientnet.py`; or
`random`, the architecture of NAME at a random start, for its shapes and costs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiments.tasks import lite
from torch import Tensor, nn

HALF = (0.5, 0.5, 0.5)
# width, heads, blocks of the architectures that can be started at random; patches of 16 pixels
SHAPES = {
    "deit-tiny": (192, 3, 12),
    "deit-small": (384, 6, 12),
    "deit-base": (768, 12, 12),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 16, 24),
}


@dataclass(frozen=True)
class View:
    """How a model sees an image: the shorter side made `resized`, the middle of `side` cut out, then normalised."""

    side: int = 224
    resized: int = 248
    mean: tuple[float, ...] = HALF
    spread: tuple[float, ...] = HALF

    def __call__(self, pixels: Tensor) -> Tensor:
        """Returns pixels in [0, 1], channels third from last, as the model takes them."""
        mean, spread = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.spread))
        return (pixels - mean) / spread

    def told(self) -> dict[str, Any]:
        """Returns the view as a preprocessor_config.json has it."""
        return {
            "size": {"shortest_edge": self.resized},
            "crop_size": {"height": self.side, "width": self.side},
            "do_center_crop": True,
            "image_mean": list(self.mean),
            "image_std": list(self.spread),
        }


class Classifier(nn.Module):
    """A model whose output is the logits, and how it sees."""

    def __init__(self, model: nn.Module, view: View):
        super().__init__()
        self.model, self.view = model, view

    def forward(self, x: Tensor) -> Tensor:
        """Returns items x classes."""
        out = self.model(x)
        return getattr(out, "logits", out)


def classifier(name: str, where: str) -> Classifier:
    """Returns a model in evaluation mode; ValueError or FileNotFoundError where there is none."""
    kind, _, rest = where.partition(":")
    if where == "random":
        return Classifier(at_random(name), View()).eval()
    if kind == "timm":
        return from_timm(*rest.partition(":")[::2]).eval()
    if kind == "lite0":
        spread = (128 / 255,) * 3
        model = lite.load(_file(Path(rest), name)).to(memory_format=torch.channels_last)  # twice as fast
        return Classifier(model, View(224, 256, (127 / 255,) * 3, spread)).eval()
    return from_transformers(name, Path(where)).eval()


def from_transformers(name: str, folder: Path) -> Classifier:
    """Returns the classifier of a folder of transformers."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"--model {name}={folder}: no config.json there; WHERE is a folder of transformers, "
            "timm:ARCHITECTURE:FILE, lite0:FILE or random"
        )
    from transformers import AutoModelForImageClassification

    own_code = (folder / "modeling_spectrim.py").is_file()  # written beside the weights where layers were split
    model = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code)
    beside = folder / "preprocessor_config.json"
    return Classifier(model, view_of(json.loads(beside.read_text()) if beside.is_file() else {}))


def view_of(known: dict[str, Any]) -> View:
    """Returns the view that a preprocessor_config.json describes; nine tenths of the shorter side where it is mute."""

    def pixels(value: Any) -> int | None:
        return value if isinstance(value, int | None) else value.get("height") or value.get("shortest_edge")

    size, crop = pixels(known.get("size")), pixels(known.get("crop_size"))
    side = (crop if known.get("do_center_crop") else size) or 224
    resized = size if known.get("do_center_crop") and size else round(side / 0.9 - 0.5)
    mean, spread = (tuple(known.get(f"image_{k}") or HALF) for k in ("mean", "std"))
    return View(side, max(side, resized), mean, spread)


def from_timm(architecture: str, file: str) -> Classifier:
    """Returns a model of timm with the weights of a local file."""
    try:
        import timm
    except ImportError as missing:
        raise ImportError(f"timm cannot be imported here ({missing}): name a folder of transformers") from missing
    model = timm.create_model(architecture, pretrained=False, checkpoint_path=str(_file(Path(file), architecture)))
    data = timm.data.resolve_model_data_config(model)
    side = data["input_size"][-1]
    return Classifier(model, View(side, round(side / data["crop_pct"] - 0.5), data["mean"], data["std"]))


def at_random(name: str, classes: int = 1000, seed: int = 0) -> nn.Module:
    """Returns the architecture of a name, a `ViTForImageClassification`, its matrices N(0, .02^2)."""
    if name not in SHAPES:
        raise ValueError(f"--model {name}=random: only {', '.join(SHAPES)} can be started at random")
    from transformers import ViTConfig, ViTForImageClassification

    width, heads, blocks = SHAPES[name]
    config = ViTConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=blocks,
        intermediate_size=4 * width,
        num_labels=classes,
    )
    model = ViTForImageClassification(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.02, generator=generator)
    return model


def _file(file: Path, name: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"--model {name}: there is no file {file}")
    return file
