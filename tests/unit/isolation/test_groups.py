"""The error over all layers, against sums over modules by hand."""

import copy
import math

import pytest
import torch
from torch import nn

import tracer
from tests.builders.layers import X
from tracer import models
from tracer.execution.pairing import Pairing
from tracer.isolation.causes import Cause
from tracer.isolation.groups import grouped, pattern_of, points_of
from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation
from wrappers import PTQConfig, affine, calibrate, convert, prepare


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.experts[0](y) + self.experts[1](y)


class Stack(nn.Module):
    """Layers in a list, and a head that is a chain of different modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def isolated(reference: nn.Module, candidate: nn.Module, **options: object) -> Isolation:
    found = tracer.compare(reference, candidate, X, confirm=False, **options).isolation
    assert found is not None
    return found


def pairing_of(model: nn.Module) -> Pairing:
    modules = dict(model.named_modules())
    return Pairing({name: name for name in modules}, modules, modules, frozenset())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("", ""),
        ("layers.2", "layers.*"),
        ("layers.2.norm", "layers.*.norm"),
        ("layers.0.experts.1", "layers.*.experts.*"),
        ("layers.0.experts.1.weight", "layers.*.experts.*.weight"),
        ("head.0", "head.0"),  # its members do different work
        ("gone.1", "gone.1"),
    ],
)
def test_patterns(name: str, pattern: str) -> None:
    assert pattern_of(name, dict(Stack().named_modules())) == pattern


@pytest.mark.covers
def test_groups_are_sums_of_modules() -> None:
    torch.manual_seed(0)
    model = Stack()
    wrong = copy.deepcopy(model)
    for i, layer in enumerate(wrong.layers):
        layer.experts[1].weight.data *= 1.1 + 0.1 * i
    wrong.head[0].weight.data *= 1.1
    found = isolated(model, wrong, isolate="leaves")
    share = {item.module: item.share for item in found.modules}
    experts = [share[f"layers.{i}.experts.1"] for i in range(3)]
    assert [group.pattern for group in found.groups] == ["layers.*.experts.*", "head.0"]
    group, head = found.groups
    assert (group.modules, group.worst) == (3, "layers.2.experts.1")
    assert group.share == pytest.approx(math.fsum(experts))
    assert group.worst_share == pytest.approx(max(experts))
    assert head.share == pytest.approx(share["head.0"])
    errors = {call.module: call.introduced for call in found.calls}
    assert group.introduced == max(errors[f"layers.{i}.experts.1"] for i in range(3))
    assert found.is_repetitive
    assert found.points == ()
    assert math.fsum(each.share for each in found.groups) == pytest.approx(1.0)


def test_what_is_there_once_is_not_repetitive() -> None:
    torch.manual_seed(0)
    model = Stack()
    wrong = copy.deepcopy(model)
    wrong.layers[1].norm.weight.data *= 1.5
    found = isolated(model, wrong, isolate="leaves")
    assert [(g.pattern, g.worst, g.modules) for g in found.groups] == [
        ("layers.*.norm", "layers.1.norm", 1)
    ]
    assert not found.is_repetitive


def test_points_are_weighed_by_the_share_of_their_module() -> None:
    pairing = pairing_of(Stack())
    call = IsolatedCall("", 0, "output", False, 0, None, None, 0.1, 0.1)
    ranked = [
        IsolatedModule("layers.0", call, 1, 0.5),
        IsolatedModule("layers.1", call, 1, 0.25),
        IsolatedModule("head", call, 1, 0.25),
    ]
    causes = {
        # Without it half the amplitude, so that a quarter of the power is left.
        "layers.0": (Cause("experts.0.weight", "int4 weight", 0.2, 0.1, "its weight"),),
        "layers.1": (
            Cause("experts.1.weight", "uint8 weight", math.inf, 0.1),
            Cause("norm.out", "uint8 activation", 0.1, 0.3),  # larger without it
        ),
        "head": (Cause("0.weight", "uint8 weight", 0.1, 0.0),),
    }
    first, second = points_of(causes, ranked, pairing)
    assert (first.pattern, first.kind, first.meaning, first.modules) == (
        "layers.*.experts.*.weight", "int4 weight, uint8 weight", "its weight", 2,
    )  # fmt: skip
    assert first.share == pytest.approx(0.5 * 0.75 + 0.25)
    assert (second.pattern, second.meaning, second.share) == ("head.0.weight", "", 0.25)
    assert points_of({}, ranked, pairing) == ()


def test_modules_that_were_looked_at_stand_for_those_that_are_alike() -> None:
    pairing = pairing_of(Stack())
    call = IsolatedCall("", 0, "output", False, 0, None, None, 0.1, 0.1)
    ranked = [
        IsolatedModule("layers.0", call, 1, 0.5),
        IsolatedModule("layers.1", call, 1, 0.25),
        IsolatedModule("head", call, 1, 0.25),
    ]
    causes = {
        "layers.0": (Cause("norm.weight", "uint8 weight", 0.2, 0.1),),
        "head": (Cause("0.weight", "uint8 weight", 0.1, 0.0),),
    }
    first, second = points_of(causes, ranked, pairing, [ranked[1]])
    assert (first.pattern, first.modules, first.measured) == ("layers.*.norm.weight", 2, 1)
    assert first.share == pytest.approx(0.75 * 0.75)
    assert (second.modules, second.measured, second.share) == (1, None, 0.25)


@pytest.mark.covers
def test_causes_are_looked_for_in_the_worst_of_those_that_are_alike() -> None:
    loaded = models.load("tiny-llama", seed=0)
    quantized = prepare(loaded.model, PTQConfig(activation=affine("uint8"), weight=affine("uint8")))
    calibrate(quantized, [loaded.inputs])
    found = tracer.compare(
        loaded.model, convert(quantized), loaded.inputs, isolate="leaves", confirm=False
    ).isolation
    assert found is not None
    looked_at = [item.module for item in found.modules if item.causes]
    patterns = [pattern_of(name, dict(loaded.model.named_modules())) for name in looked_at]
    assert len(patterns) == len(set(patterns))
    assert {(p.modules, p.measured) for p in found.points if "layers.*" in p.pattern} == {(4, 1)}


def test_a_candidate_of_other_names() -> None:
    model = Stack()
    reference = dict(model.named_modules())
    candidate = {f"model.{name}".rstrip("."): module for name, module in reference.items()}
    pairs = {f"model.{name}".rstrip("."): name for name in reference}
    pairing = Pairing(pairs, reference, candidate, frozenset())
    call = IsolatedCall("layers.1", 0, "output", False, 0, None, None, 0.1, 0.1)
    causes = {"layers.1": (Cause("experts.1.weight", "uint8 weight", 0.1, 0.0),)}
    (point,) = points_of(causes, [IsolatedModule("layers.1", call, 1, 1.0)], pairing)
    assert point.pattern == "layers.*.experts.*.weight"
    root = IsolatedModule("", call, 1, 1.0)
    (point,) = points_of({"": causes["layers.1"]}, [root], pairing)
    assert point.pattern == "experts.1.weight"  # not a name of the root's
    (group,) = grouped([root], pairing)
    assert (group.pattern, group.worst) == ("", "")


@pytest.mark.covers
def test_a_quantised_llama_by_hand() -> None:
    loaded = models.load("tiny-llama")
    wrapped = prepare(loaded.model, PTQConfig())
    calibrate(wrapped, [loaded.inputs])
    quantized = convert(wrapped)
    names = "*.mlp.down_proj"
    found = tracer.compare(
        loaded.model, quantized, loaded.inputs, confirm=False, isolate=names, causes="all"
    ).isolation
    assert found is not None
    (group,) = found.groups
    assert (group.pattern, group.modules) == ("model.layers.*.mlp.down_proj", 4)
    captured = tracer.capture(loaded.model, quantized, loaded.inputs, include=names)
    powers, without = {}, {}
    for given, returned in zip(captured[::2], captured[1::2], strict=True):
        module = quantized.get_submodule(given.module)
        right = returned.reference.double()

        def power(off: str | None, module=module, given=given, right=right) -> float:
            with torch.no_grad():
                if off is None:
                    output = module(given.reference)
                else:
                    with module.disabled(off):
                        output = module(given.reference)
            return ((output.double() - right).square().sum() / right.square().sum()).item()

        powers[given.module] = power(None)
        without[given.module] = {off: power(off) for off in ("act_in", "act_out", "weight")}
    total = math.fsum(powers.values())
    by_hand = {
        f"model.layers.*.mlp.down_proj.{off}": math.fsum(
            max(0.0, powers[name] - without[name][off]) / total for name in powers
        )
        for off in ("act_in", "act_out", "weight")
    }
    assert {point.pattern: point.share for point in found.points} == pytest.approx(
        {pattern: share for pattern, share in by_hand.items() if share > 0.0}, rel=1e-3
    )
    assert {point.modules for point in found.points} == {4}
    shares = [point.share for point in found.points]
    assert shares == sorted(shares, reverse=True)
