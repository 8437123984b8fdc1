"""Validation images of ImageNet as they lie on a disk: class folders, one folder with a file of labels, or a zip."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from experiments.imagenet.models import View
from experiments.tasks.images import HOW_ZIP, middle, pillow
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
HOW = (
    "a folder of 1000 class folders (their names in order are the classes), a folder of images with --labels FILE, or "
    + HOW_ZIP
)


class Pictures(Dataset):
    """Images and their classes, decoded when they are asked for."""

    def __init__(self, place: Path, names: list[str], labels: list[int], view: View):
        self.place, self.names, self.labels, self.view = place, names, labels, view

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.place.is_dir():
            raw = (self.place / self.names[i]).read_bytes()
        else:
            with zipfile.ZipFile(self.place) as files:
                raw = files.read(self.names[i])
        image = pillow().open(io.BytesIO(raw))
        return self.view(middle(image, self.view.resized, self.view.side)), self.labels[i]


def listed(place: Path, labels: Path | None = None) -> tuple[list[str], list[int]]:
    """Returns the names of the images under a place, in order, and their classes.

    Args:
        place: folder or zip archive.
        labels: for a folder of images: a file of lines "name class", or of one class a line in the order of the names.
            Classes are numbers from 0.
    """
    if place.is_file() and zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as files:
            names = sorted(name for name in files.namelist() if name.lower().endswith(ENDINGS))
        heads = [Path(name).name.partition("_")[0] for name in names]
        if not names or not all(head.isdigit() for head in heads):
            raise ValueError(f"{place} is not {HOW_ZIP}")
        return names, [int(head) for head in heads]
    if not place.is_dir():
        raise FileNotFoundError(f"--imagenet {place}: nothing there; it is {HOW}")
    if labels is not None:
        return _with_labels(place, labels)
    folders = sorted(folder.name for folder in place.iterdir() if folder.is_dir())
    found = [
        (f"{folder}/{file.name}", k)
        for k, folder in enumerate(folders)
        for file in sorted((place / folder).iterdir())
        if file.suffix.lower() in ENDINGS
    ]
    if not found:
        raise ValueError(f"--imagenet {place} holds no images in class folders; it is {HOW}")
    return [name for name, _ in found], [k for _, k in found]


def _with_labels(place: Path, labels: Path) -> tuple[list[str], list[int]]:
    names = sorted(file.name for file in place.iterdir() if file.suffix.lower() in ENDINGS)
    lines = [line.split() for line in labels.read_text().splitlines() if line.strip()]
    if lines and all(len(line) == 1 and line[0].isdigit() for line in lines):
        if len(lines) != len(names):
            raise ValueError(f"{labels} has {len(lines)} lines and {place} {len(names)} images: they must be as many")
        return names, [int(line[0]) for line in lines]
    if not all(len(line) == 2 and line[1].isdigit() for line in lines):
        raise ValueError(f"{labels} has lines that are neither a class nor a name and a class")
    known = {line[0]: int(line[1]) for line in lines}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"{labels} says nothing of {unknown[0] if unknown else 'any image'} in {place}")
    return names, [known[name] for name in names]


def batches(place: Path, labels: Path | None, view: View, most: int | None, size: int, readers: int) -> DataLoader:
    """Returns batches of images as a model sees them and their classes; of `most` < all, spread evenly."""
    names, classes = listed(place, labels)
    if most is not None and most < len(names):
        picked = [i * len(names) // most for i in range(most)]
        names, classes = [names[i] for i in picked], [classes[i] for i in picked]
    return DataLoader(Pictures(place, names, classes, view), size, num_workers=readers)


def kept(loader: DataLoader, bytes_at_most: int = 2 << 30) -> DataLoader | list[tuple[Tensor, Tensor]]:
    """Returns the batches themselves where they fit into memory, so that they are decoded once, else the loader."""
    view = loader.dataset.view
    if len(loader.dataset) * 3 * view.side**2 * 4 > bytes_at_most:
        return loader
    return [(x, torch.as_tensor(y)) for x, y in loader]
