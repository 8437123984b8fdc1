"""Prunes ImageNet classifiers in the classical cycles: accuracy against what is kept, arXiv 2503.01922, 3.3 to 3.6.

    python -m experiments imagenet --imagenet VAL --model vit-base=FOLDER --model deit-tiny=timm:NAME:FILE
    python -m experiments imagenet --imagenet VAL --model vit-base=FOLDER --save .3,.5  # pruned models, to be tuned
    python -m experiments imagenet --imagenet VAL --tuned vit-base-30=FOLDER            # what fine-tuning made of one
    python -m experiments.imagenet.figure

The paper prunes ViT-B/16, ViT-L/16 and DeiT-Ti, S and B in cycles without data, measures top-1 on the 50000 validation
images after each, and fine-tunes some of the results with the zeros frozen (`examples/finetune.py`; the README has the
commands). Here the same, and beside it, at every share that a cycle reaches, what the smallest magnitudes of the dense
model do at that share: the paper has no such control. FLOPs saved are what its table means by them: multiply-adds whose
weight is zero, of all that have a weight; nothing runs faster for it by itself.

No checkpoint of these models and no ImageNet was at hand for the committed results. They are of EfficientNet-Lite0 on
500 ImageNet images, through the same code, and of DeiT-Ti at a random start, for its shapes and costs; the other cells
of the README are empty, beside the command that fills them.

COST: a cycle of ViT-B/16 takes up to a minute on a processor (benchmarks/classical_cycle.py), the accuracy on 50000
images hours there and minutes on a GPU (--device cuda); --images 5000 is a tenth of it at a standard error of half a
point. EfficientNet-Lite0 on 500 images: 15 s an evaluation on one core, 10 min with 17 of them and their controls.

EXPECTED OUTCOME, written down before the first run. EfficientNet-Lite0 is small and compact: (1) cycles and control
have both lost more than ten points before a third of the weights is zero; (2) the cycles are not better than magnitude
at the same share by more than two standard errors anywhere above 50 % accuracy; (3) the multiply-adds saved are a
smaller share than the weights, since the classifier, a quarter of all weights, is used once an image.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from experiments import jobs
from experiments.imagenet import models, pictures, published
from experiments.jobs import Job
from torch import Tensor, nn

from spectrim import survey
from spectrim.cycles import CYCLES, Classical, classical
from spectrim.survey import inventory
from spectrim.sweep import known, watched

METHODS = ("global magnitude",)
SETTINGS = {"default": Classical, "text": Classical.text, "as executed": Classical.as_executed}
Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches, device: str, dtype: str) -> dict[str, Any]:
    """Returns top-1 and top-5 in [0, 1], the standard error of the first, and the number of images."""
    first = five = items = 0
    for x, y in batches:
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            out = model(x.to(device)).float()
        found = out.topk(5, 1).indices == y.to(device)[:, None]
        first, five, items = first + int(found[:, 0].sum()), five + int(found.any(1).sum()), items + len(y)
    top1 = first / items
    return {"top1": top1, "top5": five / items, "error": sqrt(top1 * (1 - top1) / items), "images": items}


@torch.no_grad()
def sizes(model: models.Classifier, device: str) -> dict[str, int]:
    """Returns parameters and multiply-adds an image, all of them and those that are not zero."""
    with watched(model) as seen:
        model(torch.zeros(1, 3, model.view.side, model.view.side, device=device))
    found = inventory(model)
    return {
        "params": found.params,
        "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters()),
        "macs": seen.executed(found),
        "macs_nonzero": seen.weighted(found),
    }


def course(
    name: str,
    where: str,
    imagenet: Path | None,
    labels: Path | None,
    images: int | None,
    cycles: int,
    every: int,
    settings: str,
    methods: tuple[str, ...],
    dtype: str,
    device: str,
    batch: int,
    readers: int,
    state: Path,
    save: tuple[float, ...] = (),
) -> dict[str, Any]:
    """Returns the course of one model through the cycles; its state is kept in a file, and a stopped one goes on.

    Args:
        name, where: of the model, see models.py.
        imagenet, labels: the images, see pictures.py; None for none, and no accuracy.
        images: how many of them; None for all.
        cycles: how many.
        every: the accuracy is measured after every so many.
        settings: a name of `SETTINGS`.
        methods: of `spectrim sweep`, applied to the dense model at the share of each measured cycle.
        dtype, device, batch, readers: how models are run and images read.
        state: file of the course so far.
        save: shares of zeros; the model after the first cycle that reaches one is saved beside the state.
    """
    dense = models.classifier(name, where).to(device)
    shown = None
    if imagenet is not None:
        shown = pictures.kept(pictures.batches(imagenet, labels, dense.view, images, batch, readers))

    def told(model: models.Classifier) -> dict[str, Any]:
        return sizes(model, device) | ({} if shown is None else accuracy(model, shown, device, dtype))

    model = copy.deepcopy(dense)
    asked = f"{name} {where} {settings} {every} {images} {methods} {dtype}"
    before = torch.load(state, weights_only=True) if state.exists() else None
    if before is not None and before["asked"] == asked:
        model.load_state_dict(before["model"])
        found = before["found"]
    else:
        found = {"dense": told(dense), "cycles": [], "methods": {method: [] for method in methods}}
    surveyed = survey(dense) if methods else None
    done = len(found["cycles"])
    reached = found["cycles"][-1]["share"] if done else 0.0
    for cycle in classical(model, SETTINGS[settings](), cycles=cycles - done, first=done + 1):
        row = {"cycle": cycle.number, "share": cycle.share, "seconds": cycle.elapsed, "returned": cycle.returned}
        measures = {"misfit": cycle.misfits, "bulk": cycle.bulk_shares}
        row |= {key: sum(v.values()) / max(1, len(v)) for key, v in measures.items()}
        if cycle.number % every == 0 or cycle.number == cycles:
            row |= told(model)
            for method in methods:
                other = copy.deepcopy(dense)
                known()[method](other, surveyed, cycle.share, torch.Generator().manual_seed(0))
                found["methods"][method].append({"cycle": cycle.number, "share": cycle.share} | told(other))
        found["cycles"].append(row)
        for share in save:
            if reached < share <= cycle.share:
                keep(model, state.with_name(f"{name}-{share:.0%}".replace("%", "")))
        reached = cycle.share
        part = state.with_suffix(".part")
        torch.save({"asked": asked, "model": model.state_dict(), "found": found}, part)
        os.replace(part, state)
    return found


def keep(model: models.Classifier, folder: Path) -> None:
    """Writes a pruned model as a folder of transformers, or as weights alone where it is none of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model.model, "save_pretrained"):
        model.model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(model.view.told(), indent=1) + "\n")
    else:
        torch.save(model.model.state_dict(), folder / "weights.pth")


