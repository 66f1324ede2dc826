"""Answers of several interventions become one."""

import torch

from tracer.execution.hooks import Answer, NewArguments, NewOutput
from tracer.measurement.intervention import merged


def test_all_new_arguments_and_the_last_of_each_name() -> None:
    answers: list[Answer] = [NewArguments({"a": 1, "b": 2}), None, NewArguments({"b": 3})]
    made = merged(answers)
    assert isinstance(made, NewArguments)
    assert made.values == {"a": 1, "b": 3}


def test_the_last_new_output() -> None:
    last = NewOutput(torch.ones(1))
    assert merged([NewOutput(torch.zeros(1)), last, None]) is last
    assert merged([None, None]) is None
