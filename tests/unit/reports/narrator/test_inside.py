"""What was found inside a compiled model, in words."""

import pytest

import tracer
from tracer.execution.compilation import Stage
from tracer.isolation.compiled.result import (
    AloneCompiled,
    CompiledInside,
    GraphNode,
    LeftUncompiled,
    Rung,
)
from tracer.measurement.rows import Row
from tracer.tensors.value_path import OUTPUT

WRITTEN = Rung(Stage.AS_WRITTEN, "", True, 0.0)
RAISES = Rung(Stage.DYNAMO, "eager", None, None, "the candidate raised it", 3, ("a", "b"))
DIFFERS = Rung(Stage.BACKEND, "mine", False, 0.5)


def said(**fields: object) -> str:
    fields = {"parts": ("",), "rungs": (WRITTEN, RAISES, DIFFERS), "stage": Stage.BACKEND} | fields
    return tracer.explain(CompiledInside(**fields))


def test_the_ladder() -> None:
    text = said()
    assert (
        "The candidate is compiled; in stages, the first that differs is the backend (mine):"
        in text
    )
    assert (
        "dynamo (eager)                                       raises: the candidate raised it"
        in text
    )
    assert "the backend (mine)                                   differs, PEIR 0.5" in text
    assert "Its code is broken into 3 graphs: a; b" in text


def test_parts_by_their_names() -> None:
    assert said(parts=("a", "b")).startswith("`a` and `b` are compiled; in stages,")


@pytest.mark.parametrize(
    ("floor", "expected"),
    [
        (None, "`a.b`, PEIR inf (limit 0)"),
        (0.0, "`a.b`, PEIR inf (limit 0), where rounding makes nothing"),
    ],
)
def test_modules_alone(floor: float | None, expected: str) -> None:
    row = Row.of_form(0, ("a.b", 0), OUTPUT, None)
    alone = AloneCompiled("a.b", False, row, floor), AloneCompiled("c", None, error="it raised")
    text = said(alone=alone)
    assert "Compiled alone, on the reference's inputs, 1 of 2 modules differs:" in text
    assert expected in text.splitlines()[-2]
    assert "`c` raises when it is compiled alone: it raised" in text


def test_a_node_without_source() -> None:
    node = GraphNode("", "add", "add", "", 0, "", None, 1)
    assert "The only node of its graph is `add`:\n  add (no source)" in said(node=node)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (
            LeftUncompiled(("a",), (), False, 0.5, 0.4),
            "the whole still differs: the PEIR of its output",
        ),
        (
            LeftUncompiled(("a",), (), None, 0.5, None, "it raised"),
            "With `a` left uncompiled, it raised.",
        ),
        (LeftUncompiled(("",), ("a",), True, 0.5, 0.0), 'model.get_submodule("a").compile(...)'),
    ],
)
def test_what_is_left_uncompiled(left: LeftUncompiled, expected: str) -> None:
    text = said(left=left)
    assert expected in text
    assert "torch.compiler.disable" not in text
