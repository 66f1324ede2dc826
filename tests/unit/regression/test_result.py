"""What the gate has decided, and from which level up each reason fails."""

import pytest

from tracer.choices import FAIL_ON
from tracer.regression.result import Less, Limit, Reason

LIMIT = Limit("*.head", 0.05, 3, 1, "lm.head", 0, "output", 0.25)


@pytest.mark.parametrize(
    ("reason", "level", "text"),
    [
        (Reason("diverges"), "divergence", "the models diverge"),
        (
            Reason("agreed", "main.json"),
            "regression",
            "the models agreed in main.json, and diverge now",
        ),
        (
            Reason("limit", count=1, total=3, limit=LIMIT),
            "regression",
            "1 of 3 outputs is beyond the limit *.head=0.05: most `lm.head`, PEIR 0.25",
        ),
        (
            Reason("less", "main.json", less=(Less("calls", 2, 3),)),
            "coverage",
            "less was compared than in main.json: only 2 of 3 calls",
        ),
    ],
)
def test_reasons(reason: Reason, level: str, text: str) -> None:
    assert level in FAIL_ON
    assert (reason.level, str(reason)) == (level, text)
