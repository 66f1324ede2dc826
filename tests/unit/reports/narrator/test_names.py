"""Modules by the candidate's names, with the reference's."""

from tracer.reports.narrator.names import Names, both_names


def test_both_names_at_first_and_then_the_candidates(make_row) -> None:
    names = Names({"model.norm": "final"})
    assert names.module("model.norm") == "`final` (reference: `model.norm`)"
    assert names.module("model.norm") == "`final`"
    assert names.module("embed") == "`embed`"
    assert names.place(make_row("model.norm", call=2)) == "output of `final` (call 2)"


def test_the_root_and_what_is_named_alike() -> None:
    assert both_names("", None) == "the root module"
    assert both_names("a", "a") == "`a`"
    assert both_names("", "decode") == "`decode` (reference: the root module)"
