"""What the noise floor says of a comparison.

PEIR at output of `model.norm` is 4.1e+03 times the noise floor (2.3e-07) there.
"""

from tracer.comparison.noise_floor import NoiseReading, NoiseRun, Unmeasured
from tracer.measurement.rows import Row
from tracer.text import figure, place

_RUNS = {NoiseRun.FLOAT64: "in float64", NoiseRun.PERTURBED: "with perturbed inputs"}


def lines(reading: NoiseReading) -> list[str]:
    """What could not be measured, and the first divergence, or else the farthest value."""
    said = [_unmeasured(each) for each in reading.unmeasured]
    if reading.first is not None:
        said.append(f"PEIR at {place(reading.first)} is {_times(reading.first)} there.")
    elif reading.farthest is not None:
        farthest = reading.farthest
        said.append(f"The farthest from the noise floor is {place(farthest)}: {_times(farthest)}.")
    return said


def _times(row: Row) -> str:
    assert row.multiple is not None and row.floor is not None
    return f"{figure(row.multiple)} times the noise floor ({figure(row.floor)})"


def _unmeasured(each: Unmeasured) -> str:
    reason = each.error or f"{each.nonfinite} values are finite on one side only"
    return f"The noise floor {_RUNS[each.run]} was not measured everywhere: {reason}."
