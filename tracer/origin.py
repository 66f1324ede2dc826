"""The origin of a divergence: where the error was introduced, by whom, and the proof.

From a value that disagrees the error is followed back as long as the inputs had most of it, then
up through the callers as long as an argument already disagreed there. What remains is put to the
test: both models run again, the candidate with the reference's value in the suspected place.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from tracer.calls import Location
from tracer.comparer import Comparer
from tracer.counterfactual import Experiment, Trial
from tracer.difference import Tolerance
from tracer.fits import Fit
from tracer.lockstep import Visitor
from tracer.parameters import (
    Change,
    as_written,
    changed_dtypes,
    changed_parameters,
    changed_settings,
    equal_parameter,
    own_settings,
)
from tracer.phrases import FEW, few, figure, module_in_words, place, short_line
from tracer.rows import (
    BY_MEANING,
    CallKey,
    CallRecord,
    Row,
    argument_of,
    first_divergence,
    inputs_of,
    is_result,
)
from tracer.values import dtype_name, is_mask_name

# An error that is at least this part of it already in the inputs was inherited, not introduced.
_INHERITED = 0.25
# Below this part of the tolerance an error is rounding, wherever it was introduced.
_ROUNDING = 0.1
# Each suspect costs one more run of both models.
_MOST_SUSPECTS = 4

# Runs both models with a visitor; says what was raised if one of them raised, else None.
Rerun = Callable[[Visitor], str | None]


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
    """

    origin: Origin
    confirmed: bool
    lines: tuple[str, ...]
    mistakes: tuple[Fit, ...] = ()


@dataclass(frozen=True)
class _Suspect:
    """An argument that was handed down wrongly, by `giver`, in `calls`."""

    argument: str
    giver: CallKey | None
    calls: tuple[CallKey, ...]


@dataclass(frozen=True)
class _Proof:
    """What a run with the reference's value in place has shown."""

    confirmed: bool
    text: str
    mistakes: tuple[Fit, ...] = ()


