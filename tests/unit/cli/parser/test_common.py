"""Options made from the fields of a request."""

from dataclasses import fields

import pytest

from tracer.cli.parser.common import Parser, add_fields
from tracer.cli.requests import RecordRequest


def test_each_field_is_an_option_and_only_what_was_given_is_there() -> None:
    parser = Parser(prog="p")
    add_fields(parser, RecordRequest)
    given = vars(parser.parse_args(["model", "--out", "x.trace"]))
    assert (given["model"], str(given["out"])) == ("model", "x.trace")
    assert given.keys() < {field.name for field in fields(RecordRequest)}


def test_one_line_where_it_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Parser(prog="p").parse_args(["--none"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith("see p --help\n")
