"""Names that can be chosen: the defaults are among them."""

import pytest

from tracer import choices


@pytest.mark.parametrize(
    ("default", "known"),
    [
        (choices.DEFAULT_CANDIDATE, choices.CANDIDATES),
        (choices.DEFAULT_DTYPE, choices.DTYPES),
        (choices.DEFAULT_PADDING, choices.PADDING_SIDES),
        (choices.WITH_VOCABULARY[0], choices.BUILT_IN),
        (choices.NEED_WRAPPERS[0], choices.CANDIDATES),
        (choices.NEED_WRAPPERS[1], choices.CANDIDATES),
    ],
)
def test_they_are_among_those_listed(default: str, known: object) -> None:
    assert default in known


def test_what_stands_for_nothing_is_no_choice() -> None:
    assert choices.ITSELF not in choices.CANDIDATES
    assert choices.NO_ISOLATION not in choices.LEVELS
