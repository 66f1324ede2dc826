"""What causes the error of a module: with one of its switches off at a time, how far does it fall?

A module of the candidate's that can leave out a part of what it does says so by two methods, and
nothing else is known of it (`Switchable`). Quantised modules give their quantization points: "uint4
weight". For those that others quantised an adapter does (`tracer.adapters.quantised`), which is
told the module's counterpart: the weight as it was is only there.

The module is called again right where it has ended, with the reference's inputs, once for each of
its switches and those of the modules inside it: that costs calls of one module, not of the model.
Where only its own forward is looked at, the switches of the modules inside are all off meanwhile:
what is left is made in its own forward, as it is seen in its output.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

from torch import nn

from tracer.adapters.quantised.lookup import adapters
from tracer.execution.hooks import Answer
from tracer.execution.pairing import Pairing
from tracer.interventions.repeat_call import Recall
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, CallRecord
from tracer.tensors.difference import Difference
from tracer.tensors.value_path import OUTPUT, ValuePath

# A switch that takes away less than this part of the error explains nothing.
_LEAST_FALL = 0.05
_MOST_CAUSES = 5
# The methods of a `Switchable`, and their former names.
_METHODS = (("ablatable_points", "disabled"), ("switches", "switched_off"))
_MEANINGS, _COUNT = "point_meanings", "count_rounding"


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

    It may also have `point_meanings()`, which says of parts by name what is there, and
    `count_rounding()`, a context manager that gives a mapping: at its end, by name of parts the
    fields of `Rounding`.
    """

    def ablatable_points(self) -> Mapping[str, str]:
        """The parts by name, each in a few words."""
        ...

    def disabled(self, name: str) -> AbstractContextManager[None]:
        """Leaves out a part for a while."""
        ...


@dataclass(frozen=True)
class _Switch:
    point: str
    kind: str
    name: str
    off: Callable[[], AbstractContextManager[None]]
    meaning: str

    @property
    def is_own(self) -> bool:
        """Whether it belongs to the module itself, and not to one inside."""
        return self.point == self.name


# The differences of an output's leaves by path.
_Sums = dict[ValuePath, Difference]


