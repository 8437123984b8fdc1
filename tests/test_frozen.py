"""Zeros that stay: bit by bit through optimisers, averages, scaling, several processes, saving and resuming."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ranks
from spectrim import Pruner
from spectrim.factored import Pair, restructure
from spectrim.frozen import frozen_zeros
from spectrim.held import pieces, plain

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("error:.*froze")]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    return ranks.batches(1, seed)[0]


def backward(net: nn.Module, seed: int, scale: float = 1.0) -> Tensor:
    x, y = batch(seed)
    loss = scale * nn.functional.cross_entropy(net(x), y)
    loss.backward()
    return loss.detach()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int, clip: float | None = 0.1) -> None:
    def closure():
        optimizer.zero_grad()
        loss = backward(net, seed)
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4, line_search_fn="strong_wolfe"),
}
LONG = ("adamw", "sgd")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_through_every_step_of_an_optimiser_with_momentum_from_before(name):
    net = ranks.net()
    before = ranks.zeros(net)
    full = copy.deepcopy(net)  # gets momentum in all entries while it is dense
    with torch.no_grad():
        for p in full.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    optimizer = OPTIMIZERS[name](full.parameters())
    for i in range(3):
        step(full, optimizer, seed=i)
    with torch.no_grad():
        for n, p in full.named_parameters():
            if n in before:
                p.masked_fill_(before[n], -0.0)
    rest = {n: p.detach().clone() for n, p in full.named_parameters()}
    with frozen_zeros(full) as frozen:
        assert ranks.lost(full, before) == 0  # -0.0 became +0.0
        for i in range(200 if name in LONG else 15):
            step(full, optimizer, seed=i)
            assert ranks.lost(full, before) == 0, i
    assert frozen.zeros == {"0": 69, "2": 31, "4": 10} == {n[:-7]: int(m.sum()) for n, m in before.items()}
    moved = {n: p.detach() != rest[n] for n, p in full.named_parameters()}
    for n, mask in before.items():  # and the others do train
        assert moved[n][~mask].float().mean() > 0.9


@pytest.mark.parametrize("name", ["adamw", "sgd", "lbfgs"])
def test_without_the_context_zeros_are_lost(name):
    net = ranks.net()
    before = ranks.zeros(net)
    optimizer = OPTIMIZERS[name](net.parameters())
    step(net, optimizer, seed=0)
    assert ranks.lost(net, before) > 0.9 * sum(int(mask.sum()) for mask in before.values())


def test_it_is_the_masked_descent_that_one_would_write_by_hand():
    """Masked gradients, masked weights after the step: the literal loop, to the bit."""
    net, twin = ranks.net(), ranks.net()
    before = ranks.zeros(net)
    adam, other = (torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1) for m in (net, twin))
    with frozen_zeros(net):
        for i in range(20):
            step(net, adam, seed=i)
    for i in range(20):
        other.zero_grad()
        backward(twin, i)
        for n, p in twin.named_parameters():
            if n in before:
                p.grad[before[n]] = 0
        nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
        with torch.no_grad():
            for n, p in twin.named_parameters():
                if n in before:
                    p[before[n]] = 0
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_the_norm_that_is_clipped_is_that_of_what_is_trained():
    net, dense = ranks.net(), ranks.net()
    before = ranks.zeros(net)
    backward(dense, 0)
    kept = [p.grad[~before[n]] if n in before else p.grad for n, p in dense.named_parameters()]
    with frozen_zeros(net):
        backward(net, 0)
        norm = nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    masked = torch.sqrt(sum(g.double().square().sum() for g in kept))
    whole = torch.sqrt(sum(p.grad.double().square().sum() for p in dense.parameters()))
    assert abs(norm / masked - 1) < 1e-6  # float32 sums
    assert whole > 1.05 * masked


def test_gradients_that_no_backward_pass_accumulated_are_masked_on_request():
    net = ranks.net()
    before = ranks.zeros(net)
    x, y = batch(0)
    with frozen_zeros(net) as frozen:
        loss = nn.functional.cross_entropy(net(x), y)
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
            p.grad = g
        assert any(p.grad[before[n]].any() for n, p in net.named_parameters() if n in before)
        frozen.mask_gradients()
        assert not any(p.grad[before[n]].any() for n, p in net.named_parameters() if n in before)
        sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        backward(net, 1)  # what stands there at the step counts, whatever a backward pass has masked before
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        sgd.step()
        for n, mask in before.items():
            momentum = sgd.state[net.get_parameter(n)]["momentum_buffer"]
            assert not momentum[mask].any() and momentum[~mask].all()


def test_accumulation_scaling_and_a_schedule():
    net = ranks.net()
    before = ranks.zeros(net)
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    skipped = 0
    with frozen_zeros(net) as frozen:
        for i in range(30):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(net(batch(i)[0]), batch(i)[1]) * (torch.inf if i == 9 else 1)
            scaler.scale(loss).backward()
            if i % 3 < 2:
                continue
            scaler.unscale_(sgd)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scale = scaler.get_scale()
            scaler.step(sgd)
            scaler.update()
            skipped += scaler.get_scale() < scale
            sgd.zero_grad()
            schedule.step()
            assert ranks.lost(net, before) == 0
    assert frozen._held.steps == 9 and skipped == 1  # one update had overflowed: no step, no loss


def test_averages_of_the_weights():
    net = ranks.net()
    before = ranks.zeros(net)
    adam = torch.optim.AdamW(net.parameters(), lr=0.01)
    old = AveragedModel(copy.deepcopy(net))
    with torch.no_grad():
        for p in old.parameters():
            p.add_(1.0)  # an average from before the pruning
        old.n_averaged.fill_(1)
    with frozen_zeros(net) as frozen:
        mean, smooth = AveragedModel(net), AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        by_hand = {n: p.detach().clone() for n, p in net.named_parameters()}
        for i in range(10):
            step(net, adam, seed=i)
            mean.update_parameters(net)
            smooth.update_parameters(net)
            old.update_parameters(net)
            for n, p in net.named_parameters():
                by_hand[n].lerp_(p.detach(), 0.1)
        assert ranks.lost(mean.module, before) == ranks.lost(smooth.module, before) == 0
        assert not any(by_hand[n][mask].any() for n, mask in before.items())
        assert ranks.lost(old.module, before) > 0
        frozen.apply(old)
        assert ranks.lost(old.module, before) == 0
    net.load_state_dict(mean.module.state_dict())
    assert ranks.lost(net, before) == 0


def run(steps: range, net: nn.Module, adam, schedule, frozen) -> None:
    for i in steps:
        step(net, adam, seed=i)
        schedule.step()
        if i == 9:  # a live weight passes through zero
            with torch.no_grad():
                net[0].weight[~frozen._held.masks["0.weight"]] = 0.0


def fresh() -> tuple:
    net = ranks.net()
    adam = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
    return net, adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, 20)


@pytest.mark.parametrize("inside", [True, False], ids=["loaded inside", "loaded before"])
def test_a_run_that_was_saved_and_resumed_is_the_run(inside):
    parts = fresh()
    with frozen_zeros(parts[0]) as frozen:
        run(range(20), *parts, frozen)
    whole = ranks.weights(parts[0])

    parts, file = fresh(), io.BytesIO()
    with frozen_zeros(parts[0]) as frozen:
        run(range(10), *parts, frozen)
        torch.save([frozen.state_dict(), *(part.state_dict() for part in parts)], file)
    assert int((parts[0][0].weight != 0).sum()) == 0

    def load(parts, frozen) -> None:
        state, *states = torch.load(io.BytesIO(file.getvalue()))
        frozen.load_state_dict(state)
        for part, saved in zip(parts, states, strict=True):
            part.load_state_dict(saved)

    parts = fresh()
    frozen = frozen_zeros(parts[0])
    if not inside:
        load(parts, frozen)
    with frozen:
        if inside:
            load(parts, frozen)
        run(range(10, 20), *parts, frozen)
    assert frozen.zeros == {"0": 69, "2": 31, "4": 10}
    assert all(torch.equal(p, whole[n]) for n, p in parts[0].named_parameters())

    parts = fresh()  # the control: without the masks, what passed through zero would be stuck there
    for part, saved in zip(parts, torch.load(io.BytesIO(file.getvalue()))[1:], strict=True):
        part.load_state_dict(saved)
    with frozen_zeros(parts[0], all_zero=True) as frozen:
        run(range(10, 20), *parts, frozen)
    assert not torch.equal(parts[0][0].weight, whole["0.weight"])


def test_a_state_is_small_and_belongs_to_one_model():
    net = ranks.net()
    with frozen_zeros(net) as frozen:
        state = frozen.state_dict()
    assert state["masks"]["0.weight"]["bits"].numel() == -(-12 * 9 // 8)
    other = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 8))
    with pytest.raises(ValueError, match=r"another model: 2\.weight is not there; 4\.weight is not there"):
        frozen_zeros(other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"0\.weight is \(7, 12\)"):
        frozen_zeros(nn.Sequential(nn.Linear(12, 7))).load_state_dict(state)
    with pytest.raises(ValueError, match="no state of frozen zeros"):
        frozen_zeros(other).load_state_dict({"masks": {}})
    with pytest.raises(ValueError, match="has no masks"):
        frozen_zeros(net).load_state_dict({k: v for k, v in state.items() if k != "masks"})
    for damage, told in (
        (lambda bits: bits[:-3], r"damaged: 11 torch\.uint8 cannot be the bits of 0\.weight, \(9, 12\)"),
        (lambda bits: bits.int(), r"14 torch\.int32 cannot be"),
        (lambda bits: bits ^ (torch.arange(14) == 5).to(torch.uint8), "masks of 0 have other counts"),
    ):
        broken = copy.deepcopy(state)
        broken["masks"]["0.weight"]["bits"] = damage(broken["masks"]["0.weight"]["bits"])
        with pytest.raises(ValueError, match=told):
            frozen_zeros(net).load_state_dict(broken)
    frozen_zeros(net).load_state_dict(state)


def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = transformers.ViTForImageClassification(
            transformers.ViTConfig(**sides, image_size=16, patch_size=8, num_labels=3)
        )
        with torch.no_grad():
            for p in vit.parameters():
                if p.ndim == 2:
                    p[:, ::3] = 0.0
        start, before = ranks.weights(vit), {n: p == 0 for n, p in vit.named_parameters() if p.ndim == 2}
        images = [{"pixel_values": torch.randn(3, 16, 16), "labels": i % 3} for i in range(32)]
        given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
        given |= {"learning_rate": 0.01, "weight_decay": 0.1, "num_train_epochs": 2, "save_strategy": "no"}
        arguments = transformers.TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **given
        )
        with frozen_zeros(vit) as frozen:
            transformers.Trainer(vit, arguments, train_dataset=images).train()
    assert frozen._held.steps == 8 and ranks.lost(vit, before) == 0
    assert all((p != start[n])[~before[n]].any() for n, p in vit.named_parameters() if n in before)


# ------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(ranks.work, (ranks.free_port(), str(out)), nprocs=2)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("how", ["before", "after", "accelerate", "sharded", "sharded later"])
def test_two_processes_keep_every_zero_and_agree(both, how):
    first, second = (found[how] for found in both)
    assert first["gone"] == second["gone"] == 0
    start = ranks.weights(ranks.net())
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
        assert not torch.equal(value, start[name])
    if how in ("before", "accelerate"):
        assert first["steps"] == 200


def test_accelerate_clips_the_norm_of_what_is_trained(both):
    for found in both:
        assert found["accelerate"]["kind"] == "DistributedDataParallel"
        assert found["accelerate"]["norm"] < 1e-5  # of float32 sums in another order


def test_shards_are_masked_before_they_are_clipped(both):
    with frozen_zeros(net := ranks.net()) as frozen:
        expected = frozen.state_dict()["masks"]
    assert net is not None
    for found in both:
        inside, later = found["sharded"], found["sharded later"]
        assert inside["kind"] == later["kind"] == "DTensor"
        assert inside["zeros"] == later["zeros"] == {"0": 69, "2": 31, "4": 10}
        assert max(inside["ratios"]) < 1e-5 and inside["said"] == []
        # Sharding after the context has opened: the first clipping comes too early, and that is said.
        assert later["ratios"][0] > 0.01 and max(later["ratios"][1:]) < 1e-5
        assert len(later["said"]) == 1 and "mask_gradients()" in later["said"][0]
        for state in (inside["state"], later["state"]):
            assert all(torch.equal(state["masks"][n]["bits"], m["bits"]) for n, m in expected.items())


def test_flat_slices_are_refused(both):
    for found in both:
        before, after = found["flat"]
        assert "version 1" in before and "use fully_shard" in before
        assert "structure of the model has changed" in after


def test_two_processes_choose_the_same_entries_to_restore(both):
    first, second = (found["restored"] for found in both)
    entries = 12 * 9 + 9 * 7 + 7 * 3
    assert first["zeros"] == second["zeros"] and sum(first["zeros"].values()) == round(0.7 * entries)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_weights_that_a_wrapper_replaced_are_noticed(both):
    assert both[0]["other weights"] == ""
    assert "were changed since the context was opened" in both[1]["other weights"]


# ---------------------------------------------------------------------------------------------------- odd models


class Embedder(nn.Module):
    def __init__(self, sparse: bool = False):
        super().__init__()
        self.words = nn.Embedding(10, 6, padding_idx=0, sparse=sparse)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.mix = nn.Conv1d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.head = nn.Linear(6, 10, bias=False)
        with torch.no_grad():
            self.token[..., 2] = 1.0
            self.words.weight[3] = 0.0  # a word that is new
            for p in (self.words.weight, self.mix.weight, self.up.weight):
                p[5, 1] = 0.0
        if not sparse:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = (self.words(x) + self.token).mT
        return self.head(self.up(self.mix(h)).mT)


@pytest.mark.parametrize("sparse", [False, True])
def test_embeddings_tied_weights_and_convolutions_of_other_kinds(sparse):
    net = Embedder(sparse)
    adam = torch.optim.SparseAdam([net.words.weight]) if sparse else None
    sgd = torch.optim.SGD([p for p in net.parameters() if not (sparse and p is net.words.weight)], lr=0.1)
    x = torch.arange(1, 10).reshape(3, 3)
    with frozen_zeros(net) as frozen:
        for _ in range(3):
            nn.functional.cross_entropy(net(x).flatten(0, 1), x.flatten()).backward()
            for optimizer in filter(None, (adam, sgd)):
                optimizer.step()
                optimizer.zero_grad()
    assert frozen.zeros == {"words.weight": 1, "mix.weight": 3, "up.weight": 1}
    assert net.words.weight[5, 1] == 0 and not net.mix.weight[5, 1].any() and net.up.weight[5, 1] == 0
    assert net.words.weight[3].all() and net.token.all()
    assert "2 whole zero rows" in frozen.left["words.weight"] and "class token" in frozen.left["token"]
    assert sparse or net.head.weight is net.words.weight


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(12, 3)
        self.a, self.b = nn.Linear(12, 2, bias=False), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.b.weight)
        self.base.requires_grad_(False)
        self.base.weight[0, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


@pytest.mark.parametrize("all_zero", [None, False, True])
def test_a_matrix_that_is_all_zero_trains_unless_told(all_zero):
    net = LowRank()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with frozen_zeros(net, all_zero=all_zero) as frozen:
            step(net, sgd, 0)
    assert bool(net.b.weight.any()) is not bool(all_zero)
    assert frozen.zeros == ({"base": 1, "b": 6} if all_zero else {"base": 1})
    assert ("b" in frozen.left) is not bool(all_zero)
    assert [("b hold nothing but zeros" in str(w.message)) for w in said] == ([True] if all_zero is None else [])


def test_a_layer_that_is_unfrozen_inside_the_context():
    net = ranks.net()
    before = ranks.zeros(net)
    net[0].requires_grad_(False)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with frozen_zeros(net):
        step(net, sgd, 0)
        assert [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * 4
        net[0].requires_grad_(True)
        for i in range(3):
            sgd.zero_grad()
            backward(net, i)  # from the first one on, before anything can be clipped
            assert not any(net.get_parameter(n).grad[mask].any() for n, mask in before.items())
            sgd.step()
            assert ranks.lost(net, before) == 0
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.c_proj = Conv1D(6, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x[:, None]).chunk(3, -1)
        h, _ = self.lstm(self.attention(q, k, v)[0])
        return self.out(self.c_proj(h)[:, 0])


class Conv1D(nn.Module):
    def __init__(self, inputs: int, nf: int):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_only_is_asked_for_each_matrix_by_the_name_that_a_survey_gives_it():
    net = Fused()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p[torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) < 0.5] = 0.0
    asked: list[str] = []

    def only(name: str) -> bool:
        asked.append(name)
        return name not in ("qkv[v]", "lstm.weight_ih_l0[g]")

    before = ranks.zeros(net)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    with frozen_zeros(net, only=only) as frozen:
        for _ in range(3):
            nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()
    import spectrim

    assert {r.name for r in spectrim.survey(net).matrices} == set(asked)
    assert set(frozen.left) == {"qkv[v]", "lstm.weight_ih_l0[g]"}
    assert sum(frozen.zeros.values()) < sum(int(mask.sum()) for mask in before.values())
    now = dict(net.named_parameters())
    free = {"qkv.weight": slice(12, 18), "lstm.weight_ih_l0": slice(12, 18)}
    for name, mask in before.items():
        mask, rows = mask.clone(), free.get(name)
        if rows is not None:
            assert now[name][rows][mask[rows]].any()
            mask[rows] = False
        assert not now[name][mask].any(), name


def test_pairs_stay_pairs_and_their_halves_keep_their_zeros():
    net = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3))
    restructure(net, {"0": {"form": "linear", "cols": 12, "parts": [{"rows": 9, "rank": 3}]}})
    with torch.no_grad():
        for p in net.parameters():
            nn.init.normal_(p)
        net[0][0].weight[0, :4] = 0.0
        net[0][1].weight[:2, 1] = 0.0
    before = ranks.zeros(net)
    adam = torch.optim.AdamW(net.parameters(), lr=0.1)
    with frozen_zeros(net) as frozen:
        for i in range(5):
            step(net, adam, i)
            assert ranks.lost(net, before) == 0
    assert isinstance(net[0], Pair) and frozen.zeros == {"0": 6}


def test_compiled_models_and_compiled_parts():
    for compiled in ("model", "part"):
        net = ranks.net()
        before = ranks.zeros(net)
        if compiled == "part":
            net[0] = torch.compile(net[0], backend="eager")
            before["0._orig_mod.weight"] = before.pop("0.weight")
        model = torch.compile(net, backend="aot_eager") if compiled == "model" else net
        adam = torch.optim.AdamW(model.parameters(), lr=0.1)
        with frozen_zeros(model) as frozen:
            for i in range(3):
                step(model, adam, i)
                assert ranks.lost(net, before) == 0
        assert frozen.zeros == {"0": 69, "2": 31, "4": 10}
        assert set(frozen.state_dict()["masks"]) == {"0.weight", "2.weight", "4.weight"}


def test_names_without_what_wrappers_put_in():
    assert plain("_orig_mod.a.weight") == plain("a._checkpoint_wrapped_module.weight") == "a.weight"
    assert plain("a_orig_mod.weight") == "a_orig_mod.weight"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_one_layer_and_what_is_not_trained(dtype):
    net = nn.Linear(12, 3).to(dtype)
    with torch.no_grad():
        net.weight[0] = 0.0
    net.register_parameter("codes", nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False))
    adam = torch.optim.AdamW([net.weight, net.bias], lr=0.1)
    with frozen_zeros(net) as frozen:
        for _ in range(3):
            net(torch.randn(8, 12, dtype=dtype)).square().sum().backward()
            adam.step()
    assert not net.weight[0].any() and net.weight[1:].all()
    assert frozen.zeros == {"(model)": 12} and "uint8" in frozen.left["codes"]
    assert "12 zeros" in str(frozen) and "uint8" in str(frozen)


def test_weights_that_torch_masks_itself_stay_masked():
    net = ranks.net()
    from torch.nn.utils import prune

    prune.l1_unstructured(net[0], "weight", amount=90)
    before = ranks.zeros(net)  # of what is stored
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with frozen_zeros(net):
        step(net, sgd, 0)
        assert ranks.lost(net, before) == 0
    assert int((net[0].weight == 0).sum()) == 90


def test_copies_and_files_of_a_model_can_be_made_inside():
    net = ranks.net()
    with frozen_zeros(net):
        twin = copy.deepcopy(net)
        file = io.BytesIO()
        torch.save(net, file)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    before = ranks.zeros(twin)
    step(twin, sgd, 0)
    assert ranks.lost(twin, before) > 0  # the copy is a model of its own
    assert torch.load(io.BytesIO(file.getvalue()), weights_only=False)[0].weight.shape == (9, 12)


def test_every_piece_lies_where_the_survey_reads_the_matrix():
    from spectrim.modules import of_module

    net = Fused()
    sites = {site.name: site.get() for site in of_module(net).sites}
    now = dict(net.named_parameters())
    found = {p.matrix: p.of(now[name].detach()) for name, parts in pieces(net).items() for p in parts}
    assert set(found) == set(sites)
    assert all(torch.equal(found[name], W) for name, W in sites.items())


# ------------------------------------------------------------------------------------- what goes wrong, and is told


class ByHand:
    """An optimiser that is none of torch's."""

    def __init__(self, net):
        self.net = net

    def step(self):
        with torch.no_grad():
            for p in self.net.parameters():
                p -= 0.1 * (p.grad + 0.1)


