"""What can go wrong in training and export on purpose; every message says what to do."""


class TrainingError(Exception):
    """Base of all of them."""


class DataError(TrainingError):
    """The data is missing or not what was asked for."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, or not one of ours."""


class ModelError(TrainingError):
    """There is no such model, or its weights cannot be had, or the device is not there."""


class ExportError(TrainingError):
    """An exported file does not do what eager PyTorch does, so there is no bundle."""


class TrackingError(TrainingError):
    """A tracker is not installed, or does not answer."""
