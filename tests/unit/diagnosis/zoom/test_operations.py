"""OperationLog: what was computed from what, in place or not, and at which line."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracer.diagnosis.zoom.operations import OperationLog, described
from tracer.execution.hooks import Call

X = torch.arange(12.0).view(3, 4)


def recorded(compute: Callable[[], object]) -> OperationLog:
    recording = OperationLog()
    with torch.no_grad():
        recording.begin()
        compute()
        recording.end()
    return recording


def names(recording: OperationLog) -> list[str]:
    return [step.name for step in recording.steps]


def test_steps_values_and_makers() -> None:
    recording = recorded(lambda: (X * 2 + X).sum())
    assert names(recording) == ["mul", "add", "sum"]
    assert [step.inputs for step in recording.steps] == [(0,), (1, 0), (2,)]
    assert recording.makers == [None, 0, 1, 2]
    assert torch.equal(recording.values[2], 3 * X)
    assert (recording.behind([2]), recording.makers_of([2])) == ({0, 1, 2}, {0, 1})
    assert recording.finished


def test_nothing_is_recorded_afterwards() -> None:
    recording = recorded(lambda: X + 1)
    X + 2
    assert names(recording) == ["add"]


def test_the_line_is_the_first_outside_torch() -> None:
    def helper(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (4,))

    recording = recorded(lambda: helper(X))
    operation = described(recording, 0)
    assert operation.text == "return functional.layer_norm(x, (4,))"
    assert operation.file == __file__
    assert operation.function.endswith("helper")
    assert operation.location == f"{__file__}:{operation.line}"
    assert (operation.inputs, operation.outputs[0]) == (((3, 4),), (3, 4))
    assert len(recording.steps[0].lines) == 2  # and the line that calls the helper


def test_what_torch_computes_by_itself_is_at_the_line_of_the_call() -> None:
    recording = OperationLog()
    layer = nn.Linear(4, 2)
    layer.register_forward_pre_hook(lambda *_: recording.begin())
    layer.register_forward_hook(lambda *_: recording.end())
    with torch.no_grad():
        layer(X)  # here
    assert described(recording, len(recording.steps) - 1).text == "layer(X)  # here"


def test_kinds() -> None:
    y = X.clone()
    recording = recorded(lambda: (y.mul_(2), X @ X.T, X.expand(2, 3, 4) @ X.T))
    kinds = [step.kind for step in recording.steps]
    assert (kinds[0], kinds.count("matmul")) == ("mul", 2)


def test_layouts_and_rearrangements() -> None:
    def compute() -> None:
        X.T.reshape(-1)
        X.roll(1)
        X.chunk(2, dim=-1)
        X + 1

    steps = {step.name: step for step in recorded(compute).steps}
    assert steps["t" if "t" in steps else "permute"].is_layout
    assert steps["clone"].is_layout
    assert not steps["roll"].is_layout
    assert steps["roll"].is_view
    assert not steps["split"].is_layout
    assert not steps["add"].is_view


def test_editing_in_place_makes_a_new_value_and_keeps_the_old_one() -> None:
    y = X.clone()

    def compute() -> None:
        z = y + 0
        z[0] = 7.0
        z * 1

    recording = recorded(compute)
    assert names(recording)[0] == "add"
    first = recording.steps[0].outputs[0]
    last = recording.steps[-1].inputs[0]
    assert first != last
    assert torch.equal(recording.values[first], X)
    assert recording.values[last][0].tolist() == [7.0] * 4
    maker = recording.makers[last]
    assert maker is not None
    assert recording.steps[maker].kind in ("fill", "copy")


def test_a_view_that_is_not_touched_keeps_its_value() -> None:
    def compute() -> None:
        z = X + 0
        first, second = z[0], z[1]
        first.add_(1)
        second * 2

    recording = recorded(compute)
    maker = recording.makers[recording.steps[-1].inputs[0]]
    assert maker is not None
    assert recording.steps[maker].name == "select"


def test_edits_of_what_came_from_outside() -> None:
    y = X.clone()

    def compute() -> None:
        z = y * 2
        z.add_(1)
        y[0].neg_()

    recording = recorded(compute)
    assert [recording.steps[step].name for step, _ in recording.edits] == ["neg_"]
    assert torch.equal(recording.values[0], X)


def test_what_shares_memory_and_what_counts() -> None:
    recording = recorded(lambda: (X + 1).data * 2)
    assert recording.makers_of(recording.steps[-1].inputs) >= {0}

    def compute() -> Tensor:
        hidden = torch.ones(3, 4, dtype=torch.bool).tril()
        return torch.where(hidden, X, torch.arange(4))

    assert {"ones", "tril", "arange", "where"} <= set(names(recorded(compute)))
    out = torch.empty(3, 4)
    recording = recorded(lambda: torch.add(X, X, out=out) * 1)
    assert torch.equal(recording.values[recording.steps[-1].inputs[0]], 2 * X)


class TestCalls:
    """Modules that both models have are one step each."""

    def call(self, argument: Tensor) -> Call:
        return Call("theirs", 0, nn.Identity(), {"x": argument}, ("x",), None, None)

    def test_one_step(self) -> None:
        recording = OperationLog()
        recording.begin()
        given = X + 1
        call = self.call(given)
        recording.begin_call(call)
        call.output = (given * 2) ** 2
        recording.end_call("ours", call)
        call.output - 1  # type: ignore[operator]
        recording.end()
        assert names(recording) == ["add", "ours", "sub"]
        assert recording.steps[1].is_call
        assert recording.steps[1].inputs == recording.steps[0].outputs
        assert recording.steps[2].inputs == recording.steps[1].outputs
        assert described(recording, 1).name == "call of `ours`"

    def test_a_call_inside_a_call_is_part_of_it(self) -> None:
        recording = OperationLog()
        recording.begin()
        outer, inner = self.call(X), self.call(X)
        recording.begin_call(outer)
        recording.begin_call(inner)
        recording.end_call("inner", inner)
        outer.output = X * 2
        recording.end_call("outer", outer)
        recording.end()
        assert names(recording) == ["outer"]

    def test_a_call_that_was_left_by_an_exception(self) -> None:
        recording = OperationLog()
        recording.begin()
        outer = self.call(X)
        recording.begin_call(outer)
        recording.begin_call(self.call(X))
        outer.output = X * 2
        recording.end_call("outer", outer)
        recording.end()
        assert names(recording) == ["outer"]

    def test_what_a_call_edits_is_made_by_it(self) -> None:
        recording = OperationLog()
        given = X.clone()
        recording.begin()
        given * 1
        call = self.call(given)
        recording.begin_call(call)
        given.add_(1)
        call.output = given
        recording.end_call("ours", call)
        given * 2
        recording.end()
        assert torch.equal(recording.values[0], X)
        maker = recording.makers[recording.steps[-1].inputs[0]]
        assert maker is not None
        assert recording.steps[maker].name == "ours"


def test_sparse_values() -> None:
    assert names(recorded(lambda: X.to_sparse() * 2))[-1] == "mul"
