"""Sequential moments against the literal twin: for each group, the whole cut model is run anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spectrim.calibrate import gather, sequential
from spectrim.linalg import svd
from spectrim.modules import of_module

SEED = 11


def noise(*shape, seed: int = SEED) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thinned(W: torch.Tensor) -> torch.Tensor:
    W = W.clone(memory_format=torch.contiguous_format)
    W.view(-1)[W.abs().view(-1).argsort()[: W.numel() // 2]] = 0
    return W


def cutter(kept: list, split: bool = False):
    """A cut of half of each matrix that keeps the moments it was given."""

    def cut(sites, moments):
        assert [s.name for s in sites] == list(moments)
        kept.append({name: (m.second.clone(), m.mean.clone(), m.count) for name, m in moments.items()})
        for site in sites:
            if split and site.split is not None:
                site.split(*svd(site.get()).truncate(max(1, min(site.rows, site.cols) // 3)).split())
            else:
                site.put(thinned(site.get()))

    return cut


def assert_like_the_twin(model, inputs, split: bool = False, only=None, rtol: float = 1e-5):
    """Run both; the twin knows the groups, and gathers each from a run of the whole model as it is by then."""
    twin, fast, slow = copy.deepcopy(model), [], []
    done = sequential(model, inputs, cutter(fast, split), only=only)
    cut = cutter(slow, split)
    sites = {site.name: site for site in of_module(twin).sites}
    for names in done.groups:
        found = gather(twin, inputs, sites=[sites[name] for name in names])
        cut([sites[name] for name in names], found)
    assert len(fast) == len(slow) == len(done.groups) > 0
    for mine, theirs in zip(fast, slow, strict=True):
        for name, (second, mean, count) in mine.items():
            other = theirs[name]
            scale = float(other[0].diagonal().max())
            assert count == other[2], name
            assert torch.allclose(second.double(), other[0].double(), rtol=1e-5, atol=rtol * scale), name
            assert torch.allclose(mean.double(), other[1].double(), rtol=1e-5, atol=rtol * scale**0.5), name
    state = twin.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    return done


class Block(nn.Module):
    def __init__(self, width: int, how: str = ""):
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))
        self.how = how

    def forward(self, x, mask=None, extra=None, memory=None):
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(-1, -2)
        if mask is not None:
            scores = scores + mask
        if extra is not None:
            scores = scores + extra.mean()
        if memory is not None:
            memory.append(float(x.mean()))
            scores = scores + sum(memory)
        x = x + self.o(scores.softmax(-1) @ y)
        x = x + self.mlp(x)
        return (x, scores) if self.how == "tuple" else x


class Net(nn.Module):
    """A stem, a stack of blocks, a head; `how` says what the blocks are handed besides the hidden state."""

    def __init__(self, how: str = "", blocks: int = 3, width: int = 6):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            Block(width, "tuple" if how in ("tuple", "handed on") else "") for _ in range(blocks)
        )
        self.how = how
        if how == "shared block":
            self.blocks = nn.ModuleList([self.blocks[0]] * blocks)
        if how == "shared weight":
            self.blocks[2].o.weight = self.blocks[0].o.weight
        if how in ("skip", "told aside"):
            self.aside = nn.Linear(width, width)

    def forward(self, x):
        x = self.stem(x)
        how, first, scores, memory = self.how, x, None, []
        mask = torch.zeros(x.shape[1], x.shape[1]).fill_diagonal_(-1.0)
        for i, block in enumerate(self.blocks):
            if how == "mask":
                x = block(x, mask)
            elif how == "a mask each":
                x = block(x, mask=mask * i)
            elif how == "tuple":
                x = block(x)[0]
            elif how == "handed on":
                x, scores = block(x, extra=scores)
            elif how == "memory":
                x = block(x, memory=memory)
            elif how == "by name":
                x = block(mask=mask, x=x)
            elif how == "told aside":
                told = self.aside(first) if i == 1 else None
                x = block(x, extra=told)
            elif how == "between":
                x = block(x * 1.5)
            elif how == "in place":
                x = block(x)
                x += 1
            elif how == "skip":
                x = block(x)
                if i == 0:
                    first = self.aside(x)
            elif how == "random order" and i == 1 and float(x[0, 0, 0]) > 0:
                continue
            else:
                x = block(x)
        return self.head(x + first)


CHAINED = ("", "mask", "a mask each", "tuple", "by name", "skip")
ANEW = ("handed on", "memory", "between", "in place", "shared block", "shared weight", "random order", "told aside")


@pytest.mark.parametrize("how", [*CHAINED, *ANEW])
def test_every_group_sees_the_model_as_it_is_when_its_turn_comes(how):
    torch.manual_seed(SEED)
    net = Net(how).eval()
    done = assert_like_the_twin(net, [noise(3, 5, 4, seed=i) for i in range(3)])
    assert ("blocks" in done.chained) == (how in CHAINED)
    if how in CHAINED:
        assert done.anew == 2 + (how == "skip")  # what is no block
        assert done.groups[:3] == (("stem",), ("blocks.0.q", "blocks.0.k"), ("blocks.0.o",))
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


@pytest.mark.parametrize("how", [*CHAINED, *ANEW])
def test_moments_of_the_dense_model_a_block_at_a_time(how):
    torch.manual_seed(SEED)
    net, kept = Net(how).eval(), []
    inputs = [noise(3, 5, 4, seed=i) for i in range(3)]
    dense = gather(net, inputs)
    before = copy.deepcopy(net)
    done = sequential(net, inputs, cutter(kept), earlier="dense")
    assert sorted(name for names in done.groups for name in names) == sorted(dense)
    for part in kept:
        for name, (second, _, count) in part.items():
            assert count == dense[name].count
            assert torch.allclose(second, dense[name].second, rtol=1e-5, atol=1e-6 * float(dense[name].diagonal.max()))
    assert ("blocks" in done.chained) == (how in CHAINED)
    for site, was in zip(of_module(net).sites, of_module(before).sites, strict=True):
        expected = thinned(was.get()) if site.name in dense else was.get()
        assert torch.equal(site.get(), expected), site.name


def test_the_moments_do_depend_on_what_was_cut_before():
    """The control: without the cuts the later moments are others, so that the twin above can fail."""
    torch.manual_seed(SEED)
    net, kept = Net().eval(), []
    inputs = [noise(6, 5, 4)]
    dense = gather(net, inputs)
    sequential(net, inputs, cutter(kept))
    first, last = kept[0]["stem"][0], kept[-1]["head"][0]
    assert torch.equal(first, dense["stem"].second)
    assert (last - dense["head"].second).norm() > 0.05 * dense["head"].second.norm()


def test_layers_may_be_split_on_the_way():
    torch.manual_seed(SEED)
    net = Net("mask", width=8).eval()
    done = assert_like_the_twin(net, [noise(6, 5, 4)], split=True, only=lambda name: name != "stem")
    assert "blocks" in done.chained and not isinstance(net.blocks[0].q, nn.Linear)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolutional_net(inplace):
    torch.manual_seed(SEED)

    def stage(a, b):
        norm = nn.BatchNorm2d(b)
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(a))
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm, nn.ReLU(inplace), nn.Conv2d(b, b, 3, groups=2))

    net = nn.Sequential(stage(3, 4), stage(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    done = assert_like_the_twin(net, [noise(4, 3, 9, 9, seed=i) for i in range(2)])
    # The two groups of a convolution read one tensor.
    assert done.groups == (("0.0",), ("0.3[0]", "0.3[1]"), ("1.0",), ("1.3[0]", "1.3[1]"), ("4",))
    assert done.anew == 0 and set(done.chained) == {"", "0", "1"}


def test_torchs_attention_and_padding():
    torch.manual_seed(SEED)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    padding = torch.arange(5)[None] >= torch.tensor([5, 3, 2])[:, None]
    done = assert_like_the_twin(net, [{"src": noise(3, 5, 8, seed=i), "src_key_padding_mask": padding} for i in (0, 1)])
    assert done.chained == ("layers",) and len(done.groups) == 2 * 4


def tiny_bert(**more):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(SEED)
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=30, **more
    )
    return transformers.BertModel(config)


def test_a_transformer_with_padding_of_different_lengths():
    net = tiny_bert()
    batches = []
    for i, lengths in enumerate([(5, 3, 5), (2, 7, 4)]):
        ids = torch.randint(1, 30, (3, max(lengths)), generator=torch.Generator().manual_seed(i))
        mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
        batches.append({"input_ids": ids, "attention_mask": mask})
    net.train()  # and stays so
    done = assert_like_the_twin(net, batches)
    assert done.chained == ("encoder.layer",) and len(done.groups) == 2 * 4 + 1
    assert done.anew == 1 and net.training


def test_a_decoder_that_keeps_keys_and_values():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(SEED)
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2)).eval()
    assert net.config.use_cache
    ids = torch.randint(0, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    done = assert_like_the_twin(net, [{"input_ids": ids}])
    assert done.chained == ("transformer.h",) and net.config.use_cache
    with_cache = copy.deepcopy(net)  # where the caller insists, blocks cannot be run again by themselves
    done = assert_like_the_twin(with_cache, [{"input_ids": ids, "use_cache": True}])
    assert done.chained == () and done.anew == 8


def test_an_encoder_and_a_decoder():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(SEED)
    config = transformers.WhisperConfig(
        vocab_size=40, num_mel_bins=4, d_model=8, max_source_positions=6, max_target_positions=9,
        encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=12,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    net = transformers.WhisperForConditionalGeneration(config).eval()
    ids = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    done = assert_like_the_twin(net, [{"input_features": noise(2, 4, 12), "decoder_input_ids": ids}])
    assert {"model.encoder.layers", "model.decoder.layers"} <= set(done.chained)


def test_a_function_of_the_model_and_half_precision():
    torch.manual_seed(SEED)
    net = Net().eval().bfloat16()
    x = noise(4, 5, 4).bfloat16()
    done = assert_like_the_twin(net, [lambda model: model(x)])
    assert "blocks" in done.chained
    mixed = Net().eval()  # run under autocast, which a block by itself does not see

    def run(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(noise(4, 5, 4))

    assert assert_like_the_twin(mixed, [run]).chained == ()


def test_what_no_input_reaches_is_missing():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.LSTM(3, 3)})
    kept = []
    done = sequential(net, [lambda m: m["c"](m["a"](noise(5, 4, 3)))], cutter(kept))
    assert done.groups == (("a",), tuple(f"c.weight_ih_l0[{g}]" for g in "ifgo"))
    assert "no input" in done.missing["b"] and "made inside LSTM" in done.missing["c.weight_hh_l0[i]"]


def test_a_layer_that_only_some_batches_reach():
    torch.manual_seed(SEED)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.gate(x)
            return self.experts[1](x) if len(x) > 3 else self.experts[2](x)

    done = assert_like_the_twin(Experts(), [noise(2, 4), noise(5, 4), noise(3, 4)])
    assert "no input" in done.missing["experts.0"]


def test_errors_leave_the_model_as_it_was():
    net = Net().train()
    with pytest.raises(ValueError, match="no batch"):
        sequential(net, [], print)
    with pytest.raises(ValueError, match="'cut' or 'dense'"):
        sequential(net, [noise(2, 5, 4)], print, earlier="both")
    with pytest.raises(ValueError, match="batch 1"):
        sequential(net, [noise(2, 5, 4), noise(2, 5, 3)], print)

    def fails(sites, moments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sequential(net, [noise(2, 5, 4)], fails)
    assert net.training and all(m.training for m in net.modules())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_progress_counts_the_groups():
    seen = []

    def bar(groups):
        for group in groups:
            yield group
            seen.append(group)

    net = Net().eval()
    done = sequential(net, [noise(2, 5, 4)], lambda sites, moments: None, progress=bar)
    assert seen == list(range(len(done.groups)))
