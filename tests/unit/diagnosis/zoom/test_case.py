"""Both sides' operations, and which of the candidate's values match."""

from tests.builders.operation_logs import case
from tracer.diagnosis.zoom.case import begins


def test_what_matches_what_leads_to_a_match_and_what_does_neither() -> None:
    both = case(
        lambda x, w: (x.sigmoid() @ w).exp(),
        lambda x, w: ((x / 2).tanh() / 2 + 0.5).bmm(w.tanh()).exp(),
    )
    kinds = [step.kind for step in both.steps]
    assert [kinds[index] for index in both.unmatched] == ["tanh", "matmul", "exp"]
    assert both.first == both.unmatched[0]
    assert (both.matched, both.leading_to_match) == (2, 2)
    assert begins(both.unmatched, both.candidate.recording) == both.unmatched[:1]
    theirs = both.reference.recording.steps
    assert both.expected is not None
    assert theirs[both.expected].kind == "matmul"


def test_whether_a_step_takes_right_values() -> None:
    both = case(lambda x, w: x.sigmoid() @ w, lambda x, w: x.tanh().sigmoid() @ w)
    taking = {step.kind: both.takes_right_values(i) for i, step in enumerate(both.steps)}
    assert taking["tanh"]
    assert not taking["sigmoid"]
