"""Constants that values are multiplied by, and which of one side's the other does not have."""

import itertools

from tracer.diagnosis.zoom.matching import factor_between
from tracer.diagnosis.zoom.operations import OperationLog, Step

# Constants by which a step multiplies; by a module that is called, or from outside, without one.
Factors = list[tuple[int | None, float]]

# Operations that may multiply by a constant.
_SCALING = ("mul", "div", "neg")
HOMOGENEOUS = ("matmul", *_SCALING)
"""Operations that pass on a factor of what they take."""

# How close the factors of two operations are, to be the same.
_SAME_FACTOR = 1e-4


def scaled_input(recording: OperationLog, step: Step, limit: float) -> tuple[int, float] | None:
    """The value that a step multiplies by a constant, and that constant."""
    if step.kind not in _SCALING or not step.outputs:
        return None
    made = recording.values[step.outputs[0]]
    for taken in step.inputs:
        factor = factor_between(made, recording.values[taken], limit)
        if factor is not None:
            return taken, factor
    return None


def of_size(factors: Factors, factor: float) -> Factors:
    """Those that can have made a factor: signs for a sign, else what is not undone again."""
    if is_near(abs(factor), 1.0):
        return [each for each in factors if is_near(abs(each[1]), 1.0)]
    left = [each for each in factors if not is_near(abs(each[1]), 1.0) or each[1] == 1.0]
    steps = [(index, f) for index, f in left if index is not None and f != 1.0]
    pairs = [(a, b) for a, b in itertools.combinations(steps, 2) if is_near(a[1] * b[1], 1.0)]
    for a, b in sorted(pairs, key=lambda pair: pair[1][0] - pair[0][0]):
        if a in left and b in left:
            left.remove(a)
            left.remove(b)
    return left


def is_near(one: float, other: float) -> bool:
    """Whether two factors are the same."""
    return abs(one - other) <= _SAME_FACTOR * max(abs(one), abs(other))
