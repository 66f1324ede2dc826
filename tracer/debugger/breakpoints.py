"""Breakpoints: both models at one prompt, at the same call.

    > model.py(12)forward()
    -> return self.o_proj(output)
    ipdb> diff(reference.attention_mask, candidate.attention_mask)

The prompt opens in the frame that makes the candidate's call, at its line. There, besides that
frame's own variables, are `reference` and `candidate` (the variables of both calling frames, by
attribute), `ref_call` and `cand_call` (the `Call`s: `.arguments`, `.output`) and `diff(a, b)`.
Stepping goes on in the candidate; PyTorch's frames and the tracer's are passed over. The reference
goes from call to call beside it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from trace_model.annotations import checked
from tracer.choices import BREAK_AT, BREAK_WHEN
from tracer.debugger.prompt import Choice, Prompt, choose_debugger, in_builtins
from tracer.errors import ShapeMismatchError, UsageError, near_names
from tracer.execution.hooks import Call, Location, Phase, is_machinery
from tracer.execution.session import matching_pairs
from tracer.execution.side import Failure, Side
from tracer.execution.state import random_state_kept
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import describe, leaves
from tracer.tensors.value_path import ValuePath
from tracer.text import figure, listed, module_in_words, short_line, with_class

_HELP = """\
reference, candidate: the variables of both callers; ref_call, cand_call: .arguments, .output;
diff(a, b): their Difference; n, s, r: step on in the candidate; u, d: look around;
c: to the next breakpoint; q: end the run"""


@checked(UsageError)
@dataclass(frozen=True)
class Breakpoint:
    """Calls at which the debugger opens.

    Attributes:
        glob: names of the modules, the reference's or the candidate's.
        at: "start" or "end" of a call.
        when: "always", or "diverged": only where a value that is compared there disagrees, which
            is an argument at the start and an output at the end. Attention masks count.

    Raises:
        UsageError: another word.
    """

    glob: str
    at: str = BREAK_AT[0]
    when: str = BREAK_WHEN[0]

    def __post_init__(self) -> None:
        for name, known in (("at", BREAK_AT), ("when", BREAK_WHEN)):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name}={value!r}: expected {' or '.join(map(repr, known))}")


def debugger_of(
    breakpoints: str | Breakpoint | Sequence[str | Breakpoint],
    pairs: Mapping[str, str],
    records: Mapping[CallKey, CallRecord],
    *,
    debugger: str | None,
    post_mortem: bool,
) -> "Debugger | None":
    """The debugger of a run; None if none is asked for, or PYTHONBREAKPOINT=0 keeps it closed.

    Args:
        breakpoints: where it opens; a glob alone stands for the start of every call.
        pairs: the modules that the models have in common, the reference's names by the
            candidate's.
        records: what the run compares, as far as it has come.
        debugger: "ipdb" or "pdb"; see `tracer.debugger.prompt.choose_debugger`.
        post_mortem: whether it also opens where an exception was raised.

    Raises:
        UsageError: a glob matches nothing, or there is no debugger to open.
    """
    given = [breakpoints] if isinstance(breakpoints, str | Breakpoint) else breakpoints
    points = [p if isinstance(p, Breakpoint) else Breakpoint(p) for p in given]
    by_module: dict[str, list[Breakpoint]] = {}
    for point in points:
        for name in matching_pairs(point.glob, pairs):
            by_module.setdefault(name, []).append(point)
    if not points and not post_mortem:
        return None
    choice = choose_debugger(debugger)
    if not choice.opens:
        warnings.warn(choice.note, stacklevel=3)
        return None
    return Debugger(choice, by_module, records, post_mortem)


@dataclass(eq=False)
class Debugger:
    """Looks on while two models run, and opens the prompt.

    Attributes:
        choice: which debugger; one that opens.
        breakpoints: by the reference's name of a module those that its calls are checked against.
        records: what the run has compared so far.
        post_mortem: whether it opens where an exception was raised.
    """

    choice: Choice
    breakpoints: Mapping[str, Sequence[Breakpoint]]
    records: Mapping[CallKey, CallRecord]
    post_mortem: bool = False
    _calls: dict[str, Call] = field(default_factory=dict)
    _sides: tuple[Side, ...] = ()
    # The side whose frame the prompt opens in.
    _owner: str = "candidate"
    _opened: bool = False
    _reported: set[tuple[str, str]] = field(default_factory=set)
    _called: set[Breakpoint] = field(default_factory=set)

    def __enter__(self) -> None:
        self._prompt = Prompt(self.choice, is_machinery, self._around)

    def __exit__(self, *_: object) -> None:
        self._prompt.close()
        self._calls.clear()
        self._sides = ()

    def meets(
        self, reference: Call, candidate: Call, phase: Phase, sides: tuple[Side, Side]
    ) -> None:
        """Opens where a breakpoint says so.

        Raises:
            Ended: the user has quit.
        """
        self._calls = {"reference": reference, "candidate": candidate}
        self._sides = sides
        points = self.breakpoints.get(reference.name, ())
        self._called.update(points)
        if any(
            point.at == phase.value and (point.when == "always" or self._disagreeing(phase))
            for point in points
        ):
            self._stop(phase)

    def fails(self, failure: Failure, sides: tuple[Side, Side]) -> None:
        """Opens where an exception was raised."""
        traceback = failure.exception.__traceback__
        if not self.post_mortem or traceback is None:
            return
        if failure.call is not None:
            self._calls[failure.side] = failure.call
        self._sides = sides
        self._owner = failure.side
        error = with_class(failure.exception)
        words = f"The {failure.side} raised {error}."
        self._prompt.open_after(traceback, self._with_help(words))

    def warn_of_missed(self) -> None:
        """Warns of breakpoints at modules of which none was called."""
        points = {point for given in self.breakpoints.values() for point in given}
        for point in sorted(points - self._called, key=lambda point: point.glob):
            names = [name for name, given in self.breakpoints.items() if point in given]
            warnings.warn(
                f"the breakpoint {point.glob!r} was never reached: {listed(names, 3)} "
                f"{'was' if len(names) == 1 else 'were'} not called, as lists of modules never are",
                stacklevel=3,
            )

    def _stop(self, phase: Phase) -> None:
        by_label = {side.label: side for side in self._sides}
        for self._owner in ("candidate", "reference"):
            side = by_label[self._owner]
            frame = side.calling_frame()
            if frame is not None:
                lines = [self._event(phase), *self._elsewhere(side)]
                self._prompt.open(frame, side.greenlet, self._with_help("\n".join(lines)))
                return

    def _event(self, phase: Phase) -> str:
        call = self._calls["reference"]
        verb = "starts" if phase is Phase.START else "ends"
        text = f"{module_in_words(call.name)}, call {call.index}, {verb}"
        wrong = self._disagreeing(phase)
        return f"{text}; different: {listed(wrong, 3)}." if wrong else f"{text}."

    def _elsewhere(self, opened: Side) -> Iterator[str]:
        """Says where a model does not stand at this call."""
        if opened.label == "reference":
            yield "The candidate has run to its end: this is the reference's frame."
            return
        for side in self._sides:
            stands_at = list(side.recorder.in_progress())
            if stands_at and self._calls[side.label] not in stands_at:
                yield f"The {side.label} made this call earlier, and has gone on."

    def _with_help(self, words: str) -> str:
        first, self._opened = not self._opened, True
        return f"\n{words}\n{_HELP}" if first else f"\n{words}"

    def _disagreeing(self, phase: Phase) -> list[str]:
        """What disagrees at this event, with its PEIR."""
        call = self._calls["reference"]
        record = self.records.get((call.name, call.index))
        if record is None:
            return []
        if phase is Phase.END:
            return [_in_words(r.value, r) for r in record.outputs if not r.agrees]
        wrong = [_in_words(v, row) for v, row in record.arguments.items() if not row.agrees]
        # Masks in forms that do not compare say different things, unless one side gives none.
        return wrong + [
            f"{form.value.argument} ({form.reference}; candidate {form.candidate})"
            for form in record.form_differences
            if form.is_mask and not form.one_is_none
        ]

    @contextmanager
    def _around(self, frame: FrameType) -> Iterator[None]:
        names = self._names(frame)
        for name in list(names):
            function = _function_with(name, frame)
            if function is None:
                continue
            names[f"{name}_"] = names[name]
            if (function, name) not in self._reported:
                self._reported.add((function, name))
                self._prompt.say(
                    f"In {function}, `{name}` is the model's own variable; the debugger's is "
                    f"`{name}_`."
                )
        with in_builtins(names), random_state_kept():
            yield

    def _names(self, frame: FrameType) -> dict[str, object]:
        views = {
            side.label: _variables(side, frame if side.label == self._owner else None)
            for side in self._sides
        }
        calls = {
            "ref_call": self._calls.get("reference"),
            "cand_call": self._calls.get("candidate"),
        }
        return {**views, **calls, "diff": diff}


class Variables:
    """The variables of a frame by attribute; those of its callers in the same module after them."""

    __slots__ = ("_scopes", "_where")

    def __init__(self, where: str, scopes: Sequence[Mapping[str, Any]]) -> None:
        self._where = where
        self._scopes = scopes

    def __getattr__(self, name: str) -> Any:
        for scope in self._scopes:
            if name in scope:
                return scope[name]
        if not self._scopes:
            raise AttributeError(self._where)
        names = dir(self)
        raise AttributeError(
            f"{self._where} has no variable {name!r}; it has {listed(names, 20)}"
            f"{near_names(name, names)}"
        )

    def __dir__(self) -> list[str]:
        return list(dict.fromkeys(name for scope in self._scopes for name in scope))

    def __repr__(self) -> str:
        return f"{self._where}: {', '.join(dir(self))}" if self._scopes else self._where


def diff(reference: object, candidate: object) -> Difference:
    """The difference of two values; of nested ones, that of all their tensors together.

    Raises:
        ShapeMismatchError: a pair of tensors has different shapes.
        UsageError: a value has no counterpart, is no tensor and not equal, or there is no tensor.
    """
    left, right = (dict(leaves(value, "value")) for value in (reference, candidate))
    for path in left.keys() ^ right.keys():
        side, value = ("first", left[path]) if path in left else ("second", right[path])
        raise UsageError(
            f"only the {side} holds {path} ({describe(value)}); expected values of the same "
            "structure: give the parts that correspond"
        )
    merged, found = Difference(), False
    for path, r in left.items():
        c = right[path]
        if isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor):
            merged, found = merged.merge(_of_pair(path, r, c)), True
        elif isinstance(r, torch.Tensor) or isinstance(c, torch.Tensor) or r != c:
            raise UsageError(f"{path} is {describe(r)} and {describe(c)}; expected two tensors")
    if not found:
        raise UsageError(
            f"found {describe(reference)} and {describe(candidate)}; expected tensors, or values "
            "that hold some"
        )
    return merged


def _of_pair(path: str, r: torch.Tensor, c: torch.Tensor) -> Difference:
    try:
        return Difference.of(r, c)
    except ShapeMismatchError as error:
        raise ShapeMismatchError(f"{path}: {error}") from error


def _in_words(value: ValuePath, row: Row) -> str:
    return f"{value.label} ({row.note or f'PEIR {figure(row.peir)}'})"


def _function_with(name: str, frame: FrameType | None) -> str | None:
    """The function in which a name is already a variable, going up from a frame."""
    while frame is not None:
        if not is_machinery(frame) and (name in frame.f_locals or name in frame.f_globals):
            return frame.f_code.co_qualname
        frame = frame.f_back
    return None


def _variables(side: Side, frame: FrameType | None) -> Variables:
    """What a side's name stands for at the prompt.

    Args:
        frame: the one that the prompt opens in; None for that of the call that the side stands at.
    """
    frame = frame or side.calling_frame()
    if frame is None:
        why = "stands at no call"
        if side.is_replayed:
            why = "ran over all positions at once before, and has no frames now: see ref_call"
        elif side.finished:
            why = "has run to its end, and has no frames now"
        return Variables(f"the {side.label} {why}", ())
    code = frame.f_code
    line = short_line(Location(code.co_filename, frame.f_lineno, code.co_qualname))
    return Variables(f"the {side.label}, in {code.co_qualname} at {line}", _scopes(frame))


def _scopes(frame: FrameType) -> list[Mapping[str, Any]]:
    """The variables of a frame, and of those that it was called from in the same module."""
    scopes: list[Mapping[str, Any]] = [frame.f_locals]
    module = frame.f_locals.get("self")
    outer = frame.f_back
    while module is not None and outer is not None:
        if not is_machinery(outer):
            if outer.f_locals.get("self") is not module:
                break
            scopes.append(outer.f_locals)
        outer = outer.f_back
    return scopes
