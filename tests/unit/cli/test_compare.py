"""`trace_model compare`: its exit code, by what it finds."""

import io
from typing import Any

import pytest

from tracer.cli.compare import compare
from tracer.cli.requests import CompareRequest


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, 0),
        ({"max_peir": (("lm_head", 0.0),)}, 1),
        ({"max_peir": (("lm_head", 0.0),), "fail_on": "never"}, 0),
    ],
)
def test_exit_codes(given: dict[str, Any], code: int) -> None:
    request = CompareRequest(
        model="random-llama", candidate="bfloat16", sequence_length=4, json=True, **given
    )
    out = io.StringIO()
    assert compare(request, "trace_model compare", out) == code
    assert out.getvalue().startswith("{")
