"""Progress bars: on a terminal only, and only where a run takes a while."""

import io

import pytest
from rich.console import Console

from tracer.reports import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would show."""
    page = io.StringIO()
    console = Console(file=page, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda **options: console)
    return page


def test_nothing_where_there_is_no_terminal(capsys):
    with progress.status("loading"), progress.call_counter("comparing", 3) as tell:
        tell(1)
    assert (list(progress.tracked([1, 2])), capsys.readouterr()) == ([1, 2], ("", ""))


def test_a_short_run_shows_no_bar(screen):
    with progress.call_counter("comparing", 3) as tell:
        tell(1)
    assert screen.getvalue() == ""


def test_a_long_run_shows_a_bar_that_ends(screen, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    with progress.call_counter("comparing", 3) as tell:
        tell(1)
        tell(5)  # more than was expected
    assert "comparing" in screen.getvalue()
    assert "5 calls" in screen.getvalue()
    with pytest.raises(ValueError, match="stop"), progress.call_counter("comparing", 3) as tell:
        tell(1)
        raise ValueError("stop")
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared


def test_status_and_calibration(screen):
    with progress.status("loading it"):
        pass
    assert list(progress.tracked([1, 2, 3])) == [1, 2, 3]
    assert "loading it" in screen.getvalue()
    assert "calibrating" in screen.getvalue()
