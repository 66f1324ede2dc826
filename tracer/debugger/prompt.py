"""Opens pdb or ipdb in a frame of a coroutine that stands still, and steps on from there.

`pdb.set_trace(frame)` stops at the next traced event only, which for a parked coroutine lies in
another function. Here the prompt opens in the frame at once; tracing begins when it is left with a
command that goes on in steps. Other coroutines of the thread are never stopped in.
"""

import bdb
import builtins
import ctypes
import importlib
import os
import pdb
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import FrameType, TracebackType
from typing import Any

import greenlet

from tracer.choices import DEBUGGERS
from tracer.errors import UsageError
from tracer.execution.side import Ended


@dataclass(frozen=True)
class Choice:
    """Which debugger opens.

    Attributes:
        kind: "ipdb" or "pdb"; None for another function, or for none at all.
        hook: the function that PYTHONBREAKPOINT names, if it is neither of them.
        note: what the user is to know of the choice.
    """

    kind: str | None
    hook: Callable[[], object] | None = None
    note: str = ""

    @property
    def opens(self) -> bool:
        """Whether anything opens at all."""
        return self.kind is not None or self.hook is not None


def choose_debugger(asked: str | None = None) -> Choice:
    """Says which debugger opens, before anything is run.

    That which is asked for, else what PYTHONBREAKPOINT says, else ipdb in a terminal and pdb
    elsewhere. With PYTHONBREAKPOINT=0 none does, as for Python's own `breakpoint()`.

    Args:
        asked: "ipdb" or "pdb".

    Raises:
        UsageError: another name, a debugger that is not installed, a PYTHONBREAKPOINT that cannot
            be imported, or a CI job without a terminal.
    """
    if asked is not None and asked not in DEBUGGERS:
        raise UsageError(f"debugger {asked!r}: expected {' or '.join(DEBUGGERS)}")
    wanted = os.environ.get("PYTHONBREAKPOINT", "")
    if wanted == "0":
        return Choice(None, note="PYTHONBREAKPOINT is 0: the debugger stays closed")
    if not _is_terminal(sys.stdin) and os.environ.get("CI", "") not in ("", "0", "false"):
        raise UsageError(
            "CI is set and standard input is no terminal, so nobody would answer the debugger: run "
            "without breakpoints and without post-mortem there"
        )
    if asked is None and wanted:
        module, _, function = wanted.rpartition(".")
        if function != "set_trace" or module not in DEBUGGERS:
            return Choice(None, _imported(wanted))
        asked = module
    has_ipdb = find_spec("ipdb") is not None
    if asked == "ipdb" and not has_ipdb:
        raise UsageError("ipdb is not installed: pip install ipdb, or choose pdb as the debugger")
    if asked is not None:
        return Choice(asked)
    if not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        return Choice("pdb")
    if not has_ipdb:
        return Choice("pdb", note="ipdb is not installed, so this is pdb: pip install ipdb")
    return Choice("ipdb")


class Prompt:
    """The one debugger of a run, which opens in one frame after the other.

    Args:
        choice: which debugger; one that opens.
        is_hidden: whether a frame is machinery, which is neither stopped in nor shown by `up`.
        around: what is in force while the prompt is open; it is given the frame that it opens in.
    """

    def __init__(
        self,
        choice: Choice,
        is_hidden: Callable[[FrameType], bool],
        around: Callable[[FrameType], AbstractContextManager[None]],
    ) -> None:
        self._choice = choice
        self._is_hidden = is_hidden
        self._around = around
        self._tracing = sys.gettrace()
        self._tracing_switches = greenlet.gettrace()
        self._made: _Standing | None = None

    def open(self, frame: FrameType, coroutine: greenlet.greenlet, words: str) -> None:
        """Opens in a frame of a coroutine that stands still.

        Args:
            coroutine: the frame's; stepping goes on in it alone.
            words: what is printed first.

        Raises:
            Ended: the user has quit.
        """
        if self._choice.hook is not None:
            self.say(words)
            self._call(self._choice.hook, frame)
            return
        debugger = self._debugger()
        debugger.reset()
        debugger.coroutine = coroutine
        outer: FrameType | None = frame
        while outer is not None:
            outer.f_trace = debugger.trace_dispatch
            debugger.botframe = outer
            outer = outer.f_back
        sys.settrace(self._tracing)
        debugger.message(words)
        debugger.interaction(frame, None)
        if sys.version_info < (3, 13):
            # What was assigned at the prompt reaches the variables, as after a traced event.
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        if debugger.quitting:
            raise Ended
        if debugger.goes_on_in_steps:
            _trace_when_resumed(coroutine, debugger.trace_dispatch)
        else:
            sys.settrace(self._tracing)

    def open_after(self, traceback: TracebackType, words: str) -> None:
        """Opens where an exception was raised: in the innermost frame that is no machinery."""
        if self._choice.hook is not None:
            while traceback.tb_next is not None:
                traceback = traceback.tb_next
            self.say(words)
            self._call(self._choice.hook, traceback.tb_frame)
            return
        debugger = self._debugger()
        debugger.reset()
        sys.settrace(self._tracing)
        debugger.message(words)
        debugger.interaction(None, traceback)
        sys.settrace(self._tracing)

    def say(self, words: str) -> None:
        """Prints a line where the prompt is."""
        if self._choice.hook is None:
            self._debugger().message(words)
        else:
            sys.stdout.write(f"{words}\n")

    def close(self) -> None:
        """Ends all stepping."""
        greenlet.settrace(self._tracing_switches)
        sys.settrace(self._tracing)
        self._made = None

    def _call(self, hook: Callable[[], object], frame: FrameType) -> None:
        """Calls another debugger among the names of the frame, as `breakpoint()` there would."""
        names = {**frame.f_locals, "__breakpoint__": hook}
        with self._around(frame):
            eval("__breakpoint__()", frame.f_globals, names)

    def _debugger(self) -> "_Standing":
        if self._made is None:
            self._made = _class_of(self._choice.kind)(nosigint=True)
            self._made.configure(self._is_hidden, self._around, self._tracing)
            if self._choice.note:
                self._made.message(self._choice.note)
        return self._made


