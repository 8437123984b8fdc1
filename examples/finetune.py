"""Fine-tune an image classifier whose weights were pruned; what is zero stays exactly zero.

    python examples/finetune.py --toy --out tuned                              # 8 x 8 digits, seconds on a CPU
    python examples/finetune.py --model pruned/ --data images/ --out tuned     # a transformers folder
    python examples/finetune.py --model net.py:build --weights pruned/model.safetensors --data set.npz --out tuned
    torchrun --nproc-per-node 4 examples/finetune.py ...                       # several processes
    ... --teacher dense/ --distil 0.5                                          # learn from the dense model as well
    ... --resume                                                               # go on where it was stopped

--data is a folder of class folders of images (in it train/, and val/ if there is one), or an .npz with `images`,
`labels` and, if you have them, `val_images`, `val_labels`: images as the model takes them, labels 0, 1, ...
The defaults are the recipe of arXiv 2503.01922, section 3.2, and its script: SGD with momentum .9, rate 3e-5, batches
of 64 over all processes, 20 epochs, two of them warm-up at a hundredth of the rate, then a cosine, norms clipped at 1,
no weight decay, no augmentation. OUT/model loads like the model that came in, without spectrim.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import spectrim
from spectrim import frozen_zeros
from spectrim.writing import copy_companions

COMMAND = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
option = COMMAND.add_argument
option("--model", help="a transformers folder, or FILE.py:FUNCTION, which returns the module")
option("--weights", help="with FILE.py:FUNCTION: a .safetensors file, or a folder that spectrim wrote")
option("--data", help="a folder of class folders of images, or an .npz")
option("--toy", action="store_true", help="a small net on scikit-learn's digits, trained and pruned first")
option("--out", required=True, help="folder for checkpoints, the record and the model")
option("--resume", action="store_true", help="go on from OUT/checkpoint.pt, if it is there")
option("--epochs", type=int, default=20)
option("--batch", type=int, default=64, help="images a step, over all processes")
option("--at-once", type=int, default=0, help="images a process takes at once; a batch is accumulated from such pieces")
option("--lr", type=float, default=3e-5)
option("--momentum", type=float, default=0.9)
option("--weight-decay", type=float, default=0.0)
option("--warmup", type=int, help="epochs at LR * --warmup-factor; a tenth of all epochs unless told, so 2 of 20")
option("--warmup-factor", type=float, default=0.01)
option("--cosine", type=int, help="epochs of half a period of the cosine; --epochs unless told")
option("--clip", type=float, default=1.0, help="largest norm of the gradient; 0 for none")
option("--train-empty", action="store_true", help="let matrices train that are all zero, instead of freezing them")
option("--teacher", help="the dense model, given as --model is")
option("--teacher-weights")
option("--distil", type=float, default=0.0, help="share of the teacher in the loss, 0 to 1")
option("--temperature", type=float, default=2.0)
option("--size", type=int, help="side of the images; of preprocessor_config.json, else 224")
option("--crop", type=float, default=0.875, help="share of the shorter side that is cut out of the middle")
option("--mean", type=float, nargs=3, help="of the channels; of preprocessor_config.json, else .5 .5 .5")
option("--std", type=float, nargs=3)
option("--precision", choices=("no", "bf16", "fp16"), default="no")
option("--workers", type=int, default=0, help="processes that load images, for each process that trains")
option("--save-every", type=int, default=0, help="steps between checkpoints; 0 for one an epoch")
option("--log-every", type=int, default=50, help="steps between lines of progress")
option("--cpu", action="store_true", help="leave accelerators alone")
option("--seed", type=int, default=0)
# A run may be resumed with other values of these.
FREE = ("resume", "workers", "save_every", "log_every", "cpu", "at_once", "out")


class Images(Dataset):
    """Class folders of images, or arrays: pairs of a float image and its label."""

    def __init__(self, files, labels, args=None):
        self.files, self.labels, self.args = files, labels, args

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.files[i] if self.args is None else read_image(self.files[i], self.args)
        scale = 255 if image.dtype == np.uint8 else 1
        return torch.as_tensor(np.asarray(image), dtype=torch.float32) / scale, int(self.labels[i])


def read_image(path, args):
    """Returns an image as the papers' scripts take it for training and testing: resized, its middle, normalised."""
    from PIL import Image

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    ratio = args.size / args.crop / min(image.size)
    image = image.resize([max(args.size, round(side * ratio)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - args.size) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + args.size, top + args.size)), dtype=np.float32) / 255
    return ((pixels - np.float32(args.mean)) / np.float32(args.std)).transpose(2, 0, 1)


