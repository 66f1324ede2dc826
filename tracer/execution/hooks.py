"""Module calls, seen through hooks: who was called from which line, with what, and what came out.

This is the only room with hooks. `hooked` attaches them to every module of one or two models and
takes them off whatever happens; a `Recorder` turns what they see on one side into `Call`s with
names, call indices and parents, and passes each start and end to a listener. Hooks read; only a
listener's answer (the counterfactual check) ever changes what a module is given or returns.
"""

import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import CodeType, FrameType, FunctionType, MethodType

import torch
from torch import nn
from torch.compiler import is_compiling

from tracer.errors import UsageError
from tracer.execution.forms import Form
from tracer.execution.sources import Location as Location
from tracer.execution.sources import is_sourced
from tracer.execution.torch_internals import (
    as_written,
    attach_hooks,
    autocast_dtype,
    call_replaced,
    calls_compiled,
    detach_hooks,
    hook_key,
    is_compiled,
    is_inside_transform,
    takes_fused_path,
)
from tracer.execution.walks import named_modules_of
from tracer.tensors.leaves import describe, tensor_leaves
from tracer.text import module_in_words

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_TRACER = f"{Path(__file__).parents[1]}{os.sep}"
_STANDARD = f"{Path(os.__file__).parent}{os.sep}"


