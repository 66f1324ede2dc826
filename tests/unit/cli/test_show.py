"""`trace_model show`: what goes through one model."""

import io
import json

import pytest

from tracer.cli.requests import ShowRequest
from tracer.cli.show import show


def test_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"model": "random-llama", "include": ("lm_head",), "sequence_length": 4}
    out = io.StringIO()
    assert show(ShowRequest(**given, tree=True), out) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("lm_head (Linear)")
    assert out.getvalue() == ""
    assert show(ShowRequest(**given, json=True), out) == 0
    [call] = json.loads(out.getvalue())["calls"]
    assert call["module"] == "lm_head"
