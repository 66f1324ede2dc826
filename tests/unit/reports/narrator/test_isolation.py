"""What isolation found, in words."""

from tracer.isolation.causes import Cause
from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation, Recovery
from tracer.reports.narrator.isolation import lines

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


def test_no_error() -> None:
    assert lines(Isolation("leaves", (), ())) == ["No module introduces an error of its own."]
