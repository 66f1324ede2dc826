"""The rules that go by values, where several could answer."""

from tests.builders.operation_logs import case, names
from tracer.diagnosis.zoom import rules


def test_a_factor_that_is_undone_again_is_no_mistake() -> None:
    both = case(
        lambda x, w: (x.exp() @ w).tanh().sin(),
        lambda x, w: ((x.exp() * 4) @ (w / 4)).tanh().cos(),
    )
    assert rules.wrong_factor(both) is None
    assert names(both, rules.first_unmatched(both)) == ("wrong", "cos", "sin", None)


def test_what_was_left_out_comes_before_what_follows_from_it() -> None:
    both = case(
        lambda x, w: (x.sigmoid() + w).softmax(-1).exp(),
        lambda x, w: x.sigmoid().softmax(-1).exp(),
    )
    assert names(both, rules.left_out(both)) == ("missing", "_softmax", "add", "sigmoid")
