"""The table of what modules introduce themselves."""

from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation
from tracer.reports.parts.isolation import introduced, section

CALL = IsolatedCall("model.mlp", 1, "output", False, 0, 0.125, 0.25, 0.5, 0.75, share=1.0)
FOUND = Isolation("leaves", (CALL,), (IsolatedModule("model.mlp", CALL, 2, 1.0),))


def test_a_line_for_each_module() -> None:
    lines = [str(line) for line in section(FOUND, 80)]
    assert lines[2].split() == [
        "100.0%", "1.25e-01", "2.50e-01", "5.00e-01", "7.50e-01", "model.mlp#1",
    ]  # fmt: skip
    assert list(section(Isolation("leaves", (), ()), 80)) == []


def test_figures_for_another_table() -> None:
    assert introduced(FOUND) == {("model.mlp", 1): 0.5}
    assert introduced(None) == {}
