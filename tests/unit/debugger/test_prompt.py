"""The prompt: which debugger opens, and stepping in one coroutine of several."""

import builtins
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace

import greenlet
import pytest

from tracer.debugger import prompt
from tracer.debugger.prompt import Ended, Prompt, choose_debugger, in_builtins
from tracer.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def streams(monkeypatch) -> SimpleNamespace:
    """What the room takes for standard input and output: those of a terminal."""
    streams = SimpleNamespace(stdin=Terminal(), stdout=Terminal())
    monkeypatch.setattr(prompt, "sys", streams)
    return streams


@pytest.fixture
def no_ipdb(monkeypatch) -> None:
    monkeypatch.setattr(prompt, "find_spec", lambda name: None)


class TestChoice:
    def test_ipdb_in_a_terminal_and_pdb_elsewhere(self, streams) -> None:
        assert choose_debugger().kind == "ipdb"
        assert choose_debugger().opens
        streams.stdin = io.StringIO()
        assert choose_debugger().kind == "pdb"

    def test_pdb_where_the_output_is_read_by_a_program(self, streams) -> None:
        streams.stdout = io.StringIO()
        assert choose_debugger().kind == "pdb"

    def test_pdb_without_ipdb(self, streams, no_ipdb) -> None:
        choice = choose_debugger()
        assert choice.kind == "pdb"
        assert "pip install ipdb" in choice.note

    def test_what_is_asked_for(self, streams, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", "ipdb.set_trace")
        assert choose_debugger("pdb").kind == "pdb"
        assert choose_debugger().kind == "ipdb"
        monkeypatch.setenv("PYTHONBREAKPOINT", "pdb.set_trace")
        assert choose_debugger().kind == "pdb"
        assert choose_debugger("ipdb").kind == "ipdb"

    def test_ipdb_that_is_not_installed(self, streams, no_ipdb, monkeypatch) -> None:
        with pytest.raises(UsageError, match="pip install ipdb"):
            choose_debugger("ipdb")
        monkeypatch.setenv("PYTHONBREAKPOINT", "ipdb.set_trace")
        with pytest.raises(UsageError, match="pip install ipdb"):
            choose_debugger()

    def test_none_or_another_function(self, streams, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", "0")
        assert not choose_debugger().opens
        assert not choose_debugger("pdb").opens
        assert "PYTHONBREAKPOINT is 0" in choose_debugger().note
        monkeypatch.setenv("PYTHONBREAKPOINT", "os.getcwd")
        assert choose_debugger().hook is __import__("os").getcwd
        monkeypatch.setenv("PYTHONBREAKPOINT", "print")
        assert choose_debugger().hook is print

    @pytest.mark.parametrize("path", ["nowhere.at_all", "os.no_such_function", "no_builtin"])
    def test_a_function_that_is_not_there(self, streams, monkeypatch, path: str) -> None:
        monkeypatch.setenv("PYTHONBREAKPOINT", path)
        with pytest.raises(UsageError, match=f"PYTHONBREAKPOINT is '{path}', which cannot be impo"):
            choose_debugger()

    def test_under_ci(self, streams, monkeypatch) -> None:
        monkeypatch.setenv("CI", "true")
        assert choose_debugger().kind == "ipdb"  # somebody sits there
        streams.stdin = io.StringIO()
        with pytest.raises(UsageError, match="CI is set and standard input is no terminal"):
            choose_debugger()
        streams.stdin = None
        with pytest.raises(UsageError, match="no terminal"):
            choose_debugger("pdb")
        monkeypatch.setenv("CI", "false")
        assert choose_debugger("pdb").kind == "pdb"


class TestNames:
    def test_they_come_and_go_also_after_an_exception(self, monkeypatch) -> None:
        monkeypatch.setattr(builtins, "already", 1, raising=False)
        with in_builtins({"already": 2, "brought_along": 3}):
            assert (already, brought_along) == (2, 3)  # noqa: F821
        assert builtins.already == 1
        assert not hasattr(builtins, "brought_along")
        with pytest.raises(KeyboardInterrupt), in_builtins({"brought_along": 3}):
            raise KeyboardInterrupt
        assert not hasattr(builtins, "brought_along")


class TestPrompt:
    """Two coroutines that take turns; the prompt opens in the first."""

    @pytest.fixture
    def talk(self, monkeypatch, capsys):
        opened: list[FrameType] = []

        @contextmanager
        def around(frame: FrameType) -> Iterator[None]:
            opened.append(frame)
            yield

        def answered(commands: str, hidden: str = "") -> tuple[list[str], object]:
            monkeypatch.setattr(sys, "stdin", io.StringIO(commands.replace("; ", "\n") + "\n"))
            driver = greenlet.getcurrent()

            def helper(value: int) -> int:
                driver.switch("helper")
                return value + 1

            def outer() -> int:
                first = helper(1)
                second = first * 10
                return 2 * second

            def other() -> None:
                for turn in range(4):
                    driver.switch(turn)

            one, two = greenlet.greenlet(outer), greenlet.greenlet(other)
            assert one.switch() == "helper"
            two.switch()
            box = Prompt(
                choose_debugger("pdb"), lambda frame: frame.f_code.co_name == hidden, around
            )
            traces = sys.gettrace(), greenlet.gettrace()
            result: object = None
            try:
                box.open(one.gr_frame, one, "Here.")
                two.switch()
                result = one.switch()
            finally:
                box.close()
                assert (sys.gettrace(), greenlet.gettrace()) == traces
                for coroutine in (one, two):
                    coroutine.throw()
            return capsys.readouterr().out.split("(Pdb) "), result

        answered.opened = opened
        return answered

    def test_it_opens_at_once_and_hides_frames(self, talk) -> None:
        printed, result = talk("p value; c")
        assert printed[0].startswith("Here.\n")
        assert 'helper()\n-> driver.switch("helper")' in printed[0]
        assert printed[1] == "1\n"
        assert result == 40
        printed, _ = talk("u; s; c", hidden="outer")
        assert "*** Oldest frame" in printed[1]
        assert "helper()\n-> return value + 1" in printed[2]

    def test_it_steps_in_its_own_coroutine(self, talk) -> None:
        printed, result = talk("n; n; n; p first; c")
        assert "helper()\n-> return value + 1" in printed[1]
        assert "--Return--" in printed[2]
        assert "outer()\n-> second = first * 10" in printed[3]
        assert printed[4] == "2\n"
        assert result == 40
        assert [frame.f_code.co_name for frame in talk.opened] == [
            *("helper", "helper", "helper", "outer")
        ]

    def test_quitting(self, talk) -> None:
        with pytest.raises(Ended):
            talk("q")
        with pytest.raises(Ended):
            talk("n; q")
        assert not issubclass(Ended, Exception)