def test_an_optimiser_that_is_none_of_torchs():
    net = ranks.net()
    before = ranks.zeros(net)
    told = r"110 frozen zeros .* no step of a torch optimiser .* frozen\.apply\(\)"
    with pytest.warns(UserWarning, match=told), frozen_zeros(net):
        backward(net, 0)
        ByHand(net).step()
        assert ranks.lost(net, before) == 110
    assert ranks.lost(net, before) == 0
    with frozen_zeros(net) as frozen:
        backward(net, 0)
        ByHand(net).step()
        frozen.apply()
        assert ranks.lost(net, before) == 0


def test_weights_that_are_loaded_inside():
    net = ranks.net()
    before = ranks.zeros(net)
    dense = {n: torch.ones_like(p) for n, p in net.state_dict().items()}
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="before any step"), frozen_zeros(net):
        net.load_state_dict(dense)
        step(net, sgd, 0)
    assert ranks.lost(net, before) == 0
    with pytest.warns(UserWarning, match="written to after the last step"), frozen_zeros(net):
        step(net, sgd, 0)
        net.load_state_dict(dense)
    assert ranks.lost(net, before) == 0
    with frozen_zeros(net) as frozen:
        step(net, sgd, 0)
        best = copy.deepcopy(net.state_dict())
        step(net, sgd, 1)
        net.load_state_dict(best)  # of the same zeros: nothing to tell
        step(net, sgd, 2)
        for _ in range(2):  # at every step, not at the first alone
            net.load_state_dict(dense)
            with pytest.raises(RuntimeError, match=r"69 entries of 0\.weight.* since the last step.*frozen\.apply\(\)"):
                step(net, sgd, 3)
            assert all(torch.equal(p, dense[n]) for n, p in net.named_parameters())  # the step was not taken
        frozen.apply()
        step(net, sgd, 3)
        with torch.random.fork_rng():
            net[2] = nn.Linear(9, 7)  # in no optimiser
        with pytest.raises(RuntimeError, match=r"31 entries of 2\.weight"):
            step(net, sgd, 4)
        frozen.refresh()
        step(net, sgd, 4)
        assert frozen.zeros == {"0": 69, "4": 10}


