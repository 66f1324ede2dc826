"""The search for the origin: caches, edits in place, masks, what modules hold, errors."""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tracer


class Memory:
    """A cache: what each layer has seen."""

    def __init__(self) -> None:
        self.seen: dict[int, torch.Tensor] = {}

    def update(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        if layer in self.seen:
            x = torch.cat((self.seen[layer], x), dim=1)
        self.seen[layer] = x
        return x


class Layer(nn.Module):
    """Looks back at what it has seen before, under a mask."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x, mask=None, memory=None, table=None):
        y = self.mix(self.norm(x))
        seen = self.look(y, memory)
        logits = y @ seen.mT
        if mask is not None:
            logits = logits + mask
        output = x + logits.softmax(-1) @ seen
        return output if table is None else output * table

    def look(self, y, memory):
        return y if memory is None else memory.update(y, self.index)


class Model(nn.Module):
    """Two layers; two steps with a memory where it is told to."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(index) for index in range(2))
        self.head = nn.Linear(8, 4)
        self.steps = steps
        self.scale = torch.tensor(0.5)

    def forward(self, x):
        memory = Memory() if self.steps > 1 else None
        for step in x.chunk(self.steps, dim=1):
            for layer in self.layers:
                step = layer(step, self.mask(step), self.given(layer, memory), self.table())
        return self.head(step)

    def mask(self, x):
        length = x.shape[1]
        if self.steps > 1:
            return None
        return x.new_full((1, length, length), torch.finfo(x.dtype).min).triu(1)

    def given(self, layer, memory):
        return memory

    def table(self):
        return 1.0 + self.scale * torch.linspace(0.0, 1.0, 8, dtype=self.head.weight.dtype)


X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))


def pair(steps: int = 1) -> tuple[Model, Model]:
    torch.manual_seed(0)
    reference = Model(steps).eval()
    return reference, copy.deepcopy(reference)


def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    setattr(module, name, types.MethodType(function, module))


def judged(reference: nn.Module, candidate: nn.Module, x: Any = X, **options: Any) -> Any:
    verdict = tracer.compare(reference, candidate, x, **options).verdict
    if verdict.agrees:
        return verdict
    found = verdict.origin.module, verdict.origin.argument or verdict.origin.kind
    return (*found, verdict.confirmed, verdict.explanation)


class TestCaches:
    def test_equal_ones_agree_in_rows_of_their_own(self) -> None:
        comparison = tracer.compare(*pair(steps=2), X)
        assert comparison.verdict.agrees
        written = [row for row in comparison.rows if row.value.startswith("written")]
        assert [(row.module, row.call, row.value, row.shape) for row in written] == [
            # In the first step it is the output of `mix`, which has been compared.
            ("layers.0", 1, "written.memory.seen.0", (2, 6, 8)),
            ("layers.1", 1, "written.memory.seen.1", (2, 6, 8)),
        ]
        assert all(row.is_output and row.is_written and row.argument is None for row in written)

    @pytest.mark.covers
    def test_who_writes_something_wrong_is_to_blame_not_who_hands_it_on(self) -> None:
        reference, candidate = pair(steps=2)

        def look(self, y, memory):
            memory.update(2.0 * y, self.index)
            return y if memory.seen[self.index].shape[1] == 3 else memory.seen[self.index]

        replaced(candidate.layers[0], "look", look)
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("layers.0", "computation", True)
        assert "First visible at `memory.seen.0` as left by `layers.0`, PEIR 0." in text
        assert "What `layers.0` leaves in its argument `memory` is wrong." in text
        assert "It matches a known mistake: scaled by 2" in text

    @pytest.mark.covers
    def test_another_entry_is_a_divergence_and_an_unread_one_none(self) -> None:
        reference, candidate = pair(steps=2)
        candidate.layers[0].index = 7
        module, found, _, text = judged(reference, candidate)
        assert (module, found) == ("layers.0", "computation")
        assert "left written.memory.seen.0 (float32 [2, 3, 8]" in text
        assert "candidate written.memory.seen.7 (float32 [2, 3, 8]" in text
        assert "Its `index` is 0 in the reference and 7 in the candidate." in text
        reference, candidate = pair()
        candidate.given = lambda layer, memory: Memory()
        assert judged(reference, candidate).agrees

    @pytest.mark.covers
    @pytest.mark.parametrize("factor", [1.0, 2.0])
    def test_calls_in_another_order_write_the_same(self, factor: float) -> None:
        """The reference's call has ended, and others have written, when its counterpart comes."""

        def both(self, x, order):
            memory = Memory()
            return sum(self.layers[index](x, None, memory, self.table()) for index in order)

        reference, candidate = pair()
        replaced(reference, "forward", lambda self, x: both(self, x, (0, 1)))
        replaced(candidate, "forward", lambda self, x: both(self, x, (1, 0)))
        for layer in candidate.layers[:1]:
            replaced(layer, "look", lambda self, y, memory: memory.update(factor * y, 0) / factor)
        if factor == 1.0:
            assert judged(reference, candidate).agrees
        else:
            assert judged(reference, candidate)[:2] == ("layers.0", "computation")

    @pytest.mark.covers
    def test_one_that_was_not_handed_on_in_an_earlier_step(self) -> None:
        reference, candidate = pair(steps=2)
        candidate.given = lambda layer, memory: memory if layer.index else None
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("", "memory", True)
        assert "passes a wrong `memory` to `layers.0`" in text
        assert "reference: Memory, at" in text
        assert "candidate: None, at" in text

    @pytest.mark.covers
    def test_the_references_own_is_left_alone_by_the_trial(self) -> None:
        reference, candidate = pair(steps=3)
        candidate.given = lambda layer, memory: memory if layer.index else None
        assert tracer.compare(reference, candidate, X).verdict.confirmed
        assert tracer.compare(reference, copy.deepcopy(reference), X).verdict.agrees


