"""Trains the small vision transformer of this experiment on CIFAR-10 and saves it as a folder of transformers.

    python -m experiments.vit_cifar.train --cifar ARCHIVE --out FOLDER [--epochs 20]

AdamW with weight decay on the matrices, one epoch of warm-up and then a cosine, label smoothing, shifts and flips. One
thread; bfloat16 where the processor multiplies it (`--dtype float32` otherwise). After every epoch the state lies in
FOLDER/state.pt, and a run that was stopped goes on there with the images in the order that they would have had.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from experiments import data, training
from experiments.vit_cifar.net import Size, moved, network, prepared
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Settings:
    """Everything of one training."""

    size: Size = field(default_factory=Size)
    epochs: int = 20
    batch: int = 128
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 1.0  # epochs
    smoothing: float = 0.1
    dtype: str = "bfloat16"  # of the multiplications; weights and optimiser are float32
    seed: int = 0

    def rate_at(self, done: float) -> float:
        """Returns the rate after so many epochs, fractions included."""
        if done < self.warmup:
            return self.rate * max(done, 0.01) / self.warmup
        return self.rate * (1 + cos(pi * (done - self.warmup) / max(self.epochs - self.warmup, 1e-9))) / 2


class Outputs(nn.Module):
    """The logits alone of a classifier of transformers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns items x classes."""
        return self.model(pixel_values=pixels).logits


def arithmetic(dtype: str) -> Any:
    """Returns the context in which products are taken in this type."""
    return nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=getattr(torch, dtype))


def optimiser(net: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Returns AdamW whose decay leaves vectors (biases, norms) alone."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: data.Images, settings: Settings, index: int
) -> float:
    """Returns the mean loss of one pass over the training images, whose order and moves follow from seed and index."""
    draw = torch.Generator().manual_seed(10**6 * (settings.seed + 1) + index)
    net.train()
    total, seen = 0.0, 0
    for chosen in torch.randperm(len(images.train), generator=draw).split(settings.batch):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(index + seen / len(images.train))
        x = moved(images.train[chosen], draw)
        with arithmetic(settings.dtype):
            out = net(pixel_values=x).logits
        loss = F.cross_entropy(out.float(), images.train_labels[chosen], label_smoothing=settings.smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        total, seen = total + float(loss.detach()) * len(chosen), seen + len(chosen)
    if not total < float("inf"):
        raise FloatingPointError(f"the loss of epoch {index} is not finite")
    return total / len(images.train)


def train(images: data.Images, out: Path, settings: Settings, say: Any = print) -> dict[str, Any]:
    """Returns the course of the training, after saving the network, the course and the settings in the folder `out`."""
    images = prepared(images)
    net = network(settings.size, torch.Generator().manual_seed(settings.seed))
    optimizer = optimiser(net, settings.rate, settings.decay)
    history: list[dict[str, float]] = []
    state = out / "state.pt"
    out.mkdir(parents=True, exist_ok=True)
    if state.exists():
        kept = torch.load(state, weights_only=True)
        if kept["settings"] != repr(settings):
            told = f"{state} is of a run with other settings: remove it or name another --out"
            raise ValueError(f"{told}; it has {kept['settings']}")
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        history = kept["history"]
    for index in range(len(history), settings.epochs):
        begun = time.perf_counter()
        loss = epoch(net, optimizer, images, settings, index)
        accuracy = training.evaluate(Outputs(net), images.test, images.test_labels)["accuracy"]
        history.append({"loss": loss, "accuracy": accuracy, "seconds": time.perf_counter() - begun})
        kept = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        torch.save(kept | {"settings": repr(settings)}, out / "state.part")
        os.replace(out / "state.part", state)
        say(f"epoch {index + 1}: loss {loss:.3f}, test accuracy {accuracy:.4f}, {history[-1]['seconds']:.0f} s")
    net.eval().save_pretrained(out)
    found = {"settings": asdict(settings), "parameters": sum(p.numel() for p in net.parameters()), "epochs": history}
    (out / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    """Trains as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, required=True, help="tar archive of CIFAR-10 JPEGs, train/CLASS/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="folder of the network; a stopped run goes on there")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=Settings.dtype)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(epochs=options.epochs, dtype=options.dtype, seed=options.seed)
    train(data.cifar_images(options.cifar), options.out, settings, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
