"""The report's figures, as SVG text."""

import io
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_STYLE: Final[Any] = {"svg.hashsalt": "trident", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
# More classes than this are an image without labels.
LABELLED_CLASSES: Final = 30

Lines = list[dict[str, Any]]


def curves(epochs: Lines, steps: Lines) -> str:
    """Loss and accuracy by epoch, learning rate and gradient norm by step."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        loss, accuracy, rate, norm = figure.subplots(2, 2).flat
        number = [line["epoch"] + 1 for line in epochs]
        loss.plot(number, [line["train_loss"] for line in epochs], label="train")
        loss.plot(number, [line["val_loss"] for line in epochs], label="validation")
        loss.set(title="loss (cross entropy)", xlabel="epoch", ylim=(0, None))
        loss.legend(frameon=False)
        accuracy.plot(number, [100 * line["val_accuracy"] for line in epochs], color="C1")
        accuracy.set(title="validation accuracy, %", xlabel="epoch")
        for of_epochs in (loss, accuracy):
            of_epochs.xaxis.set_major_locator(MaxNLocator(integer=True))
        at = [line["step"] for line in steps]
        rate.plot(at, [line["learning_rate"] for line in steps], color="C2")
        rate.set(title="learning rate", xlabel="step", ylim=(0, None))
        norm.plot(at, [line["gradient_norm"] for line in steps], color="C3", linewidth=0.8)
        norm.set(title="norm of the gradient", xlabel="step", ylim=(0, None))
        return _svg(figure)


def confusion_matrix(confusion: npt.NDArray[np.int64], labels: tuple[str, ...]) -> str:
    """Counts `[label, predicted]`, coloured by the share of the label's images."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with mpl.rc_context(_STYLE):
        side = 3 + 0.35 * min(len(labels), LABELLED_CLASSES)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label")
        if len(labels) <= LABELLED_CLASSES:
            ticks = range(len(labels))
            axes.set_xticks(ticks, labels, rotation=90)
            axes.set_yticks(ticks, labels)
            for row, column in zip(*np.nonzero(confusion), strict=True):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, confusion[row, column], ha="center", va="center", color=color, fontsize=8)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
