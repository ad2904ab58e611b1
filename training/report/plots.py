"""Plots of the report, as SVG text."""

import io
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_STYLE: Final[Any] = {"svg.hashsalt": "trident", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
# A confusion matrix with more classes is drawn without labels and numbers.
MAX_LABELLED_CLASSES: Final = 30

Lines = list[dict[str, Any]]


def curves(epochs: Lines, steps: Lines) -> str:
    """Plot loss and accuracy by epoch, learning rate and gradient norm by step."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        loss, accuracy, rate, norm = figure.subplots(2, 2).flat
        epoch = [line["epoch"] + 1 for line in epochs]
        loss.plot(epoch, [line["train_loss"] for line in epochs], label="train")
        loss.plot(epoch, [line["val_loss"] for line in epochs], label="validation")
        loss.set(title="loss (cross entropy)", xlabel="epoch", ylim=(0, None))
        loss.legend(frameon=False)
        accuracy.plot(epoch, [100 * line["val_accuracy"] for line in epochs], color="C1")
        accuracy.set(title="validation accuracy, %", xlabel="epoch")
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        step = [line["step"] for line in steps]
        rate.plot(step, [line["learning_rate"] for line in steps], color="C2")
        rate.set(title="learning rate", xlabel="step", ylim=(0, None))
        norm.plot(step, [line["gradient_norm"] for line in steps], color="C3", linewidth=0.8)
        norm.set(title="gradient norm", xlabel="step", ylim=(0, None))
        return _svg(figure)


def confusion_matrix(confusion: npt.NDArray[np.int64], labels: tuple[str, ...]) -> str:
    """Plot the counts `[label, predicted]`, coloured by their share of the label's images."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with mpl.rc_context(_STYLE):
        side = 3 + 0.35 * min(len(labels), MAX_LABELLED_CLASSES)
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="label")
        if len(labels) <= MAX_LABELLED_CLASSES:
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
