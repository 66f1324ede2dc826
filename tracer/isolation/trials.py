"""Calls of modules of the candidate with one of their switches off at a time.

A module is called again with the reference's inputs, once for each of its switches and those of the
modules inside it: that costs calls of one module, not of the model, and in these only what comes
after the switch is computed (`tracer.isolation.insides`). Where only its own forward is looked at,
the switches of the modules inside are all off meanwhile: what is left is made in its own forward,
as it is seen in its output.

Which modules matter is known when a run has ended. What calls were given and returned is kept
until then while it is little. A module that makes of it what it made in the run is tried with it;
any other (its inputs were edited, it draws random numbers, it is loaded for its calls only) is
tried in another run, right where its calls end.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Answer
from tracer.execution.pairing import Pairing
from tracer.interventions.repeat_call import Recall, have_same_numbers
from tracer.isolation.causes import (
    Cause,
    Rounding,
    Switch,
    has_switches,
    methods_of,
    switches_of,
)
from tracer.isolation.groups import pattern_of
from tracer.isolation.insides import Insides, returning
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, CallRecord
from tracer.tensors.difference import Difference
from tracer.tensors.leaves import is_stateful, tensor_leaves, version_of
from tracer.tensors.rebuilding import deep_copy
from tracer.tensors.value_path import OUTPUT, ValuePath

# What is kept of a run until it has ended.
_MOST_BYTES = 2**27
_COUNT, _CHANGING = "count_rounding", "changing_points"

# The differences of an output's leaves by path.
_Sums = dict[ValuePath, Difference]


@dataclass(frozen=True)
class KeptCall:
    """A pair of calls, the candidate's with what it was given and what it returned itself.

    Attributes:
        versions: all their tensors, with the counters of edits.
        inside: what modules that it called went on with, where that was not their own.
    """

    calls: CallPair
    record: CallRecord
    versions: Sequence[tuple[torch.Tensor, int | None]]
    inside: list[tuple[nn.Module, object]] = field(default_factory=list)

    @property
    def is_unchanged(self) -> bool:
        """Whether none of it has been edited since."""
        return all(known is not None and version_of(t) == known for t, known in self.versions)

    def sizes(self) -> dict[int, int]:
        """The bytes of each tensor by its identity, as several calls hold the same."""
        return {id(t): t.numel() * t.element_size() for t, _ in self.versions}


class KeptCalls(Intervention):
    """Keeps the calls of modules that have switches; to come after `Forcing`.

    Where that becomes too much, only those of the modules are kept that have introduced most so far
    of those that are alike.
    """

    def __init__(self, modules: Container[str] | None, pairing: Pairing) -> None:
        """Chooses whose.

        Args:
            modules: the reference's names; None for all, of which then only their own switches
                are tried.
            pairing: of the models.
        """
        self._modules = modules
        self._reference = pairing.reference
        self._powers: dict[str, float] = defaultdict(float)
        self._dropped: set[str] = set()
        self._has_switches: dict[nn.Module, bool] = {}
        self._begun: dict[CallKey, KeptCall] = {}
        self._calls: dict[str, list[KeptCall]] = defaultdict(list)
        self._sizes: dict[int, int] = {}
        self._bytes = 0

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Keeps what the candidate's call is given."""
        if record.module not in self._dropped and self._is_chosen(calls):
            given = dict(calls.candidate.arguments)
            if any(map(is_stateful, given.values())):
                given = deep_copy(given, lambda tensor: tensor)
            candidate = replace(calls.candidate, arguments=given)
            pair = replace(calls, candidate=candidate)
            self._begun[record.key] = KeptCall(pair, record, _versions(given))
        return None

    def before_end(self, calls: CallPair) -> Answer:
        """Keeps what it returns."""
        if (begun := self._begun.get(calls.key)) is not None:
            candidate = replace(begun.calls.candidate, output=calls.candidate.output)
            pair = replace(calls, candidate=candidate)
            inside = [output for _, output in begun.inside]
            returned = [pair.reference.output, pair.candidate.output, *inside]
            versions = [*begun.versions, *_versions(returned)]
            self._begun[calls.key] = replace(begun, calls=pair, versions=versions)
        return None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Notes how much that is, and lets go of what is not to be looked at if it is too much."""
        around = None if record.parent is None else self._begun.get(record.parent)
        if around is not None and self._modules is None:
            around.inside.append((calls.candidate.module, calls.candidate.output))
        begun = self._begun.pop(record.key, None)
        if begun is None or record.module in self._dropped:
            return None
        inside = (run.records[key].arguments.values() for key in record.children)
        rows = [*record.outputs, *(itertools.chain(*inside) if self._modules is None else ())]
        errors = (row.visible_errors[1] for row in rows if row.is_inexact and not row.is_mask)
        self._powers[record.module] += max(errors, default=0.0) ** 2
        self._calls[record.module].append(begun)
        sizes = begun.sizes()
        self._bytes += sum(size for key, size in sizes.items() if key not in self._sizes)
        self._sizes |= sizes
        if self._bytes > _MOST_BYTES:
            self._drop()
        return None

    def _drop(self) -> None:
        """Lets go of all but the worst of modules that are alike; of these too if that is not
        enough."""
        worst: dict[str, str] = {}
        for module in sorted(self._calls, key=self._powers.__getitem__):
            worst[pattern_of(module, self._reference)] = module
        kept = {m: calls for m, calls in self._calls.items() if m in worst.values()}
        sizes = {k: size for calls in kept.values() for c in calls for k, size in c.sizes().items()}
        if sum(sizes.values()) > _MOST_BYTES:
            kept, sizes = {}, {}
        self._dropped |= self._calls.keys() - kept.keys()
        self._calls, self._sizes = defaultdict(list, kept), sizes
        self._bytes = sum(sizes.values())

    def of(self, module: str) -> Sequence[KeptCall]:
        """The calls of a module; none unless all are kept."""
        return self._calls.get(module, ())

    def _is_chosen(self, calls: CallPair) -> bool:
        name, module = calls.reference.name, calls.candidate.module
        if self._modules is not None and name not in self._modules:
            return False
        if module not in self._has_switches:
            inside = module.modules() if self._modules is not None else (module,)
            self._has_switches[module] = any(map(has_switches, inside))
        return self._has_switches[module]


@dataclass
class _Tried:
    """What was found of a module.

    Attributes:
        calls: for each of its calls the errors with all at work (""), and without each point.
        switches: those that were tried, by point.
        rounding: what rounding does at each point.
    """

    calls: list[dict[str, _Sums]] = field(default_factory=list)
    switches: dict[str, Switch] = field(default_factory=dict)
    rounding: dict[str, list[Rounding]] = field(default_factory=lambda: defaultdict(list))


class SwitchTrials(Intervention):
    """Calls some modules again with a switch off; in a run it is to come after `Forcing`.

    Attributes:
        watched: the reference's names of those that are called again in a run.
        raised: by one that was called again after a run.
    """

    def __init__(
        self,
        used: Container[tuple[str, int, str]],
        pairing: Pairing,
        *,
        own_lines: bool,
    ) -> None:
        """Chooses what is looked at.

        Args:
            used: (module, call index, value) of the outputs that count.
            pairing: which modules are counterparts.
            own_lines: only the switches of the modules themselves are tried.
        """
        self.watched: list[str] = []
        self.raised: ModelRunError | None = None
        self._used = used
        self._counterparts = {
            pairing.candidate[own]: pairing.reference[name] for own, name in pairing.pairs.items()
        }
        self._own_lines = own_lines
        self._recalls: dict[CallKey, Recall] = {}
        self._tried: dict[str, _Tried] = defaultdict(_Tried)

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Takes down what a watched module begins with."""
        if record.module in self.watched and any(switches_of(calls.candidate.module)):
            self._recalls[record.key] = Recall(calls.candidate)
        return None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Tries the switches of a watched module."""
        if (recall := self._recalls.pop(record.key, None)) is not None:
            with recall.opened():
                recall.settle(has_switches)
                self._try(calls, record, run, recall, self._tried[record.module])
        return None

    def try_kept(self, module: str, kept: Sequence[KeptCall], run: Comparer) -> bool:
        """Tries the switches of a module with its calls in a run that has ended.

        Returns:
            Whether that was possible.
        """
        tried = _Tried()
        for call in kept:
            expected = call.calls.candidate.output
            try:
                recall = Recall(call.calls.candidate)
                with recall.opened(is_begun=True):
                    output = recall.settle(has_switches, partial(returning, call.inside))
                    if not call.is_unchanged or not have_same_numbers(output, expected):
                        return False
                    self._try(call.calls, call.record, run, recall, tried)
            except ModelRunError as error:  # it may be loaded for its calls in a run only
                self.raised = error
                return False
        self._tried[module] = tried
        return bool(kept)

    def found(self, module: str) -> tuple[Cause, ...]:
        """All switches of a module, and what they do to its error."""
        tried = self._tried[module]
        before = _relative([call[""] for call in tried.calls])
        # A point that another form of the module lacks changes nothing in that one's calls.
        return tuple(
            Cause(
                point=switch.point,
                kind=switch.kind,
                before=before,
                after=_relative([call.get(switch.point, call[""]) for call in tried.calls]),
                meaning=switch.meaning,
                rounding=Rounding.of_all(tried.rounding[switch.point]),
            )
            for switch in tried.switches.values()
        )

    def _try(
        self, calls: CallPair, record: CallRecord, run: Comparer, recall: Recall, tried: _Tried
    ) -> None:
        module = calls.candidate.module
        switches = list(switches_of(module, self._counterparts))
        on = [switch for switch in switches if switch.is_own or not self._own_lines]
        off = [switch for switch in switches if self._own_lines and not switch.is_own]
        if not on:
            return
        insides = Insides(module, recall)

        def sums(*within: AbstractContextManager[None]) -> _Sums:
            output, _ = recall.again(*within)
            again = replace(calls, candidate=replace(calls.candidate, output=output))
            return self._compare_outputs(again, record, run)

        tried.switches |= {switch.point: switch for switch in on}
        idle: set[str] = set()
        counting = (
            _count(owner, path, tried.rounding, idle)
            for path, owner in module.named_modules()
            if hasattr(owner, _COUNT) and (owner is module or not self._own_lines)
        )

        def changed() -> AbstractContextManager[None]:
            return recall.changed_by(insides.attached(), *(switch.off() for switch in off))

        def without() -> dict[str, _Sums]:
            with changed():
                changing = [switch for switch in on if switch.point not in idle]
                return {s.point: sums(insides.without(s.owner, s.off())) for s in changing}

        with changed():
            whole = sums(insides.kept(), *counting)
        found = without()
        if not recall.has_held():
            found = without()
        tried.calls.append({"": whole, **found})

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


def _versions(value: object) -> list[tuple[torch.Tensor, int | None]]:
    """The tensors in a value, each with its counter of edits."""
    return [(tensor, version_of(tensor)) for _, tensor in tensor_leaves(value, "")]


@contextmanager
def _count(
    owner: nn.Module, path: str, rounding: dict[str, list[Rounding]], idle: set[str]
) -> Iterator[None]:
    """Counts what rounding does in `owner`, which is inside a module at that path.

    Args:
        rounding: is given the counts, by point.
        idle: is given the points that made no difference.
    """
    with getattr(owner, _COUNT)() as found:
        yield
    for name, shares in found.items():
        rounding[f"{path}.{name}".lstrip(".")].append(Rounding(**shares))
    if (methods := methods_of(owner)) is not None and hasattr(owner, _CHANGING):
        names = getattr(owner, methods[0])().keys() - getattr(owner, _CHANGING)()
        idle.update(f"{path}.{name}".lstrip(".") for name in names)


def _relative(calls: Sequence[_Sums]) -> float:
    """The relative L2 error of the worst leaf over all calls."""
    total: _Sums = {}
    for sums in calls:
        for path, difference in sums.items():
            total[path] = total[path].merge(difference) if path in total else difference
    errors = (math.inf if d.mismatched else d.relative_l2 for d in total.values())
    return max(errors, default=0.0)
