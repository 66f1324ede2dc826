"""What isolation found, in words."""

from dataclasses import replace

import pytest

from tracer.isolation.causes import Cause
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
    Recovery,
)
from tracer.reports.narrator.isolation import in_its_own, lines

CALL = IsolatedCall("mlp", 0, "output", False, 0, 0.0, 0.2, 0.1, 0.3, share=1.0)


def test_the_worst_with_its_causes_and_what_swapping_did() -> None:
    cause = Cause("weight", "uint4 weight", 0.3, 0.001)
    module = IsolatedModule("mlp", CALL, 1, 1.0, (cause,))
    recovery = Recovery(("mlp",), 0.2, 0.0, 0.4, 0.0, unswapped=("norm",))
    assert lines(Isolation("leaves", (CALL,), (module,), (recovery,), (("norm", 0),))) == [
        "The error that modules introduce themselves (leaves):",
        "  100.0%  `mlp`, PEIR 0.1, relative L2 0.3",
        "          without `weight` (uint4 weight): relative L2 0.3 → 0.001",
        "With the reference's `mlp`, the final output goes from PEIR 0.2 to 0, and from relative "
        "L2 0.4 to 0. Not swapped, for the form of their output: `norm`.",
        "What follows `norm` inherits an error: its form cannot be replaced.",
    ]


def test_what_is_at_a_point() -> None:
    cause = Cause("weight", "uint4 weight", 0.3, 0.001, "the module's weight")
    said = lines(Isolation("leaves", (CALL,), (IsolatedModule("mlp", CALL, 1, 1.0, (cause,)),)))
    assert said[-1] == "          `weight`: the module's weight"


def test_over_all_layers() -> None:
    cause = Cause("mul", "uint8 activation", 0.3, 0.1, "the product")
    modules = tuple(IsolatedModule(f"layers.{i}.mlp", CALL, 1, 0.25, (cause,)) for i in range(4))
    groups = (
        IsolatedGroup("layers.*.mlp", 4, 0.75, "layers.0.mlp", 0.25, 0.3),
        IsolatedGroup("layers.*.norm", 1, 0.125, "layers.2.norm", 0.125, 0.3),
        IsolatedGroup("", 1, 0.0625, "", 0.0625, 0.3),
        IsolatedGroup("lm_head", 1, 0.0625, "lm_head", 0.0625, 0.3),
    )
    points = (
        IsolatedPoint("layers.*.mlp.mul", "uint8 activation", "the product", 4, 0.5),
        IsolatedPoint("layers.*.mlp.own", "int4 weight, uint8 weight", "", 4, 0.25),
    )
    found = Isolation("leaves", (CALL,), modules, groups=groups, points=points)
    assert lines(found) == [
        "The error that modules introduce themselves (leaves), over all layers:",
        "   75.0%  `layers.*.mlp`: 4 modules, the worst 25.0%",
        "   12.5%  `layers.2.norm`",
        "    6.2%  the root module",
        "    6.2%  1 more",
        "By quantization point, over all layers: the part that goes away without it.",
        "   50.0%  `layers.*.mlp.mul` (uint8 activation):",
        "          the product",
        "   25.0%  `layers.*.mlp.own` (int4 weight, uint8 weight)",
        "By module:",
        *(
            line
            for i in range(3)
            for line in (
                f"   25.0%  `layers.{i}.mlp`, PEIR 0.1, relative L2 0.3",
                "          without `mul` (uint8 activation): relative L2 0.3 → 0.1",
            )
        ),
        "   25.0%  1 more",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"own_lines": True}, "its own forward"),
        ({"own_lines": True, "receiver": "o_proj"}, "what it passes to `o_proj`"),
        (
            {"own_lines": True, "receiver": "layers.0", "passed_as": "position_embeddings.0"},
            "what it passes to `layers.0` as `position_embeddings.0`",
        ),
    ],
)
def test_what_of_its_work_is_wrong(changes: dict[str, object], words: str) -> None:
    call = replace(CALL, **changes)
    assert in_its_own(call) == words
    (_, said) = lines(Isolation("leaves", (call,), (IsolatedModule("attn", call, 1, 1.0),)))
    assert said.startswith(f"  100.0%  `attn`{' in ' if words else ''}{words}, PEIR 0.1")


def test_no_error() -> None:
    assert lines(Isolation("leaves", (), ())) == ["No module introduces an error of its own."]
