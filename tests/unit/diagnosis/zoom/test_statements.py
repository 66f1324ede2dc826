"""The loop or condition that decides on a step."""

import torch
from torch import Tensor

from tracer.diagnosis.zoom.operations import OperationLog
from tracer.diagnosis.zoom.statements import deciding

X = torch.linspace(-1, 1, 6)


class Full:
    @staticmethod
    def forward(x: Tensor, count: int = 3) -> Tensor:
        for _ in range(count):
            x = x.sin()
        return x.exp()


def recorded(count: int, compute=Full.forward) -> OperationLog:
    log = OperationLog()
    log.begin()
    try:
        compute(X, count)
    finally:
        log.end()
    return log


class Short:
    @staticmethod
    def forward(x: Tensor, count: int = 3) -> Tensor:
        for _ in range(count - 1):
            x = x.sin()
        return x.exp()


# The function of the same name, in another file or class.
Short.forward.__code__ = Short.forward.__code__.replace(
    co_qualname=Full.forward.__code__.co_qualname
)


def test_a_loop_that_runs_less_often_is_named_on_both_sides() -> None:
    found = deciding(1, recorded(3), recorded(3, Short.forward))
    assert found is not None
    (own, line), (other, shifted) = found
    assert (own, other) == (Full.forward.__code__, Short.forward.__code__)
    assert line - own.co_firstlineno == shifted - other.co_firstlineno == 2


def test_nothing_decides_where_both_run_alike() -> None:
    assert deciding(1, recorded(3), recorded(3)) is None
    log = recorded(3)
    last = len(log.steps) - 1
    assert deciding(last, log, recorded(3, Short.forward)) is None
