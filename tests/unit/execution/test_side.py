"""One model as a coroutine that stops at its events."""

from collections.abc import Callable

import torch

from tests.builders.small_net import Net, X
from tracer.execution.hooks import hooked
from tracer.execution.side import Side
from tracer.execution.state import RandomNumbers, random_state_kept


def events(model: Net, run: Callable[[], object]) -> tuple[Side, list[tuple[str, int, str]]]:
    names = {id(module): name for name, module in model.named_modules()}
    pairs = {"": "", "last": "head"}
    side = Side("candidate", run, names, pairs, RandomNumbers(False, None), None)
    seen = []
    with random_state_kept(), hooked((model, model), lambda: side.recorder):
        while (event := side.resume()) is not None:
            name, index, phase = event.key
            seen.append((name, index, phase.name))
        side.stop()
    return side, seen


def test_it_stops_at_paired_modules_under_the_references_names() -> None:
    model = Net()
    side, seen = events(model, lambda: model(X))
    assert seen == [("", 0, "START"), ("head", 0, "START"), ("head", 0, "END"), ("", 0, "END")]
    assert side.finished
    assert side.failure is None
    assert side.counts()["block.first"] == 1


def test_what_is_raised_is_its_failure() -> None:
    model = Net()
    side, seen = events(model, lambda: model(torch.ones(5)))
    assert seen == [("", 0, "START")]
    assert side.failure is not None
    assert side.failure.call is not None
    assert (side.failure.side, side.failure.call.name) == ("candidate", "block.first")
