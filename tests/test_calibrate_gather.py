"""What layers read, gathered by hooks, against literal loops; odd models, and that nothing of them is changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectrim import plan, survey, trim
from spectrim.calibrate import gather
from spectrim.calibrate.running import Running
from spectrim.modules import of_module

SEED = 5


def noise(*shape, seed: int = SEED) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_moment(found, x: torch.Tensor, rtol: float = 1e-5):
    """Held against float64 sums over x, positions x cols; products are float32, so about six figures are right."""
    x = x.double()
    C = x.T @ x / len(x)
    assert found.count == len(x)
    assert torch.allclose(found.dense(), C, rtol=rtol, atol=rtol * float(C.diagonal().max()))
    assert torch.allclose(found.mean.double(), x.mean(0), rtol=rtol, atol=rtol * float(x.abs().max()))


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# The sums ------------------------------------------------------------------------------------------------------------


def test_a_mean_a_thousand_times_the_spread_does_not_lose_the_covariance():
    x = noise(4000, 20) @ noise(20, 20, seed=1) + 1000 * noise(20, seed=2).sign() * noise(20, 20, seed=1).norm(dim=0)
    running = Running(20)
    for part in x.split(300):
        running.add(part)
    found = running.moment()
    truth = torch.from_numpy(np.cov(x.double().numpy().T, bias=True))
    # x itself is float32: its figures of 1e3 carry 3e-5 of a deviation, which the truth here shares.
    assert (found.covariance() - truth).abs().max() < 1e-4 * truth.diagonal().max()
    naive = (x.T @ x / len(x) - torch.outer(x.mean(0), x.mean(0))).double()
    assert (naive - truth).abs().max() > 1e-2 * truth.diagonal().max()  # what plain float32 sums would have left
    assert found.second.dtype == torch.float64


def test_kurtosis_and_the_largest_are_those_of_a_loop():
    x = noise(3000, 300) ** 3 + 2
    x[:, 7] = 4.0  # a constant has no tails
    running = Running(300)
    for part in x.split(700):
        running.add(part)
    found = running.moment()
    for j in (0, 7, 150, 299):
        d = x[:, j].double() - x[:, j].double().mean()
        expected = float((d**4).mean() / (d**2).mean() ** 2) if j != 7 else 0.0
        assert float(found.kurtosis[j]) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(found.largest, x.abs().amax(0))
    assert_moment(found, x)
    assert torch.equal(found.second, found.second.T)
    assert np.linalg.eigvalsh(found.dense().numpy()).min() > -1e-5 * float(found.dense().diagonal().max())


def test_what_was_added_can_be_taken_out_again():
    x, y = noise(50, 9), noise(70, 9, seed=1) + 3
    running = Running(9)
    running.add(x)
    running.add(y)
    running.add(x, sign=-1)
    assert_moment(running.moment(), y)


# Kinds of layers -----------------------------------------------------------------------------------------------------


def test_linear_layers_read_every_position():
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4))
    batches = [noise(5, 7, 6, seed=i) for i in range(3)]
    found = gather(net, batches)
    x = torch.cat(batches).reshape(-1, 6)
    assert_moment(found["0"], x)
    with torch.no_grad():
        assert_moment(found["2"], net[:2](x))
    assert found.source == "samples" and found.recipe["samples"] == 15 and found.model == survey(net).fingerprint


CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "rectangle": {"kernel_size": (2, 5), "stride": (1, 3), "padding": (0, 2)},
    "dilated": {"kernel_size": 3, "dilation": (2, 1), "padding": 2},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "pointwise": {"kernel_size": 1, "stride": 2},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    "replicate, same": {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
}


@pytest.mark.parametrize("how", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_reads_patches_in_the_order_of_its_weight(how):
    """The inputs are right when the matrix times them is the output: W C W^T is the second moment of the outputs."""
    torch.manual_seed(SEED)
    conv = nn.Conv2d(4, 6, **how, bias=False)
    net = nn.Sequential(conv)
    images = noise(3, 4, 11, 9)
    found = gather(net, [images], positions=None)
    out = conv(images).detach().double()
    at = 0
    for site in of_module(net).sites:
        y = out[:, at : at + site.rows].transpose(0, 1).flatten(1)
        at += site.rows
        W, moment = site.get().double(), found[site.name]
        assert moment.count == y.shape[1]
        assert torch.allclose(W @ moment.dense() @ W.T, y @ y.T / y.shape[1], rtol=1e-4, atol=1e-5)
        assert torch.allclose(W @ moment.mean.double(), y.mean(1), atol=1e-5)
    assert at == 6


def test_patches_are_those_of_a_literal_loop():
    conv = nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(1, 0))
    images = noise(2, 2, 5, 6)
    padded = F.pad(images, (0, 0, 1, 1))
    rows = [
        padded[b, :, y : y + 2, x : x + 3].reshape(-1) for b in range(2) for y in range(0, 6, 2) for x in range(0, 4)
    ]
    assert_moment(gather(nn.Sequential(conv), [images], positions=None)["0"], torch.stack(rows))


def test_very_many_positions_are_taken_on_a_grid():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    images = noise(4, 3, 40, 40)
    found = gather(nn.Sequential(conv), [images], positions=100)
    assert found["0"].count == 4 * 100
    columns = F.unfold(F.pad(images, (1, 1, 1, 1)), 3).view(4, 27, 40, 40)
    assert_moment(found["0"], columns[:, :, 1::4, 1::4].permute(0, 2, 3, 1).reshape(-1, 27))


def test_conv1d_of_gpt2_reads_its_input():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    net = nn.Sequential(Conv1D(9, 4))
    x = noise(5, 4)
    assert_moment(gather(net, [x])["0"], x)


def test_a_pair_that_a_split_left_reads_what_the_layer_read():
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24))
    x = noise(40, 24)
    dense = gather(net, [x])
    trim(net, plan(survey(net), params=0.5))
    assert not isinstance(net[0], nn.Linear)
    cut = gather(net, [x])
    assert set(cut) == {"0", "2"} and cut["0"].cols == 24
    assert torch.equal(cut["0"].second, dense["0"].second)


def test_q_k_and_v_of_attention_and_the_map_after_it():
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
    x, memory = noise(3, 5, 8), noise(3, 7, 8, seed=1)
    found = gather(net, [lambda m: m[0](x, x, x)])
    q, k, v = (found[f"0.in_proj_weight[{part}]"] for part in "qkv")
    assert q is k is v
    assert_moment(q, x.reshape(-1, 8))
    # The twin of the map after: heads by hand.
    attention = net[0]
    with torch.no_grad():
        halves = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
        heads = [part.view(3, 5, 2, 4).transpose(1, 2) for part in halves]
        weights = (heads[0] @ heads[1].transpose(-1, -2) / 2).softmax(-1)
        assert_moment(found["0.out_proj"], (weights @ heads[2]).transpose(1, 2).reshape(-1, 8))
    crossed = gather(net, [lambda m: m[0](x, key=memory, value=memory)])
    assert crossed["0.in_proj_weight[k]"] is crossed["0.in_proj_weight[v]"]
    assert_moment(crossed["0.in_proj_weight[q]"], x.reshape(-1, 8))
    assert_moment(crossed["0.in_proj_weight[k]"], memory.reshape(-1, 8))
    whole = gather(net, [lambda m: m[0](x, memory, memory)], sites=of_module(net, "whole").sites)
    assert "take them apart" in whole.missing["0.in_proj_weight"] and "0.out_proj" in whole


@pytest.mark.parametrize("padded", [False, True])
def test_torch_s_own_encoder_is_seen_through(padded):
    """In evaluation torch runs the whole layer in one kernel, in which no hook is called, and nests padded batches."""
    torch.manual_seed(SEED)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    x = noise(4, 5, 8)
    mask = torch.arange(5)[None] >= torch.tensor([5, 3, 4, 2])[:, None] if padded else None
    fast = torch.backends.mha.get_fastpath_enabled()
    found = gather(net, [{"src": x, "src_key_padding_mask": mask}])
    assert not found.missing and len(found) == 2 * 6
    assert found["layers.0.linear1"].count == (14 if padded else 20)
    assert_moment(found["layers.0.self_attn.in_proj_weight[q]"], x[~mask] if padded else x.reshape(-1, 8))
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_recurrent_layers_give_what_can_be_seen():
    lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True, bidirectional=True)
    net = nn.Sequential(lstm)
    x = noise(3, 4, 5)
    found = gather(net, [x])
    assert_moment(found["0.weight_ih_l0[i]"], x.reshape(-1, 5))
    assert found["0.weight_ih_l0[i]"] is found["0.weight_ih_l0_reverse[o]"]
    assert "made inside LSTM" in found.missing["0.weight_hh_l0[i]"]
    assert "made inside LSTM" in found.missing["0.weight_ih_l1[i]"]
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2, 1]), batch_first=True)
    assert gather(net, [lambda m: m[0](packed)])["0.weight_ih_l0[f]"].count == 7
    cell = gather(nn.Sequential(nn.GRUCell(5, 6)), [x[:, 0]])
    assert_moment(cell["0.weight_ih[r]"], x[:, 0])


def test_a_layer_with_a_forward_of_its_own_is_seen_where_torch_s_function_is_called():
    class SamePadded(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)

    class Normed(nn.Linear):
        def forward(self, x):
            return F.linear(input=F.normalize(x, dim=-1), weight=self.weight)

    class Opaque(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.opaque = SamePadded(2, 5, 2), Normed(5, 4), Opaque(4, 3)

        def forward(self, x):
            return self.opaque(self.fc(self.conv(x).mean((2, 3))))

    net, images = Net(), noise(3, 2, 4, 4)
    found = gather(net, [images])
    columns = F.unfold(F.pad(images, (0, 1, 0, 1)), 2).transpose(1, 2).reshape(-1, 8)
    assert_moment(found["conv"], columns)
    with torch.no_grad():
        assert_moment(found["fc"], F.normalize(net.conv(images).mean((2, 3)), dim=-1))
    assert set(found.missing) == {"opaque"}


# Sharing -------------------------------------------------------------------------------------------------------------


class QKV(nn.Module):
    """q, k and v read the same tensor, or, from the second call on, k and v read another one."""

    def __init__(self, how: str):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.how, self.calls = how, 0

    def forward(self, x):
        self.calls += 1
        y = x
        if self.how == "copies":
            y = x.clone()
        if self.how == "changed in place":
            self.q(x)
            x += 1
            return self.k(x) + self.v(x)
        if self.how == "later" and self.calls > 1:
            y = x + 1
        if self.how == "dropped" and self.calls > 1:
            return self.q(x) + self.v(x)
        return self.q(x) + self.k(y) + self.v(y)


@pytest.mark.parametrize("how", ["same", "copies", "changed in place", "later", "dropped"])
def test_sums_are_shared_for_as_long_as_the_tensors_are(how):
    net = QKV(how)
    batches = [noise(5, 6, seed=i) for i in range(3)]
    seen = {name: [] for name in "qkv"}
    for name in seen:
        getattr(net, name).register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0].clone()))
    before = hooks_of(net)
    found = gather(net, [b.clone() for b in batches])
    assert hooks_of(net) == before
    for name, x in seen.items():
        assert_moment(found[name], torch.cat(x))
        assert torch.equal(found[name].largest, torch.cat(x).abs().amax(0))
    assert (found["q"] is found["k"]) == (how == "same")
    assert (found["k"] is found["v"]) == (how in ("same", "copies", "changed in place"))


def test_a_layer_that_is_called_twice_counts_both_calls():
    torch.manual_seed(SEED)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.fc.weight

        def forward(self, x):
            return self.tied(self.fc(self.fc(x)))

    net, x = Twice(), noise(10, 4)
    found = gather(net, [x])
    with torch.no_grad():
        once = net.fc(x)
        assert_moment(found["fc"], torch.cat([x, once, net.fc(once)]))
    assert list(found) == ["fc"]


def test_a_layer_that_is_never_called_is_missing_with_the_reason():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    found = gather(net, [lambda m: m["a"](noise(4, 3))])
    assert list(found) == ["a"] and "no input" in found.missing["b"]
    nothing = gather(net, [lambda m: None])
    assert not nothing and set(nothing.missing) == {"a", "b"}


# Masks ---------------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.pooler = nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x, attention_mask=None):
        return self.pooler(self.fc(x)[:, 0])


def test_padding_is_left_out():
    net, x = Masked(), noise(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    found = gather(net, [{"x": x, "attention_mask": mask}])
    assert_moment(found["fc"], x[mask.bool()])
    assert found["pooler"].count == 3 and not found.notes
    positional = gather(net, [(x, mask)])
    assert torch.equal(positional["fc"].second, found["fc"].second)
    other = gather(net, [{"x": x, "attention_mask": torch.zeros(3, 9)}])
    assert other["fc"].count == 15 and "padding" in other.notes[0]


# The model is left as it was -----------------------------------------------------------------------------------------


def test_mode_generator_and_weights_are_what_they_were():
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    net.train()
    net[1].eval()  # a frozen norm inside a model that trains
    state = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    first, second = (gather(net, [noise(16, 8)]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.equal(first["3"].second, second["3"].second)  # no dropout
    assert [m.training for m in net] == [True, False, True, True] and net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.is_grad_enabled() and hooks_of(net) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_hooks_are_gone_after_an_error(error):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).train()

    def stops(model):
        model(noise(2, 4))
        raise error("now")

    with pytest.raises((error, ValueError)):
        gather(net, [stops])
    assert hooks_of(net) == 0 and net.training and torch.is_grad_enabled()


def test_nan_is_told_with_the_layer_and_nothing_is_left_behind():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"inputs of 1 are not finite.*3 of 12.*batch 1"):
        gather(net, [lambda model: None, noise(3, 4)])
    assert hooks_of(net) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types(dtype):
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 4)).to(dtype)
    images = noise(6, 2, 3, 3)  # float32, as images come
    found = gather(net, [images])
    x = F.unfold(images.to(dtype).double(), 2).transpose(1, 2).reshape(-1, 8)
    assert_moment(found["0"], x, rtol=1e-5 if dtype != torch.float64 else 1e-12)
    assert found["0"].second.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# Bad inputs ----------------------------------------------------------------------------------------------------------


def test_samples_of_the_wrong_shape_bring_the_models_own_error_with_an_address():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"batch 1 \(float32 \(2, 5\)\).*Sequential.*shapes cannot be multiplied"):
        gather(net, [noise(2, 4), noise(2, 5)])
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    for images, complaint in [(noise(2, 1, 5, 5), "3 channels"), (noise(2, 3, 2, 2), "Kernel size can't be greater")]:
        with pytest.raises(ValueError, match=f"batch 0.*after 0 had been reached.*{complaint}"):
            gather(conv, [images])
    with pytest.raises(ValueError, match="labels are not needed"):
        gather(net, [(noise(2, 4), torch.tensor([0, 1]))])
    assert hooks_of(net) == 0


@pytest.mark.parametrize(
    ("inputs", "error", "complaint"),
    [
        ([], ValueError, "no batch"),
        ("images", TypeError, "iterable of batches"),
        (3, TypeError, "iterable of batches"),
        ([np.ones((2, 4))], TypeError, "batch 0 is ndarray"),
        (torch.ones(4), ValueError, "samples x anything"),
        (torch.ones(0, 4), ValueError, "batch 0 holds no sample"),
        ([torch.ones(2, 4), (torch.ones(0, 4),)], ValueError, "batch 1 holds no sample"),
    ],
)
def test_what_is_no_input_is_refused(inputs, error, complaint):
    with pytest.raises(error, match=complaint):
        gather(nn.Sequential(nn.Linear(4, 4)), inputs)


def test_what_cannot_be_gathered_from_is_refused():
    with pytest.raises(TypeError, match="live module"):
        gather("folder", [noise(2, 4)])
    with pytest.raises(ValueError, match="left out by only="):
        gather(nn.Sequential(nn.Linear(4, 4)), [noise(2, 4)], only=lambda name: False)
    with pytest.raises(ValueError, match="no matrix"):
        gather(nn.ReLU(), [noise(2, 4)])


def test_inputs_come_in_many_forms():
    net = nn.Sequential(nn.Linear(4, 4))
    x = noise(40, 4)
    forms = [
        x,
        [x],
        iter(x.split(7)),
        [(x,)],
        [[x]],
        [lambda m: m(x)],
        [{"input": x}],
        torch.utils.data.DataLoader(x, 9),
    ]
    for inputs in forms:
        assert_moment(gather(net, inputs)["0"], x)


def test_a_model_that_ignores_its_input_is_found_out():
    class Deaf(nn.Module):
        def __init__(self, all_of_it: bool):
            super().__init__()
            self.hears, self.deaf = nn.Linear(4, 4), nn.Linear(4, 4)
            self.all = all_of_it

        def forward(self, x):
            y = torch.ones_like(x)
            return self.deaf(y) if self.all else self.deaf(y) + self.hears(x)

    batches = [noise(1, 4, seed=i) for i in range(3)]
    assert "ignores its input" in gather(Deaf(True), batches).notes[0]
    notes = gather(Deaf(False), [noise(6, 4)]).notes
    assert notes == ("the same input for every sample: deaf",)
    assert not gather(nn.Sequential(nn.Linear(1, 4)), [noise(9, 1)]).notes  # an ordinary model has nothing to tell


def test_a_dead_layer_is_told_of():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    found = gather(net, [noise(20, 4)])
    assert found["2"].dead and not found["0"].dead
    assert torch.equal(found["2"].damped(0.01), torch.eye(4, dtype=torch.float64))
    assert not found["2"].kurtosis.any() and "all zero" in str(found)
    assert any("same input for every sample: 2" in note for note in found.notes)


def test_too_few_positions_are_told_of():
    assert "no full rank: 0" in gather(nn.Sequential(nn.Linear(30, 4)), [noise(20, 30)]).notes[0]


def test_only_and_sites_choose():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert list(gather(net, [noise(5, 4)], only=lambda name: name == "1")) == ["1"]
    sites = [site for site in of_module(net).sites if site.name == "0"]
    some = gather(net, [noise(5, 4)], sites=sites, source="synthetic", recipe={"seed": 4})
    assert list(some) == ["0"] and some.source == "synthetic" and some.recipe["seed"] == 4
    assert some.model == survey(net).fingerprint
