"""`trace_model show`: what goes through one model."""

import json

import pytest

from tracer.cli.requests import ShowRequest
from tracer.cli.show import show


def test_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"model": "random-llama", "include": ("lm_head",), "sequence_length": 4}
    assert show(ShowRequest(**given, tree=True)) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("lm_head (Linear)")
    assert show(ShowRequest(**given, json=True)) == 0
    [call] = json.loads(capsys.readouterr().out)["calls"]
    assert call["module"] == "lm_head"
