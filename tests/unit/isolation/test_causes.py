"""What causes a module's error: what is left of it with each switch off, computed by hand."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import tracer
from tracer import models
from tracer.errors import ModelRunError
from tracer.isolation.causes import switches_of
from wrappers import PTQConfig, affine, calibrate, convert, prepare

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Wrong(nn.Linear):
    """A linear layer that adds and multiplies, each of which can be switched off."""

    def __init__(self, factor: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(6, 6)
        self.mistakes = {"factor": (factor, 1.0), "offset": (offset, 0.0)}

    def ablatable_points(self) -> dict[str, str]:
        return {name: f"wrong {name}" for name in self.mistakes}

    @contextmanager
    def disabled(self, name: str) -> Iterator[None]:
        before = self.mistakes[name]
        self.mistakes[name] = before[1], before[1]
        try:
            yield
        finally:
            self.mistakes[name] = before

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        factor, offset = (mistake[0] for mistake in self.mistakes.values())
        return super().forward(input) * factor + offset


class Around(Wrong):
    """The same around another module."""

    def __init__(self, inner: nn.Module, **mistakes: float) -> None:
        super().__init__(**mistakes)
        self.inner = inner

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return self.inner(super().forward(input))


class FormerNames(nn.Linear):
    """A module that says it by the former names of the two methods."""

    def switches(self) -> dict[str, str]:
        return {"bias": "float bias"}

    @contextmanager
    def switched_off(self, name: str) -> Iterator[None]:
        before, self.off = getattr(self, "off", None), name
        yield
        self.off = before


def test_former_names_are_known() -> None:
    module = FormerNames(2, 2)
    (switch,) = switches_of(nn.Sequential(module))
    assert (switch.point, switch.kind) == ("0.bias", "float bias")
    with switch.off():
        assert module.off == "bias"


def right(candidate: nn.Module) -> nn.Module:
    """The model without mistakes, with the same parameters."""
    inner = getattr(candidate, "inner", None)
    model = Wrong() if inner is None else Around(right(inner))
    model.load_state_dict(candidate.state_dict())
    return model


def worst(reference, candidate, level="leaves", inputs=X):
    """The module that introduces most."""
    found = tracer.compare(
        reference, candidate, inputs, confirm=False, isolate=level, train=reference.training
    ).isolation
    assert found is not None
    return found.modules[0]


def relative_l2(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    r, c = reference.detach().double(), candidate.detach().double()
    return (torch.linalg.vector_norm(r - c) / torch.linalg.vector_norm(r)).item()


def test_each_switch_by_hand():
    candidate = Wrong(factor=1.5, offset=0.25)
    reference = right(candidate)
    item = worst(reference, candidate)
    y = reference(X)
    before = pytest.approx(relative_l2(y, y * 1.5 + 0.25))
    assert [(c.point, c.kind, c.before, c.after) for c in item.causes] == [
        ("factor", "wrong factor", before, pytest.approx(relative_l2(y, y + 0.25))),
        ("offset", "wrong offset", before, pytest.approx(relative_l2(y, y * 1.5))),
    ]


def test_switches():
    candidate = Wrong(factor=1.0001, offset=0.25)
    assert [cause.point for cause in worst(right(candidate), candidate).causes] == ["offset"]
    model = nn.Sequential(Around(Wrong()), nn.Linear(6, 6))
    assert [(switch.point, switch.is_own) for switch in switches_of(model[0])] == [
        *(("factor", True), ("offset", True)),
        *(("inner.factor", False), ("inner.offset", False)),
    ]
    assert [switch.point for switch in switches_of(model)][-1] == "0.inner.offset"
    assert list(switches_of(model[1])) == []


@pytest.mark.covers
def test_in_its_own_lines_a_module_is_seen_without_the_mistakes_inside():
    candidate = nn.Sequential(Around(Wrong(factor=1.05), factor=1.5, offset=0.1))
    reference = nn.Sequential(right(candidate[0]))
    item = worst(reference, candidate)
    assert (item.module, item.worst.value) == ("0", "inner.kwargs.input")
    inner, given = reference[0].inner, nn.Linear.forward(reference[0], X)
    y = inner(given)
    before = pytest.approx(relative_l2(y, inner(given * 1.5 + 0.1)))
    assert [(c.point, c.before, c.after) for c in item.causes] == [
        ("factor", before, pytest.approx(relative_l2(y, inner(given + 0.1)))),
        ("offset", before, pytest.approx(relative_l2(y, inner(given * 1.5)))),
    ]


@pytest.mark.covers
def test_a_whole_module_is_tried_with_all_switches_inside():
    candidate = nn.Sequential(Around(Wrong(factor=1.5), offset=0.01), nn.Identity())
    reference = nn.Sequential(right(candidate[0]), nn.Identity())
    item = worst(reference, candidate, "0")
    y, layer = reference(X), reference[0]
    without = layer.inner(nn.Linear.forward(layer, X) + 0.01)
    assert item.causes[0].point == "inner.factor"
    assert item.causes[0].after == pytest.approx(relative_l2(y, without), rel=1e-4)


@pytest.mark.covers
def test_all_calls_count_together():
    class Twice(nn.Module):
        def __init__(self, wrong: nn.Module) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.wrong(x), self.wrong(10 * x)])

    candidate = Twice(Wrong(offset=0.25))
    reference = Twice(right(candidate.wrong))
    (cause,) = worst(reference, candidate).causes
    y = reference(X)
    assert (cause.before, cause.after) == (pytest.approx(relative_l2(y, y + 0.25)), 0.0)


@pytest.mark.covers
def test_outputs_that_are_no_floats_do_not_count():
    class Two(Wrong):
        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: A002
            output = super().forward(input)
            return output, output.argmax(-1), output > 0

    class Model(nn.Module):
        def __init__(self, two: Two) -> None:
            super().__init__()
            self.two = two

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(x)[0]

    candidate, reference = Model(Two(offset=0.25)), Model(Two())
    reference.load_state_dict(candidate.state_dict())
    item = worst(reference, candidate)
    y = reference(X)
    assert (item.module, item.worst.value) == ("two", "output.0")
    assert [(c.point, c.before, c.after) for c in item.causes] == [
        ("offset", pytest.approx(relative_l2(y, y + 0.25)), 0.0)
    ]


@pytest.mark.covers
def test_nothing_that_a_trial_does_is_left_behind():
    class Counting(Wrong):
        """Counts its calls in a buffer and an attribute, draws a number, and writes into what it
        was given."""

        def __init__(self, offset: float = 0.0) -> None:
            super().__init__(offset=offset)
            self.register_buffer("calls", torch.zeros(()))
            self.again = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            self.calls += 1
            self.again += 1
            output = super().forward(input.mul_(2)) + self.calls + self.again + torch.rand(())
            input.zero_()
            return output

    candidate = nn.Sequential(Counting(offset=0.25), nn.Dropout(0.5))
    reference = nn.Sequential(Counting(), nn.Dropout(0.5))
    reference.load_state_dict(candidate.state_dict())
    item = worst(reference, candidate)
    assert item.module == "0"
    (cause,) = item.causes
    assert (cause.point, cause.after) == ("offset", 0.0)
    assert cause.before == item.worst.introduced
    assert candidate[0].calls == candidate[0].again == 0


@pytest.mark.covers
def test_a_module_that_cannot_be_called_again():
    class Once(Wrong):
        calls = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            Once.calls += 1
            if Once.calls > 3:
                raise RuntimeError("used up")
            return super().forward(input)

    candidate = Once(offset=0.5)
    with pytest.raises(
        ModelRunError, match=r"\(Once\) raised RuntimeError when it was called again"
    ):
        worst(right(candidate), candidate)


class TestQuantised:
    @pytest.mark.slow
    def test_int4_among_int16_is_named_first(self):
        loaded = models.load("tiny-llama")
        planted = "model.layers.2.mlp.up_proj.weight"
        sixteen = affine("int16")
        config = PTQConfig(activation=sixteen, weight=sixteen, overrides={planted: affine("int4")})
        candidate = prepare(loaded.model, config)
        calibrate(candidate, [loaded.inputs])
        convert(candidate)
        item = worst(loaded.model, candidate, inputs=loaded.inputs)
        assert (item.module, item.share > 0.99) == ("model.layers.2.mlp.up_proj", True)
        cause = item.causes[0]
        assert (cause.point, cause.kind) == ("weight", "int4 weight")
        assert cause.before == pytest.approx(item.worst.introduced)
        assert cause.after < 0.01 * cause.before
        for level, point in (("blocks", "up_proj.weight"), ("layers", "mlp.up_proj.weight")):
            item = worst(loaded.model, candidate, level, loaded.inputs)
            assert item.causes[0].point == point
            assert item.causes[0].after < 0.05 * item.causes[0].before

    @pytest.mark.covers
    def test_a_point_in_the_own_lines_of_attention(self):
        loaded = models.load("tiny-llama")
        overrides = {"model.layers.1.self_attn.softmax": affine("uint4")}
        sixteen = affine("int16")
        config = PTQConfig(activation=sixteen, weight=sixteen, overrides=overrides)
        candidate = prepare(loaded.model, config)
        calibrate(candidate, [loaded.inputs])
        convert(candidate)
        item = worst(loaded.model, candidate, inputs=loaded.inputs)
        assert (item.module, item.worst.own_lines) == ("model.layers.1.self_attn", True)
        cause = item.causes[0]
        assert (cause.point, cause.kind) == ("softmax", "uint4 activation")
        assert cause.after < 0.05 * cause.before

    @pytest.mark.slow
    def test_prefill_and_decode_count_together(self):
        loaded = models.load("tiny-llama", batch=2)
        candidate = models.candidate(
            loaded, "quantized", variant="decode", steps=2, weight="uint4", activation="int16",
            calibration=models.calibration(loaded, count=1),
        )  # fmt: skip
        reference = tracer.Stepping(loaded.model, steps=2)
        item = worst(reference, candidate, inputs=models.ending_in_steps(loaded.inputs, 2))
        assert item.calls == 3
        points = [cause.point for cause in item.causes]
        assert (points[0], len(set(points))) == ("weight", len(points))
        assert item.causes[0].after < 0.01 * item.causes[0].before


@pytest.mark.covers
def test_what_rounding_does_is_counted_with_the_inputs_of_the_reference():
    linear = nn.Linear(6, 6)
    wrapped = prepare(linear, PTQConfig(activation=affine("fp8_e4m3"), weight=affine("uint4")))
    calibrate(wrapped, [X / 4])
    found = tracer.compare(linear, convert(wrapped), X, confirm=False, isolate="leaves").isolation
    causes = {cause.point: cause for cause in found.modules[0].causes}
    quantizer = wrapped.points["act_in"].quantizer
    rounding = causes["act_in"].rounding
    assert rounding.values == X.numel()
    assert rounding.saturated == pytest.approx(quantizer.saturated(X).double().mean().item())
    assert rounding.saturated > 0.1
    points = {point.pattern.rpartition(".")[2]: point for point in found.points}
    assert points["act_in"].rounding == rounding
    assert f"{100 * rounding.saturated:.3g}% saturated" in tracer.explain(found)
    assert wrapped.points["act_in"].counting is False
