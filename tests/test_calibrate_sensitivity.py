"""What the outputs of a matrix weigh: against the whole Jacobian, and against what an error really does."""

import pytest
import torch
from torch import nn

from spectrim.calibrate import gather, weighed


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def test_weights_are_those_of_the_whole_jacobian():
    model, x = net(), torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    moments = gather(model, [x])
    found = weighed(moments, model, [lambda model: model(x)] * 400, samples=None, seed=2)
    out, sizes = model(x), model(x).detach().double().square().sum()
    for name in ("0", "2", "4"):
        weight = model.get_submodule(name).weight
        J = torch.stack([torch.autograd.grad(out.reshape(-1)[i], weight, retain_graph=True)[0] for i in range(60)])
        exact = (J.double().square().sum(0) / moments[name].dense().diagonal()).nanmean(1) / sizes
        exact = exact.clamp_min(1e-3 * exact.mean())
        assert torch.allclose(found.rows[name], exact, rtol=0.15, atol=0.02 * float(exact.mean()))
        assert float(found.rows[name].sum()) == pytest.approx(float(exact.sum()), rel=0.05)


def test_weighted_damage_is_the_change_of_the_output_for_small_random_errors():
    model, x = net(), torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    moments = weighed(gather(model, [x]), model, [x] * 10, samples=None)
    dense, generator = model(x).detach(), torch.Generator().manual_seed(3)
    for name in ("0", "2"):
        weight, real, told = model.get_submodule(name).weight, 0.0, 0.0
        before = weight.detach().clone()
        for _ in range(50):
            E = 1e-3 * torch.randn(weight.shape, generator=generator)
            with torch.no_grad():
                weight.copy_(before + E)
                real += float((model(x) - dense).square().sum() / dense.square().sum())
                weight.copy_(before)
            told += float(
                torch.einsum("ij,jk,ik,i->", E.double(), moments[name].dense(), E.double(), moments[name].rows)
            )
        assert told == pytest.approx(real, rel=0.2)


def test_an_input_that_is_huge_where_nobody_listens_hides_no_output():
    """Transformers have such inputs: a few tokens with activations a thousand times as large, which are passed over."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(20, 6)

        def forward(self, x):
            return self.fc(x[..., :20]) * x[..., 20:]

    torch.manual_seed(0)
    model, heard = Gated(), torch.cat([torch.randn(300, 20), torch.ones(300, 1)], 1)
    passed = torch.zeros(15, 21)
    passed[:, 0] = 1000.0
    alone = weighed(gather(model, [heard]), model, [heard], samples=None).rows["fc"]
    x = torch.cat([heard, passed])
    both = weighed(gather(model, [x]), model, [x], samples=None).rows["fc"]
    assert torch.allclose(both, alone * 315 / 300 * 19 / 20, rtol=0.15)


def test_nothing_of_the_model_has_changed_and_padding_counts_for_nothing():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, input_ids, attention_mask):
            return self.fc(self.table(input_ids))

    torch.manual_seed(0)
    model = Tokens().train()
    model.fc.weight.requires_grad_(False)
    model.table.weight.grad = torch.ones(9, 4)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    ids, mask = torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, 1, 0, 0]])
    moments = gather(model, {"input_ids": ids, "attention_mask": mask}, only=lambda name: name == "fc")
    state = torch.random.get_rng_state()
    a = weighed(moments, model, {"input_ids": ids, "attention_mask": mask})
    b = weighed(moments, model, {"input_ids": torch.tensor([[1, 2, 5, 5]]), "attention_mask": mask})
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(a.rows["fc"], b.rows["fc"])
    assert model.training and not model.fc.weight.requires_grad and model.table.weight.requires_grad
    assert float(model.table.weight.grad.sum()) == 36.0 and model.fc.weight.grad is None
    assert all(torch.equal(kept[k], v) for k, v in model.state_dict().items())
    assert a.fingerprint != moments.fingerprint


@pytest.mark.parametrize("given", [{"samples": 0}, {"samples": True}, {"samples": 1.5}])
def test_bad_arguments_are_named(given):
    model, x = net(), torch.randn(4, 6)
    with pytest.raises(ValueError, match=next(iter(given))):
        weighed(gather(model, [x]), model, [x], **given)


def test_a_model_without_gradients_and_other_weights_are_refused():
    class Mute(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x).detach()

    model, x = Mute(), torch.randn(4, 3)
    moments = gather(model, [x])
    with pytest.raises(ValueError, match="depends on its weights"):
        weighed(moments, model, [x])
    with torch.no_grad():
        model.fc.weight.add_(1)
    with pytest.raises(ValueError, match="another model"):
        weighed(moments, model, [x])


def test_weights_are_saved_and_shared_moments_stay_shared(tmp_path):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(4, 5, 8)
    moments = weighed(gather(attention, [(x, x, x)]), attention, [(x, x, x)])
    assert len(moments.rows) == 4 and len(list(moments.distinct())) == 2
    back = type(moments).load(moments.save(tmp_path / "m.safetensors"))
    assert back.fingerprint == moments.fingerprint
    assert all(torch.equal(back[name].rows, moments[name].rows) for name in moments)
    filed = type(moments).load(tmp_path / "m.safetensors", held=False)
    assert torch.equal(filed["in_proj_weight[q]"].rows, moments["in_proj_weight[q]"].rows)


def test_samples_are_spread_over_all_and_silent_outputs_are_not_taken_for_worthless():
    """Inputs come sorted more often than not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
    x = torch.eye(8).repeat_interleave(50, 0)
    moments = gather(model, [x])
    few = weighed(moments, model, [x], samples=16).rows["0"]
    assert float(few.min()) > 0.1 * float(few.mean())
    first = weighed(moments, model, [x[:50]], samples=None).rows["0"]  # only one output has ever fired
    assert float(first.min()) >= 1e-3 * float(first.mean())


