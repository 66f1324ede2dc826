"""What outlives a hand-over: random numbers, what modules keep, and the state of the thread."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tracer.execution.hooks import Call, Phase
from tracer.execution.state import RandomNumbers, ThreadState, random_state_kept


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), random.random(), float(np.random.rand())


def call(name: str, index: int = 0) -> Call:
    return Call(name, index, nn.Identity(), {}, (), None, None)


def test_all_generators_are_put_back() -> None:
    with random_state_kept():
        expected = draws()
    assert draws() == expected


class TestRandomNumbers:
    def in_call(self, numbers: RandomNumbers, name: str, index: int = 0) -> float:
        made = call(name, index)
        numbers.follow(made, Phase.START)
        drawn = float(torch.rand(()))
        numbers.follow(made, Phase.END)
        return drawn

    def test_each_side_draws_as_if_it_were_alone(self) -> None:
        with random_state_kept():
            expected = torch.rand(4)
        one, other = (RandomNumbers(False, None) for _ in range(2))
        drawn: list[list[torch.Tensor]] = [[], []]
        for _ in range(4):
            for side, numbers in enumerate((one, other)):
                numbers.enter()
                drawn[side].append(torch.rand(1))
                numbers.leave()
        assert all(torch.equal(torch.cat(values), expected) for values in drawn)

    def test_a_call_in_training_has_a_stream_of_its_own(self) -> None:
        numbers = RandomNumbers(True, {"a": "a", "b": "b"})
        renamed = RandomNumbers(True, {"other name": "b"})
        first, second = self.in_call(numbers, "a"), self.in_call(numbers, "a", 1)
        torch.rand(5)  # what is drawn in between changes nothing
        assert self.in_call(numbers, "a") == first != second
        assert self.in_call(renamed, "other name") == self.in_call(numbers, "b")

    def test_the_stream_around_a_call_goes_on_after_it(self) -> None:
        numbers = RandomNumbers(True, {"a": "a"})
        with random_state_kept():
            expected = draws()
        self.in_call(numbers, "a")
        assert draws() == expected

    def test_calls_that_an_exception_has_left_are_forgotten(self) -> None:
        numbers = RandomNumbers(True, {"a": "a", "b": "b"})
        with random_state_kept():
            expected = draws()
        outer = call("a")
        numbers.follow(outer, Phase.START)
        numbers.follow(call("b"), Phase.START)
        numbers.follow(outer, Phase.END)
        assert draws() == expected


@pytest.mark.parametrize(
    "guard",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "device"],
)
def test_a_state_is_in_force_for_a_while(guard: Callable[[], object]) -> None:
    outside = ThreadState.capture()
    with guard():
        inside = ThreadState.capture()
        with outside.put_back():
            assert ThreadState.capture() == outside
        assert ThreadState.capture() == inside != outside
    assert ThreadState.capture() == outside


def test_what_a_model_has_left_on_is_switched_off() -> None:
    outside = ThreadState.capture()
    with outside.kept():
        torch.set_grad_enabled(not torch.is_grad_enabled())
        torch.set_default_dtype(torch.float64)
    assert ThreadState.capture() == outside


@pytest.mark.parametrize(
    "guard",
    [
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", enabled=False, cache_enabled=False),
        lambda: torch.device("meta"),
        lambda: FlopCounterMode(display=False),
    ],
)
def test_a_state_is_in_force_until_something_is_switched_on(guard: Callable[[], object]) -> None:
    with torch.no_grad():
        state = ThreadState.capture()
        assert state.is_in_force()
        with guard():
            assert state.is_in_force() == (ThreadState.capture() == state)
            assert not state.is_in_force()
        assert state.is_in_force()
