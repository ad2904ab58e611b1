"""The steps of the check, in the order in which they run."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from trident.gpu_check.context import CheckSettings, StepRows

Run = Callable[[CheckSettings, StepRows], None]


@dataclass(frozen=True)
class Step:
    """One step: the function `run` of the module `module`."""

    module: str
    title: str

    def run(self, settings: CheckSettings, rows: StepRows) -> None:
        """Run the step in this process.

        Raises:
            StepSkippedError: it cannot run on this machine.
        """
        run: Run = import_module(f"{__package__}.{self.module}").run
        run(settings, rows)


STEPS: Final[dict[str, Step]] = {
    "tests": Step("gpu_tests", "Tests marked gpu"),
    "training": Step("training_speed", "Training on images of CIFAR-10's shape"),
    "models": Step("random_models", "Bundles with random weights"),
    "model": Step("model_speed", "The model alone: images per second by batch size"),
    "decoding": Step("decoding_speed", "Decoding JPEGs"),
    "serving": Step("serving_speed", "Servers against the in-process ceiling"),
}
