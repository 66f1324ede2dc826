"""Further runs of both models."""

import pytest
import torch
from torch import nn

from tests.builders.small_net import Net, X
from tracer.errors import ModelRunError
from tracer.execution.session import Session
from tracer.interventions.experiment import Experiment
from tracer.tensors.tolerance import Tolerance


def experiment(candidate: nn.Module) -> Experiment:
    torch.manual_seed(0)
    return Experiment(Session(Net(), candidate, X, None, "*"), Tolerance())


def test_rows_of_a_run_are_found_by_those_of_another() -> None:
    torch.manual_seed(1)
    made = experiment(Net())
    first, second = made.rerun(), made.must_rerun()
    assert [second.row(row) for row in first.rows] == second.rows
    last = first.rows[-1]
    assert last.module == ""
    assert {row.module for row in first.inputs(last)} <= {"", "block", "last"}
    assert made.modules[0].keys() >= {"block.first", "last"}


def test_a_run_that_has_to_come_to_its_end() -> None:
    broken = Net()
    broken.last = nn.Linear(5, 4)
    made = experiment(broken)
    assert made.rerun().failure is not None
    with pytest.raises(ModelRunError, match=r"the candidate raised RuntimeError in module 'last'"):
        made.must_rerun()