def test_parameters_that_are_replaced_under_the_same_name():
    net = ranks.net()
    before = ranks.zeros(net)
    with frozen_zeros(net):
        net.load_state_dict({n: p.clone() for n, p in net.state_dict().items()}, assign=True)
        adam = torch.optim.AdamW(net.parameters(), lr=0.1)
        with pytest.warns(UserWarning, match="took the place"):
            step(net, adam, 0)
        assert ranks.lost(net, before) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(net, adam, 1)
        assert ranks.lost(net, before) == 0


def test_a_layer_that_becomes_a_pair_inside():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 80), nn.Tanh(), nn.Linear(80, 3))
    with torch.no_grad():
        net[0].weight[:10, :10] = 0.0
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)

    def go():
        net(torch.randn(8, 60)).square().sum().backward()
        sgd.step()

    told = r"structure of the model has changed: 0\.weight is not there"
    with pytest.raises(RuntimeError, match=told), frozen_zeros(net):
        go()
        restructure(net, {"0": {"form": "linear", "cols": 60, "parts": [{"rows": 80, "rank": 5}]}})
        for p in net[0].parameters():
            nn.init.normal_(p)
        sgd.add_param_group({"params": [p for p in net[0].parameters() if p.ndim > 1]})
        go()
    with pytest.warns(UserWarning, match="hold no zeros"), frozen_zeros(net):
        go()


