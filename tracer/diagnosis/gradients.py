"""Gradients: whether two models that agree going forward are trained alike, and where they diverge.

Both are run once more with gradients, each by itself, and both sums of their outputs with the same
random weights are differentiated: by the floats that a model is given, and by the parameters that
both train and that hold the same. What rounding alone makes of a gradient is measured by a third
run of the reference, in which each module's output is moved by one unit in the last place.

Where gradients differ, the same is done for the modules that are called directly inside, each with
its own side's arguments, and inside those that differ themselves. A module whose gradients differ
although those of all modules inside it agree is an origin. Last, the candidate is run with the
reference's modules in the place of all origins; or, where the models themselves are the origin, in
the place of all modules that they call.

What one side trains and the other does not is found first, and trained on both from there on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from tracer.diagnosis.finding import Finding, FindingKind
from tracer.diagnosis.frozen import frozen_findings, gradient_origin, line_of, trained_alike
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Divergence, Symptom, Verdict
from tracer.diagnosis.zoom.backward import zoom_backward
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.execution.backward import Trained
from tracer.execution.fusions import Part
from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.session import Session
from tracer.execution.side import EventKey
from tracer.execution.standin import StandIn
from tracer.execution.stepping import Driver
from tracer.measurement.arguments import CallPair
from tracer.measurement.gradients import (
    CannotDifferentiateError,
    Parameter,
    TrainedPair,
    gradient_rows,
    outputs_together,
    shared_parameters,
    visible_in,
)
from tracer.measurement.rows import CallKey, Row
from tracer.tensors.rebuilding import deep_copy
from tracer.tensors.roles import Roles
from tracer.tensors.tolerance import Tolerance

_MOST_ORIGINS = 8
_ROOT: CallKey = ("", 0)
# What PyTorch says of checkpoints that allow no gradients by chosen tensors.
_REENTRANT = "use_reentrant=True"


@dataclass(frozen=True)
class GradientsAgree:
    """Gradients were compared, and agree.

    Attributes:
        compared: how many.
        left_out: how many parameters that the reference trains have no counterpart that holds the
            same.
        worst: the one with the largest error for its limit, of those that are more than rounding.
    """

    compared: int
    left_out: int
    worst: Row


@dataclass(frozen=True)
class ForwardOnly:
    """Models in training mode agree, and what is trained by was not compared: their gradients.

    Attributes:
        why: the reason, in a clause.
    """

    why: str


@dataclass(frozen=True)
class GradientsDiffer:
    """Where gradients diverge; see `compare_gradients`.

    Attributes:
        verdict: that of the comparison.
        rows: the gradients that differ.
        zoomed: the operation in the backward of the first origin; None where it was not found.
    """

    verdict: Verdict
    rows: tuple[Row, ...]
    zoomed: Zoomed | None


def compare_gradients(
    session: Session, tolerance: Tolerance, roles: Roles, order: int
) -> GradientsAgree | GradientsDiffer | ForwardOnly:
    """Compares the gradients of two models that agree going forward.

    Args:
        order: the place of the next row in execution order.

    Raises:
        CannotDifferentiateError: the candidate raised.
    """
    models = session.reference, session.candidate
    if any(isinstance(model, StandIn | Driver) for model in models):
        return ForwardOnly("a model that runs in steps, or from a file, is not differentiated")
    if "" not in session.pairs.values():
        return ForwardOnly("only some modules were to be compared, and not the models themselves")
    search = _Search(session, tolerance, roles)
    root = search.root()
    parameters = search.parameters("")
    if not root.outputs:
        return ForwardOnly("the outputs of the models do not belong together one by one")
    try:
        rows = gradient_rows(root, parameters, tolerance, roles, order)
    except CannotDifferentiateError as error:
        if error.side == "candidate" and _REENTRANT not in str(error):
            raise
        return ForwardOnly(f"the {error.side} raised {error}")
    if not rows:
        return ForwardOnly("there is nothing that both models are trained by")
    wrong = [row for row in rows if not row.agrees]
    if wrong:
        return search.differ(root, wrong)
    trained = {
        id(parameter) for parameter in session.reference.parameters() if parameter.requires_grad
    }
    left_out = len(trained - {id(parameter.reference) for parameter in parameters})
    more = [row for row in rows if row.error <= row.limit] or rows
    return GradientsAgree(len(rows), left_out, max(more, key=lambda row: row.error / row.limit))


class _Search:
    """Compares call by call; see the module's docstring."""

    def __init__(self, session: Session, tolerance: Tolerance, roles: Roles) -> None:
        self._session = session
        self._tolerance = tolerance
        self._roles = roles
        every = shared_parameters(session.pairing, "")
        # If both train none of them, one side is not there to be trained.
        self._is_trained = not all(parameter.is_frozen for parameter in every)

    def root(self) -> TrainedPair:
        """The call of both models."""
        return next(iter(self._calls(None)))

    def differ(self, root: TrainedPair, wrong: Sequence[Row]) -> GradientsDiffer:
        """Where gradients that differ diverge first, and the evidence."""
        keys = {(row.module, row.value.in_argument) for row in wrong}
        parameters = self.parameters("")
        frozen = [p for p in parameters if p.is_frozen and (p.module, p.name) in keys]
        findings: list[Finding] = []
        zoomed = None
        with trained_alike(parameters):
            left: Sequence[Row] = wrong
            if frozen:
                rows = gradient_rows(root, parameters, self._tolerance, self._roles)
                left = [row for row in rows if not row.agrees]
            if left:
                findings, zoomed = self._wrong(root, left)
        if all(finding.confirmed for finding in findings):
            left = ()  # what else differs comes from them
        others = frozen_findings(frozen, left, self._session.pairing)
        findings = [*others[:_MOST_ORIGINS], *findings]
        first = wrong[0]
        verdict = Verdict(
            agrees=False,
            symptom=Symptom.of(first),
            origin=findings[0].origin,
            confirmed=findings[0].confirmed,
            details=Divergence(tuple(findings), first),
            origins=tuple(finding.origin for finding in findings),
        )
        if zoomed is not None:
            zoomed = replace(zoomed, candidate_module=findings[0].origin.candidate_module)
        return GradientsDiffer(verdict, tuple(wrong), zoomed)

    def _wrong(
        self, root: TrainedPair, wrong: Sequence[Row]
    ) -> tuple[list[Finding], Zoomed | None]:
        """The modules that make wrong gradients, and the operation that does in the first."""
        origins = list(self._origins(root, wrong))
        proof = Proof(self._outcome(root, [pair for pair, _ in origins]))
        zoomed, is_shown = zoom_backward(
            *origins[0], self.parameters(origins[0][0].key[0]), self._roles
        )
        findings: list[Finding] = []
        for pair, rows in origins:
            modules = pair.reference.module, pair.candidate.module
            lines = [line_of(module) for module in modules]
            shown = proof
            if not findings and zoomed is not None:
                for side, operation in enumerate((zoomed.expected, zoomed.culprit)):
                    lines[side] = lines[side] if operation is None else operation.location
                if is_shown and not proof.confirmed:
                    shown = Proof(Outcome.GRAPH_WHOLE)
            origin = gradient_origin(pair.key[0], lines, self._session.pairing)
            names = tuple(dict.fromkeys(row.value.in_argument for row in rows))
            findings.append(Finding(origin, FindingKind.BACKWARD, shown, names=names))
        return findings, zoomed

    def _origins(
        self, pair: TrainedPair, wrong: Sequence[Row]
    ) -> Iterator[tuple[TrainedPair, Sequence[Row]]]:
        """The calls inside that differ although all inside them agree, in the order of backward."""
        found = 0
        for inside in reversed(self._calls(pair.key)):
            try:
                rows = gradient_rows(
                    inside, self.parameters(inside.key[0]), self._tolerance, self._roles
                )
            except CannotDifferentiateError:
                continue  # what cannot be called by itself
            own = [row for row in rows if not row.agrees]
            for each in self._origins(inside, own) if own else ():
                if found == _MOST_ORIGINS:
                    return
                found += 1
                yield each
        if not found:
            yield pair, wrong

    def _outcome(self, root: TrainedPair, origins: Sequence[TrainedPair]) -> Outcome:
        """What becomes of the gradients with the reference's modules in the origins' places."""
        if any(pair.key == _ROOT for pair in origins):
            return self._without_what_it_calls(root)
        if not all(map(_can_stand_in, origins)):
            return Outcome.NOT_REPLACED
        replaced = [pair.key[0] for pair in origins]
        parameters = [p for p in self.parameters("") if not _is_inside(p.module, replaced)]
        agree = self._agree_with(root, origins, parameters)
        if agree is None:
            return Outcome.NOT_REPLACED
        return Outcome.GRADIENTS_AGREE if agree else Outcome.GRADIENTS_DIFFER

    def _without_what_it_calls(self, root: TrainedPair) -> Outcome:
        """Whether the gradients of the models differ whatever the modules do that they call."""
        inside = self._calls(root.key)
        if not inside or not all(map(_can_stand_in, inside)):
            return Outcome.NOT_REPLACED
        replaced = [pair.key[0] for pair in inside]
        parameters = [
            replace(p, candidate=p.reference) if _is_inside(p.module, replaced) else p
            for p in self.parameters("")
        ]
        agree = self._agree_with(root, inside, parameters)
        return Outcome.OWN_GRADIENTS if agree is False else Outcome.NOT_REPLACED

    def _agree_with(
        self, root: TrainedPair, others: Sequence[TrainedPair], parameters: Sequence[Parameter]
    ) -> bool | None:
        """Whether gradients agree with the reference's modules in the place of the candidate's;
        None where a model raises."""
        instead = {id(p.candidate.module): p for p in others}.values()
        replaced = [pair.key[0] for pair in others]
        pairing = self._session.pairing
        inside = {
            id(pairing.reference[name]): own
            for own, name in pairing.pairs.items()
            if _is_inside(name, replaced)
        }
        names = {**root.candidate.names, **inside}
        modules = tuple((pair.candidate.module, pair.reference.module) for pair in instead)
        trial = replace(root, candidate=replace(root.candidate, names=names, instead=modules))
        try:
            rows = gradient_rows(trial, parameters, self._tolerance, self._roles)
        except CannotDifferentiateError:
            return None
        return all(row.agrees for row in rows)

    def parameters(self, inside: str) -> list[Parameter]:
        """Those in a module of the reference's whose gradients are compared."""
        return shared_parameters(self._session.pairing, inside) if self._is_trained else []

    def _calls(self, inside: CallKey | None) -> list[TrainedPair]:
        """The calls that are made directly inside another one, or that of the models."""
        taken = _Calls(self._session, inside, self._roles)
        self._session.run(taken, frozenset())
        return taken.ended


