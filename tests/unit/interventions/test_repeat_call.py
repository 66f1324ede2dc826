"""A call is made again as if for the first time."""

import pytest
import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.interventions.repeat_call import Recall


class Counts(nn.Module):
    """Keeps a state, draws a number, and edits its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x += 1
        return x + self.calls + torch.rand(1)


def test_as_for_the_first_time() -> None:
    module, x = Counts(), torch.ones(1)
    again = Recall(Call("m", 0, module, {"x": x}, ("x",), None, None))
    first = module(x)
    for _ in range(2):
        output, arguments = again()
        assert torch.equal(output, first)
        assert arguments["x"] == 2.0
    assert (module.calls, x) == (1.0, 2.0)


def test_what_raises_is_said() -> None:
    call = Call("m", 0, nn.Linear(2, 2), {"input": torch.ones(3)}, ("input",), None, None)
    with pytest.raises(ModelRunError, match=r"module 'm' .* when it was called again"):
        Recall(call)()


class Keeps(nn.Module):
    """Keeps a product of its weight, or what it was given last."""

    def __init__(self, *, is_state: bool) -> None:
        super().__init__()
        self.weight, self.is_state = nn.Parameter(torch.ones(1)), is_state
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.kept
        if self.is_state:
            self.kept = x.clone()
            return x if before is None else x + before
        self.kept = self.weight * 2 if before is None else before
        return x + self.kept


@pytest.mark.parametrize(("is_state", "may_keep"), [(True, True), (False, True), (False, False)])
def test_what_makes_a_difference_is_told_from_what_does_not(is_state: bool, may_keep: bool) -> None:
    module, x = Keeps(is_state=is_state), torch.ones(1)
    again = Recall(Call("m", 0, module, {"x": x}, ("x",), None, None))
    with again.opened(is_begun=True):
        first = again.settle(lambda _: may_keep)
        assert again.leaves_nothing is (may_keep and not is_state)
        assert again.has_held()
        for _ in range(2):
            assert torch.equal(again.again()[0], first)
    assert module.kept is None


def test_what_calls_leave_later_is_seen() -> None:
    module, x = Keeps(is_state=False), torch.ones(1)
    again = Recall(Call("m", 0, module, {"x": x}, ("x",), None, None))
    with again.opened(is_begun=True):
        first = again.settle(lambda _: True)
        module.is_state = True
        assert not again.has_held()
        assert not again.leaves_nothing
        assert torch.equal(again.again()[0], first)


def test_numbers_and_edited_arguments_are_the_same_in_each_call() -> None:
    module, x = Counts(), torch.ones(1)
    again = Recall(
        Call(
            "m",
            0,
            module,
            {
                "x": x,
            },
            ("x",),
            None,
            None,
        )
    )
    with again.opened(is_begun=True):
        first = again.settle(lambda _: True)
        assert not again.leaves_nothing
        assert all(torch.equal(again.again()[0], first) for _ in range(3))
