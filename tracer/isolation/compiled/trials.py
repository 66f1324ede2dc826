"""Runs of the candidate with something compiled, or left as it is written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from tracer.diagnosis.verdict import judge
from tracer.execution.compilation import (
    Compilation,
    Stage,
    compiled_parts,
    leave_uncompiled,
    uncompiled_copy,
)
from tracer.execution.compile_internals import dynamo_counts
from tracer.execution.offload import copy_model
from tracer.execution.pairing import Pairing
from tracer.execution.session import named_modules
from tracer.interventions.experiment import Experiment, Run, failure_in_words
from tracer.isolation.compiled.result import LeftUncompiled, Rung
from tracer.measurement.rows import final_output
from tracer.text import first_line

# A value that is edited before it can be compared costs one more run, in which it is cloned.
_MOST_RUNS = 3


@dataclass(frozen=True)
class Trials:
    """Makes candidates of a compiled one, which stays as it is.

    Attributes:
        experiment: that of the compiled candidate.
        parts: what is compiled in it, by name.
        written: the candidate with nothing compiled.
        written_pairing: the pairs of its modules and the reference's.
    """

    experiment: Experiment
    parts: Mapping[str, Compilation]
    written: nn.Module
    written_pairing: Pairing

    @classmethod
    def of(cls, experiment: Experiment) -> "Trials | None":
        """The trials of a candidate; None where nothing is compiled in it."""
        candidate = experiment.session.candidate
        parts = compiled_parts(candidate)
        if not parts:
            return None
        written = uncompiled_copy(candidate)
        pairing = experiment.session.with_candidate(written).pairing
        return cls(experiment, parts, written, pairing)

    @cached_property
    def own_names(self) -> Mapping[str, str]:
        """The candidate's names of modules by the reference's."""
        return {target: name for name, target in self.written_pairing.pairs.items()}

    @property
    def whole(self) -> tuple[str, ...]:
        """The reference's names of what is compiled."""
        return tuple(name for name, own in self.own_names.items() if own in self.parts)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that any part goes through, in order; the last is the candidate itself."""
        found = {stage for part in self.parts.values() for stage in part.stages}
        return tuple(stage for stage in Stage if stage in found)

    def is_in_part(self, name: str) -> bool:
        """Whether a module, by the reference's name, is compiled."""
        return bool(self._around(self.own_names[name]))

    def part_of(self, name: str) -> Compilation:
        """How the part that holds a module is compiled; the candidate's name."""
        return self.parts[max(self._around(name), key=len)]

    def _around(self, name: str) -> list[str]:
        return [part for part in self.parts if not part or f"{name}.".startswith(f"{part}.")]

    def compiled_to(self, stage: Stage) -> Experiment:
        """The candidate with all parts compiled as far as a stage."""

        def prepare(modules: Mapping[str, nn.Module]) -> None:
            for name, part in self.parts.items():
                part.apply(modules[name], stage)

        return self._changed(prepare)

    def drawing_alike(self) -> Experiment | None:
        """The candidate whose random numbers are those without compiling; None where they are."""
        alike = {name: part.drawing_alike() for name, part in self.parts.items()}
        changed = {name: part for name, part in alike.items() if part is not None}
        if not changed:
            return None
        other = replace(self, parts={**self.parts, **changed})
        return other.compiled_to(Stage.BACKEND)

    def alone(
        self, names: Iterable[str], stage: Stage, around: Callable[[object], object] | None = None
    ) -> Experiment:
        """The candidate with some modules compiled, each alone.

        Args:
            names: the reference's.
            around: as for `Compilation.apply`.
        """

        def prepare(modules: Mapping[str, nn.Module]) -> None:
            for name in map(self.own_names.__getitem__, names):
                is_part = name in self.parts
                part = self.part_of(name)
                part.apply(modules[name], stage, is_part=is_part, around=around)

        return self._changed(prepare)

    def left(self, names: Iterable[str], called: Iterable[str] = ()) -> Experiment:
        """The candidate with some modules left uncompiled; the reference's names.

        Args:
            called: modules that are compiled all the same, each alone.
        """
        own = [self.own_names[name] for name in names]
        apart = [self.own_names[name] for name in called]

        def prepare(modules: Mapping[str, nn.Module]) -> None:
            stage = self.stages[-1]
            for name in apart:
                self.part_of(name).apply(modules[name], stage, is_part=False, may_break=True)
            for name in own:
                if name not in self.parts:
                    leave_uncompiled(modules[name])
            for name, part in self.parts.items():
                if name not in own:
                    part.apply(modules[name], stage, may_break=True)

        return self._changed(prepare)

    def _changed(self, prepare: Callable[[Mapping[str, nn.Module]], None]) -> Experiment:
        shared = (*self.written.parameters(), *self.written.buffers())
        made: nn.Module = copy_model(self.written, shared)
        prepare(named_modules(made))
        session = self.experiment.session.with_candidate(made)
        return replace(self.experiment, session=session, clone=frozenset())


def finished(experiment: Experiment) -> tuple[Experiment, Run]:
    """A run in which nothing was edited before it was seen, and what makes it so."""
    for _ in range(_MOST_RUNS):
        run = experiment.rerun()
        if run.comparer.edited <= experiment.clone:
            break
        experiment = replace(experiment, clone=experiment.clone | run.comparer.edited)
    return experiment, run


def rung_of(experiment: Experiment, stage: Stage, backend: str) -> tuple[Rung, Experiment, Run]:
    """Runs the candidate compiled as far as a stage."""
    graphs, breaks = dynamo_counts()
    experiment, run = finished(experiment)
    after, reasons = dynamo_counts()
    agrees, peir, error = outcome_of(experiment, run)
    broken = [first_line(why) for why, count in reasons.items() if count > breaks.get(why, 0)]
    rung = Rung(stage, backend, agrees, peir, error, after - graphs, tuple(dict.fromkeys(broken)))
    return rung, experiment, run


def left_uncompiled(
    trials: Trials,
    names: tuple[str, ...],
    before: float | None,
    called: tuple[str, ...] = (),
) -> LeftUncompiled:
    """Runs the candidate with some modules left as they are written; see `Trials.left`."""
    experiment = trials.left(names, called)
    agrees, after, error = outcome_of(*finished(experiment))
    return LeftUncompiled(names, called, agrees, before, after, error)


def outcome_of(experiment: Experiment, run: Run) -> tuple[bool | None, float | None, str]:
    """Whether a run agrees, the PEIR of its output, and what a model raised in it."""
    if run.failure is not None:
        return None, None, failure_in_words(run.failure)
    last = final_output(run.rows)
    agrees = judge(run.comparer, experiment, may_run=False).agrees
    return agrees, None if last is None else last.peir, ""
