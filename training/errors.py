"""Errors of training and export. Each message says what to do."""

from bundle.errors import TridentError


class TrainingError(TridentError):
    """Base class of all errors of training and export."""


class DataError(TrainingError):
    """The data set is missing or unusable."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, or was not written by Trident."""


class ModelError(TrainingError):
    """The model, its weights or the device is not available."""


class ExportError(TrainingError):
    """An exported file does not agree with eager PyTorch. No bundle is written."""


class TrackingError(TrainingError):
    """A tracker is not installed or not reachable."""
