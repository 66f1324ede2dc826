"""The result of isolation, as a table and in words."""

from tracer.isolation.causes import Cause
from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation

CALL = IsolatedCall("mlp", 0, "output", False, 0, 0.0, 0.2, 0.1, 0.3, share=1.0)


def test_one_line_for_each_call() -> None:
    frame = Isolation("leaves", (CALL,), ()).to_frame()
    assert frame.loc[0, ["module", "introduced", "share"]].tolist() == ["mlp", 0.3, 1.0]


def test_in_words() -> None:
    cause = Cause("weight", "uint4 weight", 0.3, 0.001)
    found = Isolation("leaves", (CALL,), (IsolatedModule("mlp", CALL, 1, 1.0, (cause,)),))
    assert found.explanation.splitlines() == [
        "The error that modules introduce themselves (leaves):",
        "  100.0%  `mlp`, PEIR 0.1, relative L2 0.3",
        "          without `weight` (uint4 weight): relative L2 0.3 → 0.001",
    ]
    assert Isolation("leaves", (), ()).explanation == "No module introduces an error of its own."
