"""Each rule on small functions that are recorded: the reference's, and a wrong one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.builders.operation_logs import Compute, case, names
from tracer.diagnosis.zoom import rules
from tracer.diagnosis.zoom.alignment import align, same_operations
from tracer.diagnosis.zoom.case import ZoomKind
from tracer.diagnosis.zoom.culprit import culprit_of


@pytest.mark.parametrize(("rule", "reference", "candidate", "expected"), [
    pytest.param(
        rules.nothing_unmatched, lambda x, w: x.bmm(w).sigmoid(), lambda x, w: x,
        ("missing", None, "bmm", None), id="an argument is returned",
    ),
    pytest.param(
        rules.wrong_factor, lambda x, w: (x @ w * 0.5).softmax(-1), lambda x,
        w: (x @ w * 0.25).softmax(-1), ("wrong", "mul", "mul", None), id="another factor",
    ),
    pytest.param(
        rules.wrong_factor, lambda x, w: (x @ w * 0.5).softmax(-1), lambda x,
        w: (x @ w).softmax(-1), ("missing", "_softmax", "mul", "_unsafe_view"), id="no factor",
    ),
    pytest.param(
        rules.wrong_order_than_expected, lambda x, w: x.sigmoid() @ w, lambda x,
        w: x.sigmoid().mT @ w, ("wrong", "transpose", "bmm", None), id="transposed",
    ),
    pytest.param(
        rules.returned_as_it_is, lambda x, w: x.sigmoid() + w, lambda x, w: x.sigmoid(),
        ("missing", "sigmoid", "add", "sigmoid"), id="the last one left out",
    ),
    pytest.param(
        rules.left_out, lambda x, w: (x.sigmoid() + w).softmax(-1), lambda x,
        w: x.sigmoid().softmax(-1), ("missing", "_softmax", "add", "sigmoid"),
        id="one in the middle left out",
    ),
    pytest.param(
        rules.left_out, lambda x, w: (x.sigmoid() + w).softmax(-1), lambda x,
        w: (x.sigmoid() + torch.zeros(6)).softmax(-1), ("wrong", "zeros", "add", None),
        id="made neutral",
    ),
    pytest.param(
        rules.first_unmatched, lambda x, w: x.sigmoid() @ w, lambda x, w: x.tanh() @ w,
        ("wrong", "tanh", "sigmoid", None), id="another operation",
    ),
])  # fmt: skip
def test_rules(rule: Any, reference: Compute, candidate: Compute, expected: Any) -> None:
    both = case(reference, candidate)
    assert names(both, rule(both)) == expected


@pytest.mark.parametrize(("rule", "candidate"), [
    pytest.param(rules.nothing_unmatched, lambda x, w: x.tanh() @ w, id="something is"),
    pytest.param(rules.wrong_factor, lambda x, w: x.tanh() @ w, id="no factor"),
    pytest.param(rules.wrong_order_than_expected, lambda x, w: x.tanh() @ w, id="in order"),
    pytest.param(rules.wrong_order, lambda x, w: x.tanh() @ w, id="nothing rearranged"),
    pytest.param(rules.returned_as_it_is, lambda x, w: x.tanh() @ w, id="not returned"),
    pytest.param(rules.left_out, lambda x, w: x.sigmoid() @ (w + 1), id="the same kind"),
])  # fmt: skip
def test_rules_that_do_not_apply(rule: Any, candidate: Compute) -> None:
    assert rule(case(lambda x, w: x.sigmoid() @ w, candidate)) is None


def halves(x: Tensor, w: Tensor) -> Tensor:
    first, second = x.sigmoid().chunk(2, -1)
    return torch.cat((-second, first), -1) @ w


def other_halves(x: Tensor, w: Tensor) -> Tensor:
    first, second = x.sigmoid().chunk(2, -1)
    return torch.cat((first, -second), -1) @ w


def product(x: Tensor, w: Tensor) -> Tensor:
    return x.bmm(w)


def exchanged_product(x: Tensor, w: Tensor) -> Tensor:
    return w.bmm(x)


def rows(step: int) -> Compute:
    return lambda x, w: x[:, torch.arange(0, 6, step)[:3]] @ w


def masked(sign: int) -> Compute:
    mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -1e9)
    return lambda x, w: torch.add((x @ w).relu(), mask, alpha=sign).softmax(-1)


@pytest.mark.parametrize(("reference", "candidate", "expected"), [
    pytest.param(halves, other_halves, ("wrong", "cat", "cat", None), id="order of a cat"),
    pytest.param(
        lambda x, w: x.sigmoid().mT.exp() @ w, lambda x, w: x.sigmoid().exp() @ w,
        ("missing", "exp", "transpose", "sigmoid"), id="not transposed",
    ),
    pytest.param(
        lambda x, w: x.pow(2).mean(-1, keepdim=True).exp() * w, lambda x,
        w: x.pow(2).sum(-1, keepdim=True).exp() * w, ("wrong", "sum", "mean", None),
        id="a sum for a mean",
    ),
    pytest.param(rows(1), rows(2), ("wrong", "arange", "arange", None), id="whole numbers"),
    pytest.param(masked(1), masked(-1), ("wrong", "add", "add", None), id="the mask's sign"),
    pytest.param(
        lambda x, w: product(x.sigmoid(), w.tanh()), lambda x,
        w: exchanged_product(x.sigmoid(), w.tanh()), ("wrong", "bmm", "bmm", None),
        id="operands exchanged",
    ),
    pytest.param(
        lambda x, w: x.exp().sin().sigmoid() + w, lambda x, w: x.exp().sin().sigmoid(),
        ("missing", "sigmoid", "add", "sigmoid"), id="returned as it is",
    ),
])  # fmt: skip
def test_the_same_operations(reference: Compute, candidate: Compute, expected: Any) -> None:
    both = case(reference, candidate)
    assert names(both, same_operations(both)) == expected
    assert culprit_of(both, edits=False) == same_operations(both)


def test_values_that_are_exchanged_where_they_are_made() -> None:
    def reference(x: Tensor, w: Tensor) -> Tensor:
        first, second = x.sigmoid(), w.sigmoid()
        left = first.exp()
        return left @ second.sin()

    def exchanged(x: Tensor, w: Tensor) -> Tensor:
        second, first = x.sigmoid(), w.sigmoid()
        left = first.exp()
        return left @ second.sin()

    both = case(reference, exchanged)
    found = same_operations(both)
    assert found is not None
    assert found.step is not None
    assert both.steps[found.step].name == "sigmoid"


def test_nothing_to_align_and_no_culprit() -> None:
    by_rows = case(
        lambda x, w: x @ w,
        lambda x, w: torch.stack([a @ b for a, b in zip(x, w, strict=True)]).sigmoid(),
    )
    assert align(by_rows.reference.recording, by_rows.candidate.recording) is None
    assert same_operations(by_rows) is None
    both = case(halves, halves, is_wrong=False)
    assert culprit_of(both, edits=False).kind is ZoomKind.NONE
    assert (both.unmatched, both.leading_to_match) == ([], 0)
    assert culprit_of(both, [], edits=True).step is None  # nothing is edited in place
