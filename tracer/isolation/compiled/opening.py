"""The inside of a compiled candidate: a ladder of stages, each module alone, and what mends it.

>>> comparison = tracer.compare(model, torch.compile(port), inputs, inside=True)
>>> comparison.inside.stage, comparison.inside.culprits
(<Stage.BACKEND: 'backend'>, ('layers.1.mlp',))

The candidate runs compiled as far as each stage of compiling; the first that differs from the
reference is named. As far as that stage, modules are then compiled alone and given the reference's
inputs: those that the compiled part calls, and those that are called in what differs. What remains
is left uncompiled in the whole, which has to agree then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tracer.execution.compilation import Stage
from tracer.execution.compile_internals import many_compiled
from tracer.execution.dropout import active_dropout
from tracer.interventions.experiment import Experiment, Run
from tracer.isolation.compiled.alone import Descent, Floors, at_level, callees, descend
from tracer.isolation.compiled.nodes import wrong_node
from tracer.isolation.compiled.result import CompiledInside, LeftUncompiled, Rung
from tracer.isolation.compiled.trials import (
    Trials,
    left_uncompiled,
    outcome_of,
    rung_of,
)
from tracer.measurement.rows import final_output

# Where no module differs alone, so many of those that are called are left out in turn.
_MOST_LEFT_OUT = 16


@dataclass(frozen=True)
class Opened:
    """What opening a compiled candidate has found.

    Attributes:
        inside: the finding.
        written: the candidate with nothing compiled, and its run; None where it was not run.
    """

    inside: CompiledInside
    written: tuple[Experiment, Run] | None


def open_compiled(
    free: Run,
    experiment: Experiment,
    *,
    agrees: bool,
    draws: bool,
    rounding: Callable[[frozenset[str]], Floors],
    level: str | None = None,
) -> Opened | None:
    """Looks into what is compiled in a candidate.

    Args:
        free: the finished run of the compiled candidate.
        experiment: runs both models again.
        agrees: whether the comparison does.
        draws: whether random numbers were drawn in that run.
        rounding: the PEIR that rounding alone makes in some modules of the reference's inputs.
        level: which modules are compiled alone; by default those that differ are gone down into.

    Returns:
        What was found; None where nothing in it is compiled.
    """
    trials = Trials.of(experiment)
    if trials is None:
        return None
    with many_compiled():
        return _Opening(trials, free, rounding, level).found(agrees=agrees, draws=draws)


@dataclass
class _Opening:
    trials: Trials
    free: Run
    rounding: Callable[[frozenset[str]], Floors]
    level: str | None
    written: tuple[Experiment, Run] | None = None

    def found(self, *, agrees: bool, draws: bool) -> Opened:
        """Climbs the ladder and goes down where it breaks."""
        rungs = self._ladder(agrees=agrees)
        stage = next((rung.stage for rung in rungs if rung.agrees is False), None)
        inside = CompiledInside(tuple(self.trials.parts), rungs, stage)
        if self.written is None or self.written[1].failure is not None:
            return Opened(inside, None)
        if stage in (Stage.DECOMPOSED, Stage.BACKEND) and self._draws_otherwise(draws):
            return Opened(replace(inside, draws=True), self.written)
        if stage is Stage.AS_WRITTEN:
            return Opened(inside, self.written)
        phases = self.trials.experiment.phases
        phases.begin("compiling modules alone")
        run, last = self.written[1], stage or self.trials.stages[-1]
        given = self.trials, last, run, self.rounding
        descent = descend(*given) if self.level is None else at_level(*given, self.level)
        inside = replace(inside, alone=descent.alone)
        if stage is not None:
            inside = self._blamed(inside, descent, run)
        return Opened(inside, self.written)

    def _ladder(self, *, agrees: bool) -> tuple[Rung, ...]:
        """The stages up to the first that differs; the last is the candidate itself."""
        *before, last = self.trials.stages
        self.trials.experiment.phases.begin("compiling in stages", runs=len(before))
        rungs = []
        for stage in before:
            experiment = self.trials.compiled_to(stage)
            rung, experiment, run = rung_of(experiment, stage, self._names(stage))
            rungs.append(rung)
            if stage is Stage.AS_WRITTEN:
                self.written = experiment, run
            if rung.agrees is False:
                return tuple(rungs)
        rungs.append(Rung(last, self._names(last), agrees, _peir(self.free)))
        return tuple(rungs)

    def _names(self, stage: Stage) -> str:
        """The backends of a stage."""
        if stage is Stage.AS_WRITTEN:
            return ""
        named = (part.name_of(stage) for part in self.trials.parts.values())
        return ", ".join(dict.fromkeys(named))

    def _draws_otherwise(self, draws: bool) -> bool:
        """Whether it agrees once random numbers are drawn as without compiling."""
        draws = draws or any(active_dropout(self.trials.written))
        alike = self.trials.drawing_alike() if draws else None
        return alike is not None and outcome_of(alike, alike.rerun())[0] is True

    def _blamed(self, inside: CompiledInside, descent: Descent, run: Run) -> CompiledInside:
        """What to leave uncompiled, and the node that is wrong."""
        called = callees(run.records.values())
        culprits, left = descent.culprits, None
        is_whole = set(culprits) <= set(self.trials.whole)
        together = is_whole and any(called.get(name) for name in culprits)
        phases = self.trials.experiment.phases
        phases.begin("leaving modules uncompiled")
        if together:
            without = self._without(tuple(n for name in culprits for n in called.get(name, ())))
            if without is not None:
                culprits, left = without.modules, without
        if left is None:
            left = self._left(culprits, called)
        assert inside.stage is not None
        phases.begin("compiling its graph")
        node = wrong_node(self.trials, inside.stage, descent.culprits[0]) if culprits else None
        return replace(inside, culprits=culprits, together=together, node=node, left=left)

    def _left(
        self, culprits: tuple[str, ...], called: Mapping[str, tuple[str, ...]]
    ) -> LeftUncompiled | None:
        """The whole without the culprits; where one is all that is compiled, what it calls is
        compiled apart."""
        whole = [name for name in culprits if name in self.trials.whole]
        inner = tuple(dict.fromkeys(name for own in whole for name in called.get(own, ())))
        if not culprits or ("" in culprits and not inner):
            return None  # nothing would be compiled
        return left_uncompiled(self.trials, culprits, _peir(self.free), inner)

    def _without(self, names: tuple[str, ...]) -> LeftUncompiled | None:
        """The only one of some modules without which the whole agrees.

        Without any, more is computed apart: where that mends it whichever it is, none is named.
        """
        if not 1 < len(names) <= _MOST_LEFT_OUT:
            return None
        tried = [left_uncompiled(self.trials, (name,), _peir(self.free)) for name in names]
        mended = [each for each in tried if each.agrees]
        return mended[0] if len(mended) == 1 else None


def _peir(run: Run) -> float | None:
    last = final_output(run.rows)
    return None if last is None else last.peir
