"""What a comparison is checked against."""

import pytest

from tests.builders.small_net import Net
from tracer.cli.requests import CompareRequest
from tracer.cli.resolve import Sides
from tracer.cli.thresholds import Thresholds, open_former, thresholds
from tracer.errors import UsageError
from tracer.regression.baseline import Baseline


def made(*limits: tuple[str, float]) -> Thresholds:
    request = CompareRequest(model="m", candidate="itself", max_peir=limits)
    assert open_former(request) is None
    sides = Sides(Net(), Net(), None, ("a", "b"), (), quantized=False)
    return thresholds(request, sides, None)


def test_the_last_limit_of_a_glob_counts() -> None:
    found = made(("last", 0.1), ("block", 0.2), ("last", 0.3))
    assert list(found.limits) == ["max_peir"]
    assert list(found.limits["max_peir"].items()) == [("block", 0.2), ("last", 0.3)]


def test_limits_of_each_kind(make_row, make_comparison) -> None:
    request = CompareRequest(
        model="m", candidate="itself", min_sqnr=(("last", 30.0),), max_l2=(("*", 0.5),)
    )
    sides = Sides(Net(), Net(), None, ("a", "b"), (), quantized=False)
    found = thresholds(request, sides, None)
    assert found.limits == {"min_sqnr": {"last": 30.0}, "max_l2": {"*": 0.5}}
    judged = found.judge(make_comparison([make_row("last", 0.2)]), differences_expected=True)
    assert [limit.measure for limit in judged.gate.limits] == ["sqnr", "relative_l2"]


def test_a_limit_of_no_module() -> None:
    with pytest.raises(UsageError, match="head"):
        made(("head", 0.1))


def test_nothing_to_judge_by(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("last", 0.2)])
    assert made().judge(comparison, differences_expected=False) is comparison
    within = made(("last", 0.5)).judge(comparison, differences_expected=False)
    beyond = made(("last", 0.1)).judge(comparison, differences_expected=False)
    assert [judged.gate.passes for judged in (within, beyond)] == [True, False]


def test_a_baseline(make_row, make_comparison) -> None:
    before = Baseline.of(make_comparison([make_row("last", 0.01)]), "main.json")
    now = make_comparison([make_row("last", 0.2)])
    judged = Thresholds(before, {}, None).judge(now, differences_expected=True)
    assert not judged.gate.passes
