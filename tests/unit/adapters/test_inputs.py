"""A program's inputs are fitted to what the model is given, or refused in one sentence."""

import pytest
import torch
from torch import nn

import tracer
from tests.builders.exported import decoder, decoder_inputs, dynamic, exported
from tracer.adapters.opening import as_model
from tracer.errors import InputError


class Nested(nn.Module):
    def forward(self, x, pair, flags=None, *, scale=2.0):
        y = x + pair[0] + pair[1]["b"]
        return y * scale if flags is None else y * scale + flags


X = torch.ones(2)


def nested(**kwargs: object) -> nn.Module:
    pair = (X, {"b": X})
    return as_model(torch.export.export(Nested(), (X, pair), kwargs, strict=False))


def test_arguments_are_taken_by_name_and_position_in_any_nest() -> None:
    model = nested(flags=X)
    assert torch.equal(model(X, (X, {"b": X}), flags=X), 7 * X)
    assert torch.equal(model(flags=X, pair=[X, {"b": X}], x=X), 7 * X)


def test_what_is_no_tensor_may_be_left_out_and_not_changed() -> None:
    model = nested(scale=3.0)
    assert torch.equal(model(X, (X, {"b": X})), 9 * X)
    assert torch.equal(model(X, (X, {"b": X}), scale=3.0), 9 * X)
    with pytest.raises(InputError, match=r"exported with scale=3.0, and is given 2.0"):
        model(X, (X, {"b": X}), scale=2.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": torch.ones(2, 5, dtype=torch.long)}, r"takes 'ids' as int64 \[2, 6\]"),
        ({"ids": torch.ones(2, 6)}, r"and is given float32 \[2, 6\]"),
        ({"ids": None}, "and is given None|nested|with 1 values"),
    ],
)
def test_inputs_that_do_not_fit(change, said) -> None:
    with pytest.raises(InputError, match=said) as raised:
        tracer.compare(exported(), decoder(), decoder_inputs() | change)
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named() -> None:
    ids = {"ids": decoder_inputs()["ids"]}
    with pytest.raises(InputError, match=r"takes 'mask', which is none of the inputs \(ids\)"):
        tracer.compare(decoder(), exported(), ids)


def test_sizes_that_are_not_fixed_are_alike_and_in_their_range() -> None:
    model = as_model(dynamic())
    model(**decoder_inputs(9))
    inputs = decoder_inputs(9) | {"mask": torch.ones(2, 8)}
    with pytest.raises(InputError, match=r"takes 'mask' as float32 \[2, 's\d+'\]"):
        model(**inputs)


def test_a_mask_that_hides_nothing_is_left_out_where_there_was_none() -> None:
    ids = decoder_inputs()["ids"]
    program = torch.export.export(decoder(), (ids,), strict=False)
    inputs = {"ids": ids, "mask": torch.ones(2, 6)}
    assert tracer.compare(decoder(), program, inputs).verdict.agrees
