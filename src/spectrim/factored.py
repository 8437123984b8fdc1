"""Two small layers where one stood: the structure of a trimmed model, in plain torch.

This file imports nothing of the package that wrote it. It is copied beside the weights of every model that was split,
so that they load wherever torch and safetensors are:

    from modeling_spectrim import load
    model = load(MyModel(), "OUT/")          # MyModel(): the original, untrimmed architecture

`splits` names every layer that was split, in the order in which it was done:
    {"blocks.0.mlp.fc1": {"form": "linear", "cols": 768, "parts": [{"rows": 3072, "rank": 200}]}, ...}
form "linear" (nn.Linear, or anything that computes x W^T + b), "conv2d", or "parameter" (a weight that its module
hands to a fused kernel: attention in_proj, LSTM and GRU gates). A part whose rank is null is dense; where there are
several, each has a "label" too ("q", "k", "v").
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init


class Pair(nn.Sequential):
    """Two linear maps in a row, left(right(x)); `weight` is their product, for code that only looks at it."""

    @property
    def weight(self):
        """The matrix that the pair stands for, in the shape of the layer that it replaced."""
        right, left = self[0].weight, self[1].weight
        return (left.flatten(1) @ right.flatten(1)).reshape(left.shape[0], *right.shape[1:])

    @property
    def bias(self):
        """The bias of the layer that it replaced: it stays with the second map."""
        return self[1].bias

    @property
    def in_features(self):
        """Inputs of the linear layer that it replaced."""
        return self[0].in_features

    @property
    def out_features(self):
        """Outputs of the linear layer that it replaced."""
        return self[1].out_features


class Parts(nn.ModuleList):
    """Row blocks of one layer side by side: q, k and v of a fused projection, or the groups of a convolution."""

    def __init__(self, parts, labels, groups=False):
        super().__init__(parts)
        self.labels, self.groups = labels, groups

    def forward(self, x):
        """Return the outputs of the parts, concatenated along the features (channels of a convolution)."""
        if not self.groups:
            return torch.cat([part(x) for part in self], dim=-1)
        return torch.cat([part(piece) for part, piece in zip(self, x.chunk(len(self), dim=-3), strict=True)], dim=-3)

    @property
    def weight(self):
        """The rows of all parts as one weight."""
        return torch.cat([part.weight for part in self])

    @property
    def bias(self):
        """The biases of all parts as one vector, or None."""
        return None if self[0].bias is None else torch.cat([part.bias for part in self])


class Composed(nn.Module):
    """A parametrisation: the rows of a weight, each block dense or as left @ right, put together when it is used."""

    def __init__(self, parts, cols):
        super().__init__()
        self.parts, self.cols = parts, cols

    def forward(self, *tensors):
        """Return the whole weight from its factors."""
        rest = list(tensors)
        blocks = [rest.pop(0) if part["rank"] is None else rest.pop(0) @ rest.pop(0) for part in self.parts]
        return torch.cat(blocks)

    def right_inverse(self, weight):
        """Return tensors of the right shapes; their values are loaded afterwards."""
        tensors, start = [], 0
        for part in self.parts:
            rows, rank = part["rows"], part["rank"]
            if rank is None:
                tensors.append(weight[start : start + rows].clone())
            else:
                tensors += [weight.new_zeros(rows, rank), weight.new_zeros(rank, self.cols)]
            start += rows
        return tuple(tensors)


def restructure(model, splits):
    """Return `model` with every layer named in `splits` replaced by its parts; their values are not set."""
    for name, spec in splits.items():
        if spec["form"] == "parameter":
            owner, _, tensor = name.rpartition(".")
            module = model.get_submodule(owner)
            before = []
            if parametrize.is_parametrized(module, tensor):
                chain = module.parametrizations[tensor]
                trainable = any(p.requires_grad for p in chain.parameters())
                before = _by_part(chain, chain[0].parts)
                chain.requires_grad_(True)
                with torch.enable_grad():  # torch makes a parameter again of what takes a gradient only
                    parametrize.remove_parametrizations(module, tensor)
            else:
                trainable = module._parameters[tensor].requires_grad
            parametrize.register_parametrization(module, tensor, Composed(spec["parts"], spec["cols"]), unsafe=True)
            chain = module.parametrizations[tensor]
            for old, new in zip(before, _by_part(chain, spec["parts"]), strict=False):
                if [p.shape for p in old.values()] == [p.shape for p in new.values()]:
                    for key, p in zip(new, old.values(), strict=True):  # this part was not cut: it stays what it was
                        setattr(chain, key, p)
            chain.requires_grad_(trainable)
            module.parametrizations.train(module.training)
            continue
        old = model.get_submodule(name)
        build = _conv if spec["form"] == "conv2d" else _linear
        parts = [build(old, part["rows"], part["rank"], spec) for part in spec["parts"]]
        labels = [part.get("label", str(i)) for i, part in enumerate(spec["parts"])]
        new = parts[0] if len(parts) == 1 else Parts(parts, labels, groups=spec["form"] == "conv2d")
        _keep_parameters(old, new)
        new.train(old.training)
        for module in list(model.modules()):  # a layer can be registered at several places
            for child, value in module._modules.items():
                if value is old:
                    module._modules[child] = new
    return model


def _by_part(chain, parts):
    found, at = [], 0
    for part in parts:
        keys = [f"original{at + half}" for half in range(1 if part["rank"] is None else 2)]
        found.append({key: getattr(chain, key) for key in keys})
        at += len(keys)
    return found


def _keep_parameters(old, new):
    """What was frozen stays frozen; a part that was not cut, and a bias that is still one vector, stay what they were.

    "What they were": the very parameters, which an optimiser may hold.
    """
    weights = [p for p in old.parameters() if p.ndim > 1]
    biases = [p for p in old.parameters() if p.ndim == 1]
    for p in new.parameters():
        p.requires_grad_(any(q.requires_grad for q in (weights if p.ndim > 1 else biases)))
    if isinstance(old, Parts) and isinstance(new, Parts):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if [p.shape for p in before.parameters()] == [p.shape for p in after.parameters()]:
                new[i] = before
            else:
                _keep_parameters(before, after)
    elif len(biases) == 1 and not isinstance(new, Parts):
        last = new[1] if isinstance(new, Pair) else new
        last.bias = biases[0]


def _linear(old, rows, rank, spec):
    first = next(old.parameters())
    like = {"device": first.device, "dtype": first.dtype}
    bias = (old[-1] if type(old) is nn.Sequential else old).bias is not None
    if rank is None:
        return skip_init(nn.Linear, spec["cols"], rows, bias=bias, **like)
    right = skip_init(nn.Linear, spec["cols"], rank, bias=False, **like)
    return Pair(right, skip_init(nn.Linear, rank, rows, bias=bias, **like))


def _conv(old, rows, rank, spec):
    bias = (old[-1] if type(old) is nn.Sequential else old).bias is not None
    while isinstance(old, nn.Sequential | nn.ModuleList):  # split before: its k x k half has the stride and padding
        old = old[0]
    if type(old).forward is not nn.Conv2d.forward:
        raise ValueError(f"{type(old).__name__} has a forward of its own: two plain layers cannot take its place")
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    inputs = spec["cols"] // (old.kernel_size[0] * old.kernel_size[1])
    if old.groups not in (1, len(spec["parts"])):
        raise ValueError(
            f"a convolution with {old.groups} groups was split as {len(spec['parts'])}: trim the live model"
        )
    same = {k: getattr(old, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    if rank is None:
        return skip_init(nn.Conv2d, inputs, rows, old.kernel_size, bias=bias, **same, **like)
    right = skip_init(nn.Conv2d, inputs, rank, old.kernel_size, bias=False, **same, **like)
    return Pair(right, skip_init(nn.Conv2d, rank, rows, 1, bias=bias, **like))


def describe(model):
    """Return the `splits` of a model that was restructured before."""
    splits, inside = {}, ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        for tensor, chain in getattr(module, "parametrizations", {}).items():
            if isinstance(chain[0], Composed):
                splits[f"{name}.{tensor}".lstrip(".")] = {
                    "form": "parameter",
                    "cols": chain[0].cols,
                    "parts": chain[0].parts,
                }
        if isinstance(module, (Pair, Parts)):
            parts = [module] if isinstance(module, Pair) else list(module)
            first = parts[0][0] if isinstance(parts[0], Pair) else parts[0]
            shapes = [
                {"rows": len(part[1].weight), "rank": len(part[0].weight)}
                if isinstance(part, Pair)
                else {"rows": len(part.weight), "rank": None}
                for part in parts
            ]
            if isinstance(module, Parts):
                shapes = [{"label": label, **shape} for label, shape in zip(module.labels, shapes, strict=True)]
            splits[name] = {
                "form": "conv2d" if isinstance(first, nn.Conv2d) else "linear",
                "cols": first.weight[0].numel(),
                "parts": shapes,
            }
            inside = (*inside, f"{name}.")
    return splits


def load(model, folder):
    """Return `model`, built as before the trim, with the structure and the weights that stand in `folder`."""
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "spectrim.json").is_file():
        raise ValueError(f"{folder} is not the folder of a trimmed model: it holds no spectrim.json")
    splits = json.loads((folder / "spectrim.json").read_text())["splits"]
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    for prefix in ("module.", "_orig_mod."):  # DataParallel and torch.compile put these before every name
        if all(key.startswith(prefix) for key in state) and not hasattr(model, prefix[:-1]):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
            splits = {name.removeprefix(prefix): spec for name, spec in splits.items()}
    restructure(model, splits)
    missing, unexpected = model.load_state_dict(state, strict=False)
    own = model.state_dict(keep_vars=True)
    there = {own[key].data_ptr() for key in state if key in own}  # tied weights are stored once
    missing = [key for key in missing if own[key].data_ptr() not in there]
    unexpected = [key for key in unexpected if state[key].is_floating_point()]  # index buffers come and go
    if missing or unexpected:
        raise ValueError(f"{folder} does not fit this model: missing {missing[:5]}, unexpected {unexpected[:5]}")
    return model
