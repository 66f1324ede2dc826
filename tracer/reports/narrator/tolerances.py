"""A tolerance that is too strict, in words.

The tolerance of 1e-08 is below the limit of float32, 1e-05: rounding alone may exceed it.
"""

from tracer.diagnosis.finding import TightTolerance
from tracer.text import figure


def lines(found: TightTolerance) -> list[str]:
    """The line that warns of it."""
    return [
        f"The tolerance of {figure(found.peir)} is below the limit of {found.dtype}, "
        f"{figure(found.limit)}: rounding alone may exceed it."
    ]