def _trace_when_resumed(coroutine: greenlet.greenlet, trace: Callable[..., Any]) -> None:
    """Sets the trace function as soon as a coroutine goes on.

    Not now: since Python 3.12 only code that is being executed is made traceable at once, and that
    of a coroutine that stands still is not.
    """

    def on_switch(event: str, switched: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        if switched[1] is coroutine:
            greenlet.settrace(before)
            sys.settrace(trace)

    before = greenlet.settrace(on_switch)


@contextmanager
def in_builtins(names: Mapping[str, object]) -> Iterator[None]:
    """Makes names visible in every frame for a while. A frame's own variables go before them."""
    place = vars(builtins)
    before = {name: place[name] for name in names if name in place}
    place.update(names)
    try:
        yield
    finally:
        for name in names:
            del place[name]
        place.update(before)


class _Standing(pdb.Pdb):
    """A pdb that opens in frames of a coroutine that stands still; see this module's docstring."""

    def configure(
        self,
        is_hidden: Callable[[FrameType], bool],
        around: Callable[[FrameType], AbstractContextManager[None]],
        tracing: Any,
    ) -> None:
        """Sets what a constructor would: that of IPython's class takes other arguments."""
        self.coroutine: greenlet.greenlet | None = None
        self._is_hidden = is_hidden
        self._around = around
        self._tracing = tracing

    @property
    def goes_on_in_steps(self) -> bool:
        """Whether anything but `continue` without line breakpoints was asked for last."""
        continues = self.stopframe is self.botframe and self.stoplineno == -1
        return bool(self.breaks) or not continues

    def interaction(self, frame: FrameType | None, traceback: Any) -> None:
        standing = greenlet.getcurrent()

        def talk() -> None:
            # greenlet makes the frames of a coroutine that stands still fit to be walked through
            # when it is asked for the innermost.
            _ = standing.gr_frame
            super(_Standing, self).interaction(frame, traceback)

        where = frame
        if where is None:
            stack, index = self.get_stack(None, traceback)
            where = stack[index][0]
        # In a coroutine of its own: what is called at the prompt is not part of either model's run.
        with self._around(where):
            greenlet.greenlet(talk).switch()

    def get_stack(
        self, frame: FrameType | None, traceback: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        stack, index = super().get_stack(frame, traceback)
        if traceback is None:
            shown = [entry for entry in stack if entry[0] is frame or not self._is_hidden(entry[0])]
            return shown, len(shown) - 1
        own = [place for place, entry in enumerate(stack) if not self._is_hidden(entry[0])]
        return stack, own[-1] if own else index

    def stop_here(self, frame: FrameType) -> bool:
        return not self._is_hidden(frame) and bool(super().stop_here(frame))

    def do_run(self, arg: str) -> None:
        """Not pdb's own, which would leave through both models."""
        self.message("the models are not run again from here: q ends the run")

    do_restart = do_run

    def set_continue(self) -> None:
        super().set_continue()
        if not self.breaks:
            sys.settrace(self._tracing)

    def trace_dispatch(self, frame: FrameType, event: str, arg: Any) -> Any:
        if greenlet.getcurrent() is not self.coroutine:
            return None
        try:
            return super().trace_dispatch(frame, event, arg)
        except bdb.BdbQuit:
            raise Ended from None


def _class_of(kind: str | None) -> Callable[..., _Standing]:
    if kind == "pdb":
        return _Standing
    from ipdb.__main__ import get_context_from_config
    from IPython.core.getipython import get_ipython
    from IPython.terminal.debugger import TerminalPdb
    from IPython.terminal.interactiveshell import TerminalInteractiveShell

    if get_ipython() is None:
        main = sys.modules["__main__"]
        TerminalInteractiveShell.instance(term_title=False)
        sys.modules["__main__"] = main  # the shell puts a module of its own there
    context = os.environ.get("IPDB_CONTEXT_SIZE") or get_context_from_config()
    return partial(type("_StandingInTerminal", (_Standing, TerminalPdb), {}), context=context)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _imported(path: str) -> Callable[[], object]:
    module, _, name = path.rpartition(".")
    try:
        hook: Callable[[], object] = getattr(importlib.import_module(module or "builtins"), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"PYTHONBREAKPOINT is {path!r}, which cannot be imported ({error}); expected a "
            "function such as pdb.set_trace, or 0 for no debugger"
        ) from error
    return hook