class Search:
    """Looks for the origin of one divergence."""

    def __init__(
        self,
        comparer: Comparer,
        tolerance: Tolerance,
        rerun: Rerun | None,
        modules: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    ) -> None:
        self.comparer = comparer
        self.rows = comparer.rows
        self.records = comparer.records
        self.tolerance = tolerance
        self.rerun = rerun
        self.reference_modules, self.candidate_modules = modules

    def record_of(self, candidate_module: str, call: int) -> CallRecord | None:
        """The record of a call of the candidate's."""
        return next(
            (
                record
                for record in self.records.values()
                if (record.candidate_module, record.call) == (candidate_module, call)
            ),
            None,
        )

    # Where the error was introduced.

    def introduced_at(self, first: Row) -> Row:
        """Follows the error back as long as the inputs had most of it already.

        A mistake smaller than the tolerance crosses it only further on, where it has added up.
        """
        if not math.isfinite(first.error):
            return first
        current = first
        while True:
            inputs = [row for row in inputs_of(current, self.records) if math.isfinite(row.error)]
            source = max(inputs, key=lambda row: row.error, default=None)
            if source is None or source.error < _INHERITED * current.error:
                break
            current = source
        return current if current.error >= _ROUNDING * first.limit else first

    def _children(self, key: CallKey) -> list[CallRecord]:
        return [self.records[child] for child in self.records[key].children]

    # Suspects and their trial.

    def examine(self, start: Row) -> Finding:
        for record in self._editing_before(start):
            if (finding := self._try_sparing(record, start)) is not None:
                return finding
        record = self.records[start.module, start.call]
        around = record if start.is_output else self._parent(record)
        for suspect in self._suspects(around, start.order):
            if (finding := self._try_argument(suspect, start)) is not None:
                return finding
        if not start.is_output:
            return self._handed_wrongly(start, record)
        return self._computed_wrongly(start, record)

    def _editing_before(self, start: Row) -> list[CallRecord]:
        """Calls that edited an argument in place before a divergence, the innermost first."""
        editing = [r for r in self.records.values() if r.edited and 0 <= r.end < start.order]
        return sorted(editing, key=lambda record: record.start, reverse=True)[:_MOST_SUSPECTS]

    def _try_sparing(self, record: CallRecord, start: Row) -> Finding | None:
        """Lets a call edit copies of its arguments; a finding if the divergence is gone."""
        if self.rerun is None:
            return None
        trial = self._run(Trial(spared=(record.key, record.edited)))
        after = trial.row(start) if trial.failure is None else None
        if after is None or not after.agrees:
            return None
        names = few([f"`{name}`" for name in record.edited], " and ")
        origin = Origin(
            record.module,
            None,
            "computation",
            _line(record.reference_definition),
            _line(record.candidate_definition),
        )
        lines = (
            f"{module_in_words(record.module)} edits its argument {names} in place, which is used "
            "again after it; the reference's does not.",
            *_both_lines(origin),
            f"Confirmed: with a copy of {names} for it, PEIR at {place(start)} falls from "
            f"{figure(start.peir)} to {figure(after.peir)}{self._final(trial)}.",
        )
        return Finding(origin, True, lines)

    def examine_failure(self, record: CallRecord) -> Finding:
        """Looks for what made the candidate raise in a call, where nothing had differed before."""
        raised = f"{module_in_words(record.module)} of the candidate raises"
        for suspect in self._suspects(record, math.inf):
            if self.rerun is None:
                break
            # Calls that were not reached would be given the wrong argument, too.
            trial = self._run(self._trial_of(suspect, in_all_calls=True))
            if trial.failure is None:
                origin = self._origin_of(suspect)
                proof = f"Confirmed: with the reference's `{suspect.argument}` it does not raise."
                return Finding(origin, True, (*self._handed(origin, suspect.calls), proof))
        dtypes = changed_dtypes(*self._both_modules(record))
        origin = Origin(
            record.module,
            None,
            "parameter" if dtypes else "computation",
            _line(record.reference_definition),
            _line(record.candidate_definition),
        )
        return Finding(origin, False, (f"{raised}; nothing else had differed.", *dtypes))

    def _suspects(self, around: CallRecord | None, before: float) -> list[_Suspect]:
        """Arguments of a call and of those around it that differ, each followed to its giver.

        Masks first, then from the outermost in: others may be made from it under other names. A
        cache may be wrong because of an earlier step, so the first call that was given another one
        is looked at too. Last come masks that mean the same: one may hide by infinity, and make NaN
        where all is hidden.
        """
        found = self._followed(around, before, self._differing_arguments)
        for argument in {suspect.argument: None for suspect in found}:
            first = next(
                (r for r in self.records.values() if argument in self._differing_arguments(r)), None
            )
            earlier = self._followed(first, before, partial(self._only, argument))
            found += [suspect for suspect in earlier if suspect not in found]
        ranked = sorted(
            found,
            key=lambda suspect: (
                not is_mask_name(suspect.argument),
                -1 if suspect.giver is None else self.records[suspect.giver].start,
            ),
        )
        return ranked[:_MOST_SUSPECTS] + self._followed(around, before, self._masks_by_meaning)

    def _followed(
        self,
        around: CallRecord | None,
        before: float,
        names_of: Callable[[CallRecord, float], list[str]],
    ) -> list[_Suspect]:
        """Those arguments of a call and of the calls around it, each with its giver."""
        found: dict[tuple[CallKey | None, str], _Suspect] = {}
        while around is not None:
            for argument in names_of(around, before):
                top = around
                while (parent := self._parent(top)) is not None and argument in (
                    names_of(parent, before)
                ):
                    top = parent
                calls = tuple(
                    other.key
                    for other in self.records.values()
                    if _module(other.parent) == _module(top.parent)
                    and argument in names_of(other, math.inf)
                )
                found.setdefault((top.parent, argument), _Suspect(argument, top.parent, calls))
            around = self._parent(around)
        return list(found.values())

    def _only(self, argument: str, record: CallRecord, before: float) -> list[str]:
        return [argument] if argument in self._differing_arguments(record, before) else []

    def _masks_by_meaning(self, record: CallRecord, before: float) -> list[str]:
        names = [
            argument_of(value)
            for value, row in record.arguments.items()
            if row.agrees and row.note == BY_MEANING and row.order < before
        ]
        return list(dict.fromkeys(names))

    def _parent(self, record: CallRecord) -> CallRecord | None:
        return None if record.parent is None else self.records[record.parent]

    def _differing_arguments(self, record: CallRecord, before: float = math.inf) -> list[str]:
        """Names of the arguments of a call that differ in value or in form."""
        names = [
            argument_of(value)
            for value, row in record.arguments.items()
            if not row.agrees and row.order < before
        ]
        names += [
            argument_of(form.value)
            for form in record.form_differences
            if not is_result(form.value) and form.order < before
        ]
        return list(dict.fromkeys(names))

    def _try_argument(self, suspect: _Suspect, start: Row) -> Finding | None:
        """Gives the candidate the reference's argument; a finding if the divergence is gone."""
        if self.rerun is None:
            return None
        trial = self._run(self._trial_of(suspect))
        after = trial.row(start) if trial.failure is None else None
        if after is None or not after.agrees:
            return None
        evidence = (
            f"Confirmed: with the reference's `{suspect.argument}`, PEIR at {place(start)} falls "
            f"from {figure(start.peir)} to {figure(after.peir)}{self._final(trial)}."
        )
        giver = None if suspect.giver is None else self.records[suspect.giver]
        if giver is not None:
            # What it hands on may be wrong because of what it holds.
            changed = self._changed_parameters(giver)
            finding = self._wrong_parameters(start, giver, changed)
            if finding is not None and finding.confirmed:
                return finding
        origin = self._origin_of(suspect)
        return Finding(origin, True, (*self._handed(origin, suspect.calls), evidence))

    def _trial_of(self, suspect: _Suspect, *, in_all_calls: bool = False) -> Trial:
        """Who was given a copy of a cache must be given the next one as well."""
        written = {argument_of(row.value) for row in self.rows if row.is_written}
        in_all_calls |= suspect.argument in written
        handed = None
        if in_all_calls and suspect.giver is not None:
            handed = suspect.giver[0], suspect.argument
        return Trial(arguments=dict.fromkeys(suspect.calls, suspect.argument), handed=handed)

    def _origin_of(self, suspect: _Suspect) -> Origin:
        record = self.records[suspect.calls[0]]
        return Origin(
            suspect.giver[0] if suspect.giver else "",
            suspect.argument,
            "argument",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )

    def _handed(self, origin: Origin, calls: Sequence[CallKey]) -> list[str]:
        record = self.records[calls[0]]
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
            if argument_of(form.value) == argument:
                return form.reference, form.candidate
        for value, words in record.described.items():
            if argument_of(value) == argument:
                return words
        # An error within its tolerance, which only what is computed from it makes visible.
        rows = record.arguments.items()
        row = next(row for value, row in rows if argument_of(value) == argument)
        return f"{dtype_name(row.dtype)} {list(row.shape)}", f"PEIR {figure(row.peir)} away"

    def _handed_wrongly(self, start: Row, record: CallRecord) -> Finding:
        """The caller's arguments agree, and what it hands to this call does not."""
        caller = self._parent(record)
        if caller is not None:
            # A module may hold parameters of its own beside the modules that it calls.
            changed = self._changed_parameters(caller)
            finding = self._wrong_parameters(start, caller, changed)
            if finding is not None:
                return finding
        argument = start.argument or ""
        is_activation = argument == record.main_argument and (
            start.dtype is None or start.dtype.is_floating_point or start.dtype.is_complex
        )
        calls = tuple(
            other.key
            for other in self.records.values()
            if other.parent == record.parent and argument in self._differing_arguments(other)
        ) or (record.key,)
        proof = self._confirm(
            Trial(arguments=dict.fromkeys([record.key] if is_activation else calls, argument)),
            start,
            f"the reference's `{argument}`",
        )
        if not is_activation:
            origin = self._origin_of(_Suspect(argument, record.parent, calls))
            lines = self._handed(origin, calls)
            return Finding(origin, proof.confirmed, (*lines, proof.text), proof.mistakes)
        if caller is not None and not proof.confirmed and self._is_jump(start):
            proof = self._confirm_inside(caller, proof)
        origin = Origin(
            caller.module if caller is not None else "",
            None,
            "computation",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        before = self._last_agreeing_child(record)
        since = (
            f", after {module_in_words(before.module)} still agreed" if before is not None else ""
        )
        lines = [
            f"It begins in the own lines of {module_in_words(origin.module)}: what it computes for "
            f"{module_in_words(record.module)} is wrong{since}.",
            *_both_lines(origin),
            *self._settings(caller),
        ]
        return Finding(origin, proof.confirmed, (*lines, proof.text), proof.mistakes)

    def _last_agreeing_child(self, record: CallRecord) -> CallRecord | None:
        if record.parent is None:
            return None
        earlier = [
            c
            for c in self._children(record.parent)
            if 0 <= c.end < record.start and c.outputs and all(row.agrees for row in c.outputs)
        ]
        return earlier[-1] if earlier else None

    def _computed_wrongly(self, start: Row, record: CallRecord) -> Finding:
        """The arguments agree and the output does not: inside the module."""
        changed = self._changed_parameters(record)
        finding = self._wrong_parameters(start, record, changed)
        if finding is not None:
            return finding
        children = self._children(record.key)
        lines_of = children[-1] if children else None
        origin = Origin(
            record.module,
            None,
            "computation",
            _line(_own_line(lines_of, record, reference=True)),
            _line(_own_line(lines_of, record, reference=False)),
        )
        proof = self._confirm(
            Trial(output=record.key),
            start,
            f"the reference's output of {module_in_words(record.module)}",
        )
        name = module_in_words(record.module)
        if start.is_written:
            where = f"What {name} leaves in its argument `{start.value.split('.')[1]}` is wrong."
        elif children:
            where = (
                f"It begins in the own lines of {name}, after its last call "
                f"({module_in_words(children[-1].module)}), which still agreed."
            )
        else:
            where = f"It begins inside {name}: its inputs agree, its output does not."
        parameters = [
            f"`{name}` differs ({change.text})." for name, change in list(changed.items())[:FEW]
        ]
        lines = [where, *_both_lines(origin), *parameters, *self._settings(record)]
        if start.dtype is None:
            lines.append(
                "If the form alone differs, give the candidate's module a method "
                "`to_reference_output(output)` that reads it back."
            )
        return Finding(origin, proof.confirmed, (*lines, proof.text), proof.mistakes)

    def _wrong_parameters(
        self, start: Row, record: CallRecord, changed: Mapping[str, Change]
    ) -> Finding | None:
        """Parameters that differ, unless the reference's do not take the divergence away.

        Where that cannot be tried, they are blamed if the module makes no calls itself.
        """
        if not changed:
            return None
        names = few([f"`{name}`" for name in changed], " and ")
        given = f"the reference's {names}"
        exchangeable = all(change.exchangeable for change in changed.values())
        proof = self._confirm(Trial(parameters=(record.key, tuple(changed))), start, given)
        if not proof.confirmed and not exchangeable:
            given = f"the reference's output of {module_in_words(record.module)}"
            proof = self._confirm(Trial(output=record.key), start, given)
        untried = self.rerun is None or not exchangeable
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
        return Finding(
            origin,
            proof.confirmed,
            (
                f"The inputs of {module_in_words(record.module)} agree, its {names} {differ} "
                f"({few([change.text for change in changed.values()], '; ')}).",
                *[other for other in others if other][:FEW],
                *_both_lines(origin),
                proof.text,
            ),
            proof.mistakes,
        )

    def _whose(self, record: CallRecord, name: str) -> str:
        """A sentence where a wrong parameter is another one of the reference's."""
        owner, _, last = name.rpartition(".")
        modules = as_written(self.candidate_modules[record.candidate_module])
        held = dict(modules.named_modules()).get(owner)
        parameter = None if held is None else held._parameters.get(last)
        other = None if parameter is None else equal_parameter(parameter, self.reference_modules)
        return "" if other is None else f"Its `{name}` equals the reference's `{other}`."

    def gradual(self, start: Row, first: Row, alternative: Finding) -> Finding:
        line = (
            f"No single value causes it: the error grows from PEIR {figure(start.peir)} at "
            f"{place(start)} to {figure(first.peir)} here, as accumulated rounding does. If that "
            "much is expected, give a tolerance above it."
        )
        return Finding(alternative.origin, False, (line,))

    # Evidence.

    def _run(self, trial: Trial, watch: Row | None = None) -> Experiment:
        assert self.rerun is not None
        experiment = Experiment(self.tolerance, trial, watch, self.reference_modules)
        try:
            experiment.failure = self.rerun(experiment)
        finally:
            experiment.restore()
        return experiment

    def _confirm(self, trial: Trial, start: Row, given: str) -> _Proof:
        """Runs with the reference's value in place and says what is left of the divergence."""
        if self.rerun is None:
            return _Proof(False, "Not confirmed: a second run was not asked for.")
        experiment = self._run(trial, watch=start)
        confirmed, text = self._outcome(trial, start, experiment)
        mistakes = experiment.mistakes
        if trial.parameters is not None:
            # With the reference's parameters in place there was nothing left to fit.
            mistakes = self._run(Trial(), watch=start).mistakes if confirmed else []
        word = "Confirmed" if confirmed else "Not confirmed"
        return _Proof(confirmed, f"{word}: with {given}, {text}.", tuple(mistakes))

    def _confirm_inside(self, record: CallRecord, otherwise: _Proof) -> _Proof:
        """Whether everything after a call agrees once it returns the reference's output."""
        if self.rerun is None or not record.module:
            return otherwise
        experiment = self._run(Trial(output=record.key))
        again = experiment.records.get(record.key)
        if experiment.failure is not None or not experiment.applied or again is None:
            return otherwise
        if first_divergence([row for row in experiment.rows if row.order > again.end]) is not None:
            return otherwise
        text = (
            f"Confirmed: with the reference's output of {module_in_words(record.module)}, "
            f"everything after it agrees{self._final(experiment)}."
        )
        return _Proof(True, text, otherwise.mistakes)

    def _is_jump(self, start: Row) -> bool:
        """Whether an error appears where nothing of that size went in."""
        inputs = [row.error for row in inputs_of(start, self.records)]
        return not start.agrees and max(inputs, default=0.0) < _INHERITED * start.error

    def _outcome(self, trial: Trial, start: Row, experiment: Experiment) -> tuple[bool, str]:
        """Whether a trial took the divergence away, and what it led to in words."""
        if experiment.failure is not None:
            return False, experiment.failure
        if not experiment.applied:
            return False, "which cannot be put in its place, nothing was shown"
        after = experiment.row(start)
        left = first_divergence(experiment.rows)
        if left is None:
            return True, f"everything agrees{self._final(experiment)}"
        remains = f"it still diverges at {place(left)}"
        if after is None or after.error > _INHERITED * start.error or left.order < after.order:
            return False, remains
        if trial.parameters is not None:
            return True, (
                f"PEIR at {place(start)} falls from {figure(start.peir)} to {figure(after.peir)}; "
                f"a divergence at {place(left)} remains"
            )
        inherited = max((row.error for row in experiment.inputs(left)), default=0.0)
        if inherited >= _INHERITED * left.error:
            return False, remains
        return True, (
            f"it is gone; another divergence follows at {place(left)}, PEIR {figure(left.peir)}, "
            "from inputs that agree"
        )

    def _final(self, experiment: Experiment) -> str:
        """How the model's own output changes: ", and ... falls from 0.6 to 5e-07"."""
        last = next((row for row in reversed(self.rows) if row.is_output), None)
        after = None if last is None else experiment.row(last)
        if last is None or after is None or last.agrees:
            return ""
        return f", and PEIR at {place(last)} falls from {figure(last.peir)} to {figure(after.peir)}"

    def _changed_parameters(self, record: CallRecord) -> dict[str, Change]:
        """Of a module that makes calls, only what can be tried: it may hold more for other ends."""
        inside = f"{record.module}." if record.module else ""
        called = {name.removeprefix(inside) for name, _ in self.records if name.startswith(inside)}
        changed = changed_parameters(
            *self._both_modules(record),
            self.tolerance,
            called if record.children else frozenset(),
        )
        if not record.children:
            return changed
        return {name: change for name, change in changed.items() if change.exchangeable}

    def _settings(self, record: CallRecord | None) -> list[str]:
        return [] if record is None else changed_settings(*self._both_modules(record))

    def differing_settings(self) -> list[str]:
        """A sentence for each setting of a called module that differs."""
        pairs = {record.module: record for record in self.records.values()}
        return [
            f"{module_in_words(name)}: {sentence[0].lower()}{sentence[1:]}"
            for name, record in pairs.items()
            for sentence in own_settings(*self._both_modules(record))
        ]

    def _both_modules(self, record: CallRecord) -> tuple[nn.Module, nn.Module]:
        reference = self.reference_modules[record.module]
        return reference, self.candidate_modules[record.candidate_module]


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


def _module(call: CallKey | None) -> str | None:
    return None if call is None else call[0]


def _line(location: Location | None) -> str | None:
    return None if location is None else str(location)


def _both_lines(origin: Origin) -> list[str]:
    return [
        f"  reference: {short_line(origin.reference_line)}",
        f"  candidate: {short_line(origin.candidate_line)}",
    ]
