"""What arXiv 2503.01922 (P25) and arXiv 2606.02608 (P26) print on ImageNet, and where the figures of others are from.

P25's public text has lost some figures; those of its plots and of the log that its authors published stand here as read
there. Accuracies are top-1 in %, shares in % of the parameters or of the multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model of the paper: its name in timm, parameters in millions, its accuracy there, and how it is named here."""

    title: str
    timm: str
    params: float
    top1: float


MODELS = {
    "vit-base": Published("ViT-B/16", "vit_base_patch16_224.augreg2_in21k_ft_in1k", 86.5, 85.1),
    "vit-large": Published("ViT-L/16", "vit_large_patch16_224.augreg_in21k_ft_in1k", 304.3, 85.85),
    "deit-tiny": Published("DeiT-Ti/16", "deit_tiny_patch16_224.fb_in1k", 5.7, 72.20),
    "deit-small": Published("DeiT-S/16", "deit_small_patch16_224.fb_in1k", 22.1, 79.80),
    "deit-base": Published("DeiT-B/16", "deit_base_patch16_224.fb_in1k", 86.6, 81.82),
}

# Section 3.4: ViT-L/16 before any fine-tuning; share removed, top-1.
VIT_LARGE = (
    *((5.0, 85.83), (10.0, 85.56), (15.0, 85.56), (20.0, 85.50), (25.0, 85.40), (30.0, 85.05), (35.0, 84.73)),
    *((39.0, 84.08), (43.5, 83.29), (47.6, 81.49), (51.6, 79.22), (55.0, 74.40), (58.7, 67.25), (62.0, 47.00)),
)
# P26, the classical procedure and magnitude pruning of ViT-B/16, both after one epoch of fine-tuning: share, top-1.
VIT_BASE_TUNED = {
    "classical procedure": ((30.0, 84.55), (50.0, 82.57), (60.0, 79.13), (70.0, 71.53)),
    "magnitude": ((30.0, 84.46), (50.0, 81.67), (60.0, 77.98), (70.0, 67.44)),
}
# P25, table 1: method, top-1 and FLOPs saved without and with fine-tuning; None where the table has nothing.
DEIT = {
    "deit-tiny": (
        ("VTP", 69.37, 21.68, 70.55, 45.32),
        ("PoWER", 69.56, 20.32, 70.05, 41.26),
        ("HVT", 68.43, 21.17, 70.01, 47.32),
        ("CP-ViT", 71.06, 23.02, 71.24, 43.34),
        ("P25", 71.09, 24.83, None, None),
    ),
    "deit-small": (
        ("VTP", 77.35, 20.74, 78.24, 42.52),
        ("PoWER", 77.02, 21.46, 78.30, 41.36),
        ("HVT", 76.72, 20.52, 78.05, 47.80),
        ("CP-ViT", 78.84, 20.96, 79.08, 42.24),
        ("P25", 78.91, 23.72, 78.34, 41.92),
    ),
    "deit-base": (
        ("VTP", 79.46, 19.84, 80.70, 43.20),
        ("PoWER", 79.09, 20.75, 80.17, 39.24),
        ("HVT", 78.88, 20.14, 79.94, 44.78),
        ("CP-ViT", 80.91, 22.16, 81.13, 41.62),
        ("P25", 81.44, 21.38, 80.58, 44.0),
    ),
}
