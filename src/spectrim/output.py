"""What a trim leaves on disk: a folder of safetensors that opens where `spectrim` is not installed.

OUT/*.safetensors          the weights, one file for each file of the input
OUT/spectrim.json          which layers were split, the plan, and what was achieved
OUT/modeling_spectrim.py   only if layers were split: the few lines of plain torch that load them
OUT/config.json, ...       what stood beside the input; `auto_map` names the class above for transformers
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

SCHEMA = "spectrim.trimmed/1"
MODELING = "modeling_spectrim.py"

# Which transformers Auto class loads an architecture, by the end of its name; AutoModel always does.
AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
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
    (folder / "spectrim.json").write_text(json.dumps({"schema": SCHEMA, "splits": splits, **record}, indent=1) + "\n")
    config = folder / "config.json"
    if not splits:
        return
    source = (files("spectrim") / "factored.py").read_text()
    if config.exists() and architecture:
        known = json.loads(config.read_text())
        name = f"{MODELING.removesuffix('.py')}.Spectrim{architecture}"
        known["auto_map"] = {"AutoModel": name} | {
            auto: name for end, auto in AUTO.items() if architecture.endswith(end)
        }
        known["architectures"] = [architecture]
        known["spectrim"] = {"splits": splits}
        config.write_text(json.dumps(known, indent=2) + "\n")
        source += _TRANSFORMERS.format(name=architecture)
    (folder / MODELING).write_text(source)
