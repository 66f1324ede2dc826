"""What a recording means for a verdict."""

import pytest

from tracer.comparison.trace_limits import TraceLimit, TraceLimitKind
from tracer.reports.narrator.traces import lines


@pytest.mark.parametrize(
    ("limit", "begins"),
    [
        (TraceLimit(TraceLimitKind.FINGERPRINTS, "reference"), "The recording of the reference"),
        (TraceLimit(TraceLimitKind.OUTPUTS, "candidate"), "The recording of the candidate holds"),
        (
            TraceLimit(TraceLimitKind.OTHER_PARAMETERS, "reference", parameters=("a",), checked=39),
            "1 of 39 parameters are not those recorded: `a`.",
        ),
    ],
)
def test_one_sentence_each(limit: TraceLimit, begins: str) -> None:
    [line] = lines(limit)
    assert line.startswith(begins)
