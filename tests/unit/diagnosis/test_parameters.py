"""What modules hold: how it differs, and the exchange of one side's for the other's."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from tracer.diagnosis.parameters import (
    ParameterDifference,
    ParameterKind,
    Setting,
    changed_dtypes,
    changed_parameters,
    changed_settings,
    equal_parameter,
    own_settings,
)
from tracer.interventions.exchange import exchange
from tracer.tensors.tolerance import Tolerance


@dataclass(frozen=True)
class Scale:
    """As a quantiser has it."""

    factor: torch.Tensor
    axis: int = 0
    _inverse: float = 1.0


@dataclass(frozen=True)
class Plain:
    """Holds no tensor."""


class Point:
    def __init__(self, scale: object) -> None:
        self.scale = scale
        self._last = torch.randn(3)


class Holder(nn.Module):
    """Holds tensors in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.table = torch.arange(4.0)
        self.points = {"input": Point(Scale(torch.tensor(0.5))), "off": Point(None)}
        self._private = torch.randn(3)
        self.eps = 1e-6
        self.sections = [2, 1, 1]

    def forward(self, x):
        return x


@pytest.fixture
def pair() -> tuple[Holder, Holder]:
    holders = []
    for _ in range(2):
        torch.manual_seed(0)
        holders.append(Holder())
    return holders[0], holders[1]


def changed(reference: nn.Module, candidate: nn.Module) -> dict[str, ParameterDifference]:
    return changed_parameters(reference, candidate, Tolerance())


def forms(reference: str, candidate: str) -> ParameterDifference:
    return ParameterDifference(ParameterKind.FORMS, True, reference, candidate)


def parts(**found: ParameterDifference) -> ParameterDifference:
    return ParameterDifference(ParameterKind.PARTS, parts=found)


def test_differences_of_tensors_that_are_no_parameters(pair) -> None:
    reference, candidate = pair
    candidate._private = torch.zeros(3)
    candidate.points["input"]._last = torch.zeros(3)
    assert changed(reference, candidate) == {}
    assert changed_settings(reference, candidate) == []
    reference, candidate = pair
    candidate.table = reference.table.flip(0)
    candidate.points["input"].scale = Scale(torch.tensor(0.25), axis=1)
    assert changed(reference, candidate) == {
        "table": ParameterDifference(ParameterKind.VALUES, True, 0.0, 3.0, 1.0, (0,)),
        "points.input.scale": parts(factor=forms("0.5", "0.25"), axis=forms("0", "1")),
    }


@pytest.mark.parametrize(("scale", "difference"), [
    (Scale(torch.ones(2)), parts(factor=forms("float32 [], all 0.5", "float32 [2], all 1"))),
    (Plain(), forms("Scale", "Plain")),
    (torch.ones(2), forms("Scale", "Tensor")),
])  # fmt: skip
def test_objects_of_a_different_implementation(pair, scale, difference) -> None:
    reference, candidate = pair
    candidate.points["input"].scale = scale
    assert changed(reference, candidate) == {"points.input.scale": difference}


def test_what_one_side_alone_has_in_attributes_does_not_count(pair) -> None:
    reference, candidate = pair
    del candidate.points["input"], reference.table
    assert changed(reference, candidate) == {}


@pytest.mark.parametrize("name", ["linear.weight", "table", "points.input.scale"])
def test_exchange_and_back(pair, name) -> None:
    reference, candidate = pair
    with torch.no_grad():
        candidate.linear.weight += 1.0
    candidate.table = reference.table + 1.0
    candidate.points["input"].scale = Scale(torch.tensor(0.25))
    before = changed(reference, candidate)
    weight, table, points = candidate.linear.weight, candidate.table, candidate.points
    point, scale = points["input"], points["input"].scale
    undo = exchange(candidate, reference, name)
    assert changed(reference, candidate).keys() == before.keys() - {name}
    assert all(torch.equal(a, b) for a, b in zip(*(h.buffers() for h in pair), strict=True))
    undo()
    assert changed(reference, candidate) == before
    assert candidate.linear.weight is weight
    assert candidate.table is table
    assert candidate.points is points
    assert points["input"] is point
    assert point.scale is scale


def test_what_is_exchanged(pair) -> None:
    reference, candidate = pair
    undo = exchange(candidate, reference, "points.input.scale")
    given = candidate.points["input"].scale
    assert given is not reference.points["input"].scale
    assert given.factor is not reference.points["input"].scale.factor
    assert undo is not None
    assert exchange(*pair, "linear.nothing") is None
    assert exchange(*pair, "nothing.weight") is None
    wider = Holder()
    wider.linear = nn.Linear(5, 3)
    assert exchange(wider, pair[0], "linear.weight") is None