def test_batches_that_are_functions_are_run_whole():
    model, x = net(), torch.randn(6, 6)
    called = []

    def act(model):
        called.append(len(x))
        return model(x)

    act.batch = x
    moments = gather(model, [x])
    weighed(moments, model, [act, act, act], samples=8)
    assert called == [6, 6]


def test_inputs_that_hold_nothing_or_do_not_fit_are_named():
    model, x = net(), torch.randn(8, 6)
    once = (part for part in x.split(4))
    moments = gather(model, once)
    for spent in (once, [], x[:0]):
        with pytest.raises(ValueError, match="holds no sample"):
            weighed(moments, model, spent)
    with pytest.raises(ValueError, match="does not run through Sequential"):
        weighed(moments, model, x[:, :5])
    with pytest.raises(TypeError, match="batch 0 is int"):
        weighed(moments, model, [3])


def test_hooks_of_the_user_on_parameters_rest_meanwhile():
    model, x, calls = net(), torch.randn(8, 6), []
    weight = model[2].weight
    weight.register_hook(lambda grad: calls.append("tensor"))

    def step(parameter):
        calls.append("step")
        parameter.data.zero_()

    weight.register_post_accumulate_grad_hook(step)
    before = weight.detach().clone()
    weighed(gather(model, x), model, x)
    assert torch.equal(weight, before) and not calls
    model(x).sum().backward()
    assert calls == ["tensor", "step"]


@pytest.mark.parametrize(
    "shape",
    [
        lambda y: (y.argmax(1), y),  # indices first
        lambda y: {"loss": y.square().mean(), "logits": y},
        lambda y: ((torch.zeros(3), y),),
        lambda y: torch.view_as_complex(torch.stack([y, torch.zeros_like(y)], -1)),
    ],
)
def test_what_the_model_gives_is_found_in_its_output(shape):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.shape = net(), shape

        def forward(self, x):
            return self.shape(self.net(x))

    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    found, plain = (weighed(gather(m, x), m, x, samples=None) for m in (Wrapped(), net()))
    for name in ("0", "2", "4"):
        assert float(found.rows[f"net.{name}"].sum() / plain.rows[name].sum()) == pytest.approx(1, rel=0.5)
