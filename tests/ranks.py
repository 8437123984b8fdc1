"""What each of two real processes does in the tests of frozen zeros; they look at what it writes."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectrim.frozen import frozen_zeros
from spectrim.restore import Restore


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def net(seed: int = 0) -> nn.Module:
    """A small net with 60 % zeros in its matrices, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3))
        with torch.no_grad():
            for p in made.parameters():
                if p.ndim > 1:
                    p.masked_fill_(torch.rand_like(p) < 0.6, 0)
    return made


def batches(steps: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 12, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(steps)]


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() == 0 for name, p in model.named_parameters() if p.ndim > 1}


def lost(model: nn.Module, before: dict[str, Tensor]) -> int:
    """Entries that were zero and are not +0.0 now, bit by bit."""
    now = dict(model.named_parameters())
    return sum(int((now[n].detach()[mask].view(torch.int32) != 0).sum()) for n, mask in before.items())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(model: nn.Module, optimizer, data, before: dict, inner: nn.Module) -> int:
    """The zeros lost over all steps; every second batch is only accumulated, and gradients are clipped."""
    gone = 0
    for i, (x, y) in enumerate(data):
        loss = nn.functional.cross_entropy(model(x), y)
        if i % 2 == 0 and hasattr(model, "no_sync"):
            with model.no_sync():
                loss.backward()
            continue
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        gone += lost(inner, before)
    return gone


def wrapped_data(rank: int, first: bool) -> dict:
    """DistributedDataParallel, made before the context or in it."""
    inner = net()
    before, data = zeros(inner), batches(400 if first else 20, seed=rank)
    model = DistributedDataParallel(inner) if first else None
    with frozen_zeros(inner if model is None else model) as frozen:
        model = model or DistributedDataParallel(inner)
        adam = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        gone = train(model, adam, data, before, inner)
    return {"gone": gone, "zeros": frozen.zeros, "steps": frozen._held.steps, "weights": weights(inner)}


def accelerated(rank: int) -> dict:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    inner = net()
    before, data = zeros(inner), batches(400, seed=rank)
    sgd = torch.optim.SGD(inner.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 200)
    model, sgd, schedule = accelerator.prepare(inner, sgd, schedule)
    gone, norms = 0, []
    with frozen_zeros(model) as frozen:
        for x, y in data:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    masked = sum(
                        p.grad[~before[name]].square().sum() if name in before else p.grad.square().sum()
                        for name, p in inner.named_parameters()
                    )
                    norm = accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    norms.append(abs(float(norm) / float(masked**0.5) - 1))
                sgd.step()
                schedule.step()
                sgd.zero_grad()
            gone += lost(inner, before)
    kind = type(model).__name__
    return {"gone": gone, "steps": frozen._held.steps, "norm": max(norms), "kind": kind, "weights": weights(inner)}


def sharded(rank: int, first: bool) -> dict:
    """FSDP2: parameters are shards (DTensor) that took the place of the ones that the model was built with."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    inner = net()
    before, data = zeros(inner), batches(8, seed=rank)

    def shard():
        fully_shard(inner[0], mesh=mesh)
        fully_shard(inner, mesh=mesh)
        inner(data[0][0])  # leaves the root gathered

    if first:
        shard()
    frozen = frozen_zeros(inner).start()
    if not first:
        shard()
        inner.reshard()
    adam = torch.optim.AdamW(inner.parameters(), lr=0.01, weight_decay=0.1)
    gone, ratios = 0, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for x, y in data:
            nn.functional.cross_entropy(inner(x), y).backward()
            gradients = {name: p.grad.full_tensor() for name, p in inner.named_parameters()}
            masked = sum((g[~before[name]] if name in before else g).square().sum() for name, g in gradients.items())
            norm = nn.utils.clip_grad_norm_(inner.parameters(), 0.1).full_tensor()
            ratios.append(abs(float(norm) / float(masked**0.5) - 1))
            adam.step()
            adam.zero_grad()
            now = {name: p.detach().full_tensor() for name, p in inner.named_parameters()}
            gone += sum(int((now[name][mask].view(torch.int32) != 0).sum()) for name, mask in before.items())
    state = frozen.state_dict()
    frozen.stop()
    return {
        "gone": gone,
        "ratios": ratios,
        "said": [str(w.message) for w in said],
        "zeros": frozen.zeros,
        "state": state,
        "weights": now,
        "kind": type(inner[0].weight).__name__,
    }


def restored(rank: int) -> dict:
    """Prune and restore under DistributedDataParallel: each process sees other data, and all choose alike."""
    inner = net()
    model = DistributedDataParallel(inner)
    restore = Restore(model, zeros=0.7, over=0.1)
    with restore.selecting():
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(5, seed=rank):
            nn.functional.cross_entropy(model(x), y).backward()
            sgd.step()
            sgd.zero_grad()
    changes = restore.finish()
    return {"zeros": {change.name: change.zeros for change in changes}, "weights": weights(inner)}


def other_weights(rank: int) -> str:
    """Process 1 opens the context on weights of its own; the wrapper then gives it those of process 0."""
    inner = net(seed=rank)
    with torch.no_grad():
        inner[0].bias.fill_(1.0)
    try:
        with frozen_zeros(inner):
            model = DistributedDataParallel(inner)
            sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            x, y = batches(1, seed=0)[0]
            nn.functional.cross_entropy(model(x), y).backward()
            sgd.step()
    except RuntimeError as error:
        return str(error)
    return ""


def flat(rank: int) -> list[str]:
    """FSDP of version 1 keeps flat slices: refused, whether it comes before or after."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    said = []
    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    for stage in ("before", "after"):
        try:
            if stage == "before":
                frozen_zeros(model).start()
            else:
                inner = net()
                with frozen_zeros(inner):
                    model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"))
                    x, y = batches(1, seed=rank)[0]
                    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
                    nn.functional.cross_entropy(model(x), y).backward()
                    sgd.step()
            said.append("")
        except (RuntimeError, ValueError) as error:
            said.append(str(error))
    return said


def work(rank: int, port: int, out: str) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {
        "before": wrapped_data(rank, first=True),
        "after": wrapped_data(rank, first=False),
        "accelerate": accelerated(rank),
        "sharded": sharded(rank, first=True),
        "sharded later": sharded(rank, first=False),
        "restored": restored(rank),
        "flat": flat(rank),
        "other weights": other_weights(rank),
    }
    torch.save(found, Path(out) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