class SwitchTrials(Intervention):
    """Calls some modules again with a switch off; to come after `Forcing`."""

    def __init__(
        self,
        watched: Container[str],
        used: Container[tuple[str, int, str]],
        pairing: Pairing,
        *,
        own_lines: bool,
    ) -> None:
        """Chooses what is looked at.

        Args:
            watched: the reference's names of the modules that are called again.
            used: (module, call index, value) of the outputs that count.
            pairing: which modules are counterparts.
            own_lines: only the switches of the modules themselves are tried.
        """
        self._watched = watched
        self._used = used
        self._counterparts = {
            pairing.candidate[own]: pairing.reference[name] for own, name in pairing.pairs.items()
        }
        self._own_lines = own_lines
        self._recalls: dict[CallKey, Recall] = {}
        # By module, for each of its calls: with everything at work (""), and without each point.
        self._calls: dict[str, list[dict[str, _Sums]]] = defaultdict(list)
        self._tried: dict[str, dict[str, _Switch]] = defaultdict(dict)
        self._rounding: dict[tuple[str, str], list[Rounding]] = defaultdict(list)

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Takes down what a watched module begins with."""
        if record.module in self._watched and any(switches_of(calls.candidate.module)):
            self._recalls[record.key] = Recall(calls.candidate)
        return None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Tries the switches of a watched module."""
        if (recall := self._recalls.pop(record.key, None)) is not None:
            self._try(calls, record, run, recall)
        return None

    def found(self, module: str) -> tuple[Cause, ...]:
        """All switches of a module, and what they do to its error."""
        calls = self._calls[module]
        before = _relative([call[""] for call in calls])
        # A point that another form of the module lacks changes nothing in that one's calls.
        return tuple(
            Cause(
                point=switch.point,
                kind=switch.kind,
                before=before,
                after=_relative([call.get(switch.point, call[""]) for call in calls]),
                meaning=switch.meaning,
                rounding=Rounding.of_all(self._rounding[module, switch.point]),
            )
            for switch in self._tried[module].values()
        )

    def _try(self, calls: CallPair, record: CallRecord, run: Comparer, recall: Recall) -> None:
        switches = list(switches_of(calls.candidate.module, self._counterparts))
        off = [switch for switch in switches if self._own_lines and not switch.is_own]
        tried = [switch for switch in switches if switch not in off]

        def sums(*off: _Switch, within: Iterable[AbstractContextManager[None]] = ()) -> _Sums:
            output, _ = recall.again(*(switch.off() for switch in off), *within)
            again = replace(calls, candidate=replace(calls.candidate, output=output))
            return self._compare_outputs(again, record, run)

        self._tried[record.module] |= {switch.point: switch for switch in tried}
        counting = (
            self._count(owner, record.module, path)
            for path, owner in calls.candidate.module.named_modules()
            if hasattr(owner, _COUNT)
        )
        with recall.opened():
            whole = sums(*off, within=counting)
            measured = {switch.point: sums(*off, switch) for switch in tried}
        self._calls[record.module].append({"": whole, **measured})

    @contextmanager
    def _count(self, owner: nn.Module, module: str, path: str) -> Iterator[None]:
        """Counts what rounding does in `owner`, which is inside a watched module at that path."""
        with getattr(owner, _COUNT)() as found:
            yield
        for name, shares in found.items():
            point = f"{path}.{name}".lstrip(".")
            self._rounding[module, point].append(Rounding(**shares))

    def _compare_outputs(self, calls: CallPair, record: CallRecord, run: Comparer) -> _Sums:
        references, candidates = map(OUTPUT.tensors, calls.outputs())
        sums: _Sums = {}
        for path, r in references.items():
            c = candidates.get(path)
            if (record.module, record.call, path) not in self._used or c is None:
                continue
            if r.shape != c.shape or not (r.is_floating_point() or r.is_complex()):
                continue
            unpadded = run.unpadded(record, r, c)
            sums[path] = Difference.of(r, c) if unpadded is None else unpadded
        return sums


def explaining(found: Sequence[Cause]) -> tuple[Cause, ...]:
    """The switches that explain most of a module's error, the first one most of all."""
    explain = [cause for cause in found if cause.after < (1 - _LEAST_FALL) * cause.before]
    return tuple(sorted(explain, key=lambda cause: cause.after)[:_MOST_CAUSES])


def switches_of(
    module: nn.Module, counterparts: Mapping[nn.Module, nn.Module] = MappingProxyType({})
) -> Iterator[_Switch]:
    """The switches of a module and of those inside it.

    Args:
        counterparts: the reference's modules by the candidate's.
    """
    for path, owner in module.named_modules():
        for listed, disabled in _METHODS:
            if hasattr(owner, listed) and hasattr(owner, disabled):
                meanings: Mapping[str, str] = getattr(owner, _MEANINGS, dict)()
                for name, kind in getattr(owner, listed)().items():
                    off = partial(getattr(owner, disabled), name)
                    point = f"{path}.{name}".lstrip(".")
                    yield _Switch(point, kind, name, off, meanings.get(name, ""))
                break
    owners = dict(module.named_modules())
    for path, adapter in adapters(module):
        meanings = adapter.point_meanings()
        for name, kind in adapter.ablatable_points().items():
            off = partial(adapter.disabled, name, counterparts.get(owners[path]))
            yield _Switch(f"{path}.{name}".lstrip("."), kind, name, off, meanings.get(name, ""))


def _relative(calls: Sequence[_Sums]) -> float:
    """The relative L2 error of the worst leaf over all calls."""
    total: _Sums = {}
    for sums in calls:
        for path, difference in sums.items():
            total[path] = total[path].merge(difference) if path in total else difference
    errors = (math.inf if d.mismatched else d.relative_l2 for d in total.values())
    return max(errors, default=0.0)
