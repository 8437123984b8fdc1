"""A dense and a split model as ONNX: onnxruntime computes what torch does, and halves stay halves in the file."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from spectrim import factored
from spectrim.linalg import svd
from spectrim.modules import of_module

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxscript onnxruntime")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript, which torch.onnx.export needs, is not installed")

pytestmark = pytest.mark.slow  # two exports: seconds each

# The exporter folds a product of constants of up to 8192 entries each into one weight; these halves are larger.
SIZE, RANK = 256, 40


class Net(nn.Module):
    """Every form that a split takes: a pair, pairs side by side, a weight composed for a kernel, two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(6, 64, 3, padding=1, stride=2), nn.Conv2d(64, 128, 3, groups=2)
        self.fc, self.qkv = nn.Linear(128, SIZE), nn.Linear(SIZE, 3 * SIZE)
        self.attention, self.lstm = (
            nn.MultiheadAttention(SIZE, 4, batch_first=True),
            nn.LSTM(SIZE, SIZE, batch_first=True),
        )

    def forward(self, x):
        x = self.grouped(self.conv(x).relu()).flatten(2).mT
        q, k, v = self.qkv(self.fc(x).relu()).chunk(3, dim=-1)
        return self.lstm(self.attention(q, k, v, need_weights=False)[0])[0]


def split(model: nn.Module) -> nn.Module:
    layers: dict[int, list] = {}
    for site in of_module(model).sites:
        layers.setdefault(id(site.layer), []).append(site)
    for sites in layers.values():
        halves = {s.part: svd(s.get()).truncate(min(RANK, s.rows - 1)).split() for s in sites}
        sites[0].layer.split({i: tuple(h.float().contiguous() for h in pair) for i, pair in halves.items()})
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each model, its logits on another batch than that of the export, those of onnxruntime, and the file."""
    torch.manual_seed(0)
    dense = Net().eval()
    halves = Net().eval()
    halves.load_state_dict(dense.state_dict())
    x, found = torch.randn(3, 6, 9, 9), {}
    for name, model in (("dense", dense), ("split", split(halves))):
        file = tmp_path_factory.mktemp(name) / "model.onnx"
        with warnings.catch_warnings(action="ignore"):
            batch = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(model, (x[:2],), file, dynamo=True, dynamic_shapes=batch, verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            right = model(x)
        there = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        found[name] = model, right, there, file
    return found


@pytest.mark.parametrize("name", ["dense", "split"])
def test_onnxruntime_computes_what_torch_computes(name, exported):
    model, right, there, _ = exported[name]
    assert there.shape == right.shape and (there - right).abs().max() < 1e-5
    other = exported["split" if name == "dense" else "dense"][1]
    assert (there - other).abs().max() > 1e-3  # the two models differ
    forms = {spec["form"] for spec in factored.describe(model).values()}
    assert forms == (set() if name == "dense" else {"linear", "conv2d", "parameter"})


@pytest.mark.parametrize("name", ["dense", "split"])
def test_the_file_holds_what_the_model_holds(name, exported):
    model, *_, file = exported[name]
    held = sum(math.prod(t.dims) for t in onnx.load(file).graph.initializer)
    assert held == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    dense, halves = (sum(p.numel() for p in exported[n][0].parameters()) for n in ("dense", "split"))
    assert halves < 0.5 * dense
