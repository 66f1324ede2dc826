"""The tracer's exceptions: one tree, and names that are close."""

import inspect

import pytest

from tracer import errors


def test_one_tree() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    made = [kind for kind in classes if kind.__module__ == errors.__name__]
    assert made
    assert all(issubclass(kind, errors.TracerError) for kind in made)
    drawn = {line.split()[0] for line in (errors.__doc__ or "").splitlines() if "Error" in line}
    assert {kind.__name__ for kind in made} <= drawn


@pytest.mark.parametrize(
    ("name", "expected"),
    [("gat", "; did you mean 'gate'?"), ("zzz", "")],
)
def test_close_names(name: str, expected: str) -> None:
    assert errors.near_names(name, ["gate", "first"]) == expected
