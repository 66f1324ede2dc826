"""Calls: arguments by name, the caller's line, indices, exceptions, and hooks that go away."""

import functools
import inspect
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import pytest
import torch
from torch import nn

from tests.builders import calling_from_elsewhere
from tests.builders.hooks import hooks_of
from tracer.execution.hooks import (
    Answer,
    Call,
    NewArguments,
    NewOutput,
    Phase,
    Recorder,
    _forward_parameters,
    definition,
    hides_children,
    hooked,
    visible_modules,
)

X = torch.arange(4.0).reshape(2, 2)


class Recording:
    """What a run of a model looked like from its hooks."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, Phase]] = []
        self.started: list[Call] = []
        self.recorder: Recorder | None = None

    def names(self) -> list[str]:
        return [call.name for call in self.started]

    def call(self, name: str, index: int = 0) -> Call:
        return next(c for c in self.started if (c.name, c.index) == (name, index))


def recorded(model, run, answer=None):
    recording = Recording()

    def listener(call: Call, phase: Phase) -> Answer:
        recording.events.append((call.name, call.index, phase))
        if phase is Phase.START:
            recording.started.append(call)
        return None if answer is None else answer(call, phase)

    names = {id(module): name for name, module in visible_modules(model).items()}
    recorder = recording.recorder = Recorder(names, listener)
    with hooked([model], lambda: recorder):
        run()
    return recording


def line_of(function: Callable[..., object], marker: str) -> str:
    """ "file:line" of the first line of a function that holds a marker."""
    lines, first = inspect.getsourcelines(function)
    number = next(i for i, line in enumerate(lines) if marker in line)
    return f"{inspect.getsourcefile(function)}:{first + number}"


class Parent(nn.Module):
    """Holds one child and calls it as it is told to."""

    def __init__(self, child: nn.Module, how: Callable[..., object] | None = None) -> None:
        super().__init__()
        self.child = child
        self.how = how

    def forward(self, x: torch.Tensor) -> object:
        return self.child(x) if self.how is None else self.how(self.child, x)


# Arguments by name.


class Everything(nn.Module):
    def forward(self, a, /, b, c=3, *more, d, e=5, **rest):
        return a


class Anything(nn.Module):
    def forward(self, *args, **kwargs):
        return args[0]


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def unlogged(function):
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    @logged
    @logged
    def forward(self, hidden_states, attention_mask=None):
        return hidden_states


class Opaque(nn.Module):
    @unlogged
    def forward(self, hidden_states):
        return hidden_states


@pytest.mark.parametrize(("module", "args", "kwargs", "expected"), [
    (Everything(), (X, 2), {"d": 4}, {"a": X, "b": 2, "d": 4}),
    (Everything(), (X,), {"b": 2, "d": 4, "z": 9}, {"a": X, "b": 2, "d": 4, "z": 9}),
    (
        Everything(), (X, 2, 3, 7, 8), {"d": 4},
        {"a": X, "b": 2, "c": 3, "args.0": 7, "args.1": 8, "d": 4},
    ),
    (Anything(), (X, 1), {"k": 2}, {"args.0": X, "args.1": 1, "k": 2}),
    (Decorated(), (X, None), {}, {"hidden_states": X, "attention_mask": None}),
    (Decorated(), (), {"hidden_states": X}, {"hidden_states": X}),
    (Opaque(), (X,), {}, {"args.0": X}), (nn.Linear(2, 2), (X,), {}, {"input": X}),
])  # fmt: skip
def test_arguments_have_their_parameters_names(module, args, kwargs, expected) -> None:
    call = recorded(module, lambda: module(*args, **kwargs)).call("")
    assert (call.arguments, call.positional) == (expected, tuple(expected)[: len(args)])


def test_an_argument_is_kept_by_reference() -> None:
    module = nn.Identity()
    call = recorded(module, lambda: module(X)).call("")
    assert call.arguments["input"] is X
    assert call.output is X


# The caller's line.


def test_the_line_in_comprehensions_lambdas_and_generators() -> None:
    def run(child, x):
        a = [child(y) for y in x]  # comprehension
        b = (lambda y: child(y))(x)  # lambda
        c = list(map(child, x[:1]))  # map
        d = sum(child(y) for y in x)  # generator
        return a, b, c, d

    module = Parent(nn.Identity(), run)
    recording = recorded(module, lambda: module(X))
    lines = [str(call.caller) for call in recording.started if call.name == "child"]
    assert lines == [
        line_of(run, "# comprehension"), line_of(run, "# comprehension"), line_of(run, "# lambda"),
        line_of(run, "# map"), line_of(run, "# generator"), line_of(run, "# generator"),
    ]  # fmt: skip


def test_the_line_of_a_helper_in_another_file() -> None:
    module = Parent(nn.Identity(), calling_from_elsewhere.call_it)
    call = recorded(module, lambda: module(X)).call("child")
    path = Path(calling_from_elsewhere.__file__)
    assert str(call.caller) == f"{path}:{len(path.read_text().splitlines())}"


class CallsBefore(nn.Module):
    """A module with a `__call__` of its own, as transformers' checkpointed layers have."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

    def forward(self, x):
        return x


