"""Paths of values: their texts are as they were, and their parts need no slicing."""

import copy
import json
import pickle

import pytest
import torch

from tracer.tensors.value_path import OUTPUT, ValueKind, ValuePath

X = torch.zeros(2)


@pytest.mark.parametrize(("text", "kind", "argument", "inside", "label"), [
    ("output", ValueKind.OUTPUT, None, None, "output"),
    ("output.0", ValueKind.OUTPUT, None, "0", "output.0"),
    ("output.past.0", ValueKind.OUTPUT, None, "past.0", "output.past.0"),
    ("kwargs.x", ValueKind.ARGUMENT, "x", None, "x"),
    ("kwargs.x.0.y", ValueKind.ARGUMENT, "x", "0.y", "x.0.y"),
    ("written.cache.0", ValueKind.WRITTEN, "cache", "0", "written.cache.0"),
])  # fmt: skip
def test_parts(text, kind, argument, inside, label) -> None:
    path = ValuePath.parse(text)
    assert path == text == str(path)
    assert hash(path) == hash(text)
    assert (path.kind, path.argument, path.inside, path.label) == (kind, argument, inside, label)
    assert path.is_result is (kind is not ValueKind.ARGUMENT)
    assert ValuePath(kind, argument, inside) == path
    assert json.loads(json.dumps(path)) == text
    for again in (copy.deepcopy(path), pickle.loads(pickle.dumps(path)), ValuePath.parse(path)):
        assert (again, again.argument, again.inside) == (path, argument, inside)


def test_an_argument_without_a_name_of_its_own_keeps_its_number() -> None:
    path = ValuePath.of_argument("args.1").inner("0")
    assert (path, path.argument, path.in_argument) == ("kwargs.args.1.0", "args.1", "args.1.0")


@pytest.mark.parametrize("text", ["", "outputs", "x.output"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid ValueKind"):
        ValuePath.parse(text)


def test_leaves_have_paths() -> None:
    assert list(OUTPUT.leaves(3)) == [("output", 3)]
    value = {"a": [X, None], "": X}
    assert [path for path, _ in OUTPUT.leaves(value)] == ["output.a.0", "output.a.1", "output"]
    assert list(ValuePath.of_written("c").tensors(value)) == ["written.c.a.0", "written.c"]