def tuned(
    name: str, where: str, imagenet: Path | None, labels: Path | None, images: int | None, dtype: str, device: str,
    batch: int, readers: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns sizes and accuracy of a model that was pruned and fine-tuned."""
    model = models.classifier(name, where).to(device)
    shown = pictures.batches(imagenet, labels, model.view, images, batch, readers)
    return sizes(model, device) | accuracy(model, shown, device, dtype)


def named(given: list[str], option: str) -> dict[str, str]:
    """Returns the models of a command line by name; SystemExit for what is not NAME=WHERE."""
    found = {}
    for text in given:
        name, sign, where = text.partition("=")
        if not sign or not where or not re.fullmatch(r"[\w.-]+", name):
            raise SystemExit(
                f"--{option} {text}: it is NAME=WHERE; NAME of the paper's are {', '.join(published.MODELS)}"
            )
        if name in found:
            raise SystemExit(f"--{option} {text}: {name} is there twice")
        found[name] = where
    return found


def make_jobs(options: Any, work: Path) -> dict[str, Job]:
    """Returns one job a model."""
    common = {
        **{
            key: getattr(options, key)
            for key in ("imagenet", "labels", "images", "dtype", "device", "batch", "readers")
        }
    }
    found: dict[str, Job] = {}
    for name, where in named(options.model, "model").items():
        state = work / f"{name}.pt"
        more = {key: getattr(options, key) for key in ("cycles", "every", "settings", "methods", "save")}
        shown = common if where != "random" else common | {"imagenet": None}  # guessing needs no images
        found[name] = Job(course, {"name": name, "where": where, **shown, **more, "state": state}, 600)
    for name, where in named(options.tuned, "tuned").items():
        found[f"{name}, tuned"] = Job(tuned, {"name": name, "where": where, **common}, 60)
    return found


def toy(options: Any, folder: Path) -> None:
    """Sets the options to a tiny model and images made here."""
    from experiments.data import made_images
    from experiments.vit_cifar import net, train

    size = net.Size(side=8, patch=4, width=32, blocks=1, heads=2)
    shown = made_images(channels=3)
    model = net.network(size, torch.Generator().manual_seed(0))
    settings = train.Settings(size=size, epochs=1, batch=32, rate=3e-3, dtype="float32")
    train.epoch(model, train.optimiser(model, settings.rate, settings.decay), net.prepared(shown), settings, 0)
    model.eval().save_pretrained(folder / "model")
    view = f'{{"size": {size.side}, "crop_size": {size.side}, "do_center_crop": true}}'
    (folder / "model/preprocessor_config.json").write_text(view)
    Image = pictures.pillow()
    for k in range(100):
        place = folder / f"val/n{int(shown.test_labels[k]):02d}"
        place.mkdir(parents=True, exist_ok=True)
        array = (shown.test[k].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(array).save(place / f"{k}.png")
    options.imagenet, options.model, options.cycles, options.every = folder / "val", [f"toy={folder / 'model'}"], 4, 2
    options.tuned, options.dtype, options.save = [f"toy={folder / 'model'}"], "float32", (0.1,)


def main() -> None:
    """Runs the jobs and writes the results."""
    parser = jobs.arguments(__doc__.splitlines()[0], Path(__file__).parent)
    parser.add_argument("--imagenet", type=Path, help=pictures.HOW)
    parser.add_argument("--labels", type=Path, help="classes of a folder of images: lines `name class`, or `class`")
    parser.add_argument("--images", type=int, help="measure on so many, spread evenly; all of them unless told")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=WHERE", help="see models.py; repeatable")
    parser.add_argument(
        "--tuned", action="append", default=[], metavar="NAME=WHERE", help="a fine-tuned one to measure"
    )
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--every", type=int, default=1, help="measure after every so many cycles")
    parser.add_argument("--settings", choices=SETTINGS, default="default", help="of the cycles")
    parser.add_argument("--methods", default=",".join(METHODS), help="of `spectrim sweep`, at the same shares")
    parser.add_argument("--save", default="", help="shares of zeros, with commas between, to save models at")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--readers", type=int, default=0, help="processes that decode images")
    options = parser.parse_args()
    options.methods = tuple(name.strip() for name in options.methods.split(",") if name.strip())
    options.save = tuple(float(share) for share in options.save.split(",") if share.strip())
    work, output = jobs.places(options)
    work.mkdir(parents=True, exist_ok=True)
    options.work, options.output = work, output
    if options.toy:
        toy(options, work)
    elif not options.model and not options.tuned:
        parser.error("name a model: --model NAME=WHERE, or --toy")
    elif options.imagenet is None and any(where != "random" for where in named(options.model, "model").values()):
        parser.error("--imagenet is needed: " + pictures.HOW)
    config = {key: getattr(options, key) for key in ("cycles", "every", "settings", "methods", "images", "dtype")}
    jobs.execute(options, make_jobs(options, work), config)


if __name__ == "__main__":
    main()
