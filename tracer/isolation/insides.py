"""What the modules inside a call have returned, so that a call of which little is changed need not
compute it again.

Of a layer that is called once more without a point of its MLP, what its attention computes is
known: it is given the same. What is given something else is computed, and what holds the point.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps

import torch
from torch import nn

from tracer.execution.compilation import compiled_parts
from tracer.execution.kept_tensors import has_same_numbers
from tracer.execution.module_state import ModuleStates
from tracer.interventions.repeat_call import Recall
from tracer.tensors.leaves import tensor_leaves, version_of

_Forward = Callable[..., object]
_FIXED = torch.jit.ScriptModule, torch.fx.GraphModule


@dataclass(frozen=True)
class _Returned:
    """What a module returned, what it was given, and the counters of edits of both.

    Attributes:
        sums: of the numbers of what it returned; `x.data.add_(1)` goes past the counters.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    output: object
    versions: tuple[tuple[torch.Tensor, int | None], ...]
    sums: tuple[torch.Tensor | None, ...]

    @classmethod
    def of(
        cls, args: tuple[object, ...], kwargs: Mapping[str, object], output: object
    ) -> "_Returned":
        leaves = tensor_leaves((args, tuple(kwargs.values()), output), "")
        versions = tuple((t, version_of(t)) for _, t in leaves)
        return cls(args, kwargs, output, versions, _sums_of(output))

    def has_same_sums(self) -> bool:
        """Whether what was returned has the sums that it had then; never with NaN in it."""
        return _are_same(_sums_of(self.output), self.sums)

    def is_unchanged(self) -> bool:
        """Whether nothing was edited since."""
        return all(known is not None and version_of(t) == known for t, known in self.versions)

    def is_for(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
        """Whether it was given the same."""
        return (
            kwargs.keys() == self.kwargs.keys()
            and _are_same(args, self.args)
            and all(_are_same(value, self.kwargs[name]) for name, value in kwargs.items())
        )


class Insides:
    """The calls that are made inside the calls of a module.

    Args:
        module: which is called again.
        recall: calls it. If it leaves something behind, all inside computes.
    """

    def __init__(self, module: nn.Module, recall: Recall) -> None:
        self._module, self._recall = module, recall
        self._returned: dict[nn.Module, list[_Returned]] = defaultdict(list)
        self._is_keeping = False
        # Those in which a call has set an attribute, which what comes after may go by; and those of
        # which what they returned was edited unseen.
        self._unsure: set[nn.Module] = set()
        # Those that compute whatever they are given; None for all.
        self._computing: frozenset[nn.Module] | None = None
        self._by_owner: dict[nn.Module, _Around] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Sees these calls, but for those in what is compiled, scripted or a graph."""
        inside = [module for module in self._module.modules() if module is not self._module]
        if compiled_parts(self._module) or isinstance(self._module, _FIXED):
            inside = []
        inside = [module for module in inside if not isinstance(module, _FIXED)]
        with _replaced({module: self._seen(module, module.forward) for module in inside}):
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps what they return, by reference."""
        self._is_keeping = True
        try:
            yield
        finally:
            self._is_keeping = False
            for module, returned in self._returned.items():
                if not all(each.has_same_sums() for each in returned):
                    self._unsure.add(module)

    @contextmanager
    def without(self, owner: nn.Module, off: AbstractContextManager[None]) -> Iterator[None]:
        """Switches something off, and lets those return what they did that are given the same.

        The owner of the switch computes, and what it is in; what is in it, too, if that is seen to
        be changed by the switch.
        """
        around = self._by_owner.get(owner) or _Around.of(self._module, owner)
        self._by_owner[owner] = around
        with off:
            if self._recall.leaves_nothing:
                is_changed = not around.states.hold(by_version=True)
                self._computing = around.outer | (around.inner if is_changed else frozenset())
            try:
                yield
            finally:
                self._computing = None

    def _seen(self, module: nn.Module, forward: _Forward) -> _Forward:
        own = [vars(each) for each in module.modules()]

        @wraps(forward)
        def call(*args: object, **kwargs: object) -> object:
            if self._computing is not None and module not in self._computing:
                known = self._known(module, args, kwargs)
                if known is not None:
                    return known.output
            before = [dict(each) for each in own] if self._is_keeping else []
            output = forward(*args, **kwargs)
            if self._is_keeping and all(map(_is_immutable, (*args, *kwargs.values(), output))):
                self._returned[module].append(_Returned.of(args, kwargs, output))
                if not all(map(_hold_the_same, own, before)):
                    self._unsure.add(module)
            return output

        return call

    def _known(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> _Returned | None:
        """What a module returned when it was given the same; None where that is not known, or was
        not the same each time: then it goes by more than its arguments."""
        returned = self._returned[module]
        if module in self._unsure or not all(each.is_unchanged() for each in returned):
            return None
        found = [each for each in returned if each.is_for(args, kwargs)]
        is_one = all(_are_same(each.output, found[0].output) for each in found[1:])
        return found[0] if found and is_one else None


@contextmanager
def returning(outputs: Sequence[tuple[nn.Module, object]]) -> Iterator[None]:
    """Lets modules return what is given, one after the other, instead of computing."""
    waiting: dict[nn.Module, deque[object]] = defaultdict(deque)
    for module, output in outputs:
        waiting[module].append(output)

    def instead(module: nn.Module, forward: _Forward) -> _Forward:
        left = waiting[module]

        @wraps(forward)
        def call(*args: object, **kwargs: object) -> object:
            return left.popleft() if left else forward(*args, **kwargs)

        return call

    with _replaced({module: instead(module, module.forward) for module in waiting}):
        yield


@contextmanager
def _replaced(forwards: Mapping[nn.Module, _Forward]) -> Iterator[None]:
    """Gives modules other forwards for a while."""
    before = {module: dict(vars(module)) for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, content in before.items():
            vars(module).pop("forward", None)
            if "forward" in content:
                vars(module)["forward"] = content["forward"]


@dataclass(frozen=True)
class _Around:
    """The modules that a module is in, itself included, those in it, and the states of these."""

    outer: frozenset[nn.Module]
    inner: frozenset[nn.Module]
    states: ModuleStates

    @classmethod
    def of(cls, root: nn.Module, owner: nn.Module) -> "_Around":
        outer = frozenset(each for each in root.modules() if owner in set(each.modules()))
        inner = [each for each in owner.modules() if each is not owner]
        return cls(outer, frozenset(inner), ModuleStates.read(inner))


def _hold_the_same(attributes: Mapping[str, object], before: Mapping[str, object]) -> bool:
    """Whether attributes are the very objects that they were."""
    return attributes.keys() == before.keys() and all(
        value is before[name] for name, value in attributes.items()
    )


def _sums_of(value: object) -> tuple[torch.Tensor | None, ...]:
    """The sums of the tensors in a value; None for those of kinds that have none."""
    sums: list[torch.Tensor | None] = []
    for _, tensor in tensor_leaves(value, ""):
        try:
            sums.append(tensor.sum())
        except (RuntimeError, NotImplementedError):  # not for this dtype or layout
            sums.append(None)
    return tuple(sums)


def _is_immutable(value: object) -> bool:
    """Whether nothing can be left in a value but numbers in its tensors."""
    if type(value) in (tuple, torch.Size):
        return all(map(_is_immutable, value))  # type: ignore[call-overload]
    return value is None or isinstance(value, torch.Tensor | int | float | str | torch.dtype)


def _are_same(value: object, other: object) -> bool:
    """Whether two immutable values hold the same."""
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
        is_alike = (value.dtype, value.shape, value.device) == (
            *(other.dtype, other.shape, other.device),
        )
        return is_alike and value.stride() == other.stride() and has_same_numbers(value, other)
    if isinstance(value, tuple) and isinstance(other, tuple):
        return len(value) == len(other) and all(map(_are_same, value, other))
    return value == other
