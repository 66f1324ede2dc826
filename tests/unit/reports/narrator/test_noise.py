"""What the noise floor says of a comparison."""

from dataclasses import replace

from tracer.comparison.noise_floor import NoiseReading, NoiseRun, Unmeasured
from tracer.reports.narrator.noise import lines


def test_sentences(make_row) -> None:
    row = replace(make_row("mlp", 0.5), floor=0.25)
    assert lines(NoiseReading(row, None, ())) == [
        "PEIR at output of `mlp` is 2 times the noise floor (0.25) there."
    ]
    assert lines(NoiseReading(None, row, ())) == [
        "The farthest from the noise floor is output of `mlp`: 2 times the noise floor (0.25)."
    ]
    unmeasured = Unmeasured(NoiseRun.FLOAT64, nonfinite=2)
    assert lines(NoiseReading(None, None, (unmeasured,))) == [
        "The noise floor in float64 was not measured everywhere: 2 values are finite on one side "
        "only."
    ]
