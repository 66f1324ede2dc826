"""What two models are called with."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.errors import InputError
from tracer.execution.inputs import (
    argument_names,
    arguments_of,
    both_arguments,
    copied,
    fitting,
    shared_arguments,
)
from tracer.execution.weights import Weights

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
    weights = Weights.of(nn.Linear(4, 4)), Weights.of(nn.Linear(4, 4).bfloat16())
    fits = fitting(*weights)
    assert fits(X).dtype == torch.bfloat16
    assert fits(X.double()).dtype == torch.float64  # not what the reference works in
    assert fits(X.long()).dtype == torch.int64
    assert fitting(weights[0], weights[0])(X) is X


def test_each_gets_its_own() -> None:
    given = X.clone().requires_grad_() * 2
    args, kwargs = copied(((given,), {"past": [given]}), lambda tensor: tensor)
    assert args[0] is not given
    assert args[0] is not kwargs["past"][0] or args[0].data_ptr() != given.data_ptr()
    assert not args[0].requires_grad
    assert torch.equal(args[0], given)


class Ids(nn.Module):
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return input_ids


class Tokens(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


class Any(nn.Module):
    def forward(self, **kwargs: object) -> object:
        return kwargs


IDS = torch.arange(12).view(3, 4)
NAMES = {"tokens": "input_ids"}


class TestTheCandidatesOwn:
    """Both sides: models, inputs, the candidate's, names; and what the candidate is called with."""

    def test_none_where_the_reference_s_are_taken(self) -> None:
        inputs = {"input_ids": IDS}
        assert both_arguments(inputs, None, None, Ids(), Ids()) == (((), inputs), None)
        assert both_arguments(X, None, None, Ids(), Tokens()) == (((X,), {}), None)

    def test_the_same_under_other_names(self) -> None:
        both = both_arguments({"input_ids": IDS}, None, NAMES, Ids(), Tokens())
        assert both == (((), {"input_ids": IDS}), ((), {"tokens": IDS}))
        swapped = both_arguments({"a": X, "b": IDS}, None, {"a": "b", "b": "a"}, Any(), Any())
        assert swapped[1] == ((), {"a": IDS, "b": X})

    def test_a_mask_that_hides_nothing_may_be_left_out(self) -> None:
        inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        assert both_arguments(inputs, None, NAMES, Ids(), Tokens())[1] == ((), {"tokens": IDS})
        inputs["attention_mask"][0, -1] = 0
        with pytest.raises(InputError, match="'attention_mask', which forward of the candidate's"):
            both_arguments(inputs, None, NAMES, Ids(), Tokens())

    @pytest.mark.parametrize("own", [
        IDS, IDS.int(), IDS.double(), IDS.T, IDS.flatten(), IDS[None, :, None]
    ])  # fmt: skip
    def test_the_same_data_in_another_form(self, own: torch.Tensor) -> None:
        both = both_arguments({"input_ids": IDS}, {"tokens": own}, NAMES, Ids(), Tokens())
        assert both[1] == ((), {"tokens": own})

    def test_masks_may_be_written_otherwise(self) -> None:
        inputs = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)}
        own = {"input_ids": IDS, "attention_mask": inputs["attention_mask"].bool()}
        assert both_arguments(inputs, own, None, Ids(), Ids())[1] == ((), own)
        own["attention_mask"] = ~own["attention_mask"]
        with pytest.raises(InputError, match="both sides are given `attention_mask`, and not"):
            both_arguments(inputs, own, None, Ids(), Ids())

    @pytest.mark.parametrize(("own", "names", "message"), [
        ({"tokens": IDS + 1}, NAMES, r"given `input_ids` \(the candidate's `tokens`\), and not the"
         r".*int64 \[3, 4\], from 0 to 11, the candidate int64 \[3, 4\], from 1 to 12"),
        ({"tokens": IDS[:2]}, NAMES, "not the same data"),
        ({"tokens": IDS.flip(0)}, NAMES, "not the same data"),
        ({"tokens": IDS}, {"tokens": "ids"}, "'ids', which is none of the reference's inputs"),
        ({"tokens": IDS}, {"token": "input_ids"}, "'token' is mapped.* did you mean 'tokens'"),
        ({"ids": IDS}, None, "inputs name 'ids', which forward of Tokens does not take"),
        (None, {"token": "input_ids"}, "'token' is mapped.* did you mean 'tokens'"),
        (None, {"tokens": "input_id"}, "'input_id' is mapped.* did you mean 'input_ids'"),
        (None, None, r"say which of these it is \(map_inputs={'tokens': 'input_ids'}, --map-input "
         "tokens=input_ids"),
    ])  # fmt: skip
    def test_what_is_refused(self, own: object, names: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            both_arguments({"input_ids": IDS}, own, names, Ids(), Tokens())  # type: ignore[arg-type]

    def test_other_names_may_hold_anything(self) -> None:
        own = {"tokens": IDS + 1}
        assert both_arguments({"input_ids": IDS}, own, None, Ids(), Tokens())[1] == ((), own)

    def test_the_names_that_a_forward_takes(self) -> None:
        assert argument_names(Ids()) == ["input_ids", "attention_mask"]
        assert argument_names(Any()) == []


class TestBesideARecording:
    """What is recorded counts, under the names of its own side."""

    @pytest.fixture
    def recorded(self, tmp_path: Path) -> tuple[nn.Module, nn.Module]:
        paths = tmp_path / "ids.trace", tmp_path / "tokens.trace"
        tracer.record(Ids(), {"input_ids": IDS}, paths[0])
        tracer.record(Tokens(), {"tokens": IDS}, paths[1])
        return tracer.open_trace(paths[0]), tracer.open_trace(paths[1])

    def test_a_reference(self, recorded: tuple[nn.Module, nn.Module]) -> None:
        given, own = both_arguments(None, None, NAMES, recorded[0], Tokens())
        assert torch.equal(given[1]["input_ids"], IDS)
        assert torch.equal(own[1]["tokens"], IDS)
        assert both_arguments(None, {"tokens": IDS}, NAMES, recorded[0], Tokens())[1] == (
            (), {"tokens": IDS}
        )  # fmt: skip
        with pytest.raises(InputError, match="not the same data"):
            both_arguments(None, {"tokens": IDS + 1}, NAMES, recorded[0], Tokens())

    def test_a_candidate(self, recorded: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
        given, own = both_arguments(None, None, NAMES, Ids(), recorded[1])
        assert torch.equal(given[1]["input_ids"], IDS)
        assert own is None
        whole = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        assert both_arguments(whole, None, NAMES, Ids(), recorded[1]) == (((), whole), None)
        own_inputs = {"tokens": IDS}
        assert both_arguments(whole, own_inputs, None, Ids(), recorded[1]) == (((), whole), None)
        tracer.record(Tokens(), IDS, tmp_path / "by_place.trace")
        by_place = tracer.open_trace(tmp_path / "by_place.trace")
        with pytest.raises(InputError, match="not those that"):
            both_arguments(IDS + 1, None, None, Ids(), by_place)
        with pytest.raises(InputError, match=r"not those that .* was recorded with"):
            both_arguments(whole, {"tokens": IDS + 1}, None, Ids(), recorded[1])
