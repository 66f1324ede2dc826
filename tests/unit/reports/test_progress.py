"""Progress: bars on a true terminal, and a line each minute elsewhere."""

import io
import time

import pytest
from rich.console import Console

from tracer.reports import progress


class Terminal(io.StringIO):
    """What a terminal would show."""

    def isatty(self) -> bool:
        return True


def shown_on(page: io.StringIO, monkeypatch: pytest.MonkeyPatch, **options: object) -> io.StringIO:
    console = Console(file=page, width=80, highlight=False, **options)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return page


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    return shown_on(Terminal(), monkeypatch, force_terminal=True)


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes minutes short."""
    monkeypatch.setattr(progress, "_INTERVAL", 0.01)


def waits_for(text: str, page: io.StringIO) -> None:
    until = time.monotonic() + 10
    while text not in page.getvalue():
        assert time.monotonic() < until, page.getvalue()
        time.sleep(0.005)


def test_nothing_in_the_first_minute_where_there_is_no_terminal(capsys):
    with progress.status("loading"), progress.call_counter("comparing", 3) as tell:
        tell(1)
        tell.phase("isolating", 1, 1)
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


def test_a_bar_names_its_phase(screen, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    with progress.call_counter("comparing", 3) as tell:
        tell(1)
        tell.phase("isolating", 3, 7)
    assert "isolating 3 of 7" in screen.getvalue()
    assert "0 calls" in screen.getvalue()


def test_status_and_calibration(screen):
    with progress.status("loading it"):
        pass
    assert list(progress.tracked([1, 2, 3])) == [1, 2, 3]
    assert "loading it" in screen.getvalue()
    assert "calibrating" in screen.getvalue()


class TestWithoutATerminal:
    @pytest.fixture
    def page(self, monkeypatch: pytest.MonkeyPatch, minutes: None) -> io.StringIO:
        return shown_on(io.StringIO(), monkeypatch)

    def test_a_line_each_minute(self, page):
        with progress.call_counter("comparing", 30) as tell:
            for finished in range(1, 21):
                tell(finished)
            waits_for("trace_model: comparing, 20 of about 30 calls, after 2 min\n", page)
            tell.phase("swapping", 2, 2)
            waits_for("trace_model: swapping 2 of 2, after ", page)
            tell(12)  # as many calls as there were in the run before
            waits_for("trace_model: swapping 2 of 2, 12 of about 20 calls, after ", page)
        ended = page.getvalue()
        assert "after 1 min\n" in ended
        assert all(line.startswith("trace_model: ") for line in ended.splitlines())
        time.sleep(0.05)
        assert page.getvalue() == ended

    def test_nothing_is_said_until_something_is_told(self, page):
        with progress.call_counter("comparing", 3):
            time.sleep(0.05)
        assert page.getvalue() == ""

    def test_loading_and_calibrating(self, page):
        with progress.status("loading it"):
            waits_for("trace_model: loading it, after 1 min\n", page)
        for item in progress.tracked([1, 2]):
            if item == 2:
                waits_for("trace_model: calibrating, 1 done, after ", page)

    def test_a_line_for_each_trial(self, page):
        with progress.trial_counter("study") as tell:
            tell("uint8", 1, 4)
        assert page.getvalue() == "study: 1 of 4: uint8\n"


class TestColours:
    """Variables choose colours, and never whether something moves."""

    def lines(self, monkeypatch: pytest.MonkeyPatch, **environ: str) -> str:
        page = shown_on(io.StringIO(), monkeypatch, _environ=environ)
        with progress.status("loading it"):
            waits_for("after 2 min", page)
        with progress.trial_counter("study") as tell:
            tell("uint8", 1, 4)
        assert list(progress.tracked([1])) == [1]
        return page.getvalue()

    def test_forced_colours_are_lines_in_colour(self, monkeypatch, minutes):
        said = self.lines(monkeypatch, FORCE_COLOR="1", TERM="xterm-256color")
        assert "\x1b[36mtrace_model: loading it, after 1 min\x1b[0m\n" in said
        assert "\r" not in said
        assert "\x1b[?25l" not in said  # which hides the cursor
        assert "\x1b[2K" not in said

    def test_no_colours_among_forced_ones(self, monkeypatch, minutes):
        said = self.lines(monkeypatch, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color")
        assert "\x1b" not in said
        assert "trace_model: loading it, after 1 min\n" in said

    def test_no_colours_on_a_terminal(self, monkeypatch):
        monkeypatch.setattr(progress, "_PATIENCE", -1.0)
        environ = {"NO_COLOR": "1", "TERM": "xterm-256color"}
        page = shown_on(Terminal(), monkeypatch, force_terminal=True, _environ=environ)
        with progress.call_counter("comparing", 3) as tell:
            tell(2)
        assert "2 calls" in page.getvalue()
        assert "\x1b[3" not in page.getvalue().replace("\x1b[39m", "")

    def test_a_terminal_that_cannot_draw_anew_has_lines(self, monkeypatch, minutes):
        environ = {"TERM": "dumb"}
        page = shown_on(Terminal(), monkeypatch, force_terminal=True, _environ=environ)
        with progress.status("loading it"):
            waits_for("trace_model: loading it, after 1 min\n", page)
