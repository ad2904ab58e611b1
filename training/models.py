"""Models by name, and their wrappers: pixels -> logits for training, pixels -> probabilities for serving."""

from collections.abc import Callable, Sequence
from typing import Final

import torch
import torchvision
from torch import Tensor, nn

from training.errors import ModelError

OWN_MODELS: Final = ("mlp", "simple_cnn", "resnet", "resnet9")
LITE0: Final = "efficientnet_lite0"

# Architectures added by the caller: (classes, image size, dropout) -> network. See examples/own_architecture.py.
ARCHITECTURES: Final[dict[str, Callable[[int, int, float], nn.Module]]] = {}


class Classifier(nn.Module):
    """A network with its normalisation: uint8 `[N, 3, H, W]` RGB in, logits float32 `[N, classes]` out."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, -1, 1, 1) * 255))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network((image.to(self.mean.dtype) - self.mean) * self.scale)
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the last layer; all others belong to the backbone.

        Raises:
            ModelError: the last layer is not a dense layer.
        """
        return list(head_of(self.network)[1].parameters())

    def freeze_backbone(self, frozen: bool) -> None:
        """Freeze or unfreeze the backbone, including its batch-norm statistics. Call after `train()`."""
        head = {id(parameter) for parameter in self.head_parameters()}
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen or id(parameter) in head)
        if frozen:
            self.network.eval()
            head_of(self.network)[1].train()


class Servable(nn.Module):
    """The exported model: uint8 `[N, 3, H, W]` RGB in, probabilities float32 `[N, classes]` out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities; each row sums to 1."""
        return torch.softmax(self.classifier(image).float(), dim=1)


class MLP(nn.Module):
    """Two hidden layers (256, 128) over all pixels."""

    def __init__(self, classes: int, image_size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * image_size**2, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised pixels."""
        logits: Tensor = self.layers(x)
        return logits


class SimpleCNN(nn.Module):
    """Two convolutions (32 and 64 channels), each followed by max pooling, then 128 hidden units."""

    def __init__(self, classes: int, image_size: int, dropout: float) -> None:
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
            nn.Flatten(), nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised pixels."""
        logits: Tensor = self.head(self.features(x))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and an identity or 1x1 projection as shortcut."""

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
        """Return features with height and width divided by `stride`."""
        return torch.relu(self.body(x) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-20 for small images: a 3x3 stem without pooling, then three stages of three blocks.

    He et al. 2015, section 4.2.
    """

    def __init__(self, classes: int, dropout: float, widths: Sequence[int] = (16, 32, 64), depth: int = 3) -> None:
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
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised pixels."""
        logits: Tensor = self.head(self.features(x))
        return logits


class ResNet9(nn.Module):
    """A wide network for CIFAR-10 with two residual blocks and 6.6 million weights.

    David Page 2018, "How to train your ResNet".
    """

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _conv(3, 64),
            _conv(64, 128, pool=True),
            _Residual(nn.Sequential(_conv(128, 128), _conv(128, 128))),
            _conv(128, 256, pool=True),
            _conv(256, 512, pool=True),
            _Residual(nn.Sequential(_conv(512, 512), _conv(512, 512))),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(512, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for normalised pixels, scaled by 1/8 because they are too large after batch norm."""
        logits: Tensor = self.head(self.features(x)) * 0.125
        return logits


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Return `x + body(x)`."""
        total: Tensor = x + self.body(x)
        return total


def _conv(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def build_network(name: str, classes: int, image_size: int, dropout: float = 0.25) -> nn.Module:
    """Return a network with random weights.

    Args:
        name: one of OWN_MODELS, `efficientnet_lite0`, or the name of a torchvision classifier.
        classes: number of logits.
        image_size: height and width of the input, in pixels.
        dropout: dropout probability; used by OWN_MODELS only.

    Raises:
        ModelError: unknown name.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](classes, image_size, dropout)
    match name:
        case "mlp":
            return _initialise(MLP(classes, image_size, dropout))
        case "simple_cnn":
            return _initialise(SimpleCNN(classes, image_size, dropout))
        case "resnet":
            return _initialise(CifarResNet(classes, dropout))
        case "resnet9":
            return _initialise(ResNet9(classes, dropout))
        case "efficientnet_lite0":
            from efficientnet_lite_pytorch import EfficientNet

            lite0: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
            return lite0
    if name not in torchvision_models():
        raise ModelError(
            f"unknown model {name!r}; available are {', '.join((*OWN_MODELS, LITE0))} and torchvision's: "
            f"{', '.join(torchvision_models())}"
        )
    options: dict[str, object] = {"num_classes": classes}
    if name.startswith("vit_"):
        options |= {"image_size": image_size}
    if name.startswith(("googlenet", "inception")):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def head_of(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return the last layer of a classifier, which must be dense, and its name in the network.

    Raises:
        ModelError: the network does not end with a dense layer.
    """
    layers = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    dense = [(name, module) for name, module in layers if isinstance(module, nn.Linear)]
    if not dense or any(isinstance(module, nn.Conv2d) for _, module in layers[layers.index(dense[-1]) :]):
        raise ModelError("this network does not end with a dense layer, so head and backbone cannot be distinguished")
    return dense[-1]


def replace_head(network: nn.Module, classes: int) -> None:
    """Replace the last layer of a classifier with an untrained one for `classes` classes.

    Raises:
        ModelError: the network does not end with a dense layer.
    """
    name, old = head_of(network)
    new = nn.Linear(old.in_features, classes)
    nn.init.xavier_uniform_(new.weight)
    nn.init.zeros_(new.bias)
    network.set_submodule(name, new)


def _initialise(network: nn.Module) -> nn.Module:
    """Initialise layers before a ReLU as He et al. 2015, the last layer as Glorot and Bengio 2010."""
    _, head = head_of(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if module is head:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out" if isinstance(module, nn.Conv2d) else "fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def torchvision_models() -> list[str]:
    """Return the names of torchvision's classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names
