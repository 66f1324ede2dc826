"""The options of a study become its settings and its workload."""

from typing import Any

import pytest

from tracer.cli.parser import parse
from tracer.cli.parser.ablate import check_workload
from tracer.cli.requests import AblateRequest
from tracer.errors import UsageError


def test_settings_and_workload() -> None:
    given = ["--pairs", "int16/uint8,uint8/uint4", "--fills=-40,-1e4", "--seeds", "2"]
    request = parse(["ablate", "mask-fill", "m", *given, "--text", "pyproject.toml"])
    assert isinstance(request, AblateRequest)
    assert request.settings == {
        "pairs": (("int16", "uint8"), ("uint8", "uint4")),
        "fills": (-40.0, -10000.0),
        "seeds": (0, 1),
    }
    assert request.workload == {"model": "m", "text": "pyproject.toml"}


def test_the_only_name_beside_a_file_is_the_models() -> None:
    request = parse(["ablate", "--config", "pyproject.toml", "m"])
    assert isinstance(request, AblateRequest)
    assert (request.study, request.workload) == (None, {"model": "m"})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"separator": "|"}, "a separator of documents and no text"),
        ({"task_limit": 3}, "--task-limit and no task"),
    ],
)
def test_what_is_given_in_vain(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_workload(given)
    check_workload({**given, "text": "a.txt", "tasks": ["a"]})
