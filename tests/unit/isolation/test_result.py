"""The result of isolation, as a table."""

from tracer.isolation.result import IsolatedCall, Isolation

CALL = IsolatedCall("mlp", 0, "output", False, 0, 0.0, 0.2, 0.1, 0.3, share=1.0)


def test_one_line_for_each_call() -> None:
    frame = Isolation("leaves", (CALL,), ()).to_frame()
    assert frame.loc[0, ["module", "introduced", "share"]].tolist() == ["mlp", 0.3, 1.0]
