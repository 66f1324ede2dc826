"""What modules keep from call to call, put back after a run as if it had not been.

No run may see what an earlier one has left, and no model may be changed by being looked at: running
statistics, a recurrent state, a cache in a plain list, hooks that a library installs when it is
first called, weights that forward replaces for a while. Attributes are put back by identity, what
was edited in place by content. Parameters are not copied: their values stay where they lie, and
are copied only of modules whose forward is seen to edit them in place.
"""

import itertools
import operator
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from tracer.execution.edited_parameters import edited_parameters
from tracer.execution.kept_tensors import KeptNumbers, KeptPlaces, KeptTensor
from tracer.execution.standin import StandIn
from tracer.execution.torch_internals import accelerate_hook, memory_of
from tracer.execution.walks import buffers_in, modules_of, parameters_in
from tracer.tensors.by_class import ByClass

# An object of the user's own may hold others; those of a trainer's kind hold everything.
_MAX_OBJECT_DEPTH = 3
# Packages whose objects are machinery: caches of compiled code, locks, queues of loggers.
_MACHINERY = ("torch", "accelerate", "logging", "threading", "concurrent", "multiprocessing", "_")


@contextmanager
def module_states_kept(
    models: Sequence[nn.Module], states: "ModuleStates | None" = None
) -> Iterator[None]:
    """Puts back what modules keep from call to call; see `ModuleStates`.

    Waits while another thread does the same with any of them.

    Args:
        states: what is put back; by default what they keep now.
    """
    modules = modules_of(*models)
    with _taken(set(map(id, modules))):
        states = states or ModuleStates.read(modules)
        try:
            yield
        finally:
            states.write()


# The modules that are being run, by the thread that runs them.
_RUN_BY: dict[int, int] = {}
_CHANGED = threading.Condition()


@contextmanager
def _taken(modules: set[int]) -> Iterator[None]:
    own = threading.get_ident()
    with _CHANGED:
        _CHANGED.wait_for(lambda: all(_RUN_BY[m] == own for m in _RUN_BY.keys() & modules))
        mine = modules - _RUN_BY.keys()
        _RUN_BY.update(dict.fromkeys(mine, own))
    try:
        yield
    finally:
        with _CHANGED:
            for module in mine:
                del _RUN_BY[module]
            _CHANGED.notify_all()


@dataclass(frozen=True, slots=True)
class ModuleStates:
    """What modules keep from call to call: attributes, and what lies in them, however deep."""

    _contents: list[tuple[Any, Any]] = field(default_factory=list)
    _dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = field(default_factory=list)
    _empty: list[Any] = field(default_factory=list)  # most of a module's own dicts are
    _tensors: list[KeptTensor | KeptPlaces | KeptNumbers] = field(default_factory=list)
    _places: list[torch.Tensor] = field(default_factory=list)
    _numbers: list[torch.Tensor] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, modules: Sequence[nn.Module]) -> "ModuleStates":
        """Those of the modules, each given once, without those inside them."""
        states = cls(_seen={id(module) for module in modules if not isinstance(module, _HOLDERS)})
        edited = edited_parameters(modules)
        parameters = parameters_in(modules)
        for parameter in parameters:
            states._keep(parameter, copied=id(parameter) in edited)
        for buffer in buffers_in(modules):
            states._keep(buffer, copied=True)
        shared = cache(lambda: {memory_of(parameter) for parameter in parameters})
        put_aside = states._empty.append
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            own = vars(module)
            states._dicts.append((own, dict(own)))
            if isinstance(module, StandIn):
                continue
            for value in own.values():
                kind = type(value)
                if kind in _ATOMS:
                    continue
                if kind in _CONTAINERS:
                    if not value:
                        put_aside(value)
                        continue
                elif value is accelerate_hook(module):
                    continue
                if id(value) not in states._seen:
                    states._look_into(value, shared, 0)
        states._tensors.append(KeptPlaces.of(states._places))
        states._tensors.extend(KeptNumbers.of(states._numbers))
        return states

    def write(self) -> None:
        """Puts them back."""
        for place in self._empty:
            if place:
                place.clear()
        for own, attributes in self._dicts:
            if not _is_same(own, attributes):
                own.clear()
                own.update(attributes)
        for place, content in self._contents:
            _put_back(place, content)
        for kept in self._tensors:
            kept.put_back()

    def hold(self, *, by_version: bool = False) -> bool:
        """Whether all is as it was.

        Args:
            by_version: tensors are as they were if they lie where they did and no edit was counted.
        """
        if any(self._empty) or not all(itertools.starmap(_is_same, self._dicts)):
            return False
        if not all(itertools.starmap(_is_as_it_was, self._contents)):
            return False
        return all(kept.holds(by_version=by_version) for kept in self._tensors)

    def _keep(self, tensor: torch.Tensor, *, copied: bool) -> None:
        if id(tensor) in self._seen:
            return
        self._seen.add(id(tensor))
        if not copied and KeptPlaces.takes(tensor):
            self._places.append(tensor)
        elif copied and KeptNumbers.takes(tensor):
            self._numbers.append(tensor)
        else:
            self._tensors.append(KeptTensor.of(tensor, copied=copied))

    def _look_into(self, value: Any, shared: Callable[[], set[int]], depth: int) -> None:
        """Takes down what can be edited in place in a value that was not seen before, and goes on
        with what it holds.

        Args:
            shared: the memory of all parameters.
        """
        holds = _HOLDS.get(type(value)) or _HOLDS.note(type(value), _holds_of(type(value)))
        if holds is _Holds.TENSOR:
            self._keep(value, copied=memory_of(value) not in shared())
            return
        self._seen.add(id(value))
        inside: Iterable[Any] = ()
        if holds is _Holds.ITEMS:
            inside = self._take_down(value)
        elif holds is _Holds.PARTS:
            inside = value
        elif holds is _Holds.NUMBERS:
            self._contents.append((value, value.copy()))
        elif holds is _Holds.STATE:
            self._contents.append((value, value.get_state()))
        elif holds is _Holds.ATTRIBUTES and depth < _MAX_OBJECT_DEPTH:
            inside, depth = self._take_down(vars(value)), depth + 1
        for item in inside:
            if type(item) not in _ATOMS and id(item) not in self._seen:
                self._look_into(item, shared, depth)

    def _take_down(self, container: Any) -> Iterable[Any]:
        """Takes down what is in a container, which it returns."""
        if not container:
            self._empty.append(container)
            return ()
        if isinstance(container, dict):
            self._dicts.append((container, content := dict(container)))
            return content.values()
        self._contents.append((container, items := list(container)))
        return items


_ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type, FunctionType, torch.dtype}
)


_HOLDERS = (dict, list, deque, set)
# Of which most that modules have are empty.
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})


class _Holds(Enum):
    """What of a value can be edited in place."""

    TENSOR = "its numbers, and where they lie"
    ITEMS = "what is in it"
    PARTS = "only what its parts hold"
    NUMBERS = "its numbers"
    STATE = "what it goes on from"
    ATTRIBUTES = "its attributes"
    NOTHING = "nothing that a forward may set"


_HOLDS: ByClass[_Holds] = ByClass()


def _holds_of(cls: type) -> _Holds:
    return next(
        (holds for holds, classes in _CLASSES.items() if issubclass(cls, classes)),
        _Holds.ATTRIBUTES if _is_of_the_user(cls) else _Holds.NOTHING,
    )


_CLASSES: dict[_Holds, tuple[type, ...]] = {
    _Holds.TENSOR: (torch.Tensor,),
    _Holds.ITEMS: _HOLDERS,
    _Holds.PARTS: (tuple, frozenset),
    _Holds.NUMBERS: (np.ndarray, bytearray),
    _Holds.STATE: (torch.Generator,),
}


def _is_of_the_user(cls: type) -> bool:
    """Whether objects of a class have attributes that a forward may set."""
    if issubclass(cls, nn.Module | type) or cls.__dictoffset__ == 0:
        return False
    is_callable = any("__call__" in vars(each) for each in cls.__mro__)
    return not is_callable and not cls.__module__.startswith(_MACHINERY)


_is = operator.is_


def _is_same(place: dict[Any, Any], content: dict[Any, Any]) -> bool:
    """Whether the very same objects are in it under the same keys, in the same order."""
    return [*place] == [*content] and all(map(_is, place.values(), content.values()))


def _is_as_it_was(place: Any, content: Any) -> bool:
    if isinstance(place, np.ndarray | bytearray):
        return bytes(place) == bytes(content)
    if isinstance(content, torch.Tensor):
        return torch.equal(place.get_state(), content)  # of a generator
    return _holds(place, content)


def _put_back(place: Any, content: Any) -> None:
    if _is_as_it_was(place, content):
        return
    if isinstance(place, np.ndarray):
        if place.flags.writeable:
            place[...] = content
    elif isinstance(place, bytearray):
        place[:] = content
    elif isinstance(content, torch.Tensor):
        place.set_state(content)
    else:
        place.clear()
        (place.update if isinstance(place, set) else place.extend)(content)


def _holds(place: Collection[Any], content: Collection[Any]) -> bool:
    """Whether the very same objects are in it, in the same order."""
    return len(place) == len(content) and all(map(_is, place, content))
