"""Images for the tasks, decoded by Pillow from archives on the disk: some of CIFAR-10, a zip named by class."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.data import CIFAR_CLASSES, Images
from torch import Tensor

HOW_CIFAR = "a tar archive of CIFAR-10 as JPEG or PNG files named train/CLASS/* and test/CLASS/*, ten classes by name"
HOW_ZIP = (
    "a zip archive of images named CCCC_anything.jpg, CCCC being the index of the class among the 1000 of ImageNet"
)


def pillow() -> Any:
    """Returns PIL.Image."""
    try:
        from PIL import Image
    except ImportError as missing:
        raise ImportError("images are decoded by Pillow: pip install 'spectrim[experiments]'") from missing
    return Image


def pixels(image: Any) -> Tensor:
    """Returns an image of Pillow as 3 x height x width in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255.0


def cifar(archive: Path, train: int, test: int, side: int = 32) -> Images:
    """Returns the first images of each class of CIFAR-10, `train` and `test` in all, resized (bicubic) to that side.

    The classes take turns, and another one begins in each turn: any first part of the result is balanced, and so are
    its images at even positions and those at odd ones. Only these images are decoded.

    Args:
        archive: tar archive of train/CLASS/* and test/CLASS/*.
        train, test: images of each split, multiples of ten.
        side: pixels.
    """
    Image = pillow()
    wanted = {"train": train, "test": test}
    for split, count in wanted.items():
        if count % 10:
            raise ValueError(f"n_{split} is shared by ten classes: a multiple of ten, not {count}")
    names: dict[tuple[str, str], list[str]] = {(split, label): [] for split in wanted for label in CIFAR_CLASSES}
    found: dict[str, Tensor] = {}
    with tarfile.open(archive) as files:
        for member in files:
            key = Path(member.name).parts[-3:-1]
            if not member.isfile() or key not in names or len(names[key]) >= wanted[key[0]] // 10:
                continue
            image = Image.open(io.BytesIO(files.extractfile(member).read())).convert("RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.BICUBIC)
            names[key].append(member.name)
            found[member.name] = pixels(image)
    both = []
    for split, count in wanted.items():
        short = [label for label in CIFAR_CLASSES if len(names[split, label]) < count // 10]
        if short:
            raise ValueError(
                f"{archive} has fewer than {count // 10} images of {split}/{short[0]}: it should be {HOW_CIFAR}"
            )
        rows = zip(*(names[split, label] for label in CIFAR_CLASSES), strict=True)
        turns = [(k, row[k]) for i, row in enumerate(rows) for k in (*range(i % 10, 10), *range(i % 10))]
        empty = torch.zeros(0, 3, side, side)
        both += [torch.stack([found[name] for _, name in turns]) if turns else empty]
        both += [torch.tensor([k for k, _ in turns], dtype=torch.long)]
    return Images(*both)


def by_class(archive: Path, resized: int, side: int, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns images (items x 3 x side x side, in [0, 1]) and class indices of a zip of CCCC_*.jpg, in order of name.

    The shorter side is made `resized` (bicubic), then the square in the middle is taken. Of `most` < all, evenly spread
    over the names.
    """
    images, labels = [], []
    with zipfile.ZipFile(archive) as files:
        names = sorted(n for n in files.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png")))
        bad = [n for n in names if not Path(n).name.partition("_")[0].isdigit()]
        if not names or bad:
            raise ValueError(f"{archive}: {bad[0] if bad else 'no image in it'}; it should be {HOW_ZIP}")
        if most is not None and most < len(names):
            names = [names[i * len(names) // most] for i in range(most)]
        for name in names:
            images.append(middle(pillow().open(io.BytesIO(files.read(name))), resized, side))
            labels.append(int(Path(name).name.partition("_")[0]))
    return torch.stack(images), torch.tensor(labels)


def middle(image: Any, resized: int, side: int) -> Tensor:
    """Returns the square in the middle of an image whose shorter side was made `resized`, in [0, 1]."""
    image = image.convert("RGB")
    width, height = image.size
    scale = resized / min(width, height)
    if scale != 1:
        image = image.resize((max(side, round(width * scale)), max(side, round(height * scale))), pillow().BICUBIC)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return pixels(image.crop((left, top, left + side, top + side)))
