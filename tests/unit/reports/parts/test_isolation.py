"""The tables of what modules introduce themselves."""

from dataclasses import replace

from tracer.isolation.causes import Rounding
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
)
from tracer.reports.parts.isolation import introduced, introducing, section, where

CALL = IsolatedCall("model.mlp", 1, "output", False, 0, 0.125, 0.25, 0.5, 0.75, share=1.0)
FOUND = Isolation("leaves", (CALL,), (IsolatedModule("model.mlp", CALL, 2, 1.0),))
LAYERS = Isolation(
    "leaves",
    (CALL,),
    tuple(IsolatedModule(f"layers.{i}.mlp", CALL, 1, 1 / 28) for i in range(28)),
    groups=(
        IsolatedGroup("layers.*.mlp", 28, 0.75, "layers.3.mlp", 0.5, 0.25),
        IsolatedGroup("lm_head", 1, 0.25, "lm_head", 0.25, 0.125),
    ),
    points=(
        IsolatedPoint("layers.*.mlp.mul", "uint8 activation", "the product", 28, 0.5),
        IsolatedPoint("layers.*.mlp.unknown", "uint8 weight", "", 28, 0.25),
    ),
)


def text_of(found: Isolation, width: int = 80) -> list[str]:
    return [str(line) for line in section(found, width)]


def test_a_line_for_each_module() -> None:
    lines = text_of(FOUND)
    assert lines[2].split() == [
        "100.0%", "1.25e-01", "2.50e-01", "5.00e-01", "7.50e-01", "model.mlp#1",
    ]  # fmt: skip
    assert list(section(Isolation("leaves", (), ()), 80)) == []


def test_layers_come_before_points_and_points_before_modules() -> None:
    lines = text_of(LAYERS)
    assert lines[1:9] == [
        "   share  modules    worst    own L2  over all layers",
        "   75.0%       28    50.0%  2.50e-01  layers.*.mlp",
        "   25.0%        1    25.0%  1.25e-01  lm_head",
        "   share  modules  quantization point: what goes away without it",
        "   50.0%       28  layers.*.mlp.mul (uint8 activation)",
        "                   the product",
        "   25.0%       28  layers.*.mlp.unknown (uint8 weight)",
        "   share   PEIR in  PEIR out  own PEIR    own L2  module",
    ]
    assert len(lines[9:]) == 7  # five modules, the rest, and a blank line
    assert lines[-2] == "   82.1%  … 23 more"


def test_what_rounding_does_comes_below_its_point() -> None:
    rounding = Rounding(8000, 0.25, 0.125, 0.0004, 0.0)
    points = (replace(LAYERS.points[0], rounding=rounding), *LAYERS.points[1:])
    lines = text_of(replace(LAYERS, points=points))
    place = lines.index("                   the product")
    assert lines[place + 1].strip() == "values there: 12.5% underflow, 25% zero, 0.04% saturated"
    none = replace(rounding, zero=0.0, underflow=0.0, saturated=0.0)
    same = replace(LAYERS, points=(replace(LAYERS.points[0], rounding=none), *LAYERS.points[1:]))
    assert text_of(same) == text_of(LAYERS)


def test_what_does_not_fit() -> None:
    many = replace(LAYERS, groups=LAYERS.groups * 6, points=LAYERS.points * 6)
    lines = text_of(many, 60)
    assert all(len(line) <= 60 for line in lines if "mlp" in line)
    assert [line for line in lines if line.startswith("  ") and "…" in line and "more" in line] == [
        "  100.0%  … 2 more",
        "          … 2 more",
        "   82.1%  … 23 more",
    ]


def test_points_are_left_out_where_nothing_is_known_of_them() -> None:
    assert not any("quantization" in line for line in text_of(replace(LAYERS, points=())))


def test_figures_for_another_table() -> None:
    assert introduced(FOUND) == {("model.mlp", 1): 0.5}
    assert introduced(None) == {}


def test_which_modules() -> None:
    none = IsolatedModule("norm", CALL, 1, 0.0)
    assert introducing(replace(FOUND, modules=(*FOUND.modules, none))) == [*FOUND.modules]
    assert introducing(None) == []


def test_which_value_it_is() -> None:
    assert where(CALL) == ""
    assert where(replace(CALL, value="output.0")) == "output.0"
    passed = replace(CALL, value="o_proj.kwargs.input", receiver="o_proj")
    assert where(passed) == "to o_proj"
    assert where(replace(passed, passed_as="scale")) == "to o_proj as scale"
    line = next(section(replace(FOUND, modules=(IsolatedModule("m", passed, 1, 1.0),)), 120))
    assert str(line).startswith("where the error is introduced")
    assert "m#1 (to o_proj)" in str(
        list(section(replace(FOUND, modules=(IsolatedModule("m", passed, 1, 1.0),)), 120))[2]
    )
