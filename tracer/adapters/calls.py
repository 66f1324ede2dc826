"""The calls of modules in a graph: which operations, in which order, and what enters and leaves.

Each operation bears the stack of modules that it was traced in, whose keys differ from call to
call. Operations of one call stand together as a rule; where something has moved them apart, they
are brought together again as far as what they take allows, and else the call is seen as several.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Self

from tracer.adapters.lines import Written

Value = Hashable


class Shared:
    """What copies of a model have in common, since nobody changes it."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Module:
    """An entry of a stack of modules.

    Attributes:
        key: what tells this call from others.
        name: the module's.
        class_name: that of its class, without the package.
    """

    key: str
    name: str
    class_name: str


@dataclass(frozen=True, eq=False, slots=True)
class Operation(Shared):
    """A node of a graph.

    Attributes:
        name: what it does, as the format says.
        takes, makes: its values.
        stack: the modules around it, the outermost first, without the root.
        places: where it was written, as each of these sees it, the root first.
        node: the format's own.
    """

    name: str
    takes: tuple[Value, ...]
    makes: tuple[Value, ...]
    stack: tuple[Module, ...] = ()
    places: tuple[Written, ...] = ()
    node: object = None

    @property
    def written(self) -> Written | None:
        """Where it was written, as the innermost module sees it."""
        return self.places[-1] if self.places else None


@dataclass(frozen=True, eq=False)
class Inside:
    """Operations of a call's own, between the calls of modules that it makes.

    Attributes:
        freed: by operation the values that nobody takes after it.
    """

    operations: tuple[Operation, ...]
    freed: Mapping[Operation, tuple[Value, ...]]


@dataclass(eq=False)
class CallPart(Shared):
    """The part of a graph that is one call of a module.

    Attributes:
        name, class_name: the module's.
        steps: operations of its own and calls that it makes, in order.
        takes: the values that enter it, in the order of their first use.
        names: what they are called as arguments.
        gives: the values that leave it, in the order in which they are made.
        freed: those that nobody takes after it in the call around it.
        called_at: where it is called, as the module around it sees it.
    """

    name: str
    class_name: str
    steps: list["Inside | CallPart"] = field(default_factory=list)
    takes: tuple[Value, ...] = ()
    names: tuple[str, ...] = ()
    gives: tuple[Value, ...] = ()
    freed: tuple[Value, ...] = ()
    called_at: Written | None = None

    def first_written(self) -> Written | None:
        """The first of its lines that is known."""
        own = (o.written for s in self.steps if isinstance(s, Inside) for o in s.operations)
        calls = (step.called_at for step in self.steps if isinstance(step, CallPart))
        return next((each for each in (*own, *calls) if each is not None and each.frames), None)


def parts_of(
    operations: Sequence[Operation],
    outputs: Sequence[Value],
    owners: Mapping[Value, Collection[str] | None],
) -> CallPart:
    """The root's part, with those of all calls inside.

    Args:
        outputs: the values that the model itself gives.
        owners: of values that are held, the names of the modules that hold them, which enter the
            calls of others; None where they enter none, as parameters do.
    """
    uses = Counter(value for operation in operations for value in set(operation.takes))
    uses.update(set(outputs))
    tree = _Call(None)
    for position, operation in enumerate(operations):
        tree.enter(operation, 0, position)
    return _Parts(owners, uses).of(tree).part


class _Call:
    """A call as its operations are gathered."""

    def __init__(self, module: Module | None) -> None:
        self.module = module
        # Operations and calls, each with the positions of its operations.
        self.units: list[_Unit] = []
        self._calls: dict[tuple[str, str], int] = {}

    def enter(self, operation: Operation, depth: int, position: int) -> None:
        if depth == len(operation.stack):
            self.units.append((operation, [position]))
            return
        module = operation.stack[depth]
        key = module.key, module.name
        if key not in self._calls:
            self._calls[key] = len(self.units)
            self.units.append((_Call(module), []))
        call, positions = self.units[self._calls[key]]
        positions.append(position)
        assert isinstance(call, _Call)
        call.enter(operation, depth + 1, position)

    def operations(self) -> Iterator[Operation]:
        for unit, _ in self.units:
            yield from unit.operations() if isinstance(unit, _Call) else [unit]

    def in_order(self) -> "list[Operation | _Call]":
        """Its units so that each follows those whose values it takes."""
        while True:
            order = _ordered(self.units)
            if order is not None:
                return order
            self._take_apart()

    def _take_apart(self) -> None:
        """Sees calls whose operations do not stand together as several."""
        apart: list[_Unit] = []
        for unit, positions in self.units:
            runs = _runs(positions)
            if not isinstance(unit, _Call) or len(runs) == 1:
                apart.append((unit, positions))
                continue
            by_position = dict(zip(sorted(positions), _by_position(unit), strict=True))
            for run in runs:
                part = _Call(unit.module)
                depth = _depth_of(unit)
                for position in run:
                    part.enter(by_position[position], depth, position)
                apart.append((part, list(run)))
        self.units = sorted(apart, key=lambda each: each[1][0])


