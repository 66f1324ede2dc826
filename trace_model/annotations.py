"""Arguments of public functions are checked against the annotations of their parameters.

    compare(model, "sdpa", inputs)
    UsageError: compare: candidate is 'sdpa' (a str); expected an nn.Module: ...

A decorator does it, so that what a function says it takes and what it refuses are one. What an
annotation leaves open (values of `Any`, of a protocol, what an iterator yields) is not looked at.
"""

import contextlib
import functools
import inspect
import numbers
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=Callable[..., Any])

_BY_NAME = (
    "a model of that name is made by tracer.models.load(NAME), and a candidate of a kind by "
    "tracer.models.candidate(loaded, KIND)"
)
# Of what is said in words, one and several.
_WORDS: Mapping[Any, tuple[str, str]] = {
    str: ("a string", "strings"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False"),
    type(None): ("None", "None"),
    os.PathLike: ("a path", "paths"),
}


def checked(
    error: Callable[[str], Exception],
    *,
    but: Collection[str] = (),
    advice: Mapping[str, str] | None = None,
) -> Callable[[T], T]:
    """Checks what a function, or a class when an object of it is made, is given.

    Args:
        error: what is raised, made of a sentence.
        but: parameters that the function checks itself.
        advice: what the sentence says in the end, by parameter.
    """
    options = error, frozenset(but), advice or {}

    def decorate(target: T) -> T:
        if isinstance(target, type):
            made: Any = target
            made.__init__ = _checking(made.__init__, target.__name__, target, *options)
            return target
        return _checking(target, target.__name__, target, *options)

    return decorate


def _checking(
    function: T,
    name: str,
    annotated: Any,
    error: Callable[[str], Exception],
    but: Collection[str],
    advice: Mapping[str, str],
) -> T:
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> Mapping[str, Any]:
        return {key: hint for key, hint in _hints(annotated).items() if key not in but}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says what is missing or unknown
        for key, hint in hints().items():
            several = signature.parameters[key].kind in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            )
            if key in given and not several and not matches(given[key], hint):
                said = f"; {advice[key]}" if key in advice else ""
                raise error(f"{name}: {_refusal(key, given[key], hint)}{said}")
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _hints(annotated: Any) -> dict[str, Any]:
    """The annotations of parameters; without those whose names are there for type checkers only."""
    function = vars(annotated)["__init__"] if isinstance(annotated, type) else annotated
    known = vars(sys.modules[annotated.__module__])
    hints: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.annotation is not parameter.empty:
            one = types.SimpleNamespace(__annotations__={name: parameter.annotation})
            with contextlib.suppress(NameError):
                hints |= get_type_hints(one, known)
    return hints


def matches(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as that can be seen."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(matches(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float, bool):
        return _is_number(value, hint)
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return kind is not Callable or callable(value)
    if not isinstance(value, kind) or (isinstance(value, str | bytes) and kind not in (str, bytes)):
        return kind is object
    if kind in (Sequence, Iterable, Collection) and _is_single(value):
        return False
    if issubclass(kind, Mapping) and parts and isinstance(value, Mapping):
        return all(matches(k, parts[0]) and matches(v, parts[1]) for k, v in value.items())
    if kind is tuple and parts and parts[-1] is not Ellipsis and isinstance(value, tuple):
        return len(value) == len(parts) and all(map(matches, value, parts))
    if parts and isinstance(value, list | tuple | set | frozenset):
        return all(matches(item, parts[0]) for item in value)
    return True


def _is_single(value: object) -> bool:
    """Whether a value can be iterated over, and stands for one thing all the same."""
    return isinstance(value, Mapping) or hasattr(value, "shape")


def _is_number(value: object, kind: type) -> bool:
    is_bool = type(value).__name__ in ("bool", "bool_")
    if kind is bool or is_bool:
        return kind is bool and is_bool
    return isinstance(value, numbers.Integral if kind is int else numbers.Real)


def in_words(hint: Any, *, several: bool = False) -> str:
    """An annotated type as a phrase: "an nn.Module", "a sequence of strings"."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        phrases = [in_words(part, several=several) for part in parts if part is not type(None)]
        phrases += ["None"] if type(None) in parts else []
        *most, last = dict.fromkeys(phrases)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if hint is Any:
        return "anything"
    kind = origin or hint
    if kind in _WORDS:
        return _WORDS[kind][several]
    if kind is Callable or not isinstance(kind, type):
        return "functions" if several else "a function"
    of_parts = [in_words(part, several=True) for part in parts if part not in (Ellipsis, Any)]
    if issubclass(kind, Mapping):
        what = f" of {of_parts[0]} to {of_parts[1]}" if len(of_parts) == 2 else ""
        return f"mappings{what}" if several else f"a mapping{what}"
    if kind in (Sequence, Iterable, Collection, list, tuple, set, frozenset):
        noun = {Sequence: "list", Iterable: "list", Collection: "list"}.get(kind, kind.__name__)
        what = f" of {' and '.join(dict.fromkeys(of_parts))}" if of_parts else ""
        return f"{noun}s{what}" if several else f"a {noun}{what}"
    name = f"{'nn.' if kind.__module__.startswith('torch.nn.modules') else ''}{kind.__name__}"
    article = "an" if name[0] in "AEIOUaeiou" or name.startswith("nn.") else "a"
    return f"{name}s" if several else f"{article} {name}"


def _refusal(name: str, value: object, hint: Any) -> str:
    """What is wrong with an argument."""
    text = f"{name} is {found(value)}"
    inner = _first_wrong(value, hint)
    if inner is not None:
        text = f"{name} holds {found(inner)}"
    expected = in_words(hint)
    advice = f": {_BY_NAME}" if isinstance(value, str) and "nn.Module" in expected else ""
    return f"{text}; expected {expected}{advice}"


def _first_wrong(value: object, hint: Any) -> object | None:
    """The item that is of the wrong type, in a container of the right one."""
    for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        kind, parts = get_origin(part), get_args(part)
        if not (isinstance(kind, type) and isinstance(value, kind)) or isinstance(value, str):
            continue
        if isinstance(value, Mapping) and len(parts) == 2:
            wrong = [v for v in value.values() if not matches(v, parts[1])]
            wrong += [k for k in value if not matches(k, parts[0])]
        elif isinstance(value, list | tuple) and parts:
            wrong = [item for item in value if not matches(item, parts[0])]
        else:
            continue
        return next((item for item in wrong if item is not None), None)
    return None


def found(value: object) -> str:
    """A value in a few words: "'sdpa' (a str)", "None", "a Tensor of shape [2, 3]"."""
    kind = type(value).__name__
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    if value is None:
        return "None"
    if isinstance(value, str | bytes | int | float):
        text = repr(value)
        return f"{text if len(text) <= 40 else f'{text[:37]}...'} ({article} {kind})"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{article} {kind} of shape {list(shape)}"
    return f"{article} {kind}"