class TestEditsInPlace:
    @pytest.mark.covers
    def test_an_edit_that_the_caller_still_needs_is_found(self) -> None:
        reference, candidate = pair()
        own = candidate.layers[1].norm.forward

        def forward(self, x):
            output = own(x)
            x.mul_(0.5)
            return output

        replaced(candidate.layers[1].norm, "forward", forward)
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("layers.1.norm", "computation", True)
        assert "`layers.1.norm` edits its argument `input` in place" in text
        assert "Confirmed: with a copy of `input` for it, PEIR at output of `layers.1` falls" in (
            text
        )

    @pytest.mark.covers
    def test_an_edit_of_what_is_shared_with_later_calls(self) -> None:
        reference, candidate = pair()
        for model in (reference, candidate):
            replaced(model, "forward", with_one_table)
        own = candidate.layers[0].forward

        def forward(self, x, mask=None, memory=None, table=None):
            output = own(x, mask, memory, table)
            table.neg_()
            return output

        replaced(candidate.layers[0], "forward", forward)
        module, found, confirmed, _ = judged(reference, candidate)
        assert (module, found, confirmed) == ("layers.0", "computation", True)

    def test_an_edit_that_nobody_sees_agrees(self) -> None:
        reference, candidate = pair()
        own = candidate.head.forward

        def forward(self, x):
            output = own(x)
            x.zero_()
            return output

        replaced(candidate.head, "forward", forward)
        assert judged(reference, candidate).agrees

    @pytest.mark.covers
    def test_an_edit_on_both_sides_is_no_suspect(self) -> None:
        reference, candidate = pair()
        for model in (reference, candidate):
            own = model.layers[0].norm.forward
            model.layers[0].norm.forward = lambda x, own=own: own(x.mul_(2.0))
        with torch.no_grad():
            candidate.layers[1].mix.weight *= 1.5
        assert judged(reference, candidate)[:3] == ("layers.1.mix", "parameter", True)


def with_one_table(self, x):
    table = self.table()
    for layer in self.layers:
        x = layer(x, self.mask(x), None, table)
    return self.head(x)


@pytest.mark.covers
class TestMasks:
    def test_one_that_means_the_same_and_makes_nan(self) -> None:
        reference, candidate = pair()

        def all_hidden(self, x):
            mask = Model.mask(self, x)
            mask[:, 0] = torch.finfo(x.dtype).min
            return mask

        def infinite(self, x):
            mask = all_hidden(self, x)
            return mask.masked_fill(mask < 0, -torch.inf)

        replaced(reference, "mask", all_hidden)
        replaced(candidate, "mask", infinite)
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("", "mask", True)
        assert "reference: float32 [1, 6, 6], from -3.4028e+38 to 0: additive mask" in text
        assert "candidate: float32 [1, 6, 6], from -inf to 0: additive mask" in text

    def test_one_that_means_the_same_is_not_blamed_for_anything_else(self) -> None:
        reference, candidate = pair()
        candidate.mask = lambda x: Model.mask(candidate, x).clamp(min=-1e4)
        with torch.no_grad():
            candidate.layers[1].mix.weight *= 1.5
        assert judged(reference, candidate)[:3] == ("layers.1.mix", "parameter", True)