def _by_position(call: _Call) -> list[Operation]:
    pairs: list[tuple[int, Operation]] = []

    def gather(each: _Call) -> None:
        for unit, positions in each.units:
            if isinstance(unit, _Call):
                gather(unit)
            else:
                pairs.append((positions[0], unit))

    gather(call)
    return [operation for _, operation in sorted(pairs, key=lambda pair: pair[0])]


def _depth_of(call: _Call) -> int:
    first = next(call.operations())
    keys = [(module.key, module.name) for module in first.stack]
    assert call.module is not None
    return keys.index((call.module.key, call.module.name)) + 1


def _runs(positions: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _ordered(
    units: Sequence["_Unit"],
) -> list[Operation | _Call] | None:
    """Units so that each follows those whose values it takes, else as they stand; None if there is
    no such order."""
    if all(positions[-1] - positions[0] == len(positions) - 1 for _, positions in units):
        return [unit for unit, _ in units]
    makers: dict[Value, int] = {}
    for index, (unit, _) in enumerate(units):
        for operation in unit.operations() if isinstance(unit, _Call) else [unit]:
            makers.update(dict.fromkeys(operation.makes, index))
    followers: dict[int, set[int]] = defaultdict(set)
    waiting: Counter[int] = Counter()
    for index, (unit, _) in enumerate(units):
        operations = unit.operations() if isinstance(unit, _Call) else iter([unit])
        before = {makers[v] for o in operations for v in o.takes if v in makers} - {index}
        waiting[index] = len(before)
        for each in before:
            followers[each].add(index)
    free = [(units[index][1][0], index) for index in range(len(units)) if not waiting[index]]
    heapq.heapify(free)
    order: list[Operation | _Call] = []
    while free:
        _, index = heapq.heappop(free)
        order.append(units[index][0])
        for follower in followers[index]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(free, (units[follower][1][0], follower))
    return order if len(order) == len(units) else None


_Unit = tuple[Operation | _Call, list[int]]


@dataclass(frozen=True)
class _Found:
    """A part, how many of its operations take each value, and all that it makes."""

    part: CallPart
    taken: Counter[Value]
    makes: Mapping[Value, None]


@dataclass(frozen=True)
class _Parts:
    """Makes parts of calls, from the innermost.

    Attributes:
        owners: as for `parts_of`.
        uses: how many operations take each value, and whether the model gives it.
    """

    owners: Mapping[Value, Collection[str] | None]
    uses: Counter[Value]

    def of(self, call: _Call) -> _Found:
        """The part of a call."""
        taken: Counter[Value] = Counter()
        makes: dict[Value, None] = {}
        steps: list[Operation | CallPart] = []
        for unit in call.in_order():
            if isinstance(unit, _Call):
                found = self.of(unit)
                taken += found.taken
                makes.update(found.makes)
                steps.append(found.part)
            else:
                taken.update(set(unit.takes))
                makes.update(dict.fromkeys(unit.makes))
                steps.append(unit)
        module = call.module
        name = "" if module is None else module.name
        order = dict.fromkeys(value for step in steps for value in step.takes)
        takes = tuple(v for v in order if v not in makes and not self._is_held(v, name))
        gives = tuple(value for value in makes if self.uses[value] > taken[value])
        part = CallPart(
            name=name,
            class_name="" if module is None else module.class_name,
            steps=_with_freed(steps, set(gives)),
            takes=takes,
            names=_argument_names(takes),
            gives=gives,
            called_at=_called_at(call),
        )
        return _Found(part, taken, makes)

    def _is_held(self, value: Value, name: str) -> bool:
        """Whether a call of a module has a value without being given it."""
        if value not in self.owners:
            return False
        owners = self.owners[value]
        inside = (f"{owner}.".startswith(f"{name}.") for owner in owners or ())
        return owners is None or not name or any(inside)


def _with_freed(
    steps: Sequence[Operation | CallPart], kept: Container[Value]
) -> list[Inside | CallPart]:
    """Operations and calls in order, each with the values that nobody takes after it."""
    last: dict[Value, int] = {}
    for index, step in enumerate(steps):
        made = step.makes if isinstance(step, Operation) else step.gives
        last.update(dict.fromkeys((*made, *step.takes), index))
    freed: dict[int, list[Value]] = defaultdict(list)
    for value, index in last.items():
        if value not in kept:
            freed[index].append(value)
    found: list[Inside | CallPart] = []
    for is_call, group in groupby(enumerate(steps), lambda each: isinstance(each[1], CallPart)):
        if is_call:
            for index, step in group:
                assert isinstance(step, CallPart)
                step.freed = tuple(freed[index])
                found.append(step)
            continue
        own = {step: tuple(freed[index]) for index, step in group if isinstance(step, Operation)}
        found.append(Inside(tuple(own), own))
    return found


def _called_at(call: _Call) -> Written | None:
    """Where a call is made, as its first operation with a trace says."""
    if call.module is None:
        return None
    depth = _depth_of(call)
    places = (o.places[depth - 1] for o in call.operations() if len(o.places) >= depth)
    return next((place for place in places if place.frames), None)


def _argument_names(values: Sequence[Value]) -> tuple[str, ...]:
    """A name for each value that enters a call."""
    names: dict[str, None] = {}
    for value in values:
        name = str(getattr(value, "name", value)).replace(".", "_")
        while name in names:
            name += "_"
        names[name] = None
    return tuple(names)