class Phase(Enum):
    """The two events of a call."""

    START = "start"
    END = "end"

    __hash__ = object.__hash__  # each is one object; that of `Enum` takes a call of Python


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """One execution of one module.

    Attributes:
        name: the module's name in its own model.
        index: 0 for the module's first call, 1 for its second.
        module: the module.
        arguments: what it was given, by parameter name; extra positional ones are "args.0", ...
        caller: the line that called it, outside torch itself; None where the tracer called it.
        parent: the call that it was made in; None for the root's.
        positional: names of the arguments that were passed by position, in order.
        output: what it returned; None until its end.
        handled: the exception that was being handled when it began, None as a rule.
        autocast: the dtype that autocast computes in around it; None where it is off.
        form: how it is seen, where its values have no form of the source's; else None.
    """

    name: str
    index: int
    module: nn.Module
    arguments: dict[str, object]
    positional: tuple[str, ...]
    caller: Location | None
    parent: "Call | None"
    output: object = None
    handled: BaseException | None = None
    autocast: torch.dtype | None = None
    form: Form | None = None

    def passed(
        self, arguments: Mapping[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Arguments as the module takes them: positional ones, and those by name."""
        given = arguments if self.form is None else self.form.passed(arguments)
        by_name = {name: value for name, value in given.items() if name not in self.positional}
        return tuple(given[name] for name in self.positional), by_name

    def __repr__(self) -> str:
        passed = ", ".join(f"{name}={_in_short(value)}" for name, value in self.arguments.items())
        output = "" if self.output is None else f" -> {_in_short(self.output)}"
        name = self.name or "the root"
        return f"<Call {self.index} of {name} ({type(self.module).__name__}): {passed}{output}>"


@dataclass(frozen=True, slots=True)
class NewArguments:
    """A listener's answer at a start: arguments to use instead of those that were given."""

    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class NewOutput:
    """A listener's answer at an end: a value to return instead of what was computed."""

    value: object


Answer = NewArguments | NewOutput | None
Listener = Callable[[Call, Phase], Answer]


@dataclass(eq=False)
class Recorder:
    """Turns the hooks of one model into calls and reports each start and end to a listener.

    Attributes:
        names: the module's name by `id(module)`; a module outside this mapping is not seen.
        listener: called at the start and the end of each call.
        counted_as: by a module's name another one, under which its calls are counted together
            with those of the other modules that share it.
        counts: how often each module was called so far.
        raised: the last exception that left a module, with the innermost call that it left.
    """

    names: Mapping[int, str]
    listener: Listener
    counted_as: Mapping[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    raised: tuple[BaseException, Call] | None = None
    _stack: list[Call] = field(default_factory=list)
    _indices: dict[tuple[str, bool], int] = field(default_factory=dict)
    _signatures: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def start(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        """A forward pre-hook's work; returns new (args, kwargs) if the listener gives any."""
        name = self.names.get(id(module))
        if name is None:
            return None
        if is_inside_transform():
            raise UsageError(
                f"{module_in_words(name)} is called inside a transform of torch.func (vmap, grad, "
                "jacrev), where its tensors hold no values of their own: trace the model without it"
            )
        parent = self._stack[-1] if self._stack else None
        positional = self._parameter_names(module, len(args))
        arguments = dict(zip(positional, args, strict=True))
        arguments.update(kwargs)
        counted = self.counted_as.get(name, name), name in self.counted_as
        index = self._indices.get(counted, 0)
        call = Call(
            name=name,
            index=index,
            module=module,
            arguments=arguments,
            positional=positional,
            caller=_calling_location(module, sys._getframe(1)),
            parent=parent,
            handled=sys.exception(),
            autocast=autocast_dtype(),
        )
        self.counts[name] = self.counts.get(name, 0) + 1
        self._indices[counted] = index + 1
        self._stack.append(call)
        answer = self.listener(call, Phase.START)
        if not isinstance(answer, NewArguments):
            return None
        call.arguments.update(answer.values)
        return call.passed(call.arguments)

    def end(self, module: nn.Module, output: object) -> object:
        """A forward hook's work; returns a new output if the listener gives one."""
        if not self._stack or self._stack[-1].module is not module:
            # Not on the stack: a hook of the user's own raised before this call was seen to start.
            if not any(call.module is module for call in self._stack):
                return None
            # Calls above it were left by an exception for which PyTorch runs no hooks, and which
            # the model caught: KeyboardInterrupt, say.
            while self._stack[-1].module is not module:
                self._stack.pop()
        call = self._stack[-1]
        exception = sys.exception()
        if exception is not None and exception is not call.handled:
            if self.raised is None or self.raised[0] is not exception:
                self.raised = exception, call
            self._stack.pop()
            return None
        call.output = output
        answer = self.listener(call, Phase.END)
        self._stack.pop()
        if not isinstance(answer, NewOutput):
            return None
        return answer.value if call.form is None else call.form.put(answer.value, call.arguments)

    def left_by(self, exception: BaseException) -> Call | None:
        """The innermost call that an exception was raised in; None outside all modules."""
        if self.raised is not None and self.raised[0] is exception:
            return self.raised[1]
        # PyTorch calls no hooks for what is no `Exception`, such as SystemExit.
        return self._stack[-1] if self._stack and not isinstance(exception, Exception) else None

    def in_progress(self) -> Iterator[Call]:
        """The calls that have begun and not ended, the outermost first."""
        yield from self._stack

    def _parameter_names(self, module: nn.Module, count: int) -> tuple[str, ...]:
        """Names for the first `count` positional arguments of a module's forward."""
        known = self._signatures.get(id(module))
        if known is None:
            known = self._signatures[id(module)] = _forward_parameters(module)
        if count == 1 == len(known):
            return known
        extra = count - len(known)
        return known[:count] if extra <= 0 else (*known, *(f"args.{i}" for i in range(extra)))


@contextmanager
def hooked(models: Sequence[nn.Module], current: Callable[[], Recorder | None]) -> Iterator[None]:
    """Hooks every module of the models; `current` says which recorder a call belongs to.

    A module that several models share is hooked once. Modules inside a compiled or scripted module
    are left alone: their hooks would be traced into the compiled code, or never run. That module
    itself takes no hooks, or only in its compiled code; its call is seen from around it. So is that
    of a module which PyTorch computes in one piece, and otherwise as soon as it has hooks.
    """

    def on_start(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        recorder = None if is_compiling() else current()
        return None if recorder is None else recorder.start(module, args, kwargs)

    def on_end(
        module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> object:
        recorder = None if is_compiling() else current()
        return None if recorder is None else recorder.end(module, output)

    with ExitStack() as attached:
        key = hook_key()
        own: list[nn.Module] = []
        attached.callback(detach_hooks, own, key)
        modules = {id(m): m for model in models for m in visible_modules(model).values()}
        for module in modules.values():
            if _takes_no_hooks(module):
                attached.enter_context(_intercepted(module, on_start, on_end))
                continue
            own.append(module)
            # The end also when the forward raises: else a call would seem to go on for ever.
            attach_hooks(module, key, on_start, on_end)
        yield


def visible_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose calls can be seen, by name; the insides of compiled ones are left out.

    A module with several names keeps its first.
    """
    found = dict(named_modules_of(model))
    hidden = tuple(
        [f"{name}." if name else "" for name, module in found.items() if hides_children(module)]
    )
    if not hidden:
        return found
    return {name: m for name, m in found.items() if not name or not name.startswith(hidden)}


def hides_children(module: nn.Module) -> bool:
    """Whether the calls inside a module cannot be seen, as it is compiled, scripted or fused."""
    may_run_whole = _may_run_whole(type(module))  # type: ignore[arg-type]
    return is_compiled(module) or (may_run_whole and _is_run_whole(module))


def _takes_no_hooks(module: nn.Module) -> bool:
    may_run_whole = _may_run_whole(type(module))  # type: ignore[arg-type]
    return calls_compiled(module) or (may_run_whole and _is_run_whole(module))


def _is_run_whole(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or takes_fused_path(module)


@functools.lru_cache(maxsize=4096)
def _may_run_whole(kind: type[nn.Module]) -> bool:
    return issubclass(kind, torch.jit.ScriptModule | nn.TransformerEncoderLayer)


@contextmanager
def _intercepted(
    module: nn.Module,
    on_start: Callable[..., tuple[tuple[object, ...], dict[str, object]] | None],
    on_end: Callable[..., object],
) -> Iterator[None]:
    """Calls the functions around a module's call instead of by hooks."""

    def around(forward: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            args, kwargs = on_start(module, args, kwargs) or (args, kwargs)
            try:
                output = forward(*args, **kwargs)
            except Exception:
                on_end(module, args, kwargs, None)
                raise
            answer = on_end(module, args, kwargs, output)
            return output if answer is None else answer

        return call

    with call_replaced(module, around):
        yield


def definition(module: nn.Module) -> Location | None:
    """Where the module's forward is defined; None for one that has no Python source."""
    if is_sourced(module):
        return None if module.defined_at is None else Location.of(module.defined_at)
    forward = getattr(module.forward, "__func__", module.forward)
    if hasattr(forward, "__wrapped__"):
        forward = inspect.unwrap(forward)
    code = getattr(forward, "__code__", None)
    return None if code is None else _beginning(code)


@functools.lru_cache(maxsize=4096)
def _beginning(code: CodeType) -> Location:
    return Location(code.co_filename, code.co_firstlineno, code.co_qualname)


def _forward_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of what the module's forward takes by position, as `inspect.signature` gives them.

    Read off the code where that is possible, which takes a tenth of the time.
    """
    inner = as_written(module)
    method = inner.forward
    if type(method) is MethodType and type(method.__func__) is FunctionType:
        code = method.__func__.__code__
        if not method.__func__.__dict__:
            return code.co_varnames[1 : code.co_argcount]
    function, is_bound = inner.forward, False
    while not hasattr(function, "__signature__"):
        if inspect.ismethod(function):
            function, is_bound = function.__func__, True
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    if inspect.isfunction(function) and not hasattr(function, "__signature__"):
        code = function.__code__
        return code.co_varnames[is_bound : code.co_argcount]
    try:
        parameters = inspect.signature(inner.forward).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: arguments go by position
        return ()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in by_position)


def calling_frame(module: nn.Module, frame: FrameType | None) -> FrameType | None:
    """The first frame outside torch and outside the module's own `__call__`, above its hooks.

    Args:
        frame: one of this room's, or one that they called.

    Returns:
        The frame; the tracer's own where the tracer called the module; None where nothing was
        called through hooks.
    """
    while frame is not None and frame.f_code.co_filename != __file__:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_TORCH):
            own = code.co_name == "__call__" and frame.f_locals.get("self") is module
            if not own:
                return frame
        frame = frame.f_back
    return None


def is_machinery(frame: FrameType) -> bool:
    """Whether a frame is torch's or the tracer's, or what they call of the standard library.

    So are functions that were made at run time and called by them: those of their dataclasses.
    """
    file = frame.f_code.co_filename
    if file.startswith((_TORCH, _TRACER)):
        return True
    is_helper = file.startswith((_STANDARD, "<")) and "-packages" not in file
    return is_helper and frame.f_back is not None and is_machinery(frame.f_back)


def _in_short(value: object) -> str:  # with the shapes of its tensors
    if not isinstance(value, torch.Tensor) and (parts := list(tensor_leaves(value, ""))):
        inside = ", ".join(f"{path[1:]} {_in_short(tensor)}" for path, tensor in parts)
        return f"{type(value).__name__}({inside})"
    return describe(value)


def _calling_location(module: nn.Module, frame: FrameType | None) -> Location | None:
    """The line that called a module; None where the tracer did."""
    found = calling_frame(module, frame)
    if found is None:
        return None
    code = found.f_code
    owner: object = found.f_locals.get("self") if code.co_filename.startswith(_TRACER) else module
    if owner is not module and is_sourced(owner):
        line = next(iter(owner.computing_at()), None)
        return None if line is None else Location.of(line)
    if not isinstance(owner, nn.Module):
        return None
    return Location(code.co_filename, found.f_lineno, code.co_qualname)