class TestWhatModulesHold:
    @pytest.mark.covers
    def test_tensors_in_attributes_and_of_others(self) -> None:
        reference, candidate = pair()
        candidate.scale = torch.tensor(0.7)
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("", "parameter", True)
        assert "its `scale` differs (0.5 against 0.7)" in text
        assert torch.equal(candidate.scale, torch.tensor(0.7))
        reference, candidate = pair()
        candidate.layers[0].mix.load_state_dict(reference.layers[1].mix.state_dict())
        text = judged(reference, candidate)[3]
        assert "Its `weight` equals the reference's `layers.1.mix.weight`." in text
        assert "Its `bias` equals the reference's `layers.1.mix.bias`." in text


@pytest.mark.covers
class TestConfirmation:
    @pytest.mark.covers
    def test_an_argument_in_another_form_is_confirmed_by_the_output_around_it(self) -> None:
        reference, candidate = pair()
        own = candidate.layers[1].mix
        own.to_reference_input = lambda name, value: value.flip(-1)
        own.weight.data = own.weight.data.flip(-1)
        candidate.layers[1].norm.register_forward_hook(lambda module, args, output: output)

        def forward(self, x, mask=None, memory=None, table=None):
            y = self.mix(2.0 * self.norm(x).flip(-1))
            return (x + (y @ y.mT + mask).softmax(-1) @ y) * table

        replaced(candidate.layers[1], "forward", forward)
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("layers.1", "computation", True)
        assert (
            "Confirmed: with the reference's output of `layers.1`, everything after it agrees"
            in (text)
        )

    def test_a_declared_factor_is_no_hindrance(self) -> None:
        class Quarter(nn.LayerNorm):
            reference_output_scale = 0.25

            def forward(self, x):
                return super().forward(x) / 4.0

            def to_reference_output(self, output):
                return output * 4.0

        reference, candidate = pair()
        norm = candidate.layers[1].norm
        norm.__class__, norm.eps = Quarter, 0.5
        candidate.layers[1].mix.forward = lambda x: nn.Linear.forward(
            candidate.layers[1].mix, 4.0 * x
        )
        module, found, confirmed, text = judged(reference, candidate)
        assert (module, found, confirmed) == ("layers.1.norm", "computation", True)
        assert "Its `eps` is 1e-05 in the reference and 0.5 in the candidate." in text


class TestFailures:
    def run(self, reference: nn.Module, candidate: nn.Module, **options: Any) -> Any:
        with pytest.raises(tracer.ModelRunError) as caught:
            tracer.compare(reference, candidate, X, **options)
        return str(caught.value), caught.value.comparison.verdict

    def test_a_wrong_argument_is_the_cause(self) -> None:
        reference, candidate = pair()
        candidate.mask = lambda x: torch.zeros(1, 5, 5)
        message, verdict = self.run(reference, candidate)
        assert "the candidate raised RuntimeError in module 'layers.0'" in message
        assert message.endswith("; it began when the root module passed a wrong `mask`")
        assert not verdict.agrees
        assert (verdict.origin.module, verdict.origin.argument) == ("", "mask")
        assert (verdict.symptom.module, verdict.symptom.value) == ("layers.0", "output")
        assert verdict.confirmed
        assert "Confirmed: with the reference's `mask`, it does not raise." in verdict.explanation

    def test_nothing_had_differed(self) -> None:
        reference, candidate = pair()

        def forward(x):
            raise ValueError("broken")

        candidate.layers[1].mix.forward = forward
        message, verdict = self.run(reference, candidate)
        assert message.endswith("call 0): broken")
        assert (verdict.origin.module, verdict.origin.kind) == ("layers.1.mix", "computation")
        assert not verdict.confirmed
        assert verdict.explanation == (
            "`layers.1.mix` of the candidate raises; nothing else had differed."
        )

    def test_another_dtype_of_a_parameter(self) -> None:
        reference, candidate = pair()
        candidate.layers[0].mix.half()
        _, verdict = self.run(reference, candidate)
        assert (verdict.origin.module, verdict.origin.kind) == ("layers.0.mix", "parameter")
        assert "Its `weight` is float32 in the reference and float16 in the candidate." in (
            verdict.explanation
        )

    @pytest.mark.covers
    def test_what_had_diverged_before_is_the_cause(self) -> None:
        reference, candidate = pair()
        with torch.no_grad():
            candidate.layers[0].mix.weight *= 2.0

        def forward(x):
            if not torch.allclose(x, expected, atol=1e-4):
                raise ValueError("unexpected")
            return own(x)

        with torch.no_grad():
            captured = tracer.capture(reference, reference, X, include="head")
        expected = next(c.reference for c in captured if c.value == "kwargs.input")
        own = candidate.head.forward
        candidate.head.forward = forward
        message, verdict = self.run(reference, candidate)
        assert message.endswith("it began when `layers.0.mix` computed with a wrong parameter")
        assert (verdict.origin.module, verdict.confirmed) == ("layers.0.mix", True)

    def test_without_a_second_run_nothing_is_tried(self) -> None:
        reference, candidate = pair()
        candidate.mask = lambda x: torch.zeros(1, 5, 5)
        message, verdict = self.run(reference, candidate, confirm=False)
        assert "began" not in message
        assert not verdict.confirmed


