"""Models by name, and the two modules around them: pixels -> logits for training, pixels -> probabilities for serving."""

from collections.abc import Sequence
from typing import Final

import torch
import torchvision
from torch import Tensor, nn

from training.errors import ModelError

OWN_MODELS: Final = ("simple_cnn", "resnet")


class Classifier(nn.Module):
    """uint8 `[N, 3, H, W]` RGB in, logits float32 `[N, classes]` out: normalisation is part of the model."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, -1, 1, 1) * 255))

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network((image.to(self.mean.dtype) - self.mean) * self.scale)
        return logits


class Servable(nn.Module):
    """What is exported: uint8 `[N, 3, H, W]` RGB in, probabilities float32 `[N, classes]` out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities; each row sums to 1."""
        return torch.softmax(self.classifier(image).float(), dim=1)


class SimpleCNN(nn.Module):
    """Two convolutions (32, 64 channels), each halved by max pooling, then 128 hidden units."""

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        side = image_size // 4
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised pixels."""
        logits: Tensor = self.head(self.features(x))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around an identity (or, where the shape changes, a 1x1 projection)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Same spatial size divided by `stride`."""
        return torch.relu(self.body(x) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-20 for small pictures: a 3x3 stem without pooling, three stages of three blocks (He et al. 2015, section
    4.2).
    """

    def __init__(self, classes: int, widths: Sequence[int] = (16, 32, 64), depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth):
                layers.append(ResidualBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised pixels."""
        logits: Tensor = self.head(self.features(x))
        return logits


def build_network(name: str, classes: int, image_size: int) -> nn.Module:
    """A network for `classes` classes, with random weights: one of OWN_MODELS or any torchvision classifier by its
    name.

    Raises:
        ModelError: no such model.
    """
    if name == "simple_cnn":
        return SimpleCNN(classes, image_size)
    if name == "resnet":
        return CifarResNet(classes)
    if name not in torchvision_models():
        raise ModelError(
            f"unknown model {name!r}; ours are {', '.join(OWN_MODELS)}; torchvision's: {', '.join(torchvision_models())}"
        )
    options: dict[str, object] = {"num_classes": classes}
    if name.startswith("vit_"):
        options |= {"image_size": image_size}
    if name.startswith(("googlenet", "inception")):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def torchvision_models() -> list[str]:
    """The names of torchvision's classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names
