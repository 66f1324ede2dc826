"""The origin of a divergence: where the error was introduced, by whom, and the proof.

From a value that disagrees the error is followed back as long as the inputs had most of it, then
up through the callers as long as an argument already disagreed there. What remains is put to the
test: both models run again, the candidate with the reference's value in the suspected place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tracer.diagnosis.parameters import (
    Change,
    changed_dtypes,
    changed_parameters,
    changed_settings,
    equal_parameter,
    own_settings,
)
from tracer.diagnosis.propagation import Suspect, Trail
from tracer.diagnosis.trials import Evidence, Proof
from tracer.execution.hooks import Location
from tracer.execution.offload import value_of
from tracer.execution.torch_internals import as_written, parameters_of
from tracer.interventions.experiment import Experiment
from tracer.interventions.trial import Replacements
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.known_mistakes import Fit
from tracer.tensors.leaves import dtype_name
from tracer.text import FEW, few, figure, module_in_words, place, short_line


@dataclass(frozen=True)
class Origin:
    """Where the divergence begins.

    Attributes:
        module: the module in whose own lines, parameters or computation it begins; "" is the root.
        argument: the argument that this module handed down wrongly, if that is what it did.
        kind: "parameter", "computation" or "argument".
        reference_line, candidate_line: "file:line" on each side; None where there is no source.
    """

    module: str
    argument: str | None
    kind: str
    reference_line: str | None
    candidate_line: str | None


@dataclass(frozen=True)
class Finding:
    """The origin that was found for a divergence.

    Attributes:
        origin: where it begins.
        confirmed: whether a run with the reference's value there takes it away.
        lines: the finding and the evidence in words.
        mistakes: known kinds of mistake that explain it, best first.
        trial: what was replaced in that run; None where none was made.
    """

    origin: Origin
    confirmed: bool
    lines: tuple[str, ...]
    mistakes: tuple[Fit, ...] = ()
    trial: Replacements | None = None


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
            return self._handed_wrongly(start, record)
        return self._computed_wrongly(start, record)

    def examine_failure(self, record: CallRecord) -> Finding:
        """Looks for what made the candidate raise in a call, where nothing had differed before."""
        for suspect in self.trail.suspects(record, math.inf):
            if not self.evidence.may_run:
                break
            # Calls that were not reached would be given the wrong argument, too.
            trial = self._trial_of(suspect, in_all_calls=True)
            if self.evidence.run(trial).failure is None:
                origin = self._origin_of(suspect)
                text = f"Confirmed: with the reference's `{suspect.argument}` it does not raise."
                proof = Proof(True, text, trial=trial)
                return _finding(origin, self._handed(origin, suspect.calls), proof)
        dtypes = changed_dtypes(*self._both_modules(record))
        where = (
            f"{module_in_words(record.module)} of the candidate raises; nothing else had differed."
        )
        origin = _inside(record, "parameter" if dtypes else "computation")
        return Finding(origin, False, (where, *dtypes))

    def gradual(self, start: Row, first: Row, alternative: Finding) -> Finding:
        """What is said of an error that grows and that no single value explains."""
        line = (
            f"No single value causes it: the error grows from PEIR {figure(start.peir)} at "
            f"{place(start)} to {figure(first.peir)} here, as accumulated rounding does. If that "
            "much is expected, give a tolerance above it."
        )
        return Finding(alternative.origin, False, (line,))

    def differing_settings(self) -> list[str]:
        """A sentence for each setting of a called module that differs."""
        pairs = {record.module: record for record in self.trail.records.values()}
        return [
            f"{module_in_words(name)}: {sentence[0].lower()}{sentence[1:]}"
            for name, record in pairs.items()
            for sentence in own_settings(*self._both_modules(record))
        ]

    def _try_sparing(self, record: CallRecord, start: Row) -> Finding | None:
        """Lets a call edit copies of its arguments; a finding if the divergence is gone."""
        names = few([f"`{name}`" for name in record.edited], " and ")
        trial = Replacements(spared=(record.key, record.edited))
        proof = self.evidence.clears(trial, start, f"a copy of {names} for it")
        if proof is None:
            return None
        origin = _inside(record, "computation")
        lines = (
            f"{module_in_words(record.module)} edits its argument {names} in place, which is used "
            "again after it; the reference's does not.",
            *_both_lines(origin),
        )
        return _finding(origin, lines, proof)

    def _try_argument(self, suspect: Suspect, start: Row) -> Finding | None:
        """Gives the candidate the reference's argument; a finding if the divergence is gone."""
        given = f"the reference's `{suspect.argument}`"
        proof = self.evidence.clears(self._trial_of(suspect), start, given)
        if proof is None:
            return None
        if suspect.giver is not None:
            # What it hands on may be wrong because of what it holds.
            finding = self._wrong_parameters(start, self.trail.records[suspect.giver])
            if finding is not None and finding.confirmed:
                return finding
        origin = self._origin_of(suspect)
        return _finding(origin, self._handed(origin, suspect.calls), proof)

    def _trial_of(self, suspect: Suspect, *, in_all_calls: bool = False) -> Replacements:
        """Who was given a copy of a cache must be given the next one as well."""
        in_all_calls |= suspect.argument in self.trail.written_arguments()
        handed = None
        if in_all_calls and suspect.giver is not None:
            handed = suspect.giver[0], suspect.argument
        return Replacements(arguments=dict.fromkeys(suspect.calls, suspect.argument), handed=handed)

    def _origin_of(self, suspect: Suspect) -> Origin:
        record = self.trail.records[suspect.calls[0]]
        return Origin(
            suspect.giver[0] if suspect.giver else "",
            suspect.argument,
            "argument",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )

    def _handed(self, origin: Origin, calls: Sequence[CallKey]) -> list[str]:
        record = self.trail.records[calls[0]]
        others = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
        form = self._both_forms(record, origin.argument or "")
        giver = "What runs it" if record.parent is None else module_in_words(origin.module)
        return [
            f"{giver} hands a wrong `{origin.argument}` to "
            f"{module_in_words(record.module)}{others}:",
            f"  reference: {form[0]}, at {short_line(origin.reference_line)}",
            f"  candidate: {form[1]}, at {short_line(origin.candidate_line)}",
        ]

    def _both_forms(self, record: CallRecord, argument: str) -> tuple[str, str]:
        """What each side passed for an argument, in words."""
        for form in record.form_differences:
            if form.value.argument == argument:
                return form.reference, form.candidate
        for value, words in record.described.items():
            if value.argument == argument:
                return words
        # An error within its tolerance, which only what is computed from it makes visible.
        rows = record.arguments.items()
        row = next(row for value, row in rows if value.argument == argument)
        return f"{dtype_name(row.dtype)} {list(row.shape)}", f"PEIR {figure(row.peir)} away"

    def _handed_wrongly(self, start: Row, record: CallRecord) -> Finding:
        """The caller's arguments agree, and what it hands to this call does not."""
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
            f"the reference's `{argument}`",
        )
        if not is_activation:
            origin = self._origin_of(Suspect(argument, record.parent, calls))
            return _finding(origin, self._handed(origin, calls), proof)
        if caller is not None and not proof.confirmed and self.trail.is_jump(start):
            proof = self.evidence.confirm_inside(caller, proof)
        origin = Origin(
            caller.module if caller is not None else "",
            None,
            "computation",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        before = self.trail.last_agreeing_before(record)
        since = (
            f", after {module_in_words(before.module)} still agreed" if before is not None else ""
        )
        lines = [
            f"It begins in the own lines of {module_in_words(origin.module)}: what it computes for "
            f"{module_in_words(record.module)} is wrong{since}.",
            *_both_lines(origin),
            *self._settings(caller),
        ]
        return _finding(origin, lines, proof)

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
            "computation",
            _line(_own_line(lines_of, record, reference=True)),
            _line(_own_line(lines_of, record, reference=False)),
        )
        proof = self.evidence.confirm(
            Replacements(output=record.key),
            start,
            f"the reference's output of {module_in_words(record.module)}",
        )
        name = module_in_words(record.module)
        if start.is_written:
            where = f"What {name} leaves in its argument `{start.value.argument}` is wrong."
        elif children:
            where = (
                f"It begins in the own lines of {name}, after its last call "
                f"({module_in_words(children[-1].module)}), which still agreed."
            )
        else:
            where = f"It begins inside {name}: its inputs agree, its output does not."
        changed = list(self._changed_parameters(record).items())
        parameters = [f"`{name}` differs ({change.text})." for name, change in changed[:FEW]]
        lines = [where, *_both_lines(origin), *parameters, *self._settings(record)]
        if start.dtype is None:
            lines.append(
                "If the form alone differs, give the candidate's module a method "
                "`to_reference_output(output)` that reads it back."
            )
        return _finding(origin, lines, proof)

    def _wrong_parameters(self, start: Row, record: CallRecord) -> Finding | None:
        """Parameters that differ, unless the reference's do not take the divergence away.

        Where that cannot be tried, they are blamed if the module makes no calls itself.
        """
        changed = self._changed_parameters(record)
        if not changed:
            return None
        names = few([f"`{name}`" for name in changed], " and ")
        given = f"the reference's {names}"
        exchangeable = all(change.exchangeable for change in changed.values())
        proof = self.evidence.confirm(
            Replacements(parameters=(record.key, tuple(changed))), start, given
        )
        if not proof.confirmed and not exchangeable:
            given = f"the reference's output of {module_in_words(record.module)}"
            proof = self.evidence.confirm(Replacements(output=record.key), start, given)
        untried = not self.evidence.may_run or not exchangeable
        if not proof.confirmed and (record.children or not untried):
            return None
        origin = Origin(
            record.module,
            None,
            "parameter",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        differ = "differs" if len(changed) == 1 else "differ"
        others = [self._whose(record, name) for name in changed]
        lines = (
            f"The inputs of {module_in_words(record.module)} agree, its {names} {differ} "
            f"({few([change.text for change in changed.values()], '; ')}).",
            *[other for other in others if other][:FEW],
            *_both_lines(origin),
        )
        return _finding(origin, lines, proof)

    def _changed_parameters(self, record: CallRecord) -> dict[str, Change]:
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
        return {name: change for name, change in changed.items() if change.exchangeable}

    def _whose(self, record: CallRecord, name: str) -> str:
        """A sentence where a wrong parameter is another one of the reference's."""
        owner, _, last = name.rpartition(".")
        modules = as_written(self._candidate_modules[record.candidate_module])
        held = dict(modules.named_modules()).get(owner)
        parameter = None if held is None else parameters_of(held).get(last)
        if held is None or parameter is None:
            return ""
        values = value_of(held, last, parameter)
        other = equal_parameter(values, self._reference_modules)
        return "" if other is None else f"Its `{name}` equals the reference's `{other}`."

    def _settings(self, record: CallRecord | None) -> list[str]:
        return [] if record is None else changed_settings(*self._both_modules(record))

    def _both_modules(self, record: CallRecord) -> tuple[nn.Module, nn.Module]:
        reference = self._reference_modules[record.module]
        return reference, self._candidate_modules[record.candidate_module]


def _finding(origin: Origin, lines: Sequence[str], proof: Proof) -> Finding:
    """A finding in words, the proof last."""
    said = (*lines, proof.text)
    return Finding(origin, proof.confirmed, said, proof.mistakes, proof.trial)


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


def _inside(record: CallRecord, kind: str) -> Origin:
    """An origin in a module's own forward, with the lines where that begins."""
    return Origin(
        record.module,
        None,
        kind,
        _line(record.reference_definition),
        _line(record.candidate_definition),
    )


def _line(location: Location | None) -> str | None:
    return None if location is None else str(location)


def _both_lines(origin: Origin) -> list[str]:
    return [
        f"  reference: {short_line(origin.reference_line)}",
        f"  candidate: {short_line(origin.candidate_line)}",
    ]
