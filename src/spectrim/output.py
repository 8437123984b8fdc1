"""What a trim leaves on disk: a folder of safetensors that opens where `spectrim` is not installed.

OUT/*.safetensors          the weights, one file for each file of the input
OUT/spectrim.json          which layers were split, the plan, and what was achieved
OUT/modeling_spectrim.py   only if layers were split: the few lines of plain torch that load them
OUT/config.json, ...       what stood beside the input; `auto_map` names the class above for transformers
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path

import torch

from .writing import TRIMMED

MODELING = "modeling_spectrim.py"

# Which Auto classes of transformers load an architecture, by the end of its name; AutoModel always does.
AUTO = {
    "ForCausalLM": ("AutoModelForCausalLM",),
    "LMHeadModel": ("AutoModelForCausalLM",),
    "ForMaskedLM": ("AutoModelForMaskedLM",),
    "ForSequenceClassification": ("AutoModelForSequenceClassification",),
    "ForTokenClassification": ("AutoModelForTokenClassification",),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering",),
    "ForMultipleChoice": ("AutoModelForMultipleChoice",),
    "ForConditionalGeneration": (
        "AutoModelForSeq2SeqLM",
        "AutoModelForSpeechSeq2Seq",
        "AutoModelForImageTextToText",
    ),
    "ForCTC": ("AutoModelForCTC",),
    "ForAudioClassification": ("AutoModelForAudioClassification",),
    "ForImageClassification": ("AutoModelForImageClassification",),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation",),
    "ForObjectDetection": ("AutoModelForObjectDetection",),
    "ForDepthEstimation": ("AutoModelForDepthEstimation",),
}

_TRANSFORMERS = '''

# Below: the same structure as a class that transformers finds through `auto_map` in config.json.
from transformers import {name} as _Base  # noqa: E402


class Spectrim{name}(_Base):
    """{name} with the layers of config.spectrim["splits"] in two parts."""

    def __init__(self, config, *inputs, **kwargs):
        super().__init__(config, *inputs, **kwargs)
        splits = config.spectrim["splits"]
        prefix = self.base_model_prefix + "."
        modules = dict(self.named_modules())

        def place(name):  # a checkpoint may leave out the prefix of the model inside, as GPT-2's does
            inside = any(f"{{prefix}}{{n}}" in modules for n in (name, name.rpartition(".")[0]))
            return f"{{prefix}}{{name}}" if inside and name not in modules else name

        restructure(self, {{place(name): spec for name, spec in splits.items()}})
'''


def write_structure(folder: Path, splits: Mapping, record: Mapping, architecture: str | None) -> None:
    """Write spectrim.json, and, where layers were split, the modeling file and the `auto_map` of config.json.

    Args:
        folder: the output folder; its config.json, if any, is completed.
        splits: the layers in parts, see factored.py.
        record: what else spectrim.json holds (plan, changes).
        architecture: the name of the transformers class whose weights these are, or None.
    """
    (folder / "spectrim.json").write_text(json.dumps({"schema": TRIMMED, "splits": splits, **record}, indent=1) + "\n")
    config = folder / "config.json"
    if not splits:
        return
    source = (files("spectrim") / "factored.py").read_text()
    if config.exists() and architecture:
        known = json.loads(config.read_text())
        name = f"{MODELING.removesuffix('.py')}.Spectrim{architecture}"
        autos = [auto for end, autos in AUTO.items() if architecture.endswith(end) for auto in autos]
        known["auto_map"] = dict.fromkeys(("AutoModel", *autos), name)
        known["architectures"] = [architecture]
        known["spectrim"] = {"splits": splits}
        config.write_text(json.dumps(known, indent=2) + "\n")
        source += _TRANSFORMERS.format(name=architecture)
    (folder / MODELING).write_text(source)


def check_loadable(config: Mapping, names: Iterable[str], splits: Iterable[str]) -> str | None:
    """Return the transformers class whose weights these are, or None; raise if a folder of splits would not load in it.

    Transformers renames the tensors of older checkpoints while it loads them, but not for the class that a trimmed
    folder brings along. So the names must be those of the installed class; without transformers this is not checked.

    Args:
        config: config.json; `architectures` names the class.
        names: the tensors of the checkpoint that are floats.
        splits: the layers that are to be split, parameters of modules among them.

    Raises:
        ValueError: the names differ.
    """
    names, splits = list(names), list(splits)
    architecture = (config.get("architectures") or [None])[0]
    if architecture is None or not splits:
        return architecture
    try:
        import transformers
    except ImportError:
        return architecture
    base = getattr(transformers, architecture, None)
    if base is None:
        return None
    try:
        with torch.device("meta"):
            model = base(base.config_class.from_dict(dict(config)))
    except Exception:  # its constructor needs more than a config: it cannot be asked
        return architecture
    prefix = f"{model.base_model_prefix}."

    def either(name: str) -> set[str]:  # a checkpoint may leave out the prefix of the model inside
        return {name, f"{prefix}{name}", name.removeprefix(prefix)}

    state = model.state_dict()
    places = {name for name, _ in model.named_modules()} | set(state)
    lost = [name for name in splits if not either(name) & places]
    strange = [name for name in names if not either(name) & set(state)]
    stored = set().union(*map(either, names)) | set(getattr(model, "all_tied_weights_keys", None) or ())
    absent = [name for name, t in state.items() if t.is_floating_point() and name not in stored]
    if lost or (strange and absent):
        raise ValueError(
            f"{architecture} of transformers {transformers.__version__} does not know {(lost or strange)[0]}: this "
            "checkpoint has names that are translated while it is loaded, which a split folder cannot ask for. Trim "
            "the live model, trim(Model.from_pretrained(...), plan).save(OUT), with a plan of its own, or plan --dense"
        )
    return architecture
