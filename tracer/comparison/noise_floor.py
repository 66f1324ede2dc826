"""The noise floor: how far a right model would be from itself, by rounding alone.

The reference is run twice more: against a copy of it in float64, and against itself with its inputs
moved by one unit in the last place. The larger PEIR of the two is the floor of each value. What a
comparison finds can then be read as a multiple of that floor: 2 is rounding, 10,000 is a mistake.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import nn

from tracer.execution.hooks import Answer, NewArguments, NewOutput
from tracer.execution.inputs import Inputs
from tracer.execution.offload import copy_model
from tracer.execution.session import Session
from tracer.interventions.experiment import Experiment
from tracer.interventions.forcing import Forcing, Replaced
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.progress import Phases
from tracer.measurement.rows import CallRecord, Row, first_divergence
from tracer.tensors.leaves import is_stateful, tensor_leaves
from tracer.tensors.rebuilding import deep_copy, map_tensors
from tracer.tensors.roles import DEFAULT_ROLES, Roles
from tracer.tensors.tolerance import Tolerance
from tracer.text import with_class

# A module's name, the call index and the value's path.
ValueKey = tuple[str, int, str]


class NoiseRun(StrEnum):
    """One of the two runs."""

    FLOAT64 = "float64"
    PERTURBED = "perturbed"


@dataclass(frozen=True)
class Unmeasured:
    """What one run could not measure.

    Attributes:
        run: which.
        error: what was raised in it.
        nonfinite: how many values are finite on one side only.
    """

    run: NoiseRun
    error: str = ""
    nonfinite: int = 0


@dataclass(frozen=True)
class NoiseReading:
    """What the floor says of a comparison.

    Attributes:
        first: the first value that disagrees and has a floor, with it.
        farthest: the one of the largest multiple of its floor.
        unmeasured: as for `NoiseFloor`.
    """

    first: Row | None
    farthest: Row | None
    unmeasured: tuple[Unmeasured, ...]


@dataclass(frozen=True)
class NoiseFloor:
    """What was measured.

    Attributes:
        peir: the floor of each value, a ratio; 0 where all steps to it are exact.
        unmeasured: what could not be measured.
    """

    peir: Mapping[ValueKey, float]
    unmeasured: tuple[Unmeasured, ...]

    def of(self, row: Row) -> float | None:
        """The floor of a row's value; None where there is none."""
        return self.peir.get((row.module, row.call, row.value))

    def measured(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        """The rows with their floors."""
        return tuple(replace(row, floor=self.of(row)) for row in rows)

    def read(self, rows: Sequence[Row]) -> NoiseReading:
        """What the floor says of rows that have it."""
        measured = [row for row in rows if row.multiple is not None]
        farthest = max(measured, key=lambda row: row.multiple or 0.0, default=None)
        return NoiseReading(first_divergence(measured), farthest, self.unmeasured)


def measure_noise(
    reference: nn.Module,
    inputs: Inputs,
    include: str | Sequence[str],
    roles: Roles = DEFAULT_ROLES,
    phases: Phases | None = None,
) -> NoiseFloor:
    """Measures the noise floor of a model on some inputs.

    For the time of this it takes the memory of the model once more, in float64.

    Args:
        inputs, include, roles: as for `compare`.
        phases: are told of the two runs.
    """
    phases = phases or Phases()
    phases.begin("measuring the noise floor", runs=2)
    floor: dict[ValueKey, float] = {}
    unmeasured = []
    try:
        exact = copy_model(reference).double()
    except Exception as error:  # whatever a model's own parts raise when they are copied
        unmeasured.append(Unmeasured(NoiseRun.FLOAT64, with_class(error)))
    else:
        wide = deep_copy(inputs, _widened)
        session = Session(exact, reference, wide, None, include)
        experiment = Experiment(session, Tolerance(), roles, phases=phases)
        unmeasured += _run(experiment, (), floor, NoiseRun.FLOAT64)
        del exact, session, experiment
    session = Session(reference, reference, inputs, None, include)
    beside = Experiment(session, Tolerance(), roles, phases=phases)
    unmeasured += _run(beside, (_Perturbing(),), floor, NoiseRun.PERTURBED)
    return NoiseFloor(floor, tuple(unmeasured))


def own_rounding(
    reference: nn.Module,
    inputs: Inputs,
    modules: Container[str],
    roles: Roles = DEFAULT_ROLES,
    phases: Phases | None = None,
) -> dict[ValueKey, float]:
    """What rounding alone makes in each of some modules, of inputs that are right.

    Empty for a model that cannot be run in float64.
    """
    floor: dict[ValueKey, float] = {}
    try:
        exact = copy_model(reference).double()
        session = Session(exact, reference, deep_copy(inputs, _widened), None, "*")
    except Exception:  # whatever a model's own parts raise when they are copied
        return floor
    experiment = Experiment(session, Tolerance(), roles, phases=phases or Phases())
    forcing = Forcing(modules, Replaced.INEXACT)
    _run(experiment, (forcing,), floor, NoiseRun.FLOAT64)
    return floor


def _run(
    experiment: Experiment,
    interventions: Sequence[Intervention],
    floor: dict[ValueKey, float],
    how: NoiseRun,
) -> list[Unmeasured]:
    """Runs a comparison and takes what is larger into the floor; says what went wrong."""
    run = experiment.rerun(*interventions)
    failure = run.failure
    measured = [row for row in run.rows if row.difference is not None and not row.is_mask]
    finite = [row for row in measured if math.isfinite(row.peir)]
    for row in finite:
        key = row.module, row.call, row.value
        floor[key] = max(floor.get(key, 0.0), row.peir)
    unmeasured = []
    if failure is not None:
        error = with_class(failure.exception)
        unmeasured.append(Unmeasured(how, error))
    if len(finite) < len(measured):
        # A mask of float64's minimum is minus infinity to a softmax in float32, for example, which
        # gives NaN where it hides everything.
        unmeasured.append(Unmeasured(how, nonfinite=len(measured) - len(finite)))
    return unmeasured


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor.clone()


class _Perturbing(Intervention):
    """Moves what enters the candidate by one unit in the last place, up or down at random.

    That is each activation that the model is given, and what a module makes of integers alone: the
    embeddings of tokens.
    """

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Moves what the model is given."""
        if calls.candidate.name:
            return None
        is_mask = calls.roles.is_mask
        moved = {
            name: map_tensors(value, self._moved)
            for name, value in calls.candidate.arguments.items()
            if not is_mask(name) and not is_stateful(value) and _has_floats(value)
        }
        return NewArguments(moved) if moved else None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Moves what a module makes of integers."""
        if calls.candidate.name and not _has_floats(calls.candidate.arguments):
            return NewOutput(map_tensors(calls.candidate.output, self._moved))
        return None

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        up = torch.rand(tensor.shape, generator=self._random).to(tensor.device) < 0.5
        target = torch.where(up, torch.inf, -torch.inf).to(tensor.dtype)
        return torch.nextafter(tensor, target)


def _has_floats(value: object) -> bool:
    return any(tensor.is_floating_point() for _, tensor in tensor_leaves(value, ""))
