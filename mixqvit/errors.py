"""The errors this package raises on purpose: each says what was wrong, with which input, and what to do."""

__all__ = [
    "AccessError",
    "AllocationError",
    "AllocationFileError",
    "BitWidthError",
    "CalibrationError",
    "EngineError",
    "ExportError",
    "ImageError",
    "InfeasibleBudgetError",
    "MixQViTError",
    "ModelError",
    "PackingError",
    "ReportError",
    "StoreError",
    "StudyFileError",
    "TrainingError",
    "UnsupportedOperationError",
]


class MixQViTError(Exception):
    """Base of every error a user can cause; pages show its message, the command line prints it and exits 2."""


class ModelError(MixQViTError):
    """A model could not be found, read or traced."""


class ImageError(MixQViTError):
    """Images could not be found or read, or do not fit the model."""


class StudyFileError(MixQViTError):
    """A study could not be written to a file, or a file is none or is damaged."""


class UnsupportedOperationError(MixQViTError):
    """The model contains an operation that a stage has no rule for."""


class BitWidthError(MixQViTError):
    """A bit-width is outside 2 to 8 (or 32, full precision), or a layer name is unknown."""


class CalibrationError(MixQViTError):
    """Calibration met values it cannot use, or a calibration was asked for bits it does not serve."""


class AccessError(MixQViTError):
    """A path is not among those that a browser may name, or an upload cannot be kept."""


class AllocationError(MixQViTError):
    """The allocation problem is badly posed."""


class InfeasibleBudgetError(AllocationError):
    """No allocation fits the budget; the message names the smallest feasible value."""


class PackingError(MixQViTError):
    """A packed model could not be written, or a file is none, is damaged or does not fit the model."""


class AllocationFileError(MixQViTError):
    """A file, or a request in it, is no allocation, or one that cannot be used."""


class StoreError(MixQViTError):
    """Saved results could not be read or written."""


class TrainingError(MixQViTError):
    """Quantization-aware training cannot be done as asked, or its loss is no longer a number."""


class EngineError(MixQViTError):
    """The processes or the cluster that work should run on cannot be reached, or lose their workers again and again."""


class ExportError(MixQViTError):
    """A quantized model or its bits cannot be written for another program."""


class ReportError(MixQViTError):
    """A report of a study cannot be written."""
