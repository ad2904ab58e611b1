"""The errors of training and export. Every message says what to do."""

from bundle.errors import TridentError


class TrainingError(TridentError):
    """The base of all of them."""


class DataError(TrainingError):
    """The data is missing or not what was asked for."""


class CheckpointError(TrainingError):
    """A checkpoint is missing or damaged, or Trident did not write it."""


class ModelError(TrainingError):
    """The model, its weights or the device does not exist here."""


class ExportError(TrainingError):
    """An exported file does not agree with eager PyTorch. No bundle is written."""


class TrackingError(TrainingError):
    """A tracker is not installed, or does not answer."""
