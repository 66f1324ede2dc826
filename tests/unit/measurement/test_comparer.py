"""The visitor that compares, and the interventions beside it."""

import pytest
import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, NewArguments, NewOutput, Phase
from tracer.measurement.arguments import CallPair, scale_between
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention, merged
from tracer.measurement.rows import CallRecord
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import ValuePath

X = torch.arange(6.0).view(2, 3)


def call(**arguments: object) -> Call:
    return Call("m", 0, nn.Identity(), arguments, tuple(arguments), None, None)


class Notes(Intervention):
    """Notes when it is asked, and what was known by then."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def before_start(self, calls: CallPair) -> Answer:
        self.seen.append(("before_start", 0))
        return None

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        self.seen.append(("on_start", len(run.rows)))
        return NewArguments({"x": "mine"})

    def before_end(self, calls: CallPair) -> Answer:
        self.seen.append(("before_end", 0))
        return None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        self.seen.append(("on_end", len(run.rows)))
        return NewOutput("mine")


class Doubles(Intervention):
    """Changes what is compared."""

    def before_end(self, calls: CallPair) -> Answer:
        calls.candidate.output = 2.0 * calls.candidate.output
        return NewOutput(calls.candidate.output)


def run(*interventions: Intervention) -> tuple[Comparer, Answer, Answer]:
    comparer = Comparer(Tolerance(), interventions)
    reference, candidate = call(x=X), call(x=X.clone())
    started = comparer.visit(reference, candidate, Phase.START)
    reference.output, candidate.output = X + 1, X.clone() + 1
    return comparer, started, comparer.visit(reference, candidate, Phase.END)


def test_it_changes_nothing_alone() -> None:
    comparer, started, ended = run()
    assert (started, ended) == (None, None)
    assert [(row.value, row.agrees) for row in comparer.rows] == [
        ("kwargs.x", True),
        ("output", True),
    ]
    record = comparer.records["m", 0]
    assert record.row(ValuePath.parse("kwargs.x")) is comparer.rows[0]
    assert record.row(ValuePath.parse("output")) is record.outputs[0]
    assert record.row(ValuePath.parse("output.1")) is None


def test_an_intervention_is_asked_and_what_it_changed_is_compared() -> None:
    notes = Notes()
    _, started, ended = run(notes)
    assert started == NewArguments({"x": "mine"})
    assert ended == NewOutput("mine")
    assert notes.seen == [("before_start", 0), ("on_start", 1), ("before_end", 0), ("on_end", 2)]
    comparer, _, ended = run(Doubles(), Doubles())
    assert not comparer.rows[-1].agrees
    assert isinstance(ended, NewOutput)
    assert torch.equal(ended.value, 4 * (X + 1))


def test_a_call_whose_start_was_not_seen_is_not_compared() -> None:
    notes = Notes()
    comparer = Comparer(Tolerance(), [notes])
    assert comparer.visit(call(), call(), Phase.END) is None
    assert (comparer.rows, notes.seen) == ([], [("before_end", 0)])


@pytest.mark.parametrize(("answers", "expected"), [
    ((None, None), None),
    ((NewOutput(1), None, NewOutput(2)), NewOutput(2)),
    ((NewArguments({"a": 1, "b": 1}), NewArguments({"b": 2})), NewArguments({"a": 1, "b": 2})),
])  # fmt: skip
def test_answers_are_merged(answers: tuple[Answer, ...], expected: Answer) -> None:
    assert merged(answers) == expected


class Scaled(nn.Module):
    reference_output_scale = 4.0

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a scale that is declared is read, and nothing is called")


class Reshaped(nn.Module):
    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        raise AssertionError("what is not declared is not asked for")


@pytest.mark.parametrize(("modules", "expected"), [
    ((nn.Identity(), nn.Identity()), 1.0), ((nn.Identity(), Scaled()), 4.0),
    ((Scaled(), nn.Identity()), 0.25), ((Scaled(), Scaled()), 1.0),
    ((nn.Identity(), Reshaped()), None), ((Reshaped(), Reshaped()), 1.0),
])  # fmt: skip
def test_the_scale_between_two_modules(modules, expected: float | None) -> None:
    assert scale_between(*modules) == expected
