"""What two models are called with."""

import pytest
import torch
from torch import nn

from tracer.errors import InputError
from tracer.execution.inputs import arguments_of, copied, fitting, shared_arguments

X = torch.ones(2, 4)


class Named(nn.Module):
    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return hidden * scale


def test_a_tensor_a_tuple_or_a_dict() -> None:
    assert arguments_of(X, Named()) == ((X,), {})
    assert arguments_of((X, 2.0), Named()) == ((X, 2.0), {})
    assert arguments_of({"hidden": X}, Named()) == ((), {"hidden": X})
    assert shared_arguments(X, Named(), Named()) == ((X,), {})


@pytest.mark.parametrize(("inputs", "message"), [
    ({"hiden": X}, "'hiden', which forward of Named does not take.*did you mean 'hidden'"),
    ([X], "inputs are a list; expected a dict"),
    (None, "inputs are a NoneType"),
])  # fmt: skip
def test_what_no_model_takes(inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        arguments_of(inputs, Named())  # type: ignore[arg-type]


def test_floats_take_the_other_sides_dtype() -> None:
    fits = fitting(nn.Linear(4, 4), nn.Linear(4, 4).bfloat16())
    assert fits(X).dtype == torch.bfloat16
    assert fits(X.double()).dtype == torch.float64  # not what the reference works in
    assert fits(X.long()).dtype == torch.int64
    assert fitting(nn.Linear(4, 4), nn.Linear(4, 4))(X) is X


def test_each_gets_its_own() -> None:
    given = X.clone().requires_grad_() * 2
    args, kwargs = copied(((given,), {"past": [given]}), lambda tensor: tensor)
    assert args[0] is not given
    assert args[0] is not kwargs["past"][0] or args[0].data_ptr() != given.data_ptr()
    assert not args[0].requires_grad
    assert torch.equal(args[0], given)
