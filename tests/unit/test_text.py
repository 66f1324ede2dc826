"""Errors, lists, names, lines and figures, as messages have them."""

from pathlib import Path

import pytest

from tracer import text


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (text.brief(ValueError("one\n two.\n\nmore")), "one two"),
        (text.brief(KeyError()), "KeyError"),
        (text.with_class(KeyError("x")), "KeyError: 'x'"),
        (text.with_class(ValueError("one\n two.\n\nmore")), "ValueError: one two"),
        (text.with_class(ValueError()), "ValueError"),
        (text.first_line("a" * 301), f"{'a' * 297}..."),
        (text.listed(["a", "b", "c"], 2), "a, b and 1 more"),
        (text.listed(["a", "b"]), "a, b"),
        (text.few(["a", "b", "c", "d"], " and "), "a and b and c and 1 more"),
        (text.cut("abcd", 3), "ab…"),
        (text.cut("abc", 3), "abc"),
        (text.module_in_words(""), "the root module"),
        (text.module_in_words("a.b"), "`a.b`"),
        (text.figure(0.000123456), "0.000123"),
        (text.short_line(None), "(no source)"),
        (text.short_line("/v/site-packages/torch/nn/a.py:3"), "torch/nn/a.py:3"),
        (text.short_line("/x/y/z/w/a.py:3"), "z/w/a.py:3"),
        (text.short_line(f"{Path.cwd()}/port/a.py:3"), "port/a.py:3"),
    ],
)
def test_texts(made: str, expected: str) -> None:
    assert made == expected


def test_where_and_how_far(make_row) -> None:
    row = make_row("model.norm", 0.5, call=1)
    assert text.place(row) == "output of `model.norm` (call 1)"
    assert text.size(row) == ", PEIR 0.5 (limit 1e-05)"
    assert text.size(make_row("a", None, note="[1]; candidate [2]")) == ": [1]; candidate [2]"
