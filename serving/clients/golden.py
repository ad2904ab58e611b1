"""Ask a server for every golden example, and compare."""

from dataclasses import dataclass

from bundle.errors import TridentError
from bundle.golden import Fault, all_faults, max_abs_difference
from bundle.schemas import Prediction
from bundle.store import Bundle, GoldenExample
from serving.clients.client import Client


@dataclass(frozen=True)
class GoldenResult:
    """How a server's answers compare with the golden ones.

    Args:
        images: how many were asked for.
        max_abs_difference: of all answers; None if no request was answered.
        faults: by image; empty if the server agrees.
    """

    images: int
    max_abs_difference: float | None
    faults: tuple[tuple[str, Fault], ...]

    @property
    def agrees(self) -> bool:
        """Whether every answer is right."""
        return not self.faults

    @property
    def summary(self) -> str:
        """The first fault, and how many there are."""
        name, fault = self.faults[0]
        return f"{name}: {fault}" + (f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else "")


def check_golden(client: Client, bundle: Bundle, tolerance: float) -> GoldenResult:
    """Send every golden example, asking for all classes."""
    return check_examples(client, bundle.golden_examples(), tolerance)


def check_examples(client: Client, examples: list[GoldenExample], tolerance: float) -> GoldenResult:
    """Send these examples. A request that fails is a fault."""
    faults: list[tuple[str, Fault]] = []
    differences: list[float] = []
    for example in examples:
        expected = example.expected
        answer = predict_or_fault(client, example.data, expected.top_k or len(expected.probabilities))
        if isinstance(answer, Fault):
            faults.append((example.name, answer))
            continue
        differences.append(max_abs_difference(answer, expected))
        faults += [(example.name, fault) for fault in all_faults(answer, expected, tolerance)]
    return GoldenResult(len(examples), max(differences, default=None), tuple(faults))


def predict_or_fault(client: Client, image: bytes, top_k: int | None = None) -> Prediction | Fault:
    """The answer, or the fault `no-answer`."""
    try:
        return client.predict(image, top_k)
    except TridentError as error:
        return Fault("no-answer", error.message)
