"""The files that real models, data and tasks are made of, as options of a command line, and who needs which."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

NEEDS = {  # by task
    "minilm": ("minilm",),
    "vit_cifar": ("vit_cifar", "cifar"),
    "efficientnet": ("lite0", "images"),
    "vit_s14": ("vit", "cifar"),
    "whisper": ("whisper", "speech", "transcripts"),
}
OPTIONS = {  # those of `experiments.jobs.arguments` apart
    "minilm": "folder of the checkpoint; DEFAULT: that of the installed package",
    "vit": "vit_s_focus.onnx",
    "vit_cache": ".npz that keeps the dense features of the ViT",
    "lite0": "checkpoint of EfficientNet-Lite0",
    "images": "zip of ImageNet images, CCCC_synset.jpg",
    "whisper": "folder of Whisper tiny.en",
    "speech": "folder of WAV prompts",
    "transcripts": "their transcripts",
    "vit_cifar": "folder that experiments/vit_cifar/train.py wrote",
}


class Places(dict):
    """Places of files by option: what a job is asked does not depend on them."""

    def __repr__(self) -> str:
        return "places"


def add(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each file."""
    for name, told in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=told)


def given(options: argparse.Namespace) -> dict[str, Path]:
    """Returns the files that were named, by option."""
    names = sorted({*OPTIONS, *(key for keys in NEEDS.values() for key in keys)})
    return {name: vars(options)[name] for name in names if vars(options)[name] is not None}


def there(places: Mapping[str, Path]) -> list[str]:
    """Returns the tasks whose files were all named."""
    return [name for name, keys in NEEDS.items() if all(key in places for key in keys)]
