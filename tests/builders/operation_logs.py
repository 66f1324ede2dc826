"""Small functions that are recorded, as both sides of a zoom."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tracer.diagnosis.zoom.case import Case, SideLog, case_of
from tracer.diagnosis.zoom.matching import match
from tracer.diagnosis.zoom.operations import OperationLog

LIMIT = 1e-5
GENERATOR = torch.Generator().manual_seed(0)
X, W = (torch.randn(4, 6, 6, generator=GENERATOR) for _ in range(2))
Compute = Callable[[Tensor, Tensor], Tensor]


def recorded(compute: Compute) -> SideLog:
    log = OperationLog()
    log.begin()
    try:
        made = compute(X, W)
    finally:
        log.end()
    return SideLog(log, [log.known(made)])


def case(reference: Compute, candidate: Compute, *, is_wrong: bool = True) -> Case:
    sides = recorded(reference), recorded(candidate)
    found = match(sides[1].recording.values, sides[0].recording.values, LIMIT, [])
    return case_of(sides, found, LIMIT, is_wrong=is_wrong)


def names(case: Case, culprit: Any) -> tuple[str, str | None, str | None, str | None]:
    """The kind, and the operations that are named: culprit, expected, made."""
    own, theirs = case.steps, case.reference.recording.steps
    return (
        str(culprit.kind),
        None if culprit.step is None else own[culprit.step].name,
        None if culprit.expected is None else theirs[culprit.expected].name,
        None if culprit.made is None else own[culprit.made].name,
    )
