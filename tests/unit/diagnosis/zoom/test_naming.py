"""Which line is named for a step."""

from torch import Tensor

from tests.builders.operation_logs import recorded
from tracer.diagnosis.zoom.case import Culprit, ZoomKind
from tracer.diagnosis.zoom.naming import named_operations, own_line


def helper(x: Tensor) -> Tensor:
    return x.sin()


def reference(x: Tensor, w: Tensor) -> Tensor:
    return helper(x) @ w


def candidate(x: Tensor, w: Tensor) -> Tensor:
    return helper(x + 1) @ w


def test_a_line_of_a_shared_helper_is_not() -> None:
    own, theirs = recorded(candidate).recording, recorded(reference).recording
    named = own_line(own, 1, theirs)
    assert named is not None
    assert (named.name, named.function) == ("sin", "candidate")
    assert own_line(own, None, theirs) is None


def test_both_sides_of_a_culprit() -> None:
    logs = recorded(reference).recording, recorded(candidate).recording
    found = named_operations(*logs, Culprit(ZoomKind.WRONG, step=0, expected=0))
    assert [operation and operation.text for operation in found] == [
        "return helper(x + 1) @ w",
        "return helper(x) @ w",
    ]