class TestAgreement:
    @pytest.mark.covers
    def test_settings_and_coarser_dtypes_are_told(self) -> None:
        reference, candidate = pair()
        for layer in candidate.layers:
            layer.norm.eps = layer.mix.limit = layer.norm.extra = 1.0000001e-5
        for layer in reference.layers:
            layer.mix.limit = layer.norm.extra = 1
        text = judged(reference, candidate).explanation
        assert "Settings differ without an effect beyond the tolerance:" in text
        assert "  `layers.0.norm`: its `eps` is 1e-05 in the reference and 1.0000001e-05" in text
        assert text.endswith("  and 3 more")
        reference, candidate = pair()
        own = candidate.head.forward
        candidate.head.forward = lambda x: own(x).bfloat16()
        text = judged(reference, candidate).explanation
        assert "2 values of the candidate are of a coarser dtype" in text
        assert "first output of `head`, bfloat16 for float32." in text
        reference, candidate = pair()
        assert "coarser" not in judged(reference, candidate.bfloat16()).explanation


class Rounded(nn.Module):
    """Rounds coarsely in its own forward, between two modules."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.step = step

    def forward(self, x, attention_mask):
        y = self.first(x).masked_fill(attention_mask < -1.0, 0.0) + 0.5 * torch.arange(8)
        return self.last((y / self.step).round() * self.step if self.step else y)


class Masked(nn.Module):
    def __init__(self, step: float, hidden: float) -> None:
        super().__init__()
        self.inner, self.hidden = Rounded(step), hidden

    def forward(self, x):
        mask = torch.zeros(4, 8)
        return self.inner(x, mask.masked_fill(torch.ones(4, 8).triu(1).bool(), self.hidden))


@pytest.mark.covers
def test_an_innocent_argument_is_not_confirmed_by_a_value_that_agreed_already():
    torch.manual_seed(0)
    reference, candidate = Masked(0.0, -40.0), Masked(0.25, -41.0)
    with torch.no_grad():  # the difference of neighbours has the rounding of two, in a small range
        reference.inner.last.weight.copy_(torch.eye(8) - torch.ones(8, 8).triu(-1).tril(-1))
    candidate.load_state_dict(reference.state_dict())
    x = torch.randn(4, 8)
    free = tracer.compare(reference, candidate, x, confirm=False, tolerance=0.0)
    errors = {(row.module, row.value): row.peir for row in free.rows}
    given, output = errors["inner.last", "kwargs.input"], errors["inner.last", "output"]
    assert given < output
    # Between the two, so that the output disagrees, and what it was computed from agrees.
    verdict = tracer.compare(reference, candidate, x, tolerance=(given + output) / 2).verdict
    assert (verdict.symptom.module, verdict.symptom.value) == ("inner.last", "output")
    assert verdict.origin.argument != "attention_mask"
    assert "falls from" not in verdict.explanation or "attention_mask" not in verdict.explanation