class Runner:
    """Not a module: the line in its `__call__` is where the module is called."""

    def __call__(self, child, x):
        return child(x)  # here


def plainly(child, x):
    y = x + 1
    return child(y)  # here


def over_lines(child, x):
    return child(  # here
        torch.add(x, 1)
    )


NESTED = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))


@pytest.mark.parametrize(("child", "run", "caller", "names"), [
    (nn.Identity(), plainly, plainly, ["child"]),
    (nn.Identity(), over_lines, over_lines, ["child"]),
    (NESTED, plainly, plainly, ["child", "child.0", "child.1", "child.1.0"]),
    (CallsBefore(), plainly, plainly, ["child"]),
    (CallsBefore(), Runner(), Runner.__call__, ["child"]),
])  # fmt: skip
def test_the_line_is_the_callers(child, run, caller, names) -> None:
    module = Parent(child, run)
    recording = recorded(module, lambda: module(X))
    for name in names:
        found = recording.call(name).caller
        assert str(found) == line_of(caller, "# here")
        assert found.function.endswith(caller.__name__) and not found.is_in_torch


def test_where_a_forward_is_defined() -> None:
    assert definition(Decorated()).line == inspect.getsourcelines(Decorated.forward)[1]
    assert definition(nn.Linear(1, 1)).is_in_torch
    replaced = nn.Identity()
    replaced.forward = torch.relu
    assert definition(replaced) is None


# Order, nesting, repetition.


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x):
        return self.a(self.b(self.a(x)))


def test_calls_are_counted_and_know_their_parents() -> None:
    model = Twice()
    recording = recorded(model, lambda: model(X))
    start, end = Phase.START, Phase.END
    assert recording.events == [
        ("", 0, start), ("a", 0, start), ("a", 0, end), ("b", 0, start), ("b.0", 0, start),
        ("b.0", 0, end), ("b", 0, end), ("a", 1, start), ("a", 1, end), ("", 0, end),
    ]  # fmt: skip
    assert recording.call("b.0").parent is recording.call("b")
    assert recording.call("b").parent is recording.call("")
    assert recording.call("").parent is None


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Identity()

    def forward(self, x, depth=2):
        return self(x, depth - 1) if depth else self.leaf(x)


def test_modules_that_call_themselves_or_have_two_names() -> None:
    model = Recursive()
    recording = recorded(model, lambda: model(X))
    assert recording.names() == ["", "", "", "leaf"]
    assert recording.call("leaf").parent is recording.call("", 2)
    assert recording.call("", 2).parent is recording.call("", 1)
    assert [event[:2] for event in recording.events[-3:]] == [("", 2), ("", 1), ("", 0)]
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    recording = recorded(model, lambda: model(X))
    assert (recording.names(), recording.call("0", 1).index) == (["", "0", "1", "0"], 1)


def test_modules_outside_and_without_a_recorder() -> None:
    model, stranger = Twice(), nn.Identity()
    names = {id(model.a): "a"}
    seen: list[str] = []
    recorder = Recorder(names, lambda call, phase: seen.append(call.name))
    with hooked([model, stranger], lambda: recorder):
        model(stranger(X))
    assert seen == ["a", "a", "a", "a"]
    model = Twice()
    expected = model(X)
    with hooked([model], lambda: None):
        assert torch.equal(model(X), expected)


def test_a_call_from_a_generator_belongs_to_who_goes_on_with_it() -> None:
    def run(child, x):
        def parts() -> Iterator[torch.Tensor]:
            for row in x:
                yield child(row)

        return torch.stack(list(parts()))

    model = Parent(nn.Linear(2, 2), run)
    recording = recorded(model, lambda: model(X))
    assert recording.names() == ["", "child", "child"]
    assert recording.call("child", 1).parent is recording.call("")


# Exceptions.


