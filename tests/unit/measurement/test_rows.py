"""Rows: what is compared once, what counts as the same, and what padding excuses."""

import copy
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.builders.comparing import agreed, doing
from tracer.comparison.result import Comparison
from tracer.comparison.run import compare as compare_loosely
from tracer.errors import ModelRunError
from tracer.measurement.rows import Row
from tracer.tensors.difference import Difference

# Each row counts, whether or not what differs reaches the output.
compare = partial(compare_loosely, strict=True)
X = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Calls(nn.Module):
    """A root that computes what the test says."""

    def __init__(self, how: Callable[..., object], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.how = how

    def forward(self, x, attention_mask=None):
        return self.how(self, x) if attention_mask is None else self.how(self, x, attention_mask)


class Returns(nn.Module):
    """A module that returns what it is told to, whatever it is given."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args, **kwargs):
        return self.value


class Passes(nn.Module):
    """Hands its input on, under any arguments."""

    def forward(self, x, attention_mask=None, **kwargs):
        return x


def rows_of(comparison: Comparison, module: str | None = None) -> dict[str, Row]:
    return {r.value: r for r in comparison.rows if module is None or r.module == module}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of tensors that were measured."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    measure = Difference.of.__func__

    def of(cls: type[Difference], r: torch.Tensor, c: torch.Tensor) -> Difference:
        pairs.append((r, c))
        return measure(cls, r, c)

    monkeypatch.setattr(Difference, "of", classmethod(of))
    return pairs


def clean(model, x):
    return model.b(model.a(x))


def edits(model, x):
    y = model.a(x)
    y.add_(1.0)
    return model.b(y)


class TestComparedOnce:
    def test_a_hidden_state_is_an_output_here_and_an_input_there(self, compared) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
        comparison = compare(model, copy.deepcopy(model), X)
        # The input and three outputs; the root's own output is that of its last child.
        assert len(compared) == 4
        assert comparison.coverage.compared_elements == 32 + 32 + 32 + 12
        assert [row.module for row in comparison.rows if row.is_output] == ["0", "1", "2", ""]
        assert comparison.coverage.compared_calls == 4

    def test_a_mask_goes_to_every_layer(self, compared) -> None:
        def how(model, x, mask):
            for layer in (model.a, model.b, model.c):
                x = layer(x, attention_mask=mask) + 1.0
            return x

        model = Calls(how, a=Passes(), b=Passes(), c=Passes())
        mask = torch.zeros(1, 1, 4, 4)
        inputs = {"x": X, "attention_mask": mask}
        assert compare(model, copy.deepcopy(model), inputs).verdict.agrees
        assert len([pair for pair in compared if pair[0].dtype == torch.bool]) == 1

    @pytest.mark.covers
    def test_a_tensor_that_was_edited_is_compared_again(self, compared) -> None:
        model = Calls(edits, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
        compare(model, copy.deepcopy(model), X)
        assert len(compared) == 4  # x, a's output, the same tensor edited, b's output
        reference = Calls(clean, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
        comparison = compare(reference, doing(reference, edits), X)
        assert not comparison.verdict.agrees
        symptom = comparison.verdict.symptom
        assert (symptom.module, symptom.value) == ("b", "kwargs.input")

    def test_new_tensors_at_old_addresses_are_compared(self) -> None:
        """`id` is used again by Python; only the living tensor counts."""

        def how(model, x):
            for _ in range(20):
                x = model.a(x) * 0.9
            return x

        reference = Calls(how, a=nn.Linear(8, 8))
        candidate = copy.deepcopy(reference)
        with torch.no_grad():
            candidate.a.bias[0] += 1e-3
        comparison = compare(reference, candidate, X, confirm=False)
        outputs = [row for row in comparison.rows if row.module == "a" and row.is_output]
        r = c = X
        with torch.no_grad():
            for row in outputs:
                r, c = reference.a(r), candidate.a(c)
                assert row.difference == Difference.of(r, c)
                r, c = r * 0.9, c * 0.9
        assert len(outputs) == 20

    def test_inference_tensors_are_always_compared(self, compared) -> None:
        """They have no version that would tell of an edit."""

        model = Calls(torch.inference_mode()(edits), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
        assert compare(model, copy.deepcopy(model), X).verdict.agrees
        assert len(compared) >= 5


OUTPUTS = {
    "None": (None, None), "int": (3, 3), "float NaN": (math.nan, math.nan),
    "bool and int": (True, 1), "nearly equal floats": (0.1 + 0.2, 0.3), "str": ("text", "text"),
    "dict of lists": ({"a": [X, None]}, {"a": [X.clone(), None]}),
    "tuple and list": ((X, X + 1), [X.clone(), X + 1]),
    "empty tuple": ((), ()),
    "int tensors": (torch.arange(3), torch.arange(3)),
    "int tensors of other widths": (torch.arange(3), torch.arange(3, dtype=torch.int32)),
    "bool tensors": (X > 0, X > 0), "sparse and dense": (X.to_sparse(), X.clone()),
    "complex": (X + 1j, X + 1j), "0-d": (X.sum(), X.sum()), "empty tensor": (X[:0], X[:0]),
    "NaN at the same places": (X.sqrt(), X.sqrt()), "dtype": (X, X.double()),
    "expanded": (X[:1].expand(4, 8), X[:1].expand(4, 8).contiguous()),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_that_agree(kind: str) -> None:
    left, right = OUTPUTS[kind]
    how = lambda model, x: (model.a(x), x)[1]  # noqa: E731
    comparison = agreed(Calls(how, a=Returns(left)), Calls(how, a=Returns(right)), X)
    assert all(row.agrees for row in comparison.rows)


WRONG_OUTPUTS = {
    "int": (3, 4, "3; candidate 4"),
    "huge int": (2**70, 2**71, f"returned output ({2**70})"),
    "bool": (True, False, "1; candidate 0"),
    "complex": (1j, 1.5j, "0+1j; candidate 0+1.5j"),
    "str": ("a", "b", "returned output ('a'); candidate output ('b')"),
    "None and int": (None, 0, "returned output (None); candidate output (0)"),
    "None and tensor": (None, X, "returned output (None); candidate output (float32 [4, 8]"),
    "tensor and None": (X, None, "returned output (float32 [4, 8]"),
    "shape": (X, X[:2], "shape [4, 8]; candidate [2, 8]"),
    "would broadcast": (X, X[:1], "shape [4, 8]; candidate [1, 8]"),
    "int tensors": (torch.arange(3), torch.arange(3) + 1, ""),
    "one bool": (X > 0, X > -2, ""),
    "NaN on one side": (X.sqrt(), X.abs().sqrt(), "16 non-finite elements; candidate 0"),
    "infinite on one side": (X, X / 0, "0 non-finite elements; candidate 32"),
    "a value": (X, X + 1e-3, ""),
}


@pytest.mark.covers
@pytest.mark.parametrize(("left", "right"), [(3, 4), (0.5, 0.5001), (True, False)])
def test_a_number_beside_a_tensor_is_part_of_the_result(left: float, right: float) -> None:
    """A loss that is returned as a Python number, say; it is confirmed as any other value."""
    how = lambda model, x: model.a(x)  # noqa: E731
    models = [Calls(how, a=Returns({"states": X, "loss": value})) for value in (left, right)]
    verdict = compare(*models, X).verdict
    assert not verdict.agrees
    assert (verdict.symptom.module, verdict.symptom.value) == ("a", "output.loss")
    assert (verdict.origin.module, verdict.origin.kind) == ("a", "computation")
    assert verdict.confirmed


@pytest.mark.covers
def test_numbers_have_the_tolerance_of_the_dtype_that_the_models_work_in() -> None:
    how = lambda model, x: (model.a(x), model.b(x))[0]  # noqa: E731
    models = [
        Calls(how, a=Returns((x, 0.5 + e)), b=nn.Linear(8, 8)) for x, e in ((X, 0), (X, 4e-6))
    ]
    for model, dtype in zip(models, (torch.float32, torch.float64), strict=True):
        model.b = nn.Linear(8, 8, dtype=dtype)
    with torch.no_grad():
        models[1].b.load_state_dict(models[0].b.state_dict())
    assert compare(*models, X).verdict.agrees
    assert not compare(*models, X, tolerance=1e-6).verdict.agrees


@pytest.mark.parametrize("kind", WRONG_OUTPUTS)
def test_outputs_that_do_not_agree(kind: str) -> None:
    left, right, note = WRONG_OUTPUTS[kind]
    how = lambda model, x: (model.a(x), x)[1]  # noqa: E731
    comparison = compare(Calls(how, a=Returns(left)), Calls(how, a=Returns(right)), X)
    assert not comparison.verdict.agrees
    assert comparison.verdict.symptom.module == "a"
    row = next(row for row in comparison.rows if row.module == "a" and row.is_output)
    assert not row.agrees
    assert row.note.startswith(note)


def test_a_second_output_that_is_missing_is_a_difference_of_form() -> None:
    how = lambda model, x: (model.a(x), x)[1]  # noqa: E731
    comparison = agreed(Calls(how, a=Returns((X, X + 1))), Calls(how, a=Returns((X, None))), X)
    form = comparison.form_differences[0]
    assert (form.module, form.value, form.candidate) == ("a", "output.1", "None")
    assert form.reference.startswith("float32 [4, 8], from 0 to 2")


class TestArguments:
    def test_they_are_paired_by_name_however_they_are_passed(self) -> None:
        how = lambda model, x: model.a(x, None, flag=True)  # noqa: E731
        other = lambda model, x: model.a(attention_mask=None, flag=True, x=x)  # noqa: E731
        comparison = agreed(Calls(how, a=Passes()), Calls(other, a=Passes()), X)
        assert comparison.form_differences == ()
        other = lambda model, x: model.a(x, None, flag=False)  # noqa: E731
        (form,) = agreed(Calls(how, a=Passes()), Calls(other, a=Passes()), X).form_differences
        assert (form.value, form.reference, form.candidate) == ("kwargs.flag", "True", "False")

    def test_positional_ones_of_other_names_are_paired_by_place(self) -> None:
        class Renamed(nn.Module):
            def forward(self, hidden, mask=None):
                return hidden + 1e-3

        how = lambda model, x: model.a(x)  # noqa: E731
        comparison = compare(Calls(how, a=Passes()), Calls(how, a=Renamed()), X, confirm=False)
        assert comparison.verdict.symptom.value == "output"
        assert comparison.verdict.symptom.module == "a"
        assert comparison.form_differences == ()

    def test_a_tensor_on_one_side_only_is_a_difference_of_form(self) -> None:
        how = lambda model, x: model.a(x)  # noqa: E731
        other = lambda model, x: model.a(x, extra=(x,))  # noqa: E731
        for models in ((how, other), (other, how)):
            comparison = agreed(*(Calls(m, a=Passes()) for m in models), X)
            assert [form.value for form in comparison.form_differences] == ["kwargs.extra.0"]


def causal(size: int, fill: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
    return torch.zeros(size, size, dtype=dtype).masked_fill(hidden, fill)[None, None]


def with_masks(left: object, right: object) -> Comparison:
    def given(mask: object) -> Callable[..., object]:
        return lambda model, x: model.a(x, attention_mask=mask)

    return compare(Calls(given(left), a=Passes()), Calls(given(right), a=Passes()), X)


class TestMasks:
    @pytest.mark.parametrize(("left", "right"), [
        (causal(4, -math.inf), causal(4, -120.0)),
        (causal(4, torch.finfo(torch.float32).min), causal(4, -1e4)),
        (causal(4, -math.inf), causal(4, 0.0) == 0),
        (torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)),
        (torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4)),
        (causal(4, -120.0), causal(4, -120.0).expand(2, 3, 4, 4)),
        (causal(4, -120.0), causal(4, -40.0, torch.bfloat16)),
    ])  # fmt: skip
    def test_the_same_meaning_agrees(self, left: torch.Tensor, right: torch.Tensor) -> None:
        if right.dtype == torch.bool and right.dim() == 4:
            right = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
        comparison = with_masks(left, right)
        row = rows_of(comparison, "a")["kwargs.attention_mask"]
        assert row.agrees
        assert row.is_mask
        assert row.note == "compared by what they let through"
        assert comparison.verdict.agrees

    @pytest.mark.parametrize(("left", "right"), [
        (causal(4, -120.0), causal(4, 0.0)),
        (causal(4, -120.0), causal(4, -5.0)),
        (causal(4, -5.0), causal(4, -7.0)),
        (torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 1, 0]] * 2)),
    ])  # fmt: skip
    def test_another_meaning_is_flagged_and_is_no_symptom(self, left, right) -> None:
        comparison = with_masks(left, right)
        assert not rows_of(comparison, "a")["kwargs.attention_mask"].agrees
        assert comparison.verdict.agrees
        assert "let different positions through" in comparison.verdict.explanation

    @pytest.mark.parametrize("right", [None, torch.ones(1, 4, dtype=torch.int64)])
    def test_another_rank_or_none_is_a_difference_of_form(self, right: object) -> None:
        comparison = with_masks(causal(4, -120.0), right)
        assert comparison.verdict.agrees
        assert [form.value for form in comparison.form_differences] == ["kwargs.attention_mask"]
        assert comparison.form_differences[0].reference.endswith("additive mask, causal")


class Hook(nn.Module):
    """A child whose output the test changes."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.change = change

    def forward(self, value):
        return value if self.change is None else self.change(value)


class Padded(nn.Module):
    """Computes a value of the shape that the test asks for from ids and their mask."""

    def __init__(self, shape, change=None):
        super().__init__()
        self.value = Hook(change)
        self.shape = shape

    def forward(self, input_ids, attention_mask=None, **others):
        generator = torch.Generator().manual_seed(0)
        self.value(torch.randn(self.shape, generator=generator))
        return input_ids


# Three sequences of 8 tokens, of lengths 8, 5 and 3, padded on the right.
LENGTHS = (8, 5, 3)
PADDING = torch.tensor([[int(i < length) for i in range(8)] for length in LENGTHS])
IDS = torch.arange(24).reshape(3, 8)


def at_padding(mask: torch.Tensor, dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Adds an error at the padded positions along a dimension."""

    def change(value: torch.Tensor) -> torch.Tensor:
        shape = [1] * value.dim()
        shape[0], shape[dim] = mask.shape
        hidden = (mask == 0).reshape(shape)
        return value + 3.0 * hidden

    return change


def flattened(mask: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: value + 3.0 * (mask == 0).flatten()[:, None]


def padded_row(shape, change, mask=PADDING, ids=IDS, **others):
    inputs = {"input_ids": ids, "attention_mask": mask, **others}
    comparison = compare(Padded(shape), Padded(shape, change), inputs, confirm=False)
    row = rows_of(comparison, "value")["output"]
    assert comparison.verdict.agrees is row.agrees
    return row


class TestPadding:
    @pytest.mark.parametrize(
        ("shape", "dim"),
        [
            ((3, 8, 16), 1),
            ((3, 8), 1),
            ((3, 4, 8, 16), 2),
            ((3, 8, 4, 16), 1),
            ((3, 4, 8, 8), 2),
            ((3, 8, 8), 1),  # as many channels as positions
            ((3, 8, 8, 16), 2),  # as many heads
        ],
    )
    def test_differences_at_padded_positions_only_are_excused(self, shape, dim) -> None:
        row = padded_row(shape, at_padding(PADDING, dim))
        assert row.agrees
        assert row.note.startswith("at padded positions PEIR")
        assert row.difference.max == 0.0
        assert row.difference.elements == math.prod(shape) * 16 // 24

    def test_padding_on_the_left_also_over_a_past(self) -> None:
        left = PADDING.flip(1)
        assert padded_row((3, 8, 16), at_padding(left, 1), left).agrees
        assert not padded_row((3, 8, 16), at_padding(PADDING, 1), left).agrees
        # Four cached positions and four new ones: the new ones are the last of the mask.
        left = PADDING.flip(1)
        assert padded_row((3, 4, 16), at_padding(left[:, 4:], 1), left, IDS[:, :4]).agrees
        assert not padded_row((3, 4, 16), at_padding(left[:, :4], 1), left, IDS[:, :4]).agrees

    def test_the_mask_may_be_of_any_form_but_shows_or_hides_something(self) -> None:
        change = at_padding(PADDING, 1)
        for form in (torch.bool, torch.int32, torch.float32):
            assert padded_row((3, 8, 16), change, PADDING.to(form)).agrees
        for mask in (torch.ones_like(PADDING), torch.zeros_like(PADDING)):
            assert not padded_row((3, 8, 16), change, mask).agrees

    def test_tokens_in_one_row_and_nonfinite_values_are_excused(self) -> None:
        row = padded_row((24, 16), flattened(PADDING))
        assert row.agrees and row.difference.elements == 16 * 16
        change = at_padding(PADDING, 1)
        assert padded_row((3, 8, 16), lambda v: torch.where(change(v) == v, v, math.nan)).agrees

    @pytest.mark.parametrize("shape", [(3, 8, 16), (3, 8), (3, 4, 8, 16), (3, 8, 8), (3, 8, 8, 8)])
    @pytest.mark.parametrize("sequence", [0, 1, 2])
    def test_an_error_at_a_visible_position_stays(self, shape, sequence: int) -> None:
        def change(value: torch.Tensor) -> torch.Tensor:
            dim = 2 if len(shape) == 4 else 1
            value = at_padding(PADDING, dim)(value)
            value.movedim(dim, 1)[sequence, 2] += 0.1
            return value

        assert not padded_row(shape, change).agrees

    def test_an_error_at_a_visible_flattened_token_stays(self) -> None:
        def change(value: torch.Tensor) -> torch.Tensor:
            value = flattened(PADDING)(value)
            value[8 + 4, 3] += 0.1  # the last token of the second sequence
            return value

        assert not padded_row((24, 16), change).agrees

    @pytest.mark.parametrize("mask", [PADDING, PADDING[1:2], PADDING[2:]])
    def test_a_wrong_channel_or_head_stays(self, mask: torch.Tensor) -> None:
        """Even where it is the number of a padded position."""
        batch = len(mask)
        for shape, where in (
            ((batch, 8, 8), (..., 7)), ((batch, 8, 16), (..., 7)), ((batch, 4, 8, 8), (..., 7)),
            ((batch, 8, 8, 16), (slice(None), 7)),
        ):  # fmt: skip

            def change(value: torch.Tensor, where: object = where) -> torch.Tensor:
                value[where] += 3.0
                return value

            assert not padded_row(shape, change, mask, IDS[:batch]).agrees

    def test_attention_to_a_padded_key_and_a_wrong_batch_order_stay(self) -> None:
        """A visible query that looks at padding is a mask that was dropped."""
        assert not padded_row((3, 4, 8, 8), at_padding(PADDING, 3)).agrees
        assert not padded_row((3, 8, 16), lambda value: value.flip(0)).agrees

    @pytest.mark.covers
    def test_values_and_inputs_of_another_length(self) -> None:
        for shape in ((3, 5, 16), (3, 10, 16), (2, 8, 16), (3, 1, 16), (5,), (3,), ()):
            assert not padded_row(shape, lambda value: value + 1.0).agrees
        # A longer or an unrelated input is no sequence of this mask.
        others = {"pixel_values": torch.rand(3, 3, 4, 4), "features": torch.rand(3, 20, 2)}
        assert not padded_row((3, 3, 16), at_padding(PADDING[:, 5:], 1), **others).agrees
        assert not padded_row((3, 20, 16), lambda value: value + 1.0, **others).agrees
        assert padded_row((3, 8, 16), at_padding(PADDING, 1), **others).agrees

    @pytest.mark.parametrize("name", ["key_padding_mask", "mask", "src_mask"])
    def test_masks_of_unknown_sense_excuse_nothing(self, name: str) -> None:
        """PyTorch's key padding mask, for one, is true where there is no token."""
        inputs = {"input_ids": IDS, name: PADDING == 0}
        change = at_padding(PADDING, 1)
        comparison = compare(Padded((3, 8, 16)), Padded((3, 8, 16), change), inputs, confirm=False)
        assert not comparison.verdict.agrees

    @pytest.mark.parametrize("length", [8, 5])
    def test_a_decoder_as_long_as_the_encoder_is_not_excused(self, length: int) -> None:
        """Its positions are none of the mask's, and the shapes do not tell them apart."""
        others = {"decoder_input_ids": torch.zeros(3, length, dtype=torch.long)}
        assert padded_row((3, 8, 16), at_padding(PADDING, 1), **others).agrees is (length != 8)

    @pytest.mark.parametrize("is_pair", [True, False])
    def test_labels_are_the_decoders_in_an_encoder_decoder_model(self, is_pair: bool) -> None:
        models = Padded((3, 8, 16)), Padded((3, 8, 16), at_padding(PADDING, 1))
        for model in models:
            model.config = SimpleNamespace(is_encoder_decoder=is_pair)
        inputs = {"input_ids": IDS, "attention_mask": PADDING, "labels": IDS}
        assert compare(*models, inputs, confirm=False).verdict.agrees is not is_pair

    def test_masks_of_calls_inside_excuse_in_them_and_around_them(self) -> None:
        """A model that generates hands on fewer positions than it was given."""

        def steps(model, input_ids, attention_mask):
            return model.head(model.body(input_ids[:, 2:], attention_mask[:, 2:]) * 1.0)

        left = PADDING.flip(1)
        reference, candidate = (
            Generates(steps, body=Makes((3, 6, 16), change), head=Passes())
            for change in (lambda value: value, at_padding(left[:, 2:], 1))
        )
        inputs = {"input_ids": IDS, "attention_mask": left}
        head = rows_of(agreed(reference, candidate, inputs), "head")["kwargs.x"]
        assert head.note.startswith("at padded positions PEIR")
        candidate.body.value.change = at_padding(left[:, :6], 1)
        assert not compare(reference, candidate, inputs).verdict.agrees

    def test_masks_of_calls_inside_excuse_nothing_around_them_without_a_mask(self) -> None:
        def steps(model, input_ids):
            return model.head(model.body(input_ids, PADDING) * 1.0)

        reference, candidate = (
            Generates(steps, body=Makes((3, 8, 16), change), head=Passes())
            for change in (lambda value: value, at_padding(PADDING, 1))
        )
        comparison = compare(reference, candidate, {"input_ids": IDS})
        assert rows_of(comparison, "body")["output"].agrees
        assert not rows_of(comparison, "head")["kwargs.x"].agrees


class Makes(Padded):
    """Returns the value."""

    def forward(self, input_ids, attention_mask=None):
        return self.value(torch.randn(self.shape, generator=torch.Generator().manual_seed(0)))


class Generates(Calls):
    def forward(self, input_ids, attention_mask=None):
        given = [input_ids] if attention_mask is None else [input_ids, attention_mask]
        return self.how(self, *given)


class TestDeclaredForms:
    """A candidate's module may say how to read its values back."""

    class Scaled(nn.Module):
        def forward(self, x):
            return (x * 4.0).T

        def to_reference_output(self, output):
            return output.T / 8.0

        def to_reference_input(self, name, value):
            return value / 2.0 if name == "x" else value

    def test_they_are_honoured_on_both_sides(self) -> None:
        reference = Calls(lambda model, x: model.a(x * 1.0) * 1.0, a=Passes())
        candidate = Calls(lambda model, x: model.a(x * 2.0).T / 8.0, a=self.Scaled())
        comparison = agreed(reference, candidate, X)
        assert all(row.agrees for row in comparison.rows)
        how = lambda model, x: model.a(x * 2.0).T / 8.0  # noqa: E731
        comparison = agreed(*[Calls(how, a=self.Scaled()) for _ in range(2)], X)
        row = rows_of(comparison, "a")["output"]
        assert row.difference.max == 0.0
        assert row.difference.reference_max == X.max().item()

    @pytest.mark.covers
    def test_a_mask_under_another_name_is_compared(self) -> None:
        class Takes(nn.Module):
            def forward(self, x, visible_mask):
                return x + visible_mask

        class TakesToo(nn.Module):
            def forward(self, x, *, attention_mask):
                return x + attention_mask

        mask = torch.zeros(4, 8)
        reference = Calls(lambda model, x: model.a(x, attention_mask=mask), a=TakesToo())
        candidate = Calls(lambda model, x: model.a(x, mask), a=Takes())
        assert rows_of(agreed(reference, candidate, X), "a")["kwargs.attention_mask"].agrees
        candidate.how = lambda model, x: model.a(x, mask - 40.0)
        verdict = compare(reference, candidate, X).verdict
        assert (verdict.origin.module, verdict.origin.argument) == ("", "attention_mask")
        assert verdict.confirmed

    @pytest.mark.covers
    def test_an_undeclared_factor_heals(self) -> None:
        class Undeclared(nn.Module):
            def forward(self, x):
                return x * 4.0

        reference = Calls(lambda model, x: model.a(x), a=Passes())
        candidate = Calls(lambda model, x: model.a(x) / 4.0, a=Undeclared())
        verdict = compare_loosely(reference, candidate, X).verdict
        assert (verdict.agrees, verdict.outcome) == (True, "equivalent")
        assert verdict.details.regions[0].relation == "scaled by a constant"
        verdict = compare(reference, candidate, X).verdict
        assert (verdict.agrees, verdict.outcome) == (False, "diverges")
        assert verdict.symptom.module == "a"

    @pytest.mark.parametrize("method", ["to_reference_output", "to_reference_input"])
    def test_an_error_in_them_names_the_module(self, method: str) -> None:
        reference = Calls(lambda model, x: model.a(x), a=Passes())
        candidate = copy.deepcopy(reference)

        def broken(*_: object) -> None:
            raise KeyError("lost")

        setattr(candidate.a, method, broken)
        with pytest.raises(ModelRunError, match=f"{method} of the candidate's module 'a' raised"):
            compare(reference, candidate, X)


def test_the_order_of_rows_is_the_order_of_execution() -> None:
    how = lambda model, x: model.b(model.a(x + 1.0) + 1.0)  # noqa: E731
    model = Calls(how, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    comparison = compare(model, copy.deepcopy(model), X)
    assert [(row.module, row.value) for row in comparison.rows] == [
        ("", "kwargs.x"), ("a", "kwargs.input"), ("a", "output"), ("b", "kwargs.input"),
        ("b", "output"), ("", "output"),
    ]  # fmt: skip
    orders = [row.order for row in comparison.rows]
    assert orders == sorted(set(orders))
