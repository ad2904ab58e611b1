"""`trident` with one more architecture. The exported bundle is like any other; the servers need no change.

    python examples/own_architecture.py train --model tiny --name tiny --epochs 5
    python examples/own_architecture.py export --name tiny
    trident up --model tiny

An architecture is a module from normalised pixels (float32 `[N, 3, H, W]`) to logits (float32 `[N, classes]`) that ends
with a dense layer. Trident puts normalisation before it and softmax after it. Commands that read a checkpoint
need the same registration, so run them through this script.
"""

from torch import Tensor, nn

from training.models import ARCHITECTURES
from trident.app import main


class Tiny(nn.Module):
    """One convolution, the mean over the image, and a dense layer."""

    def __init__(self, classes: int, dropout: float, channels: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(channels * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised pixels."""
        logits: Tensor = self.head(self.features(x))
        return logits


def build_tiny(classes: int, image_size: int, dropout: float) -> nn.Module:
    """Build the network, with random weights, for any image size of at least 16."""
    return Tiny(classes, dropout)


ARCHITECTURES["tiny"] = build_tiny

if __name__ == "__main__":
    main()