def test_a_pruner_inside_is_told_of():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 80), nn.Tanh(), nn.Linear(80, 3))
    with torch.no_grad():
        net[0].weight[:10, :10] = 0.0
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(net, sgd, keep=0.2)
    told = "written to after the last step|structure of the model has changed"
    with pytest.warns(UserWarning, match=told), frozen_zeros(net):
        net(torch.randn(8, 60)).square().sum().backward()
        sgd.step()
        assert pruner.step(0)


def test_a_model_without_zeros_and_names_that_do_not_match():
    with pytest.warns(UserWarning, match="nothing is frozen"), frozen_zeros(nn.Sequential(nn.Linear(3, 3))) as frozen:
        assert frozen.zeros == {}
    net = ranks.net()
    with pytest.raises(ValueError, match=r"only= lets none .* 0, 2, 4"), frozen_zeros(net, only=lambda name: False):
        pass
    with pytest.raises(TypeError, match="only is a function"):
        frozen_zeros(net, only="0")
    with pytest.raises(TypeError, match="live module"):
        frozen_zeros(net.state_dict())
    with pytest.raises(ValueError, match="meta device"), frozen_zeros(nn.Linear(3, 3, device="meta")):
        pass
    with pytest.raises(RuntimeError, match="not open"):
        frozen_zeros(net).apply()
    with pytest.raises(RuntimeError, match="open already"), frozen_zeros(net) as frozen, frozen:
        pass


