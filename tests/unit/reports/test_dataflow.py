"""One model's data flow, for people and for programs."""

import json

import pytest

import tracer
from tests.builders.small_net import Net, X
from tracer.reports.dataflow import lines, render, show


@pytest.fixture(scope="module")
def flow() -> tracer.Flow:
    return tracer.flow(Net(), X)


@pytest.mark.parametrize("width", [70, 120])
def test_a_table_that_fits(flow: tracer.Flow, width: int) -> None:
    made = list(lines(flow, width=width))
    assert made[0].split() == ["value", "dtype", "and", "shape", "mean", "min", "max", "stddev"]
    assert any(line.startswith("block.first (Linear)") for line in made)
    assert max(map(len, made)) <= width


def test_a_tree(flow: tracer.Flow, capsys: pytest.CaptureFixture[str]) -> None:
    show(flow, width=100, tree=True)
    printed = capsys.readouterr().out.splitlines()
    calls = ["the", "block", "first", "second", "last"]
    assert [line.split()[0] for line in printed[1:]] == calls


def test_for_programs(flow: tracer.Flow) -> None:
    document = json.loads(render(flow))
    assert [call["module"] for call in document["calls"]][:2] == ["", "block"]
    assert document["is_complete"]
