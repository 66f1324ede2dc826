"""The verdict: the first value that disagrees, where that began, and the evidence for it.

The rows are walked in execution order. From the first one that disagrees the error is followed
back to where it was introduced, then up through the callers as long as an argument already
disagreed there. What remains is put to the test by running both models again with the suspected
value replaced by the reference's: if the divergence is gone, the suspect is confirmed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tracer.calls import Location
from tracer.counterfactual import Experiment, Trial
from tracer.difference import Difference, Tolerance
from tracer.fits import Fit
from tracer.lockstep import Visitor
from tracer.rows import CallKey, CallRecord, Comparer, Row, argument_of, inputs_of
from tracer.values import dtype_name, is_mask_name

# An error that is at least this part of it already in the inputs was inherited, not introduced.
_INHERITED = 0.25
# Below this part of the tolerance an error is rounding, wherever it was introduced.
_ROUNDING = 0.1
# How many names of a kind an explanation lists.
_FEW = 3
# Each suspect costs one more run of both models.
_MOST_SUSPECTS = 4


@dataclass(frozen=True)
class Symptom:
    """The first value that disagrees.

    Attributes:
        module, call: the reference's name of the module and the call index.
        value: the value's path: "output", "kwargs.hidden_states", ...
        peir: how far it is off; infinite where the shapes differ.
    """

    module: str
    call: int
    value: str
    peir: float


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
class Verdict:
    """What a comparison found.

    Attributes:
        agrees: every compared value agrees. Attention masks that differ without any effect on a
            computed value do not count.
        symptom, origin: None if it agrees.
        confirmed: giving the candidate the reference's value at the origin takes the divergence
            away.
        explanation: the finding in words, several lines.
        mistakes: known kinds of mistake that explain the first divergence, best first.
    """

    agrees: bool
    symptom: Symptom | None
    origin: Origin | None
    confirmed: bool
    explanation: str
    mistakes: tuple[str, ...] = ()


# Runs both models with a visitor; says what was raised if one of them raised, else None.
Rerun = Callable[[Visitor], str | None]


def judge(
    comparer: Comparer,
    tolerance: Tolerance,
    rerun: Rerun | None,
    modules: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    one_sided: Sequence[tuple[str, str, int]] = (),
) -> Verdict:
    """Judges the rows of a finished run.

    Args:
        comparer: the visitor of that run.
        rerun: runs both models again on the same inputs with another visitor, for the
            counterfactual; None leaves every suspect unconfirmed.
        modules: both sides' modules by name.
        one_sided: (side, module, call index) of calls that the other side did not make.
    """
    first = first_divergence(comparer.rows)
    if first is None:
        return _agreement(comparer)
    case = _Case(comparer, tolerance, rerun, modules)
    return case.judge(first, one_sided)


def first_divergence(rows: Sequence[Row]) -> Row | None:
    """The first computed value that disagrees.

    Attention masks are left out: one that differs may be without any effect, and one that has an
    effect is found as the origin of what disagrees after it.
    """
    return next((row for row in rows if not row.agrees and not row.is_mask), None)


def short_line(location: Location | str | None) -> str:
    """A "file:line" without the folders above the package, for reading."""
    if location is None:
        return "(no source)"
    parts = Path(str(location)).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    path, _, line = str(location).rpartition(":")
    try:
        return f"{Path(path).relative_to(Path.cwd())}:{line}"
    except ValueError:
        return "/".join(parts[-3:])


def _agreement(comparer: Comparer) -> Verdict:
    measured = [row for row in comparer.rows if row.difference is not None]
    worst = max(measured, key=lambda row: row.error, default=None)
    text = "The models agree"
    if worst is not None and worst.error == 0.0:
        text += ": every compared value is equal"
    elif worst is not None:
        text += f": the largest PEIR is {_figure(worst.peir)}, at {_place(worst)}"
        details = [f"limit {_figure(worst.limit)}"] if worst.limit else []
        details += [worst.note] if worst.note else []
        text += f" ({'; '.join(details)})" if details else ""
    nonfinite = sum(row.difference.reference_nonfinite for row in measured if row.difference)
    lines = [f"{text}."]
    if nonfinite:
        lines.append(
            f"{nonfinite} compared elements are NaN or infinite on both sides alike; the models "
            "agree on them, but look whether they should be there."
        )
    padded = [row for row in comparer.rows if row.note.startswith("at padded positions")]
    if padded:
        lines.append(
            f"{len(padded)} values differ at padded positions only, which nothing visible depends "
            f"on: first {_place(padded[0])}."
        )
    masks = [row for row in comparer.rows if not row.agrees]
    if masks:
        lines.append(
            f"{len(masks)} attention masks let different positions through, without any effect on "
            f"a computed value: first {_place(masks[0])}, {masks[0].note}."
        )
    return Verdict(True, None, None, False, "\n".join(lines))


@dataclass(frozen=True)
class _Suspect:
    """An argument that was handed down wrongly, by `giver`, in `calls`."""

    argument: str
    giver: CallKey | None
    calls: tuple[CallKey, ...]


@dataclass(frozen=True)
class _Change:
    """How a parameter differs, and whether the reference's would fit in its place."""

    text: str
    exchangeable: bool


