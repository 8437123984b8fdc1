"""A model named by its id on the Hugging Face hub: its weights and what tells of them, in the local cache."""

from __future__ import annotations

import re
from pathlib import Path

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
WANTED = ("*.safetensors", "*.safetensors.index*.json", "*.json", "*.txt", "*.model", "*.py")


def is_id(name: str) -> bool:
    """Return whether a name that is no path here can be a hub id, "owner/model" or "owner/model@revision".

    A path with a typing error is none where its folder is there.

    Example:
        >>> is_id("openai/whisper-tiny"), is_id("openai/whisper-tiny@main"), is_id("./model"), is_id("a/b/c")
        (True, True, False, False)
    """
    return bool(ID.fullmatch(name)) and not Path(name).parent.exists()


def fetched(name: str) -> Path:
    """Return the folder of the local cache that holds a model of the hub; what is missing in it is fetched first.

    Weights come as safetensors only: nothing that is fetched is ever run.

    Args:
        name: "owner/model", or "owner/model@revision".
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(
            f"no such file or folder: {name}. If it is an id of the Hugging Face hub: pip install huggingface-hub"
        ) from None
    model, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=list(WANTED)))
    except Exception as error:  # of the network, of the hub, of the cache: a dozen classes of three libraries
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FileNotFoundError(
            f"no such file or folder: {name}, and as an id of the Hugging Face hub it could not be fetched: {why}"
        ) from None
