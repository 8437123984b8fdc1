"""A task that takes a moment: a small network, trained to name the largest of five products, and what it scores."""

import numpy as np
import torch
from torch import nn

from spectrim.sweep import Score, mean, spearman


class Toy:
    """Accuracy over 300 items (even ones easier), the cosine to the dense outputs, and all pairs of 24 items."""

    name = "toy"
    only = None

    def __init__(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            return torch.randn(*shape, generator=generator)

        self.model = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 32))
        for p in self.model.parameters():
            p.data = drawn(*p.shape) / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.1 * drawn(*p.shape)
        self.model.append(nn.Linear(32, 5, bias=False)).eval()
        self.model[-1].weight.data = drawn(5, 32)
        self.x = drawn(300, 24)
        with torch.no_grad():
            self.reference = self.model(self.x)
        self.y = self.reference.argmax(1)
        self.y[1::4] = (self.y[1::4] + 1) % 5  # some of the odd items are wrong from the start

    def measure(self, model):
        out = model(self.x)
        right = (out.argmax(1) == self.y).double().numpy()
        cosine = nn.functional.cosine_similarity(out, self.reference).double().numpy()
        new, old = (nn.functional.normalize(o[:24]) for o in (out, self.reference))
        pairs = np.stack([(new @ new.T).numpy(), (old @ old.T).numpy()], -1)
        return {
            "accuracy": Score(right, mean, chance=0.2),
            "error": Score(1 - right, mean, better="lower", chance=0.8),
            "cosine": Score(cosine, mean),
            "pairs": Score(pairs, spearman, square=True),
        }
