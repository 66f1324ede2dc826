"""The types of options: what they make of a text, and what they refuse."""

import argparse
from collections.abc import Callable

import pytest

from tracer.cli import types


@pytest.mark.parametrize(
    ("convert", "text", "expected"),
    [
        (types.tolerance, "1e-5", 1e-5),
        (types.rule, "^a=(b)=c", ("^a=(b)", "c")),
        (types.rule, "a=", ("a", "")),
        (types.count(0), "0", 0),
        (types.print_option, "precision=2", ("precision", 2)),
        (types.print_option, "sci_mode=False", ("sci_mode", False)),
        (types.limit, "*.head=0.05", ("*.head", 0.05)),
    ],
)
def test_values(convert: Callable[[str], object], text: str, expected: object) -> None:
    assert convert(text) == expected


@pytest.mark.parametrize(
    ("convert", "text", "says"),
    [
        (types.tolerance, "-1", "a ratio of at least 0"),
        (types.tolerance, "inf", "a ratio of at least 0"),
        (types.rule, "=b", "REGEX=REPLACEMENT"),
        (types.rule, "(=b", "is no valid regular expression"),
        (types.count(2), "1", "a whole number from 2 up"),
        (types.print_option, "sci_mode=2", "KEY=VALUE"),
        (types.print_option, "colour=1", "KEY=VALUE"),
        (types.limit, "0.05", "GLOB=PEIR"),
        (types.file, "none.txt", "there is no file none.txt"),
        (types.baseline, "none.json", "no file or trace none.json"),
        (types.report, "out.pdf", "suffix '.pdf'"),
    ],
)
def test_refusals(convert: Callable[[str], object], text: str, says: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        convert(text)
    assert says in str(error.value)
