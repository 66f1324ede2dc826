"""The origin of a divergence: where the error was introduced, by whom, and the proof.

From a value that disagrees the error is followed back as long as the inputs had most of it, then
up through the callers as long as an argument already disagreed there. What remains is put to the
test: both models run again, the candidate with the reference's value in the suspected place.
"""

import math

import torch
from torch import nn

from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.parameters import (
    ParameterDifference,
    Setting,
    changed_dtypes,
    changed_parameters,
    changed_rows,
    changed_settings,
    equal_parameter,
    own_settings,
    untransposed_parameters,
)
from tracer.diagnosis.propagation import Suspect, Trail
from tracer.diagnosis.trials import Evidence, Outcome, Proof
from tracer.execution.hooks import Location
from tracer.execution.offload import own_parameters, value_of
from tracer.execution.torch_internals import as_written, parameters_of
from tracer.interventions.experiment import Experiment
from tracer.interventions.trial import Replacements
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallRecord, Row
from tracer.tensors.leaves import dtype_name
from tracer.tensors.relations import relation_of


class Search:
    """Looks for the origin of one divergence.

    Attributes:
        trail: what the run has left behind.
        experiment: runs both models again.
        tolerance: how far pairs may lie apart.
        evidence: the trials that may be run.
    """

    def __init__(
        self,
        comparer: Comparer,
        experiment: Experiment,
        *,
        may_run: bool,
        forced: bool = False,
    ) -> None:
        self.trail = Trail(comparer)
        self.experiment = experiment
        self.tolerance = experiment.tolerance
        self.evidence = Evidence(comparer, experiment, may_run=may_run, forced=forced)
        self._reference_modules, self._candidate_modules = experiment.modules

    def forced(self, comparer: Comparer) -> "Search":
        """The same search in a run, and with trials, in which no error is inherited."""
        return Search(comparer, self.experiment, may_run=True, forced=True)

    def examine(self, start: Row) -> Finding:
        """Finds what made a value disagree."""
        for record in self.trail.editing_before(start):
            if (finding := self._try_sparing(record, start)) is not None:
                return finding
        record = self.trail.records[start.module, start.call]
        around = record if start.is_output else self.trail.parent(record)
        for suspect in self.trail.suspects(around, start.order):
            if (finding := self._try_argument(suspect, start)) is not None:
                return finding
        if not start.is_output:
            return self._passed_wrongly(start, record)
        return self._computed_wrongly(start, record)

    def examine_failure(self, record: CallRecord) -> Finding:
        """Looks for what made the candidate raise in a call, where nothing had differed before."""
        for suspect in self.trail.suspects(record, math.inf):
            if not self.evidence.may_run:
                break
            # Calls that were not reached would be given the wrong argument, too.
            trial = self._trial_of(suspect, in_all_calls=True)
            if self.evidence.run(trial).failure is None:
                return self._passed(suspect, Proof(Outcome.RUNS, trial))
        dtypes = changed_dtypes(*self._both_modules(record))
        origin = _inside(record, OriginKind.PARAMETER if dtypes else OriginKind.COMPUTATION)
        return Finding(origin, FindingKind.RAISES, settings=tuple(dtypes))

    def gradual(self, start: Row, first: Row, alternative: Finding) -> Finding:
        """The finding of an error that grows and that no single value explains."""
        return Finding(alternative.origin, FindingKind.GROWS, growth=(start, first))

    def has_unrelated_parameters(self, row: Row) -> bool:
        """Whether the module of a result has a matrix that is the reference's in no layout."""
        reference, candidate = self._both_modules(self.trail.records[row.module, row.call])
        theirs = dict(own_parameters(candidate))
        return any(
            (c := theirs.get(name)) is not None
            and c.dim() == r.dim() > 1
            and not torch.equal(r, c)
            and relation_of(r.mT, c.mT) is None
            for name, r in own_parameters(reference)
        )

    def differing_settings(self) -> list[tuple[str, Setting]]:
        """The settings of called modules that differ, each with its module."""
        pairs = {record.module: record for record in self.trail.records.values()}
        return [
            (name, setting)
            for name, record in pairs.items()
            for setting in own_settings(*self._both_modules(record))
        ]

    def _try_sparing(self, record: CallRecord, start: Row) -> Finding | None:
        """Lets a call edit copies of its arguments; a finding if the divergence is gone."""
        proof = self.evidence.clears(Replacements(spared=(record.key, record.edited)), start)
        if proof is None:
            return None
        origin = _inside(record, OriginKind.COMPUTATION)
        return Finding(origin, FindingKind.EDITED, proof, names=record.edited)

    def _try_argument(self, suspect: Suspect, start: Row) -> Finding | None:
        """Gives the candidate the reference's argument; a finding if the divergence is gone."""
        proof = self.evidence.clears(self._trial_of(suspect), start)
        if proof is None:
            return None
        if suspect.giver is not None:
            # What it passes may be wrong because of what it holds.
            finding = self._wrong_parameters(start, self.trail.records[suspect.giver])
            if finding is not None and finding.confirmed:
                return finding
        return self._passed(suspect, proof)

    def _trial_of(self, suspect: Suspect, *, in_all_calls: bool = False) -> Replacements:
        """Who was given a copy of a cache must be given the next one as well."""
        in_all_calls |= suspect.argument in self.trail.written_arguments()
        handed = None
        if in_all_calls and suspect.giver is not None:
            handed = suspect.giver[0], suspect.argument
        return Replacements(arguments=dict.fromkeys(suspect.calls, suspect.argument), handed=handed)

    def _passed(self, suspect: Suspect, proof: Proof) -> Finding:
        """The finding of a wrong argument."""
        record = self.trail.records[suspect.calls[0]]
        giver = None if suspect.giver is None else self.trail.records[suspect.giver]
        module = "" if giver is None else giver.module
        own_name = None if giver is None else giver.other_name
        lines = _line(record.reference_caller), _line(record.candidate_caller)
        passed, peir = self._both_forms(record, suspect.argument)
        return Finding(
            Origin(module, suspect.argument, OriginKind.ARGUMENT, *lines, own_name),
            FindingKind.PASSED,
            proof,
            other=record.module,
            more_calls=len(suspect.calls) - 1,
            from_outside=record.parent is None,
            passed=passed,
            peir=peir,
        )

    def _both_forms(
        self, record: CallRecord, argument: str
    ) -> tuple[tuple[str, str], float | None]:
        """What each side passed for an argument, in words, and how far apart if these are equal."""
        for form in record.form_differences:
            if form.value.argument == argument:
                return (form.reference, form.candidate), None
        for value, words in record.described.items():
            if value.argument == argument:
                return words, None
        # An error within its tolerance, which only what is computed from it makes visible.
        rows = record.arguments.items()
        row = next(row for value, row in rows if value.argument == argument)
        return (f"{dtype_name(row.dtype)} {list(row.shape)}", ""), row.peir

    def _passed_wrongly(self, start: Row, record: CallRecord) -> Finding:
        """The caller's arguments agree, and what it passes to this call does not."""
        caller = self.trail.parent(record)
        if caller is not None:
            # A module may hold parameters of its own beside the modules that it calls.
            finding = self._wrong_parameters(start, caller)
            if finding is not None:
                return finding
        argument = start.argument or ""
        is_activation = argument == record.main_argument and (
            start.dtype is None or start.dtype.is_floating_point or start.dtype.is_complex
        )
        calls = tuple(
            other.key
            for other in self.trail.records.values()
            if other.parent == record.parent and argument in self.trail.differing_arguments(other)
        ) or (record.key,)
        proof = self.evidence.confirm(
            Replacements(
                arguments=dict.fromkeys([record.key] if is_activation else calls, argument)
            ),
            start,
        )
        if not is_activation:
            return self._passed(Suspect(argument, record.parent, calls), proof)
        if caller is not None and not proof.confirmed and self.trail.is_jump(start):
            proof = self.evidence.confirm_inside(caller, proof)
        origin = Origin(
            caller.module if caller is not None else "",
            None,
            OriginKind.COMPUTATION,
            _line(record.reference_caller),
            _line(record.candidate_caller),
            None if caller is None else caller.other_name,
        )
        before = self.trail.last_agreeing_before(record)
        return Finding(
            origin,
            FindingKind.BEFORE_CALL,
            proof,
            other=record.module,
            since=None if before is None else before.module,
            settings=self._settings(caller),
        )

    def _computed_wrongly(self, start: Row, record: CallRecord) -> Finding:
        """The arguments agree and the output does not: inside the module."""
        finding = self._wrong_parameters(start, record)
        if finding is not None:
            return finding
        children = self.trail.children(record.key)
        lines_of = children[-1] if children else None
        origin = Origin(
            record.module,
            None,
            OriginKind.COMPUTATION,
            _line(_own_line(lines_of, record, reference=True)),
            _line(_own_line(lines_of, record, reference=False)),
            record.other_name,
        )
        proof = self.evidence.confirm(Replacements(output=record.key), start)
        kind = FindingKind.AFTER_CALLS if children else FindingKind.INSIDE
        return Finding(
            origin,
            FindingKind.LEFT if start.is_written else kind,
            proof,
            other=children[-1].module if children else None,
            names=(start.value.argument or "",) if start.is_written else (),
            settings=self._settings(record),
            form_alone=start.dtype is None,
        )

    def _wrong_parameters(self, start: Row, record: CallRecord) -> Finding | None:
        """Parameters that differ, unless the reference's do not take the divergence away.

        Where that cannot be tried, they are blamed if the module makes no calls itself.
        """
        changed = self._changed_parameters(record)
        transposed = not changed and self.evidence.may_run
        if transposed:
            changed = untransposed_parameters(*self._both_modules(record))
        if not changed:
            return None
        trial = Replacements(parameters=(record.key, tuple(changed)), transposed=transposed)
        proof = self.evidence.confirm(trial, start)
        untried = not self.evidence.may_run or proof.outcome is Outcome.NOT_REPLACED
        if not proof.confirmed and proof.outcome is Outcome.NOT_REPLACED:
            proof = self.evidence.confirm(Replacements(output=record.key), start)
        if not proof.confirmed and (record.children or not untried):
            return None
        origin = Origin(
            record.module,
            None,
            OriginKind.PARAMETER,
            _line(record.reference_caller),
            _line(record.candidate_caller),
            record.other_name,
        )
        others = {} if transposed else {name: self._whose(record, name) for name in changed}
        equals = {name: other for name, other in others.items() if other is not None}
        return Finding(origin, FindingKind.PARAMETERS, proof, parameters=changed, equals=equals)

    def _changed_parameters(self, record: CallRecord) -> dict[str, ParameterDifference]:
        """Of a module that makes calls, only what can be tried: it may hold more for other ends."""
        inside = f"{record.module}." if record.module else ""
        called = {
            name.removeprefix(inside) for name, _ in self.trail.records if name.startswith(inside)
        }
        changed = changed_parameters(
            *self._both_modules(record),
            self.tolerance,
            called if record.children else frozenset(),
        )
        if not record.children:
            return changed
        kept = {name: change for name, change in changed.items() if change.exchangeable}
        pairing = self.experiment.session.pairing
        return {**kept, **changed_rows(pairing, record.module, called, self.tolerance)}

    def _whose(self, record: CallRecord, name: str) -> str | None:
        """The parameter of the reference's that a wrong one equals."""
        owner, _, last = name.rpartition(".")
        modules = as_written(self._candidate_modules[record.candidate_module])
        held = dict(modules.named_modules()).get(owner)
        parameter = None if held is None else parameters_of(held).get(last)
        if held is None or parameter is None:
            return None
        return equal_parameter(value_of(held, last, parameter), self._reference_modules)

    def _settings(self, record: CallRecord | None) -> tuple[Setting, ...]:
        return () if record is None else tuple(changed_settings(*self._both_modules(record)))

    def _both_modules(self, record: CallRecord) -> tuple[nn.Module, nn.Module]:
        reference = self._reference_modules[record.module]
        return reference, self._candidate_modules[record.candidate_module]


def _own_line(
    last_child: CallRecord | None, record: CallRecord, *, reference: bool
) -> Location | None:
    """The line in a module after which its own computation went wrong.

    That of its last call, or where its forward begins; for a forward inside PyTorch, the line that
    called it, since that is where the user can look.
    """
    if last_child is not None:
        return last_child.reference_caller if reference else last_child.candidate_caller
    own = record.reference_definition if reference else record.candidate_definition
    caller = record.reference_caller if reference else record.candidate_caller
    return caller if own is None or own.is_in_torch else own


def _inside(record: CallRecord, kind: OriginKind) -> Origin:
    """An origin in a module's own forward, with the lines where that begins."""
    return Origin(
        record.module,
        None,
        kind,
        _line(record.reference_definition),
        _line(record.candidate_definition),
        record.other_name,
    )


def _line(location: Location | None) -> str | None:
    return None if location is None else str(location)
