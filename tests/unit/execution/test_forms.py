"""Calls without a form are seen in the form of the other side's, and answered in it."""

import torch
from torch import nn

from tracer.execution.forms import Form, leave_out_kept, take_form
from tracer.execution.hooks import Call
from tracer.tensors.leaves import Unused


def call(arguments: dict[str, object], output: object = None) -> Call:
    return Call("m", 0, nn.Identity(), arguments, (), None, None, output=output)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Cache:
    def __init__(self, *keys: torch.Tensor) -> None:
        self.keys = list(keys)


def test_tensors_stand_where_the_other_side_has_theirs() -> None:
    hidden, cos, sin, unused = (drawn(2, 3, seed=n) for n in range(4))
    own = call({"a": sin.clone(), "b": hidden.clone(), "c": cos.clone()})
    other = call({"hidden": hidden, "tables": (cos, sin), "positions": unused.long(), "flag": True})
    take_form(own, other, has_ended=False)
    seen = own.arguments
    assert list(seen) == ["hidden", "tables", "positions", "flag"]
    assert torch.equal(seen["hidden"], hidden)
    assert torch.equal(seen["tables"][0], cos)
    assert torch.equal(seen["tables"][1], sin)
    assert isinstance(seen["positions"], Unused)


def test_an_answer_is_read_back() -> None:
    hidden, cos = drawn(2, 3), drawn(2, 4)
    own = call({"a": cos.clone(), "b": hidden.clone()}, output=(cos.clone(), hidden.clone()))
    other = call({"hidden": hidden, "tables": (cos,)}, output={"x": hidden, "y": [cos]})
    take_form(own, other, has_ended=False)
    form = own.form
    assert isinstance(form, Form)
    passed = form.passed({**own.arguments, "tables": (cos + 1,)})
    assert torch.equal(passed["a"], cos + 1)
    assert torch.equal(passed["b"], hidden)
    take_form(own, other, has_ended=True)
    assert torch.equal(own.output["x"], hidden)
    put = form.put({"x": hidden + 1, "y": own.output["y"]}, own.arguments)
    assert torch.equal(put[1], hidden + 1)
    assert torch.equal(put[0], cos)
    again = form.see((cos + 2, hidden + 2))
    assert torch.equal(again["y"][0], cos + 2)


def test_a_sole_output_of_another_shape_is_still_the_counterpart() -> None:
    own = call({}, output=drawn(2, 5, 3))
    take_form(own, call({}, output=(drawn(2, 4, 3), drawn(2, 1, 4, 4))), has_ended=True)
    assert own.output[0].shape == (2, 5, 3)
    assert isinstance(own.output[1], Unused)


def test_arguments_of_another_shape_are_counterparts_where_as_many_are_left() -> None:
    own = call({"a": drawn(6, 2), "b": drawn(6, 2, seed=1)})
    take_form(own, call({"tables": (drawn(4, 2), drawn(4, 2))}), has_ended=False)
    assert [tensor.shape[0] for tensor in own.arguments["tables"]] == [6, 6]
    alone = call({"a": drawn(6, 2)})
    take_form(alone, call({"x": drawn(4, 2), "y": drawn(4, 3)}), has_ended=False)
    assert all(isinstance(value, Unused) for value in alone.arguments.values())


def test_what_a_call_leaves_in_a_cache_is_what_the_graph_returns() -> None:
    before, new, hidden = drawn(1, 2), drawn(1, 2, seed=1), drawn(3)
    cache = Cache(before)
    own = call({"a": hidden.clone(), "b": before.clone()}, output=(hidden.clone(), new.clone()))
    other = call({"hidden": hidden, "cache": cache}, output=hidden)
    take_form(own, other, has_ended=False)
    cache.keys.append(new)
    take_form(own, other, has_ended=True)
    seen = own.arguments["cache"]
    assert seen is not cache
    assert torch.equal(seen.keys[0], before)
    assert torch.equal(seen.keys[1], new)
    changed = Cache(before, new + 1)
    assert own.form is not None
    put = own.form.put(own.output, {**own.arguments, "cache": changed})
    assert torch.equal(put[1], new + 1)


def test_what_only_one_side_changes_is_left_out() -> None:
    own, other = (call({"cache": Cache(), "x": drawn(2)}) for _ in range(2))
    leave_out_kept(own, other)
    assert list(own.arguments) == list(other.arguments) == ["x"]
