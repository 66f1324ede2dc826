"""Names that are shortened stay apart."""

import pytest

from tracer.reports.parts.shortening import apart


@pytest.mark.parametrize("width", [6, 10, 14, 20, 30])
@pytest.mark.parametrize(
    "names",
    [
        ["out.past_key_values.layers.0.keys", "out.past_key_values.layers.0.values"],
        ["model.visual.layers.0.attn.proj", "model.language.layers.0.attn.proj"],
        [
            "model.layers.0.proj (mask)",
            "model.layers.0.proj (input)",
            "model.layers.1.proj (input)",
        ],
    ],
)
def test_names_that_look_alike_keep_what_tells_them_apart(names, width) -> None:
    cut = apart(names, ["same…"] * len(names), width)
    assert all(len(name) <= width for name in cut)
    if width >= 14:
        assert len(set(cut)) == len(names)


def test_what_is_apart_already_stays_as_it_is() -> None:
    assert apart(["a.long", "b.long", "b.long"], ["a…", "b…", "b…"], 2) == ["a…", "b…", "b…"]


def test_the_part_that_differs_is_shown_whole() -> None:
    names = ["model.visual.blocks.0.attn.proj", "model.language.blocks.0.attn.proj"]
    assert apart(names, ["model…proj"] * 2, 20) == ["…visual….0.attn.proj", "…language….attn.proj"]