def test_one_sided_parameters_of_unrelated_classes_are_no_difference() -> None:
    norm, layer_norm = nn.RMSNorm(4), nn.LayerNorm(4)
    assert changed(norm, layer_norm) == {}
    assert changed(norm, nn.Identity()) == {}
    with torch.no_grad():
        layer_norm.weight *= 2.0
    assert list(changed(norm, layer_norm)) == ["weight"]
    assert changed(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)).keys() == {"weight", "bias"}


class Doubled(nn.Linear):
    reference_output_scale = 2.0

    def to_reference_output(self, output):
        return output / 2.0


class Reversed(nn.Linear):
    def to_reference_output(self, output):
        return output.flip(-1)


class Negated(nn.Linear):
    def to_reference_output(self, output):
        return -output


class OfACall(nn.Linear):
    places = None  # set by a call

    def to_reference_output(self, output):
        return output[..., self.places[0]]


def with_weights(kind, weight, bias) -> nn.Linear:
    linear = kind(3, 4)
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return linear


class TestDeclaredForms:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(4, generator=torch.Generator().manual_seed(1))

    def reference(self) -> nn.Linear:
        return with_weights(nn.Linear, self.weight, self.bias)

    def test_a_declared_factor_is_expected_and_applied(self) -> None:
        right = with_weights(Doubled, 2 * self.weight, 2 * self.bias)
        assert changed(self.reference(), right) == {}
        wrong = with_weights(Doubled, 4 * self.weight, self.bias)
        assert list(changed(self.reference(), wrong)) == ["weight", "bias"]
        wrong = with_weights(Doubled, self.weight, 2 * self.bias)
        assert exchange(wrong, self.reference(), "weight") is not None
        assert torch.equal(wrong.weight, 2 * self.weight)
        assert isinstance(wrong.weight, nn.Parameter)

    def test_the_reference_may_declare_too(self) -> None:
        both = [with_weights(Doubled, 2 * self.weight, 2 * self.bias) for _ in range(2)]
        assert changed(*both) == {}
        with torch.no_grad():
            both[1].weight[1] *= 1.5
        assert list(changed(*both)) == ["weight"]
        assert exchange(both[1], both[0], "weight") is not None
        assert torch.equal(both[0].weight, both[1].weight)

    def test_forms_of_parameters(self) -> None:
        right = self.weight.flip(0), self.bias.flip(0)
        assert changed(self.reference(), with_weights(Reversed, *right)) == {}
        found = changed(self.reference(), with_weights(Reversed, self.weight, right[1]))
        assert list(found) == ["weight"]
        wrong = with_weights(Reversed, self.weight, right[1])
        undo = exchange(wrong, self.reference(), "weight")
        assert undo is not None
        assert torch.equal(wrong.weight, right[0])
        undo()
        assert torch.equal(wrong.weight, self.weight)
        # A form that is more than an order says nothing of the weight's rows.
        for kind in (Negated, OfACall):
            assert changed(self.reference(), with_weights(kind, self.weight, self.bias)) == {}
        both = [with_weights(Reversed, self.weight + i, self.bias) for i in range(2)]
        assert list(changed(*both)) == ["weight"]


def test_settings(pair) -> None:
    reference, candidate = pair
    candidate.eps, candidate.sections = 1e-5, [2, 2]
    candidate.points["input"].scale = Scale(torch.tensor(0.5), axis=1)
    candidate.train(False)
    own = [Setting("eps", "1e-06", "1e-05"), Setting("sections", "[2, 1, 1]", "[2, 2]")]
    assert own_settings(reference, candidate) == own
    assert changed_settings(reference, candidate) == [
        Setting("training", "True", "False"), Setting("points.input.scale.axis", "0", "1"), *own,
    ]  # fmt: skip


def test_other_classes_are_settings_too(pair) -> None:
    reference, candidate = pair
    candidate.points["input"].scale = Plain()
    assert changed_settings(reference, candidate) == [
        Setting("points.input.scale", "'Scale'", "'Plain'")
    ]
    assert changed_settings(nn.Tanh(), nn.ReLU())[0] == Setting(None, "Tanh", "ReLU")
    assert changed_settings(nn.Linear(2, 2), Doubled(2, 2)) == []


def test_dtypes_and_equal_parameters() -> None:
    assert changed_dtypes(nn.Linear(2, 2), nn.Linear(2, 2)) == []
    assert changed_dtypes(nn.Linear(2, 2), nn.Linear(2, 2, bias=False).half()) == [
        Setting("weight", "float32", "float16")
    ]
    modules = dict(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).named_modules())
    assert equal_parameter(modules["1"].weight.detach().clone(), modules) == "1.weight"
    assert equal_parameter(torch.zeros(3, 3), modules) is None
    assert equal_parameter(modules["1"].weight.half(), modules) is None
