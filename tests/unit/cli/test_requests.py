"""Requests hold what was given and nothing else."""

import dataclasses
from pathlib import Path

import pytest

from tracer.cli.parser import parse
from tracer.cli.requests import CompareRequest, RecordRequest, ShowRequest, flag


def test_what_is_given_and_nothing_else() -> None:
    assert parse(["compare", "m"]) == CompareRequest(model="m", candidate="wrapped")
    assert parse(["record", "m", "--out", "a"]) == RecordRequest(model="m", out="a")
    given = ["--max-peir", "a=1", "--max-peir", "b=0.5", "--map", "x=y", "--report", "o.json"]
    request = parse(["compare", "m", *given, "--batch", "2", "--seed", "3"])
    assert isinstance(request, CompareRequest)
    assert request.max_peir == (("a", 1.0), ("b", 0.5))
    assert request.map == (("x", "y"),)
    assert request.report == (Path("o.json").absolute(),)
    assert request.making_inputs == ("batch",)
    assert request.given("batch", "padding", "image", "seed") == {"batch": 2, "seed": 3}
    options = parse(["show", "m", "--print-options", "sci_mode=false"])
    assert options == ShowRequest(model="m", print_options=(("sci_mode", False),))


@pytest.mark.parametrize(("model", "made"), [("tiny-qwen3-vl", ()), ("m", ("processor",))])
def test_a_processor_may_be_there_for_its_vocabulary(model: str, made: tuple[str, ...]) -> None:
    request = parse(["compare", model, "--processor", "p"])
    assert isinstance(request, CompareRequest)
    assert request.making_inputs == made


def test_they_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(["compare", "m"]).report = ()


def test_the_option_of_a_field() -> None:
    assert flag("max_peir") == "--max-peir"
