"""The files that real models, data and tasks are made of, as options of a command line, and who needs which."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments import jobs

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


def main(
    purpose: str,
    folder: Path,
    make_jobs: Callable[[Mapping[str, Path], Path, str], Mapping[str, jobs.Job]],
    config: Mapping[str, Any],
) -> None:
    """Runs the jobs of an experiment on the models whose files the command line names, and writes their results.

    Args:
        purpose: said by --help.
        folder: of the experiment, where the results go.
        make_jobs: makes the jobs, of the files that were named, the folder of single results, and the scale.
        config: what the results file says of the settings, besides the scale.
    """
    parser = jobs.arguments(purpose, folder)
    add(parser)
    options = parser.parse_args()
    scale = "toy" if options.toy else options.scale
    work, _ = jobs.places(options)
    made = make_jobs(given(options), work, scale)
    if not made:
        parser.error("name the files of one model at least, for instance --minilm DEFAULT, or --toy")
    jobs.execute(options, made, {"scale": scale, **config})
