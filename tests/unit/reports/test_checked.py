"""The report of several checks, as table, JUnit and Markdown."""

import io

import pytest
from rich.console import Console

from tracer.environment import environment
from tracer.reports import junit, markdown
from tracer.reports.checked import Checked, render_md, render_xml, save, show, summary


@pytest.fixture(autouse=True)
def same_second(monkeypatch) -> None:
    """Two pages that are made one after the other say the same time."""
    known = environment()
    for room in (junit, markdown):
        monkeypatch.setattr(room, "environment", lambda: known)


@pytest.fixture
def checks(make_comparison, make_row) -> list[Checked]:
    agrees = make_comparison([make_row("a", 0.0)])
    diverges = make_comparison([make_row("a", 0.0), make_row("b", 0.5)])
    return [
        Checked("one", 0, 1.0, agrees),
        Checked("two", 1, 2.0, diverges),
        Checked("three", 2, 0.0, message="there is no `a|b`"),
    ]


def test_the_sum(checks) -> None:
    assert summary(checks) == "1 of 3 checks passes; 1 fails: two; 1 has no result: three"
    assert summary([checks[0], checks[0]]) == "2 of 2 checks pass"
    assert summary([checks[1]] * 2) == "0 of 2 checks pass; 2 fail: two, two"


def test_the_table(checks) -> None:
    page = io.StringIO()
    show(checks, console=Console(file=page, width=100))
    *_, table = page.getvalue().partition("check  ")
    assert [line.split() for line in table.splitlines()[1:4]] == [
        ["one", "passes", "1.0", "agrees"],
        ["two", "fails", "2.0", *["diverges:", "/b/model.py:5,", "in", "`b`"]],
        ["three", "no", "result", "0.0", *["there", "is", "no", "`a|b`"]],
    ]
    assert page.getvalue().startswith("two: diverges: ")
    assert all(line == line.rstrip() for line in page.getvalue().splitlines())
    shown = io.StringIO()
    show(checks, reasons=False, console=Console(file=shown, width=100, force_terminal=True))
    assert "two: diverges" not in shown.getvalue()
    assert "\x1b[31mfails" in shown.getvalue()


def test_markdown(checks) -> None:
    page = render_md(checks)
    assert "| ✅ passes | `one` | `agrees` |" in page
    assert "| ⚠️ no result | `three` | `there is no 'a\\|b'` |" in page
    assert markdown.render(checks[1].comparison) in page
    long = render_md([checks[1]] * 500)
    assert len(long.encode()) < markdown.LIMIT + 500 * 100
    assert long.endswith("KB._\n")


def test_files(checks, tmp_path) -> None:
    for name, text in (("a.xml", render_xml(checks)), ("a.md", render_md(checks))):
        save(checks, tmp_path / name)
        assert (tmp_path / name).read_text() == text