def data(args, model) -> tuple[Dataset, Dataset | None]:
    """Returns the images to train on, and those to test on or None."""
    if args.toy:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.target))
        x, y = (found.data / 16).astype(np.float32)[order], found.target[order]
        return Images(x[:1400], y[:1400]), Images(x[1400:], y[1400:])
    path = Path(args.data)
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        test = Images(arrays["val_images"], arrays["val_labels"]) if "val_images" in arrays else None
        return Images(arrays["images"], arrays["labels"]), test
    beside = Path(args.model) / "preprocessor_config.json"
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    size = known.get("size", {})
    args.size = args.size or (size if isinstance(size, int) else size.get("height") or size.get("shortest_edge") or 224)
    args.mean, args.std = (getattr(args, k) or known.get(f"image_{k}") or [0.5] * 3 for k in ("mean", "std"))
    train = path / "train" if (path / "train").is_dir() else path
    names = sorted(folder.name for folder in train.iterdir() if folder.is_dir() and folder != path / "val")
    config = getattr(model, "config", None)
    ids = {label: int(i) for i, label in (getattr(config, "id2label", None) or {}).items()}
    if not set(names) <= set(ids):
        if (classes := getattr(config, "num_labels", len(names))) != len(names):
            raise SystemExit(f"{classes} classes, {len(names)} folders: name these as id2label of config.json does")
        ids = {name: i for i, name in enumerate(names)}

    def folder(root):
        files = [(file, ids[name]) for name in names for file in sorted((root / name).rglob("*.*"))]
        files = [pair for pair in files if pair[0].suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp")]
        if not files:
            raise SystemExit(f"{root} holds no images in class folders")
        return Images(*zip(*files, strict=True), args)

    return folder(train), folder(path / "val") if (path / "val").is_dir() else None


def load(model: str, weights: str | None) -> nn.Module:
    """Returns the model of --model and --weights; a folder that spectrim split keeps its pairs."""
    if ".py:" in model:
        file, _, function = model.rpartition(":")
        net = runpy.run_path(file)[function]()
        if weights and Path(weights).is_dir():
            return spectrim.load(net, weights)
        if weights:
            try:
                state = load_file(weights)
            except (SafetensorError, OSError) as error:
                raise SystemExit(
                    f"{weights} is no .safetensors file, nor a folder that spectrim wrote: {error}"
                ) from None
            net.load_state_dict(state)
        return net
    from transformers import AutoModelForImageClassification

    own_code = (Path(model) / "modeling_spectrim.py").is_file()  # written beside the weights where layers were split
    return AutoModelForImageClassification.from_pretrained(model, trust_remote_code=own_code)


def toy(train: Images) -> tuple[nn.Module, nn.Module]:
    """Returns a net for the digits with 80 % of its entries removed, and the dense one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    adam, x, y = torch.optim.Adam(net.parameters(), lr=0.01), torch.tensor(train.files), torch.tensor(train.labels)
    for _ in range(60):
        F.cross_entropy(net(x), y).backward()
        adam.step()
        adam.zero_grad()
    dense = copy.deepcopy(net)
    spectrim.trim(net, spectrim.plan(spectrim.survey(net), zeros=0.8))
    return net, dense


def factor(epoch: int, args) -> float:
    """Returns what the rate is multiplied by in an epoch: warm-up, then half a period of a cosine."""
    if epoch < args.warmup:
        return args.warmup_factor
    return 0.5 * (1 + math.cos(math.pi * min(1, (epoch - args.warmup) / args.cosine)))


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns the scores of the classes, images x classes."""
    found = model(x)
    return getattr(found, "logits", found).float()


@torch.no_grad()
def accuracy(model: nn.Module, images: Dataset, args, accelerator: Accelerator) -> float:
    """Returns the share of images that the model gets right; every process looks at its part of them."""
    model.eval()
    here = list(range(accelerator.process_index, len(images), accelerator.num_processes))
    loader = DataLoader(Subset(images, here), args.at_once or args.batch, num_workers=args.workers)
    right = torch.zeros(1, device=accelerator.device)
    for x, y in loader:
        right += (logits(model, x.to(accelerator.device)).argmax(1) == y.to(accelerator.device)).sum()
    return accelerator.reduce(right, "sum").item() / len(images)


def step(model, teacher, x, y, total: int, args, accelerator: Accelerator) -> float:
    """Leaves the gradient of the mean loss over the `total` images of all processes; returns this process's share."""
    pieces = list(zip(x.split(args.at_once or len(x)), y.split(args.at_once or len(y)), strict=True))
    lost = 0.0
    for k, (x, y) in enumerate(pieces):
        with accelerator.no_sync(model) if k + 1 < len(pieces) else contextlib.nullcontext():
            x, y = x.to(accelerator.device), y.to(accelerator.device)
            found = logits(model, x)
            loss = F.cross_entropy(found, y, reduction="sum")
            if teacher is not None:
                with torch.no_grad():
                    target = F.log_softmax(logits(teacher, x) / args.temperature, 1)
                soft = F.kl_div(F.log_softmax(found / args.temperature, 1), target, reduction="sum", log_target=True)
                loss = (1 - args.distil) * loss + args.distil * args.temperature**2 * soft
            accelerator.backward(loss * accelerator.num_processes / total)
            lost += loss.item()
    return lost


def zeros(model: nn.Module) -> int:
    """Returns how many entries of all matrices are zero."""
    return sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)


