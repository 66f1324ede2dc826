"""The tracer's exceptions, one tree.

TracerError
  UsageError              an option, glob, rename rule or tolerance that cannot be used
  InputError              inputs that do not fit the model
  ModelLoadError          a model, checkpoint or inputs file that cannot be loaded
  ModelRunError           a model raised while it was being compared
  NothingComparedError    reference and candidate have nothing in common
  NotEquivalentError      what `assert_equivalent` raises, an AssertionError too
  RecordingTooLargeError  the operations inside a module make too many values to hold
  StorageError            a trace on disk that cannot be written, read, or used here
  ShapeMismatchError      two tensors of different shapes were given to a Difference

A message says what was found, what was expected and what to do. The command line turns each of
them into one sentence and exit code 2.
"""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.comparison.result import Comparison


class TracerError(Exception):
    """Base of everything the tracer raises on purpose."""


class UsageError(TracerError):
    """An option, glob, rename rule or tolerance that cannot be used."""


class InputError(TracerError):
    """Inputs that do not fit the model."""


class ModelLoadError(TracerError):
    """A model, checkpoint or inputs file that cannot be loaded."""


class ModelRunError(TracerError):
    """A model raised while it was being compared; the cause is chained.

    Attributes:
        comparison: what had been compared by then, if anything.
    """

    def __init__(self, message: str, comparison: "Comparison | None" = None) -> None:
        super().__init__(message)
        self.comparison = comparison


class NothingComparedError(TracerError):
    """Reference and candidate have nothing in common, so agreement would mean nothing.

    Attributes:
        comparison: what was compared, with a verdict that does not agree.
    """

    def __init__(self, message: str, comparison: "Comparison | None" = None) -> None:
        super().__init__(message)
        self.comparison = comparison


class NotEquivalentError(TracerError, AssertionError):
    """Two models that were to be equivalent are not.

    Attributes:
        comparison: what was found.
    """

    def __init__(self, message: str, comparison: "Comparison") -> None:
        super().__init__(message)
        self.comparison = comparison


class RecordingTooLargeError(TracerError):
    """The operations inside a module make more values than may be held at once."""


class StorageError(TracerError):
    """A trace on disk that cannot be written, read, or used for the models at hand."""


class ShapeMismatchError(TracerError):
    """Two tensors of different shapes were given to a Difference, which never broadcasts."""


def no_truth_value(result: object, instead: str) -> UsageError:
    """What a result of several answers raises where it is used as one.

    Args:
        instead: what to write.
    """
    return UsageError(
        f"a {type(result).__name__} is neither true nor false: write {instead}, or `is None` to "
        "ask whether there is one"
    )


def near_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that suggests close names, or the empty string: "; did you mean 'a', 'b'?"."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
