"""The error that modules introduce themselves, against what hands compute from captured inputs."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import tracer
from tracer import models
from tracer.errors import ModelRunError, UsageError
from tracer.isolation.result import IsolatedCall, Isolation
from tracer.models.loading import Loaded

EXACT = pytest.approx


@pytest.fixture(scope="module")
def llama() -> Loaded:
    """The built-in Llama and three sequences, padded on the left."""
    return models.load("tiny-llama", batch=3, sequence_length=20, padding="left")


@pytest.fixture(scope="module")
def quantized(llama: Loaded) -> Callable[..., nn.Module]:
    """Makes quantised copies."""
    data = models.calibration(llama, count=1)

    def make(**options: object) -> nn.Module:
        return models.candidate(llama, "quantized", calibration=data, **options)

    return make


def isolation(reference, candidate, inputs, level="leaves", **options):
    found = tracer.compare(
        reference, candidate, inputs, confirm=False, isolate=level, **options
    ).isolation
    assert found is not None
    return found


def call_of(found: Isolation, module: str, call: int = 0) -> IsolatedCall:
    return next(c for c in found.calls if (c.module, c.call) == (module, call))


def relative_l2(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    r, c = reference.double(), candidate.double()
    return (torch.linalg.vector_norm(r - c) / torch.linalg.vector_norm(r)).item()


def peir(reference: torch.Tensor, candidate: torch.Tensor) -> float:
    r, c = reference.double(), candidate.double()
    return ((r - c).abs().max() / (r.max() - r.min())).item()


def chain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)


def scaled(model: nn.Module, **factors: float) -> nn.Module:
    """A copy in which the parameters of some modules are multiplied."""
    wrong = copy.deepcopy(model)
    for name, factor in factors.items():
        for parameter in wrong.get_submodule(name.removeprefix("m")).parameters():
            parameter.data.mul_(factor)
    return wrong


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


class TestIntroduced:
    def test_one_wrong_module_takes_all_the_blame(self):
        model = chain(6, 5, 4, 3)
        found = isolation(model, scaled(model, m1=1.1), X)
        assert [item.module for item in found.modules if item.share] == ["1"]
        assert found.modules[0].share == 1.0
        wrong, after = call_of(found, "1"), call_of(found, "2")
        assert (wrong.introduced, wrong.input_peir) == (EXACT(0.1, rel=1e-5), 0.0)
        assert wrong.introduced_peir == wrong.peir
        # Its successor inherits the error, and makes none.
        assert (after.introduced, after.introduced_peir, after.share) == (0.0, 0.0, 0.0)
        assert after.input_peir == wrong.peir
        assert after.peir > 0.01

    def test_independent_mistakes_are_parted(self):
        model = chain(6, 5, 4, 3)
        found = isolation(model, scaled(model, m0=1.3, m2=0.6), X)
        assert [(i.module, i.share) for i in found.modules] == [
            ("2", EXACT(0.16 / 0.25, rel=1e-5)), ("0", EXACT(0.09 / 0.25, rel=1e-5)), ("", 0.0),
            ("1", 0.0),
        ]  # fmt: skip

    @pytest.mark.covers
    def test_linear_layers_of_a_quantised_model_by_hand(self, llama, quantized):
        candidate = quantized(weight="uint4", activation="int16")
        found = isolation(llama.model, candidate, llama.inputs)
        names = [n for n, m in llama.model.named_modules() if isinstance(m, nn.Linear)]
        captured = {
            (value.module, value.value): value.reference
            for value in tracer.capture(llama.model, candidate, llama.inputs, include=names)
        }
        assert len(names) == 29
        visible = llama.inputs["attention_mask"].bool()
        for name in names:
            module = candidate.get_submodule(name)
            with torch.no_grad():
                output = module.to_reference_output(module(captured[name, "kwargs.input"]))
            pair = captured[name, "output"][visible], output[visible]
            call = call_of(found, name)
            assert call.introduced == EXACT(relative_l2(*pair), rel=1e-5)
            assert call.introduced_peir == EXACT(peir(*pair), rel=1e-5)

    @pytest.mark.covers
    def test_blocks_of_a_quantised_model_by_hand(self, llama, quantized):
        candidate = quantized(weight="uint4", activation="int16", variant="prefill_reference")
        found = isolation(llama.model, candidate, llama.inputs, "blocks")
        values = tracer.capture(llama.model, candidate, llama.inputs, include="*.mlp")
        visible = llama.inputs["attention_mask"].bool()
        assert len(found.calls) == 8
        for given, returned in zip(values[::2], values[1::2], strict=True):
            with torch.no_grad():
                output = candidate.get_submodule(given.module)(given.reference)
            pair = returned.reference[visible], output[visible]
            assert call_of(found, given.module).introduced == EXACT(relative_l2(*pair), rel=1e-5)

    @pytest.mark.covers
    @pytest.mark.parametrize("level", ["leaves", "blocks", "layers", "*_proj"])
    def test_shares_sum_to_one(self, llama, quantized, level: str):
        found = isolation(llama.model, quantized(), llama.inputs, level)
        assert math.fsum(call.share for call in found.calls) == EXACT(1.0)
        assert math.fsum(item.share for item in found.modules) == EXACT(1.0)
        assert found.unforced == ()

    def test_a_model_against_itself(self):
        model = chain(6, 5, 3)
        found = isolation(model, model, X, what_if=2)
        assert all(call.share == call.introduced == 0.0 for call in found.calls)
        assert found.recoveries == ()
        assert found.explanation == "No module introduces an error of its own."

    def test_a_module_that_is_called_twice(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 6, bias=False)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.linear(torch.relu(self.linear(x)) ** 3)

        torch.manual_seed(0)
        model = Twice()
        found = isolation(model, scaled(model, linear=1.2), X)
        calls = [call for call in found.calls if call.module == "linear"]
        assert [(c.call, c.introduced) for c in calls] == [
            (0, EXACT(0.2, rel=1e-5)),
            (1, EXACT(0.2, rel=1e-5)),
        ]
        assert calls[1].input_peir > 0.5
        assert (found.modules[0].calls, found.modules[0].share) == (2, EXACT(1.0))

    @pytest.mark.covers
    def test_decode_steps(self, llama, quantized):
        candidate = quantized(variant="decode", steps=2, weight="uint4", activation="int16")
        reference = tracer.Stepping(llama.model, steps=2)
        inputs = models.ending_in_steps(llama.inputs, 2)
        found = isolation(reference, candidate, inputs)
        values = tracer.capture(reference, candidate, inputs, include="lm_head")
        given, returned = (v.reference for v in values if v.call == 2)
        with torch.no_grad():
            output = candidate.decode.lm_head(given)
        call = call_of(found, "lm_head", 2)
        assert call.introduced == EXACT(relative_l2(returned, output), rel=1e-5)
        assert found.modules[0].calls == 3

    @pytest.mark.covers
    def test_padded_positions_are_no_error(self, llama):
        """Eager and fused attention differ where all is hidden, and nowhere else."""
        candidate = copy.deepcopy(models.candidate(llama, "sdpa"))
        candidate.lm_head.weight.data[3] *= 2
        found = isolation(llama.model, candidate, llama.inputs)
        assert found.modules[0].module == "lm_head"
        assert found.modules[0].share > 0.999

    @pytest.mark.covers
    def test_causes_of_a_quantised_candidate_where_asked_for(self, llama, quantized):
        inputs = llama.inputs
        found = isolation(llama.model, quantized(), inputs, causes=False)
        assert found.modules[0].share > 0
        assert not any(item.causes for item in found.modules)
        assert any(item.causes for item in isolation(llama.model, quantized(), inputs).modules)
        found = isolation(llama.model, models.candidate(llama, "bfloat16"), llama.inputs)
        linear = call_of(found, "model.layers.1.mlp.down_proj")
        assert 1e-4 < linear.introduced < 2**-7  # roundings of a bfloat16, of 8 bits
        assert all(item.causes == () for item in found.modules)

    def test_a_candidate_that_is_not_finite(self):
        model = chain(6, 5, 4, 3)
        candidate = scaled(model, m2=1.1)
        candidate[1].bias.data[0] = torch.nan
        found = isolation(model, candidate, X)
        assert [(i.module, i.share) for i in found.modules][:2] == [("1", 1.0), ("2", 0.0)]
        assert call_of(found, "2").introduced == EXACT(0.1, rel=1e-5)
        assert math.isinf(found.modules[0].worst.introduced)


class Own(nn.Module):
    """Computes in its own forward before, between and after its children."""

    def __init__(self, before: float = 2.0, between: float = 3.0, after: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.before, self.between, self.after = before, between, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x * self.before)
        return self.second(hidden * self.between) + self.after * x


class TestOwnLines:
    @pytest.mark.parametrize(("wrong", "value", "error"), [
        ({"before": 2.2}, "inner.first.kwargs.input", 0.1),
        ({"between": 2.4}, "inner.second.kwargs.input", 0.2),
    ])  # fmt: skip
    def test_what_a_module_hands_to_those_that_it_calls(self, wrong, value, error):
        reference, candidate = (
            nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": own})["inner"])
            for own in (Own(), Own(**wrong))
        )
        found = isolation(reference, candidate, X)
        assert [item.module for item in found.modules if item.share] == ["1"]
        worst = found.modules[0].worst
        assert (worst.value, worst.own_lines) == (value.removeprefix("inner."), True)
        assert (worst.introduced, worst.share) == (EXACT(error, rel=1e-5), 1.0)

    def test_what_it_makes_of_what_they_return(self):
        reference, candidate = Own(), Own(after=1.5)
        worst = isolation(reference, candidate, X).modules[0].worst
        assert (worst.module, worst.value) == ("", "output")
        with torch.no_grad():
            assert worst.introduced == EXACT(relative_l2(reference(X), candidate(X)), rel=1e-5)

    def test_a_whole_layer_has_the_errors_inside_it(self):
        class Layers(nn.Module):
            def __init__(self, **wrong: float) -> None:
                super().__init__()
                self.layers = nn.ModuleList([Own(), Own(**wrong)])

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for layer in self.layers:
                    x = layer(x)
                return x

        reference, candidate = Layers(), Layers(between=2.4)
        found = isolation(reference, candidate, X, "layers")
        with torch.no_grad():
            given = reference.layers[0](X)
            pair = reference.layers[1](given), candidate.layers[1](given)
        assert [(call.module, call.introduced) for call in found.calls] == [
            ("layers.0", 0.0),
            ("layers.1", EXACT(relative_l2(*pair), rel=1e-5)),
        ]


class TestNesting:
    @pytest.mark.slow
    def test_chosen_modules_in_one_another_do_not_disturb_each_other(self, llama, quantized):
        candidate = quantized(weight="uint4")
        nested = isolation(llama.model, candidate, llama.inputs, "model.layers.1*")
        assert {call.depth for call in nested.calls} == {0, 1, 2}
        for glob, depth in (
            ("model.layers.1", 0),
            ("model.layers.1.mlp", 1),
            ("model.layers.1.mlp.down_proj", 2),
        ):
            (alone,) = isolation(llama.model, candidate, llama.inputs, glob).calls
            together = call_of(nested, glob)
            assert (together.depth, together.introduced) == (depth, alone.introduced)
            assert together.introduced_peir == alone.introduced_peir
        for depth in range(3):
            assert math.fsum(c.share for c in nested.calls if c.depth == depth) == EXACT(1.0)

    def test_modules_that_are_chosen_and_not_called(self):
        model = chain(6, 5)
        model.register_module("spare", nn.Identity())
        model.forward = lambda x: model[0](x)
        with pytest.raises(UsageError, match="isolate 'spare': none of spare was called"):
            isolation(model, model, X, "spare")

    @pytest.mark.covers
    def test_a_call_that_is_made_with_right_inputs_only(self):
        """A small error sends the candidate another way, as a router of experts may."""

        class Routed(nn.Module):
            def __init__(self, limit: float) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.scale = nn.Linear(6, 6)
                self.experts = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
                self.limit = limit

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.scale(x)
                return self.experts[int(x.abs().sum() > self.limit)](x)

        limit = 1.05 * Routed(0.0).scale(X).abs().sum().item()
        reference, candidate = Routed(limit), Routed(limit)
        candidate.scale.weight.data *= 1.5
        candidate.experts[0].weight.data *= 1.25
        candidate.experts[0].bias.data *= 1.25
        found = isolation(reference, candidate, X, what_if=1)
        expert = call_of(found, "experts.0")
        assert (expert.peir, expert.input_peir) == (None, None)
        assert expert.introduced == EXACT(0.25, rel=1e-5)
        assert [item.module for item in found.modules[:2]] == ["scale", "experts.0"]


@pytest.mark.covers
class TestWhatIf:
    def test_the_only_wrong_module_swapped_leaves_nothing(self):
        model = chain(6, 5, 4, 3)
        candidate = scaled(model, m1=1.1)
        (recovery,) = isolation(model, candidate, X, what_if=3).recoveries
        with torch.no_grad():
            before = peir(model(X), candidate(X)), relative_l2(model(X), candidate(X))
        assert recovery.modules == ("1",)
        assert (recovery.before, recovery.before_l2) == EXACT(before, rel=1e-5)
        assert (recovery.after, recovery.after_l2) == (0.0, 0.0)

    @pytest.mark.covers
    def test_each_alone_and_all_together(self):
        model = chain(6, 5, 4, 3)
        candidate = scaled(model, m0=1.3, m1=1.1, m2=0.6)
        found = isolation(model, candidate, X, what_if=2)
        assert [r.modules for r in found.recoveries] == [("2",), ("0",), ("2", "0")]
        for recovery in found.recoveries:
            mixed = copy.deepcopy(candidate)
            for name in recovery.modules:
                mixed[int(name)] = model[int(name)]
            with torch.no_grad():
                after = peir(model(X), mixed(X)), relative_l2(model(X), mixed(X))
            assert (recovery.after, recovery.after_l2) == EXACT(after, rel=1e-4)

    @pytest.mark.covers
    def test_what_is_swapped(self):
        model = chain(6, 5, 3)
        found = tracer.compare(model, scaled(model, m1=1.1), X, what_if=1).isolation
        assert found is not None
        assert found.level == "leaves"
        found = isolation(Own(), Own(after=1.5), X, what_if=1)
        assert (found.modules[0].module, found.recoveries) == ("", ())
        model = chain(6, 5)
        with pytest.raises(UsageError, match="what_if -1: expected how many modules"):
            tracer.compare(model, model, X, what_if=-1)


class TestRuns:
    @pytest.mark.covers
    def test_nothing_is_changed(self, llama, quantized):
        candidate = quantized(weight="uint4")
        random = torch.get_rng_state()
        before = candidate(**llama.inputs).logits
        isolation(llama.model, candidate, llama.inputs, what_if=1)
        assert torch.equal(candidate(**llama.inputs).logits, before)
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in candidate.modules())
        pair = llama.model, quantized(weight="uint4"), llama.inputs
        plain, isolated = (
            tracer.compare(*pair, confirm=False, isolate=level) for level in (None, "leaves")
        )
        assert plain.isolation is None
        assert (isolated.rows, isolated.verdict) == (plain.rows, plain.verdict)

    def test_a_form_that_cannot_be_replaced_is_told(self):
        class Rolled(nn.Linear):
            def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
                return super().forward(input).roll(1, dims=-1)

            def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
                return output.roll(-1, dims=-1)

        model = chain(6, 5, 4)
        candidate = scaled(model, m0=1.1)
        candidate[0].__class__ = Rolled
        candidate[1].weight.data.copy_(model[1].weight.roll(1, dims=-1))
        found = isolation(model, candidate, X)
        assert found.unforced == (("0", 0),)
        assert call_of(found, "0").introduced == EXACT(0.1, rel=1e-5)
        assert "What follows `0` inherits an error" in found.explanation

    def test_a_candidate_that_raises_on_what_is_right(self):
        class Picky(nn.Linear):
            def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
                if bool((input < 5.0).all()):
                    raise ValueError("too small")
                return super().forward(input)

        model = nn.Sequential(nn.Identity(), nn.Linear(6, 3))
        candidate = nn.Sequential(nn.Identity(), Picky(6, 3))
        candidate.load_state_dict(model.state_dict())
        candidate[0].forward = lambda x: x + 10.0
        with pytest.raises(ModelRunError, match=r"in module '1' .* too small") as caught:
            isolation(model, candidate, X)
        assert caught.value.comparison is not None
        assert caught.value.comparison.rows

    def test_frame(self):
        model = chain(6, 5, 4)
        frame = isolation(model, scaled(model, m0=1.1), X).to_frame()
        assert list(frame.columns) == [
            *("module", "call", "value", "own_lines", "depth", "input_peir", "peir"),
            *("introduced_peir", "introduced", "share", "receiver", "passed_as"),
        ]
        assert frame["module"].tolist() == ["", "0", "1"]
        assert frame["share"].tolist() == [0.0, 1.0, 0.0]


class Attending(nn.Module):
    """Gives weights beside its result, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(4, 4)
        self.sharpness = 1.0

    def forward(self, x):
        weights = torch.softmax(x @ x.mT, dim=-1)
        return weights @ self.values(x), weights * self.sharpness


class Attended(nn.Module):
    """Drops the weights, or hands them on."""

    def __init__(self, hands_on: bool) -> None:
        super().__init__()
        self.attention = Attending()
        self.head = nn.Identity()
        self.hands_on = hands_on

    def forward(self, x):
        attended, weights = self.attention(x)
        return attended.sum() + self.head(weights).sum() if self.hands_on else attended


@pytest.mark.covers
@pytest.mark.parametrize("hands_on", [True, False])
def test_a_part_of_an_output_that_nobody_uses_does_not_count(hands_on: bool) -> None:
    torch.manual_seed(0)
    reference = Attended(hands_on).eval()
    candidate = copy.deepcopy(reference)
    candidate.attention.sharpness = 1.5
    found = tracer.compare(reference, candidate, torch.randn(3, 4), isolate="leaves").isolation
    call = next(call for call in found.calls if call.module == "attention")
    assert (call.introduced > 0.1) is hands_on
    assert call.value == ("output.1" if hands_on else "output.0")