class Fails(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


class Catches(nn.Module):
    def __init__(self, child: nn.Module, *errors: type[BaseException]) -> None:
        super().__init__()
        self.child = child
        self.fallback = nn.Identity()
        self.errors = errors or (ValueError,)

    def forward(self, x):
        try:
            return self.child(x)
        except self.errors:
            return self.fallback(x)


def test_a_caught_exception_ends_the_call_without_an_output() -> None:
    model = Catches(nn.Sequential(nn.Identity(), Fails(ValueError("no"))))
    recording = recorded(model, lambda: model(X))
    ended = [event[0] for event in recording.events if event[2] is Phase.END]
    assert ended == ["child.0", "fallback", ""]
    # The fallback runs while the exception is being handled, and still ends as usual.
    fallback = recording.call("fallback")
    assert isinstance(fallback.handled, ValueError)
    assert fallback.output is X
    assert fallback.parent is recording.call("")
    assert recording.call("").output is X
    assert list(recording.recorder.in_progress()) == []


def test_an_exception_for_which_torch_runs_no_hooks_is_survived() -> None:
    model = Catches(nn.Sequential(Fails(KeyboardInterrupt())), KeyboardInterrupt)
    recording = recorded(nn.Sequential(model), lambda: None)
    outer = nn.Sequential(model, nn.Identity())
    recording = recorded(outer, lambda: outer(X))
    ended = [event[0] for event in recording.events if event[2] is Phase.END]
    assert ended == ["0.fallback", "0", "1", ""]
    assert recording.call("1").parent is recording.call("")


def test_the_innermost_call_of_an_exception_is_known() -> None:
    error = ValueError("no")
    model = nn.Sequential(nn.Identity(), nn.Sequential(Fails(error)))
    recording = Recording()
    names = {id(module): name for name, module in model.named_modules()}
    recorder = Recorder(names, lambda call, phase: recording.events.append((call.name, 0, phase)))
    with pytest.raises(ValueError, match="no"), hooked([model], lambda: recorder):
        model(X)
    raised, call = recorder.raised
    assert raised is error
    assert call.name == "1.0"
    assert [e[0] for e in recording.events if e[2] is Phase.END] == ["0"]


@pytest.mark.parametrize("where", ["pre-hook before", "hook before", "hook after"])
def test_a_users_hook_that_raises_does_not_mix_up_the_calls(where: str) -> None:
    model = nn.Sequential(Catches(nn.Linear(2, 2)), nn.Identity())
    child = model[0].child

    def raising(*_: object) -> None:
        raise ValueError("hook")

    def run() -> None:
        handle = child.register_forward_hook(raising) if where == "hook after" else None
        model(X)
        if handle is not None:
            handle.remove()

    if where == "pre-hook before":
        child.register_forward_pre_hook(raising)
    elif where == "hook before":
        child.register_forward_hook(raising)
    recording = recorded(model, run)
    ended = [event[0] for event in recording.events if event[2] is Phase.END]
    assert [name for name in ended if name != "0.child"] == ["0.fallback", "0", "1", ""]
    assert ("0.child" in ended) is (where == "hook after")
    assert recording.call("1").parent is recording.call("")


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(), GeneratorExit()]
)
def test_hooks_are_gone_whatever_happens(error: BaseException) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Fails(error))
    model[0].register_forward_hook(lambda *_: None, always_call=True)
    model[0].register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    before = hooks_of(model)
    with pytest.raises(type(error)):
        recorded(model, lambda: model(X))
    assert hooks_of(model) == before


def test_hooks_are_gone_when_they_cannot_all_be_attached() -> None:
    class Refusing(OrderedDict):
        def __setitem__(self, key: object, value: object) -> None:
            raise RuntimeError("refused")

    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[1]._forward_hooks = Refusing()
    before = hooks_of(model)
    with pytest.raises(RuntimeError, match="refused"), hooked([model], lambda: None):
        pass
    assert hooks_of(model) == before


def test_hooks_are_not_attached_twice_to_a_shared_module() -> None:
    shared = nn.Linear(2, 2)
    with hooked([nn.Sequential(shared), nn.Sequential(shared), shared], lambda: None):
        assert len(shared._forward_hooks) == len(shared._forward_pre_hooks) == 1


# What a listener may answer.


def test_a_listener_may_replace_an_argument_given_either_way() -> None:
    def answer(call: Call, phase: Phase) -> Answer:
        if phase is Phase.START and call.name == "child":
            return NewArguments({"attention_mask": 7})
        return None

    class Shows(nn.Module):
        def forward(self, x, attention_mask=None, scale=1):
            return x, attention_mask, scale

    model = Parent(Shows(), lambda child, x: child(x, 3, scale=2))
    assert _result(model, answer) == (X, 7, 2)
    model = Parent(Shows(), lambda child, x: child(x, attention_mask=3))
    assert _result(model, answer) == (X, 7, 1)
    model = Parent(Shows(), lambda child, x: child(x))
    assert _result(model, answer) == (X, 7, 1)


def test_a_listener_may_replace_an_output() -> None:
    def answer(call: Call, phase: Phase) -> Answer:
        return NewOutput("other") if phase is Phase.END and call.name == "child" else None

    assert _result(Parent(nn.Identity()), answer) == "other"


def _result(model: nn.Module, answer: Callable[[Call, Phase], Answer]) -> object:
    results: list[object] = []
    recorded(model, lambda: results.append(model(X)), answer)
    return results[0]


