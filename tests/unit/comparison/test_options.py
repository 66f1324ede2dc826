"""Groups of options of compare()."""

import pytest

from tracer.comparison.options import Debugging, Isolate
from tracer.errors import UsageError


def test_a_number_of_swaps_is_not_negative() -> None:
    assert Isolate(what_if=2).level == "leaves"
    with pytest.raises(UsageError, match="what_if -1"):
        Isolate(what_if=-1)


@pytest.mark.parametrize(
    ("debugging", "asked"),
    [(Debugging(), False), (Debugging("*.mlp"), True), (Debugging(post_mortem=True), True)],
)
def test_whether_a_debugger_opens(debugging: Debugging, asked: bool) -> None:
    assert debugging.is_asked is asked