def test_other_models_are_left_alone_and_nothing_stays_behind():
    net, other = ranks.net(), ranks.net()
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    before = ranks.zeros(net)
    sgd, its = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, other))
    with pytest.raises(KeyError), frozen_zeros(net):
        step(other, its, 0)
        assert ranks.lost(other, before) > 0
        step(net, sgd, 0)
        raise KeyError("in the middle of a run")
    assert ranks.lost(net, before) == 0
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == hooks
    step(net, sgd, 0)
    assert ranks.lost(net, before) > 0
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())
    gone = weakref.ref(net)
    del net, sgd
    gc.collect()
    assert gone() is None


def test_start_stop_refresh_and_two_optimisers():
    net = ranks.net()
    one, two = torch.optim.Adam(net[:2].parameters(), lr=0.1), torch.optim.SGD(net[2:].parameters(), lr=0.1)
    frozen = frozen_zeros(net).start()
    with torch.no_grad():
        net[0].weight.masked_fill_(net[0].weight.abs() < 0.1, 0.0)  # pruned further
    more = int((net[0].weight == 0).sum())
    assert more > frozen.zeros["0"]
    frozen.refresh()
    assert frozen.zeros["0"] == more
    before = ranks.zeros(net)
    for i in range(3):
        backward(net, i)
        assert not any(p.grad[before[n]].any() for n, p in net.named_parameters() if n in before)
        two.step()
        one.step()
        assert ranks.lost(net, before) == 0
    frozen.stop()
    frozen.stop()


def test_a_context_that_is_dropped_open_leaves_nothing_behind():
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    net = ranks.net()
    before = ranks.zeros(net)
    frozen = frozen_zeros(net).start()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    gc.collect()
    step(net, sgd, 0)
    assert ranks.lost(net, before) == 0  # as long as somebody has it
    with pytest.warns(UserWarning, match="dropped while it was open"):
        del frozen
        gc.collect()
    assert (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)) == hooks
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in net.parameters())
    step(net, sgd, 0)
    assert ranks.lost(net, before) > 0
    gone = weakref.ref(net)
    del net, sgd
    gc.collect()
    assert gone() is None