def checked(argv: list[str] | None) -> argparse.Namespace:
    """Returns the options; asks for what is missing."""
    given = sys.argv[1:] if argv is None else argv
    args = COMMAND.parse_args(given, argparse.Namespace(epochs=5, lr=0.05) if "--toy" in given else None)
    if not (args.toy or (args.model and args.data)):
        COMMAND.error("give --model and --data, or --toy")
    if not 0 <= args.distil <= 1:
        COMMAND.error(f"--distil is the teacher's share of the loss, from 0 to 1, not {args.distil}")
    if args.distil and not (args.teacher or args.toy):
        COMMAND.error("--distil learns from a teacher: give the dense model with --teacher")
    if args.teacher and not args.distil:
        COMMAND.error("--teacher has no part in the loss: give its share with --distil, such as 0.5")
    args.warmup = args.epochs // 10 if args.warmup is None else args.warmup
    args.cosine = args.cosine or args.epochs
    return args


def main(argv: list[str] | None = None) -> dict:
    """Returns the record that is written to OUT/finetune.json."""
    args = checked(argv)
    recipe = {name: value for name, value in vars(args).items() if name not in FREE}
    out, saved = Path(args.out), None
    if (out / "model").exists():
        raise SystemExit(f"{out}/model is there already: give another --out")
    if (out / "checkpoint.pt").is_file():
        if not args.resume:
            raise SystemExit(f"{out} holds a run that was not finished: --resume, or give another --out")
        saved = torch.load(out / "checkpoint.pt", map_location="cpu")
        if other := [k for k in recipe if recipe[k] != saved["record"]["recipe"].get(k, COMMAND.get_default(k))]:
            raise SystemExit(f"the run in {out} was started with other values of {', '.join(other)}")
    cpu = args.cpu or ("RANK" in os.environ and not torch.cuda.is_available())
    accelerator = Accelerator(cpu=cpu, mixed_precision=args.precision)
    say, first = accelerator.print, accelerator.is_main_process
    set_seed(args.seed)
    teacher = None
    if args.toy:
        train, test = data(args, None)
        model, dense = toy(train)
        teacher = dense if args.distil else None
    else:
        model = load(args.model, args.weights)
        train, test = data(args, model)
        teacher = load(args.teacher, args.teacher_weights) if args.teacher else None
    if teacher is not None:
        teacher.to(accelerator.device).eval().requires_grad_(False)
    if saved:
        model.load_state_dict(saved["model"])
    sgd = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), args.lr, args.momentum, weight_decay=args.weight_decay
    )
    model, sgd = accelerator.prepare(model, sgd)
    inner = accelerator.unwrap_model(model)
    where, images = ("test", test) if test is not None else ("training", train)
    if saved:
        sgd.load_state_dict(saved["sgd"])
        record = saved["record"]
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(saved["scaler"])
        say(f"resumed in epoch {saved['epoch'] + 1}, after {saved['done']} steps of it")
    else:
        record = {"recipe": recipe, "epochs": [], "zeros": [zeros(inner)]}
        record["accuracy"] = [accuracy(inner, images, args, accelerator)]
        say(f"before: {record['accuracy'][0]:.2%} of the {where} images, {record['zeros'][0]:,} entries are zero")

    def diverged(what: str, epoch: int, done: int) -> SystemExit:
        at = f"in epoch {epoch + 1}, step {done}"
        return SystemExit(f"{what} {at}, and nothing of it was saved: give a smaller --lr than {args.lr:g}")

    def save(epoch: int, done: int, lost: float = 0.0, seen: int = 0) -> None:
        if first:
            state = {"model": inner.state_dict(), "sgd": sgd.state_dict(), "frozen": frozen.state_dict()}
            state |= {"scaler": accelerator.scaler and accelerator.scaler.state_dict(), "record": record}
            out.mkdir(parents=True, exist_ok=True)
            state |= {"epoch": epoch, "done": done, "lost": (lost, seen)}
            torch.save(state, out / "checkpoint.partial")
            os.replace(out / "checkpoint.partial", out / "checkpoint.pt")  # whole or not at all

    # What a pruning has emptied wholly is as pruned as the rest.
    with frozen_zeros(inner, all_zero=not args.train_empty) as frozen:
        if saved:
            frozen.load_state_dict(saved["frozen"])
        for epoch in range(saved["epoch"] if saved else 0, args.epochs):
            done, (lost, seen) = 0, (0.0, 0)
            if saved and epoch == saved["epoch"]:
                done, (lost, seen) = saved["done"], saved["lost"]
            for group in sgd.param_groups:
                group["lr"] = args.lr * factor(epoch, args)
            order = np.random.default_rng((args.seed, epoch)).permutation(len(train))
            batches = [order[i : i + args.batch] for i in range(0, len(order), args.batch)]
            batches = [b for b in batches if len(b) >= accelerator.num_processes]
            mine = [b[accelerator.process_index :: accelerator.num_processes].tolist() for b in batches]
            loader = DataLoader(train, batch_sampler=mine[done:], num_workers=args.workers)
            model.train()
            begin = time.perf_counter()
            for i, (x, y) in enumerate(loader, done):
                # So that dropout does the same after a resume.
                set_seed(args.seed + epoch * len(batches) + i, device_specific=True)
                lost += step(model, teacher, x, y, len(batches[i]), args, accelerator)
                if not math.isfinite(lost):
                    raise diverged("the loss is not finite", epoch, i + 1)
                if args.clip:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip)
                sgd.step()
                sgd.zero_grad()
                seen += len(x)
                if (i + 1) % args.log_every == 0:
                    pace = (time.perf_counter() - begin) / (i + 1 - done)
                    left = pace * (len(batches) * (args.epochs - epoch) - i - 1) / 60
                    say(f"  step {i + 1} of {len(batches)}, loss {lost / seen:.4f}, about {left:.0f} min to go")
                last = i + 1 == len(batches) or (args.save_every and (i + 1) % args.save_every == 0)
                if last and not all(p.isfinite().all() for p in inner.parameters()):
                    raise diverged("weights are not finite", epoch, i + 1)
                if args.save_every and (i + 1) % args.save_every == 0:
                    save(epoch, i + 1, lost, seen)
            right, mean = accuracy(inner, images, args, accelerator), lost / max(1, seen)
            record["epochs"].append({"lr": args.lr * factor(epoch, args), "loss": mean, "accuracy": right})
            say(f"epoch {epoch + 1} of {args.epochs}: loss {mean:.4f}, {right:.2%} of the {where} images")
            save(epoch + 1, 0)
        kept = sum(frozen.zeros.values())
    record["zeros"].append(zeros(inner))
    record["accuracy"].append(accuracy(inner, images, args, accelerator))
    say(f"after: {record['accuracy'][1]:.2%}, {record['zeros'][1]:,} entries are zero, {kept:,} of them were frozen")
    if first:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".model").mkdir(exist_ok=True)
        sources = [Path(given) for given in (args.model, args.weights) if given and Path(given).is_dir()]
        copy_companions(sources[0] if sources else None, out / ".model")
        if hasattr(inner, "save_pretrained") and not any((s / "modeling_spectrim.py").is_file() for s in sources):
            inner.save_pretrained(out / ".model")  # with the names that other versions of transformers know
        else:
            save_model(inner, str(out / ".model" / "model.safetensors"), metadata={"format": "pt"})
        os.replace(out / ".model", out / "model")
        (out / "finetune.json").write_text(json.dumps(record, indent=1) + "\n")
    accelerator.end_training()
    return record


if __name__ == "__main__":
    main()