@dataclass(frozen=True)
class _Finding:
    origin: Origin
    confirmed: bool
    lines: tuple[str, ...]


class _Case:
    """One divergence under examination."""

    def __init__(
        self,
        comparer: Comparer,
        tolerance: Tolerance,
        rerun: Rerun | None,
        modules: tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]],
    ) -> None:
        self.rows = comparer.rows
        self.records = comparer.records
        self.tolerance = tolerance
        self.rerun = rerun
        self.reference_modules, self.candidate_modules = modules
        self.mistakes: list[Fit] = []

    def judge(self, first: Row, one_sided: Sequence[tuple[str, str, int]]) -> Verdict:
        start = self._introduced_at(first)
        finding = self._examine(start)
        if start is not first and not finding.confirmed:
            finding = self._examine(first)
            if not finding.confirmed and self.rerun is not None:
                finding = self._gradual(start, first, finding)
            start = first
        lines = [
            f"First visible at {_place(first)}{self._size(first)}.",
            "" if start is first else f"It was introduced at {_place(start)}{self._size(start)}.",
            *finding.lines,
            *(f"It looks as if the candidate were {fit}." for fit in self.mistakes[:2]),
            *_one_sided_calls(one_sided),
            self._spread(first),
        ]
        return Verdict(
            agrees=False,
            symptom=Symptom(first.module, first.call, first.value, first.peir),
            origin=finding.origin,
            confirmed=finding.confirmed,
            explanation="\n".join(line for line in lines if line),
            mistakes=tuple(fit.mistake for fit in self.mistakes),
        )

    def _size(self, row: Row) -> str:
        if row.difference is None:
            return f": {row.note}"
        note = f"; {row.note}" if row.note else ""
        limit = f"limit {_figure(row.limit)}" if row.limit else "must be equal"
        return f", PEIR {_figure(row.peir)} ({limit}){note}"

    def _spread(self, start: Row) -> str:
        later = [row for row in self.rows if row.is_output and row.order > start.order]
        if not later:
            return ""
        wrong = sum(not row.agrees for row in later)
        last = later[-1]
        return (
            f"Of {len(later)} outputs after it, {wrong} disagree; {_place(last)} ends at PEIR "
            f"{_figure(last.peir)}."
        )

    # Where the error was introduced.

    def _introduced_at(self, first: Row) -> Row:
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
        return [record for record in self.records.values() if record.parent == key]

    # Suspects and their trial.

    def _examine(self, start: Row) -> _Finding:
        self.mistakes = []
        for suspect in self._suspects(start):
            if (finding := self._try_argument(suspect, start)) is not None:
                return finding
        record = self.records[start.module, start.call]
        if not start.is_output:
            return self._handed_wrongly(start, record)
        return self._computed_wrongly(start, record)

    def _suspects(self, start: Row) -> list[_Suspect]:
        """Arguments of the calls around a divergence that differ, each followed to its giver."""
        record = self.records[start.module, start.call]
        around: CallRecord | None = record if start.is_output else self._parent(record)
        found: dict[tuple[CallKey | None, str], _Suspect] = {}
        while around is not None:
            for argument in self._differing_arguments(around, start.order):
                top = around
                while (parent := self._parent(top)) is not None and argument in (
                    self._differing_arguments(parent, start.order)
                ):
                    top = parent
                calls = tuple(
                    other.key
                    for other in self.records.values()
                    if other.parent == top.parent and argument in self._differing_arguments(other)
                )
                found.setdefault((top.parent, argument), _Suspect(argument, top.parent, calls))
            around = self._parent(around)
        ranked = sorted(found.values(), key=lambda suspect: not is_mask_name(suspect.argument))
        return ranked[:_MOST_SUSPECTS]

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
            if not form.value.startswith("output") and form.order < before
        ]
        return list(dict.fromkeys(names))

    def _try_argument(self, suspect: _Suspect, start: Row) -> _Finding | None:
        """Gives the candidate the reference's argument; a finding if the divergence is gone."""
        if self.rerun is None:
            return None
        trial = self._run(Trial(arguments=dict.fromkeys(suspect.calls, suspect.argument)))
        after = trial.row(start) if trial.failure is None else None
        if after is None or not after.agrees:
            return None
        record = self.records[suspect.calls[0]]
        giver = suspect.giver[0] if suspect.giver else ""
        evidence = (
            f"Confirmed: with the reference's `{suspect.argument}`, PEIR at {_place(start)} falls "
            f"from {_figure(start.peir)} to {_figure(after.peir)}{self._final(trial)}."
        )
        origin = Origin(
            giver,
            suspect.argument,
            "argument",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        return _Finding(origin, True, (*self._handed(origin, suspect.calls), evidence))

    def _handed(self, origin: Origin, calls: Sequence[CallKey]) -> list[str]:
        record = self.records[calls[0]]
        others = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
        form = self._both_forms(record, origin.argument or "")
        return [
            f"{_module(origin.module)} hands a wrong `{origin.argument}` to "
            f"{_module(record.module)}{others}:",
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
        row = next(row for row in record.arguments.values() if row.argument == argument)
        return f"{dtype_name(row.dtype)} {list(row.shape)}", f"PEIR {_figure(row.peir)} away"

    def _handed_wrongly(self, start: Row, record: CallRecord) -> _Finding:
        """The caller's arguments agree, and what it hands to this call does not."""
        argument = start.argument or ""
        giver = record.parent[0] if record.parent else ""
        is_activation = argument == record.main_argument and (
            start.dtype is None or start.dtype.is_floating_point
        )
        calls = [
            other.key
            for other in self.records.values()
            if other.parent == record.parent and argument in self._differing_arguments(other)
        ] or [record.key]
        targets = [record.key] if is_activation else calls
        confirmed, evidence = self._confirm(
            Trial(arguments=dict.fromkeys(targets, argument)),
            start,
            f"the reference's `{argument}`",
        )
        origin = Origin(
            giver,
            None if is_activation else argument,
            "computation" if is_activation else "argument",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        if not is_activation:
            return _Finding(origin, confirmed, (*self._handed(origin, calls), evidence))
        before = self._last_agreeing_child(record)
        since = f", after {_module(before.module)} still agreed" if before is not None else ""
        lines = [
            f"It begins in the own lines of {_module(giver)}: what it computes for "
            f"{_module(record.module)} is wrong{since}.",
            *_both_lines(origin),
            *self._settings(record.parent),
        ]
        return _Finding(origin, confirmed, (*lines, evidence))

    def _last_agreeing_child(self, record: CallRecord) -> CallRecord | None:
        if record.parent is None:
            return None
        earlier = [
            c
            for c in self._children(record.parent)
            if 0 <= c.end < record.start and c.outputs and all(row.agrees for row in c.outputs)
        ]
        return earlier[-1] if earlier else None

    def _computed_wrongly(self, start: Row, record: CallRecord) -> _Finding:
        """The arguments agree and the output does not: inside the module."""
        changed = self._changed_parameters(record)
        if changed and record.children == 0:
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
        confirmed, evidence = self._confirm(
            Trial(output=record.key), start, f"the reference's output of {_module(record.module)}"
        )
        if children:
            where = (
                f"It begins in the own lines of {_module(record.module)}, after its last call "
                f"({_module(children[-1].module)}), which still agreed."
            )
        else:
            where = (
                f"It begins inside {_module(record.module)}: its inputs agree, its output does not."
            )
        parameters = [
            f"`{name}` differs ({change.text})." for name, change in list(changed.items())[:_FEW]
        ]
        lines = [where, *_both_lines(origin), *parameters, *self._settings(record.key)]
        return _Finding(origin, confirmed, (*lines, evidence))

    def _wrong_parameters(
        self, start: Row, record: CallRecord, changed: "Mapping[str, _Change]"
    ) -> _Finding | None:
        """Parameters that differ, unless the reference's do not take the divergence away."""
        names = _few([f"`{name}`" for name in changed], " and ")
        given = f"the reference's {names}"
        exchangeable = all(change.exchangeable for change in changed.values())
        confirmed, evidence = self._confirm(Trial(parameters=record.key), start, given)
        if not confirmed and not exchangeable:
            given = f"the reference's output of {_module(record.module)}"
            confirmed, evidence = self._confirm(Trial(output=record.key), start, given)
        if not confirmed and exchangeable and self.rerun is not None:
            return None
        origin = Origin(
            record.module,
            None,
            "parameter",
            _line(record.reference_caller),
            _line(record.candidate_caller),
        )
        differ = "differs" if len(changed) == 1 else "differ"
        return _Finding(
            origin,
            confirmed,
            (
                f"The inputs of {_module(record.module)} agree, its {names} {differ} "
                f"({_few([change.text for change in changed.values()], '; ')}).",
                *_both_lines(origin),
                evidence,
            ),
        )

    def _gradual(self, start: Row, first: Row, alternative: _Finding) -> _Finding:
        line = (
            f"No single value causes it: the error grows from PEIR {_figure(start.peir)} at "
            f"{_place(start)} to {_figure(first.peir)} here, as accumulated rounding does. If that "
            "much is expected, give a tolerance above it."
        )
        return _Finding(alternative.origin, False, (line,))

    # Evidence.

    def _run(self, trial: Trial, watch: Row | None = None) -> Experiment:
        assert self.rerun is not None
        experiment = Experiment(self.tolerance, trial, watch, self.reference_modules)
        try:
            experiment.failure = self.rerun(experiment)
        finally:
            experiment.restore()
        return experiment

    def _confirm(self, trial: Trial, start: Row, given: str) -> tuple[bool, str]:
        """Runs with the reference's value in place and says what is left of the divergence."""
        if self.rerun is None:
            return False, "Not confirmed: a second run was not asked for."
        experiment = self._run(trial, watch=start)
        if trial.parameters is not None:
            # With the reference's parameters in place there is nothing left to fit.
            self.mistakes = self._run(Trial(), watch=start).mistakes
        else:
            self.mistakes = experiment.mistakes
        if experiment.failure is not None:
            return False, f"Not confirmed: with {given}, {experiment.failure}."
        if not experiment.applied:
            return False, f"Not confirmed: {given} cannot be put in its place."
        after = experiment.row(start)
        left = first_divergence(experiment.rows)
        if left is None:
            return True, f"Confirmed: with {given}, everything agrees{self._final(experiment)}."
        remains = f"Not confirmed: with {given}, it still diverges at {_place(left)}."
        if after is None or after.error > _INHERITED * start.error or left.order < after.order:
            return False, remains
        falls = f"PEIR at {_place(start)} falls from {_figure(start.peir)} to {_figure(after.peir)}"
        if trial.parameters is not None:
            return True, (
                f"Confirmed: with {given}, {falls}. A divergence at {_place(left)} remains."
            )
        inherited = max((row.error for row in experiment.inputs(left)), default=0.0)
        if inherited >= _INHERITED * left.error:
            return False, remains
        return True, (
            f"Confirmed: with {given}, it is gone. Another divergence follows at {_place(left)}, "
            f"PEIR {_figure(left.peir)}, from inputs that agree."
        )

    def _final(self, experiment: Experiment) -> str:
        """How the model's own output changes: ", and ... falls from 0.6 to 5e-07"."""
        last = next((row for row in reversed(self.rows) if row.is_output), None)
        after = None if last is None else experiment.row(last)
        if last is None or after is None or last.agrees:
            return ""
        return (
            f", and PEIR at {_place(last)} falls from {_figure(last.peir)} to {_figure(after.peir)}"
        )

    def _changed_parameters(self, record: CallRecord) -> "dict[str, _Change]":
        """Own parameters and buffers of a module that differ, each with how it differs."""
        reference = self.reference_modules[record.module]
        candidate = self.candidate_modules[record.candidate_module]
        if reference is candidate:
            return {}
        everything = record.children == 0
        sides = [
            {
                **dict(module.named_parameters(recurse=everything)),
                **dict(module.named_buffers(recurse=everything)),
            }
            for module in (reference, candidate)
        ]
        scaled = hasattr(candidate, "to_reference_output")
        changed: dict[str, _Change] = {}
        for name, r in sides[0].items():
            c = sides[1].get(name)
            if c is None:
                changed[name] = _Change("the candidate has none", exchangeable=False)
            elif r.shape != c.shape:
                text = f"shape {list(r.shape)} against {list(c.shape)}"
                changed[name] = _Change(text, exchangeable=False)
            elif (distance := self._distance(r, c, scaled)) is not None:
                changed[name] = _Change(distance, exchangeable=True)
        for name in sides[1].keys() - sides[0].keys():
            changed[name] = _Change("the reference has none", exchangeable=False)
        return changed

    def _distance(self, r: torch.Tensor, c: torch.Tensor, scaled: bool) -> str | None:
        if scaled and (square := (r.double() ** 2).sum().item()):
            # A scale folded into the weights is declared; it is no mistake.
            c = c.double() / ((r.double() * c.double()).sum().item() / square)
            r = r.double()
        difference = Difference.of(r, c)
        limit = 0.0 if r.dtype == c.dtype else self.tolerance.limit(r.dtype, c.dtype)
        if scaled:
            limit = 1e-5
        if difference.mismatched == 0 and difference.relative_peak <= limit:
            return None
        index = tuple(
            int(i) for i in torch.unravel_index(torch.tensor(difference.peak_index), r.shape)
        )
        return (
            f"PEIR {_figure(difference.peir)}, most at {list(index)}: {_figure(r[index].item())} "
            f"against {_figure(c[index].item())}"
        )

    def _settings(self, key: CallKey | None) -> list[str]:
        """Plain attributes of a module that differ, such as an epsilon or a scale."""
        if key is None:
            return []
        record = self.records[key]
        reference = vars(self.reference_modules[record.module])
        candidate = vars(self.candidate_modules[record.candidate_module])
        return [
            f"Its `{name}` is {value!r} in the reference and {candidate[name]!r} in the candidate."
            for name, value in reference.items()
            if isinstance(value, bool | int | float | str)
            and isinstance(candidate.get(name), bool | int | float | str)
            and value != candidate[name]
        ]


def _one_sided_calls(calls: Sequence[tuple[str, str, int]]) -> list[str]:
    """A line for each module that only one side called, without the modules inside it."""
    names = {(side, name) for side, name, _ in calls}
    lines = []
    for side, name, call in calls:
        above = name.split(".")
        inside = any((side, ".".join(above[:n])) in names for n in range(1, len(above)))
        if not inside:
            other = "candidate" if side == "reference" else "reference"
            index = f" (call {call})" if call else ""
            lines.append(f"The {side} calls {_module(name)}{index}, the {other} does not.")
    return lines[:_FEW]


def _few(items: Sequence[str], separator: str) -> str:
    """The first few items, and how many more there are."""
    more = f"{separator}{len(items) - _FEW} more" if len(items) > _FEW else ""
    return separator.join(items[:_FEW]) + more


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


def _line(location: Location | None) -> str | None:
    return None if location is None else str(location)


def _both_lines(origin: Origin) -> list[str]:
    return [
        f"  reference: {short_line(origin.reference_line)}",
        f"  candidate: {short_line(origin.candidate_line)}",
    ]


def _module(name: str) -> str:
    return f"`{name}`" if name else "the root module"


def _place(row: Row) -> str:
    call = f" (call {row.call})" if row.call else ""
    value = row.value.removeprefix("kwargs.")
    what = value if row.is_output else f"argument `{value}`"
    return f"{what} of {_module(row.module)}{call}"


def _figure(value: float) -> str:
    return f"{value:.3g}"
