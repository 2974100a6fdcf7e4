"""What `lstmvid extract` uses of torchvision, whose builds on the package index go with one torch each.

The interface is torchvision's documented one: `vgg16(weights=...)` with `features`, `avgpool` and `classifier` of the
layers that torchvision's have, in their places; only their widths are smaller here, for the real ones take half a GB.
"""

from __future__ import annotations

import sys
import types
from enum import Enum

from torch import nn

WIDTHS = (4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M")  # 13 convolutions, 5 poolings
FC6 = 24


class VGG(nn.Module):
    """VGG-16 with batch dimension first, as torchvision builds it."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [], 3
        for width in WIDTHS:
            if width == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, FC6),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(FC6, FC6),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(FC6, 10),
        )

    def forward(self, frames):
        return self.classifier(self.avgpool(self.features(frames)).flatten(1))


class VGG16_Weights(Enum):
    """The name of the weights that are downloaded."""

    IMAGENET1K_V1 = "vgg16-397923af.pth"


def vgg16(*, weights: VGG16_Weights | None = None) -> VGG:
    """A network with weights of its own; those that are downloaded there can't be had here."""
    if weights is not None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")
    return VGG()


def install(monkeypatch) -> None:
    """Let `import torchvision` find this."""
    torchvision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.vgg16, models.VGG16_Weights, torchvision.models = vgg16, VGG16_Weights, models
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
