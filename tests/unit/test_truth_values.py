"""Results of several answers are neither true nor false."""

import pytest

import tracer
from tracer.errors import UsageError


def test_each_says_what_to_write(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("a", 0.5)])
    for result, instead in (
        (comparison, "a Comparison is neither true nor false: write `.verdict.agrees`"),
        (comparison.verdict, "a Verdict is neither true nor false: write `.agrees`"),
        (tracer.gate(comparison), "a Gate is neither true nor false: write `.passes`"),
    ):
        with pytest.raises(UsageError, match=instead):
            bool(result)
        with pytest.raises(UsageError, match=instead):
            assert result
        with pytest.raises(UsageError, match=instead):
            assert not result
        assert result is not None
