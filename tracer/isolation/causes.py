"""What causes the error of a module: with one of its switches off at a time, how far does it fall?

A module of the candidate's that can leave out a part of what it does says so by two methods, and
nothing else is known of it (`Switchable`). Quantised modules give their quantization points: "uint4
weight". For those that others quantised an adapter does (`tracer.adapters.quantised`), which is
told the module's counterpart: the weight as it was is only there.

`tracer.isolation.trials` switches them off.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Protocol

from torch import nn

from tracer.adapters.quantised.lookup import adapter_of, adapters

# A switch that takes away less than this part of the error explains nothing.
_LEAST_FALL = 0.05
_MOST_CAUSES = 5
# The methods of a `Switchable`, and their former names.
_METHODS = (("ablatable_points", "disabled"), ("switches", "switched_off"))
_MEANINGS = "point_meanings"


@dataclass(frozen=True)
class Rounding:
    """What rounding does to the values at a point.

    Attributes:
        values: how many there are, over all calls and modules.
        zero: the share of them that are zero afterwards.
        underflow: of those that are zero afterwards and were not before.
        saturated: of those beyond what can be represented, so cut off.
        nonfinite: of those that were NaN or infinite before.
    """

    values: int
    zero: float
    underflow: float
    saturated: float
    nonfinite: float

    @classmethod
    def of_all(cls, parts: Iterable["Rounding | None"]) -> "Rounding | None":
        """Of all values together; None where none were counted."""
        counted = [part for part in parts if part is not None]
        values = sum(part.values for part in counted)
        if not values:
            return None

        def share(name: str) -> float:
            return math.fsum(getattr(part, name) * part.values for part in counted) / values

        names = ("zero", "underflow", "saturated", "nonfinite")
        return cls(values, *(share(name) for name in names))


@dataclass(frozen=True)
class Cause:
    """A switch of the candidate's, and what it does to the error of a module.

    Attributes:
        point: its name, after that of the module inside that it belongs to: "q_proj.weight".
        kind: what it is in words: "uint4 weight".
        before, after: the relative L2 error of the module's output with everything in it at work,
            and with this switch off; over all its calls, of the worst leaf that is used. For a
            module of which only its own forward is looked at, both are without the modules inside.
        meaning: what is there, where the candidate says it: "what the module returns".
        rounding: what rounding does there, where the candidate counts it.
    """

    point: str
    kind: str
    before: float
    after: float
    meaning: str = ""
    rounding: Rounding | None = None

    @property
    def part(self) -> float:
        """How much of the error's power goes away without it: 0 for nothing, 1 for all."""
        if not self.after < self.before:
            return 0.0
        return 1.0 - (self.after / self.before) ** 2 if math.isfinite(self.before) else 1.0


class Switchable(Protocol):
    """A module that can leave out parts of what it does.

    Nothing but itself and the modules inside it may compute otherwise meanwhile.

    It may also have `point_meanings()`, which says of parts by name what is there, and
    `count_rounding()`, a context manager that gives a mapping: at its end, by name of parts the
    fields of `Rounding`. `changing_points()` then gives the names of the parts that made any
    difference meanwhile: of the others it is known that nothing goes away without them.
    """

    def ablatable_points(self) -> Mapping[str, str]:
        """The parts by name, each in a few words."""
        ...

    def disabled(self, name: str) -> AbstractContextManager[None]:
        """Leaves out a part for a while."""
        ...


@dataclass(frozen=True)
class Switch:
    """A part of what a module of the candidate's does that can be left out.

    Attributes:
        point: its name, after that of the module inside that it belongs to.
        kind, meaning: as for a `Cause`.
        name: its name in that module.
        owner: that module.
        off: leaves it out for a while.
    """

    point: str
    kind: str
    name: str
    owner: nn.Module
    off: Callable[[], AbstractContextManager[None]]
    meaning: str

    @property
    def is_own(self) -> bool:
        """Whether it belongs to the module itself, and not to one inside."""
        return self.point == self.name


def explaining(found: Sequence[Cause]) -> tuple[Cause, ...]:
    """The switches that explain most of a module's error, the first one most of all."""
    explain = [cause for cause in found if cause.after < (1 - _LEAST_FALL) * cause.before]
    return tuple(sorted(explain, key=lambda cause: cause.after)[:_MOST_CAUSES])


def switches_of(
    module: nn.Module, counterparts: Mapping[nn.Module, nn.Module] = MappingProxyType({})
) -> Iterator[Switch]:
    """The switches of a module and of those inside it.

    Args:
        counterparts: the reference's modules by the candidate's.
    """
    for path, owner in module.named_modules():
        if (methods := methods_of(owner)) is None:
            continue
        listed, disabled = (getattr(owner, method) for method in methods)
        meanings: Mapping[str, str] = getattr(owner, _MEANINGS, dict)()
        for name, kind in listed().items():
            point, off = f"{path}.{name}".lstrip("."), partial(disabled, name)
            yield Switch(point, kind, name, owner, off, meanings.get(name, ""))
    owners = dict(module.named_modules())
    for path, adapter in adapters(module):
        meanings = adapter.point_meanings()
        for name, kind in adapter.ablatable_points().items():
            off = partial(adapter.disabled, name, counterparts.get(owners[path]))
            point = f"{path}.{name}".lstrip(".")
            yield Switch(point, kind, name, adapter.module, off, meanings.get(name, ""))


def has_switches(module: nn.Module) -> bool:
    """Whether a module has switches of its own, now or at other times."""
    return methods_of(module) is not None or adapter_of(module) is not None


def methods_of(module: nn.Module) -> tuple[str, str] | None:
    """The methods of a `Switchable`, by the names that it has them under."""
    return next((names for names in _METHODS if all(hasattr(module, n) for n in names)), None)
