"""Every exception that `wrappers` raises on purpose.

    WrappersError
    ├── ArgumentError (TypeError)        an argument of another type than a function takes
    ├── ConfigError (ValueError)         a QuantSpec, PTQConfig or dtype that cannot be
    │   └── UnknownOverrideError         an override path that names no quantization point
    ├── QParamsError (ValueError)        a scale or zero point that cannot be, or does not fit
    ├── TensorError (TypeError)          a tensor that cannot be observed or quantised
    ├── ObserverError (RuntimeError)     an observer that cannot give quantisation parameters
    │   └── UnseenObserverError          ... because it never saw a value
    ├── ModeError (RuntimeError)         a step of the life cycle out of order
    ├── PointError (LookupError)         a quantization point that a wrapper does not have
    ├── RegistryError
    │   ├── DuplicateWrapperError        two wrappers for one class and variant
    │   ├── MissingWrapperError          no wrapper for a class in the variant asked for
    │   └── StaleWrapperError            a wrapper for a class that the package no longer has
    ├── WrapError (ValueError)           a module that cannot be wrapped as it stands
    ├── ModelInputError (ValueError)     inputs that a model or a function cannot take
    │   └── CacheFullError               ... because a static cache has no room for them
    ├── ExportError (ValueError)         a model or a file that cannot be exported
    ├── SavedModelError (ValueError)     a folder that a model cannot be saved to or loaded from
    ├── RecipeError (ValueError)         a recipe that cannot be read or followed
    ├── StudyError (ValueError)          a study that cannot be run, or whose results cannot be read
    └── MissingExtraError (ImportError)  an optional package that is not installed

`CalibrationWarning` is the one warning: calibration data held NaN or infinities.
"""

from __future__ import annotations

from torch import Tensor


class WrappersError(Exception):
    """The root of the tree."""


class ArgumentError(WrappersError, TypeError):
    """An argument of another type than a function takes."""


class ConfigError(WrappersError, ValueError):
    """A QuantSpec, PTQConfig or dtype that cannot be."""


class UnknownOverrideError(ConfigError):
    """An override path that names no quantization point of the prepared model."""


class QParamsError(WrappersError, ValueError):
    """A scale or zero point that cannot be, or does not fit its tensor."""


class TensorError(WrappersError, TypeError):
    """A tensor that cannot be observed or quantised."""


class ObserverError(WrappersError, RuntimeError):
    """An observer that cannot give quantisation parameters."""


class UnseenObserverError(ObserverError):
    """An observer that never saw a value and so has no range to quantise to."""


class ModeError(WrappersError, RuntimeError):
    """A step of the life cycle (prepare, calibrate, convert) out of order."""


class PointError(WrappersError, LookupError):
    """A quantization point that a wrapper does not have, or declares twice."""


class RegistryError(WrappersError):
    """The root of what can go wrong with the registry of wrappers."""


class DuplicateWrapperError(RegistryError, ValueError):
    """A second wrapper for a class and variant that already has one."""


class MissingWrapperError(RegistryError, LookupError):
    """No wrapper for a class in the variant asked for."""


class StaleWrapperError(RegistryError, ImportError):
    """A wrapper registered for a class that its installed package no longer has."""


class WrapError(WrappersError, ValueError):
    """A module that cannot be wrapped as it stands."""


class ModelInputError(WrappersError, ValueError):
    """Inputs that a model or a function cannot take."""


InputError = ModelInputError
"""The former name, which is also that of an error of `tracer`."""


class CacheFullError(ModelInputError):
    """A sequence that outgrew its static cache.

    Attributes:
        tokens: what was generated before, int64 [B, new tokens].
    """

    def __init__(self, message: str, tokens: Tensor) -> None:
        super().__init__(message)
        self.tokens = tokens


class ExportError(WrappersError, ValueError):
    """A model that cannot be written as a graph, or a file that it cannot be written to."""


class SavedModelError(WrappersError, ValueError):
    """A folder that a quantised model cannot be saved to or loaded from."""


class RecipeError(WrappersError, ValueError):
    """A recipe that cannot be read or followed."""


class StudyError(WrappersError, ValueError):
    """A study that cannot be run as it is described, or whose results cannot be read."""


class MissingExtraError(WrappersError, ImportError):
    """An optional package that is needed and not installed."""


class CalibrationWarning(UserWarning):
    """Calibration data held NaN or infinities, which were left out of the observed ranges."""
