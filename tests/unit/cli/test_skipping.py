"""Another exit code for what says nothing of the models."""

import pytest

from tracer.cli import main
from tracer.cli.skipping import skipping


@pytest.mark.parametrize("given", ["--exit-skip 125", "--exit-skip=125"])
@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 125), (3, 125), (130, 130)])
def test_what_is_mapped(given: str, code: int, expected: int) -> None:
    assert skipping(lambda argv: code)(given.split()) == expected


@pytest.mark.parametrize("given", ["", "--exit-skip", "--exit-skip 1", "--exit-skip 0",
                                   "--exit-skip 256", "--exit-skip much"])  # fmt: skip
def test_what_is_no_such_code(given: str) -> None:
    assert skipping(lambda argv: 2)(given.split()) == 2


def test_also_where_the_arguments_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "tiny-lama", "--exit-skip", "125"]) == 125
    assert main(["compare", "tiny-llama", "--option-of-tomorrow", "--exit-skip", "125"]) == 125
    assert main(["compare", "tiny-llama", "--exit-skip", "1"]) == 2
    assert "expected a whole number from 2 up" in capsys.readouterr().err