# The user's own hooks.


def test_the_users_hooks_are_respected() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    expected = model(X)
    results: list[torch.Tensor] = []
    recording = recorded(model, lambda: results.append(model(X)))
    assert torch.equal(results[0], expected)
    assert torch.equal(recording.call("0").arguments["input"], X + 1)
    assert torch.equal(recording.call("0").output, (X + 1) * 2)


# Modules that take no hooks.


@pytest.fixture
def _quiet_torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_compiled_module_hides_its_children() -> None:
    model = nn.Sequential(torch.compile(Twice(), backend="eager"), nn.Identity())
    assert list(visible_modules(model)) == ["", "0", "1"]
    assert hides_children(model[0])
    assert not hides_children(model)


@pytest.mark.parametrize("kind", ["torch.compile", "compile", "script", "trace"])
@pytest.mark.usefixtures("_quiet_torchscript")
def test_the_call_of_a_module_that_takes_no_hooks_is_seen(kind: str) -> None:
    child: nn.Module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    expected = child(X)
    if kind == "torch.compile":
        child = torch.compile(child, backend="eager")
    elif kind == "compile":
        child.compile(backend="eager")
    elif kind == "script":
        child = torch.jit.script(child)
    else:
        child = torch.jit.trace(child, X)
    model = Parent(child)
    before, attributes = hooks_of(model), dict(child.__dict__)
    recording = recorded(model, lambda: model(X))
    assert recording.names() == ["", "child"]
    call = recording.call("child")
    assert torch.equal(call.output, expected)
    assert next(iter(call.arguments.values())) is X
    assert str(call.caller) == line_of(Parent.forward, "self.child(x)")
    assert call.parent is recording.call("")
    assert (hooks_of(model), child.__dict__.keys()) == (before, attributes.keys())
    assert child._compiled_call_impl is attributes.get("_compiled_call_impl")

    def answer(call: Call, phase: Phase) -> Answer:
        return NewOutput("other") if phase is Phase.END and call.name == "child" else None

    assert _result(model, answer) == "other"


def test_an_exception_in_a_compiled_module_ends_its_call() -> None:
    class Refuses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    child = Refuses()
    child.compile(backend="eager")
    model = Catches(child)
    recording = recorded(model, lambda: model(X))
    assert [event[0] for event in recording.events if event[2] is Phase.END] == ["fallback", ""]


# Threads, and nothing changed.


def test_a_recorder_sees_only_what_is_given_to_it() -> None:
    """`current` decides; a call from a thread of its own can be left out by it."""
    model = Parent(nn.Linear(2, 2))
    main = threading.get_ident()
    seen: list[str] = []
    names = {id(module): name for name, module in model.named_modules()}
    recorder = Recorder(names, lambda call, phase: seen.append(call.name))

    def run(child: nn.Module, x: torch.Tensor) -> torch.Tensor:
        results: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: results.append(child(x)))
        thread.start()
        thread.join()
        return results[0]

    model.how = run
    with hooked([model], lambda: recorder if threading.get_ident() == main else None):
        model(X)
    assert seen == ["", ""]


def test_outputs_are_bit_identical_under_hooks() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    x, results = torch.randn(2, 5, 16), []
    run = lambda: results.append(model(x))  # noqa: E731
    for how in (run, lambda: recorded(model, run)):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            how()
    assert torch.equal(*results)


class Takes(nn.Module):
    def forward(self, first, /, second=1, *rest, third=2, **others):
        return first


class DecoratedToo(Takes):
    forward = logged(logged(Takes.forward))


def replaced(forward: object) -> nn.Module:
    module = Takes()
    module.forward = forward
    return module


def signed(x):
    return x


signed.__signature__ = inspect.signature(lambda given, other: None)


@pytest.mark.parametrize("module", [
    Takes(), DecoratedToo(), nn.Linear(2, 2), nn.MultiheadAttention(4, 2),
    replaced(lambda x, y=1: x),
    replaced(logged(Takes().forward)), replaced(functools.partial(Takes().forward, 1)),
    replaced(functools.update_wrapper(functools.partial(print), Takes().forward)),
    replaced(signed), replaced(torch.relu), replaced(len),
    replaced(MethodType(functools.partial(signed), 1)), replaced(MethodType(len, [1])),
    replaced(MethodType(Takes(), torch.ones(1))), torch.compile(Takes(), backend="eager"),
])  # fmt: skip
def test_positional_parameters_are_those_of_the_signature(module: nn.Module) -> None:
    forward = getattr(module, "_orig_mod", module).forward
    try:
        parameters = inspect.signature(forward).parameters.values()
    except ValueError:
        parameters = ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    expected = tuple(p.name for p in parameters if p.kind in positional)
    assert _forward_parameters(module) == expected
