"""`compare(..., progress=True)`: which bar is told; that of a notebook is tested with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import tracer
from tracer.comparison.progress_bar import can_show_progress


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the bar of a terminal is told."""
    said: list[object] = []

    @contextmanager
    def call_counter(text: str, expected: int) -> Iterator[Callable[[int], None]]:
        said.append((text, expected))
        yield said.append
        said.append("ended")

    monkeypatch.setattr("tracer.reports.progress.call_counter", call_counter)
    return said


def test_a_bar_is_told_each_call_and_ends(told):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    tracer.compare(model, model, torch.ones(1, 2), progress=True)
    assert told == [("comparing", 3), 1, 2, 3, "ended"]


def test_the_model_by_its_name(told):
    model = nn.Linear(2, 2)
    tracer.compare(reference=model, candidate=model, inputs=torch.ones(1, 2), progress=True)
    assert told[0] == ("comparing", 1)


def test_nothing_else_is_changed(told):
    @can_show_progress
    def function(*args: object, progress: object = None) -> object:
        return progress

    assert function(progress=False) is False
    assert function() is None
    assert function(progress=print) is print
    assert told == []
