"""Requests that can be checked before anything is loaded."""

from typing import Any

import pytest

from tracer.cli.checks import check
from tracer.cli.requests import CompareRequest
from tracer.errors import TracerError


def request(**given: Any) -> CompareRequest:
    return CompareRequest(
        **{"model": "random-llama", "reference": None, "candidate": "wrapped", **given}
    )


@pytest.mark.parametrize("given", [{}, {"candidate": "sdpa", "train": True}, {"what_if": 2}])
def test_what_goes_together(given: dict[str, Any]) -> None:
    check(request(**given))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"train": True}, "no training mode"),
        ({"train": True, "candidate": "sdpa", "steps": 2}, "choose one"),
        ({"what_if": 1, "isolate": "none"}, "measures none"),
        ({"fail_on": "coverage"}, "checked against a --baseline"),
        ({"fail_on": "regression"}, "there are none"),
        ({"break_at": "end"}, "goes with --break GLOB"),
        ({"debugger": "pdb"}, "none is given"),
        ({"breakpoints": ("*",), "json": True}, "a debugger prints"),
    ],
)
def test_refusals(given: dict[str, Any], says: str) -> None:
    with pytest.raises(TracerError, match=says):
        check(request(**given))
