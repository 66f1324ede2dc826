"""Sides that run the same operations, paired in their order."""

from tests.builders.operation_logs import recorded
from tracer.diagnosis.zoom.alignment import align


def test_one_operation_more() -> None:
    reference = recorded(lambda x, w: x.sin().cos().exp() + w).recording
    candidate = recorded(lambda x, w: x.sin().tanh().cos().exp() + w).recording
    aligned = align(reference, candidate)
    assert aligned is not None
    assert aligned.others == {0: 0, 2: 1, 3: 2, 4: 3}
    assert aligned.own == {0: 0, 1: 2, 2: 3, 3: 4}
    assert {step: list(there) for step, there in aligned.instead.items()} == {1: []}


def test_too_little_in_common() -> None:
    reference = recorded(lambda x, w: x.sin().cos()).recording
    assert align(reference, recorded(lambda x, w: x.tanh().exp()).recording) is None