class _Calls:
    """A visitor that keeps what the calls directly inside another one are given."""

    observer = None

    def __init__(self, session: Session, inside: CallKey | None, roles: Roles) -> None:
        pairing = session.pairing
        self.ended: list[TrainedPair] = []
        self._begun: dict[CallKey, tuple[Trained, Trained]] = {}
        self._inside = inside
        self._roles = roles
        self._paired = frozenset(session.pairs.values())
        self._names = [
            {id(module): name for name, module in modules.items()}
            for modules in (pairing.reference, pairing.candidate)
        ]
        self._streams = {name: name for name in pairing.pairs.values()}, pairing.pairs

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Copies the arguments of two calls that have started; notes the form of two outputs."""
        calls = CallPair(reference, candidate, self._roles)
        if isinstance(reference.module, Part) or isinstance(candidate.module, Part):
            return None
        if phase is Phase.START:
            if self._is_inside(reference):
                sides = enumerate((reference, candidate))
                self._begun[calls.key] = self._trained(*next(sides)), self._trained(*next(sides))
        elif calls.key in self._begun:
            both = self._begun.pop(calls.key)
            visible = self._visible(reference)
            self.ended.append(TrainedPair(calls.key, *both, outputs_together(calls), visible))
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """Arguments are copied as a call begins."""

    def end(self) -> None:
        """All was noted at once."""

    def _visible(self, call: Call | None) -> torch.Tensor | None:
        while call is not None:
            visible = visible_in(call, self._roles)
            if visible is not None:
                return visible
            call = call.parent
        return None

    def _is_inside(self, call: Call) -> bool:
        around = call.parent
        while around is not None and around.name not in self._paired:
            around = around.parent
        key = None if around is None else (around.name, around.index)
        return key == self._inside

    def _trained(self, side: int, call: Call) -> Trained:
        return Trained(
            side=("reference", "candidate")[side],
            module=call.module,
            names=self._names[side],
            streams=self._streams[side],
            arguments=deep_copy(call.arguments),
            positional=call.positional,
        )


def _is_inside(name: str, others: Sequence[str]) -> bool:
    """Whether a module is one of others or inside one."""
    return any(f"{name}.".startswith(f"{other}.") for other in others)


def _can_stand_in(pair: TrainedPair) -> bool:
    """Whether the reference's module can be called in the candidate's place."""
    declared = ("to_reference_output", "to_reference_input")
    modules = pair.reference.module, pair.candidate.module
    is_declared = any(hasattr(module, name) for module in modules for name in declared)
    return not is_declared and pair.reference.arguments.keys() == pair.candidate.arguments.keys()
