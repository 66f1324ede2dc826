"""Which positions are padding, as a call says, and where they are in a value."""

import pytest
import torch
from torch import nn

from tracer.execution.hooks import Call
from tracer.measurement.padding import Padding, Paddings, padding_of, visible_part
from tracer.tensors.roles import Roles

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
IDS = torch.zeros(2, 4, dtype=torch.int64)


def padding(**arguments: object) -> Padding | None:
    return padding_of(Call("m", 0, nn.Identity(), arguments, (), None, None))


def test_a_mask_beside_ids_or_embeddings_says_it() -> None:
    for value in (IDS, torch.zeros(2, 4, 8)):
        found = padding(x=value, attention_mask=MASK)
        assert found is not None
        assert torch.equal(found.visible, MASK == 1)
        assert found.lengths == {4}


@pytest.mark.parametrize("arguments", [
    {"input_ids": IDS},
    {"input_ids": IDS, "attention_mask": torch.ones(2, 4)},
    {"input_ids": IDS, "attention_mask": torch.zeros(2, 4)},
    {"input_ids": IDS, "attention_mask": MASK[:, None, None]},
    {"input_ids": IDS, "key_padding_mask": MASK},
    {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS},
    {"attention_mask": MASK},
])  # fmt: skip
def test_other_arguments_do_not(arguments: dict[str, object]) -> None:
    assert padding(**arguments) is None


def test_a_user_says_which_mask_is_of_padding() -> None:
    call = Call("m", 0, nn.Identity(), {"ids": IDS, "tokens": MASK}, (), None, None)
    assert padding_of(call) is None
    assert padding_of(call, Roles(padding=("tokens",))) is not None


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((2, 4, 8), [1]), ((2, 3, 4, 4), [2]), ((8, 5), [0]), ((4, 2, 8), []), ((2, 4), [1])],
)
def test_places(shape: tuple[int, ...], dims: list[int]) -> None:
    found = Padding(MASK == 1, frozenset({4})).places(shape)
    assert [dim for dim, _ in found] == dims
    for place in found:
        assert visible_part(torch.zeros(shape), *place).shape[0] == 5


def test_a_call_knows_what_those_around_it_say() -> None:
    paddings = Paddings()
    outer = Padding(MASK == 1, frozenset({4}))
    paddings.note(["root"], outer)
    assert list(paddings.known(["layer", "root"])) == [outer]
    paddings.note(["layer", "root"], outer)
    assert list(paddings.known(["layer"])) == []
    inner = Padding(MASK == 1, frozenset({4, 3}))
    paddings.note(["layer", "root"], inner)
    assert list(paddings.known(["layer", "root"])) == [inner, outer, inner]


def test_a_cache_may_have_kept_the_last_positions() -> None:
    found = Padding(MASK == 1, frozenset({4}))
    assert found.places((2, 8, 3, 16)) == []
    ((dim, visible),) = found.places((2, 8, 3, 16), is_kept=True)
    assert (dim, visible.tolist()) == (2, [[True, True, False], [True, False, False]])
