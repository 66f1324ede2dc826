"""The verdict: the first value that disagrees, where that began, and the evidence for it.

The rows are walked in execution order. From the first one that disagrees the error is followed
back to where it was introduced, then up through the callers as long as an argument already
disagreed there. What remains is put to the test by running both models again with the suspected
value replaced by the reference's: if the divergence is gone, the suspect is confirmed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tracer.diagnosis.beginnings import first_origin, hidden_by_tolerance
from tracer.diagnosis.checkpoints import Checkpoints, other_checkpoint
from tracer.diagnosis.finding import Finding, Origin
from tracer.diagnosis.healing import Healing, Region
from tracer.diagnosis.origin import Search
from tracer.diagnosis.other_origins import other_findings
from tracer.diagnosis.parameters import Setting
from tracer.diagnosis.trials import Outcome
from tracer.errors import no_truth_value
from tracer.execution.side import Failure
from tracer.interventions.experiment import Experiment
from tracer.measurement.comparer import Comparer
from tracer.measurement.remarks import RemarkKind
from tracer.measurement.rows import Row, first_divergence
from tracer.tensors.value_path import OUTPUT, ValuePath


@dataclass(frozen=True)
class Symptom:
    """The first value that disagrees.

    Attributes:
        module, call: the reference's name of the module and the call index.
        value: the value's path: "output", "kwargs.hidden_states", ...
        peir: how far it is off; infinite where the shapes differ.
        candidate_module: the candidate's name of the module; None where it is the reference's.
    """

    module: str
    call: int
    value: ValuePath
    peir: float
    candidate_module: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", ValuePath.parse(self.value))

    @classmethod
    def of(cls, row: Row) -> "Symptom":
        """The symptom that a row is."""
        return cls(row.module, row.call, row.value, row.peir, row.candidate_module)


class VerdictOutcome(StrEnum):
    """What a comparison comes to."""

    AGREES = "agrees"  # every compared value does
    EQUIVALENT = "equivalent"  # the outputs agree; values inside differ and heal
    DIVERGES = "diverges"


@dataclass(frozen=True)
class Tally:
    """How many values there are of a kind, and the first of them."""

    count: int
    first: Row | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Tally":
        """Counts some rows."""
        return cls(len(rows), rows[0] if rows else None)


@dataclass(frozen=True)
class Agreement:
    """What there is to know of models that agree.

    Attributes:
        worst: the value with the largest error; None where nothing was measured.
        nonfinite: how many elements are not finite, on both sides alike.
        padded: values that differ at padded positions only.
        masks: attention masks that let different positions through.
        coarse: values of the candidate's that are of a coarser dtype.
        settings: those that differ, each with its module.
        regions: where values inside differ and heal.
    """

    worst: Row | None
    nonfinite: int
    padded: Tally
    masks: Tally
    coarse: Tally
    settings: tuple[tuple[str, Setting], ...]
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Spread:
    """How far a divergence goes: of the `outputs` after it, how many disagree, and the last."""

    outputs: int
    disagreeing: int
    last: Row


@dataclass(frozen=True)
class Divergence:
    """Where models diverge, and why.

    Attributes:
        findings: one for each origin, in execution order.
        first: the first value that disagrees; None where the candidate raised before there was one.
        introduced: the value to which its error was followed back.
        one_sided: (side, module, call index) of calls that the other side did not make, without
            those inside them.
        spread: how far it goes; None where no output comes after it.
        checkpoints: what the two hold, where that makes two checkpoints likely.
    """

    findings: tuple[Finding, ...]
    first: Row | None = None
    introduced: Row | None = None
    one_sided: tuple[tuple[str, str, int], ...] = ()
    spread: Spread | None = None
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True)
class Ended:
    """The run has not come to its end: the user has ended it, or a model raised.

    Attributes:
        first: the first value that disagreed until then.
        raised: the side that raised; empty where it was the user.
    """

    first: Row | None
    raised: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    It is neither true nor false, as a Comparison is neither: ask `agrees`, or for its `outcome`.

    Attributes:
        agrees: the outputs agree, and with `strict` every compared value. Attention masks that
            differ without any effect on a computed value do not count.
        symptom, origin: None if it agrees.
        origins: every module that diverges although its inputs are right, in execution order; the
            first is `origin`.
        why_not_tried: why the origin could not be confirmed, in a clause, if for a recording.
        beside: what else was found, of types that `tracer.explain` knows.
        confirmed: giving the candidate the reference's value at the origin takes the divergence
            away.
        details: what was found, as data.
        mistakes: known kinds of mistake that explain the first divergence, best first.
        names: the candidate's names of modules by the reference's, where they differ.
    """

    agrees: bool
    symptom: Symptom | None
    origin: Origin | None
    confirmed: bool
    details: Agreement | Divergence | Ended
    mistakes: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    why_not_tried: str = ""
    beside: tuple[object, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        raise no_truth_value(self, "`.agrees`, or compare `.outcome`")

    def __repr__(self) -> str:
        said = [str(self.outcome)]
        if isinstance(self.details, Ended):
            said = ["the run did not come to its end"]
        if self.symptom is not None:
            place = f"{self.symptom.value} of {self.symptom.module or 'the root'}"
            said.append(f"first visible at {place}, PEIR {self.symptom.peir:.3g}")
        if self.origin is not None:
            passed = f", argument {self.origin.argument}" if self.origin.argument else ""
            proof = "confirmed" if self.confirmed else "not confirmed"
            said.append(f"origin {self.origin.module or 'the root'}{passed}, {proof}")
        return f"<Verdict: {'; '.join(said)}>"

    def _repr_html_(self) -> str:
        from tracer.reports.notebook import html

        return html(self)

    @property
    def outcome(self) -> VerdictOutcome:
        """Whether every value agrees, the outputs alone do, or the models diverge."""
        if not isinstance(self.details, Agreement):
            return VerdictOutcome.DIVERGES
        return VerdictOutcome.EQUIVALENT if self.details.regions else VerdictOutcome.AGREES

    @property
    def explanation(self) -> str:
        """The finding in words, several lines."""
        import tracer

        return tracer.explain(self)

    def with_beside(self, *findings: object) -> "Verdict":
        """The verdict with further findings."""
        return replace(self, beside=(*self.beside, *findings))


def judge(
    comparer: Comparer,
    experiment: Experiment,
    *,
    may_run: bool,
    strict: bool = False,
    one_sided: Sequence[tuple[str, str, int]] = (),
    failure: Failure | None = None,
) -> Verdict:
    """Judges the rows of a run.

    Args:
        comparer: the visitor of that run.
        experiment: runs both models again, for the counterfactual.
        may_run: whether it may; else every suspect is left unconfirmed.
        strict: values that differ inside and heal are no agreement.
        one_sided: (side, module, call index) of calls that the other side did not make.
        failure: what the candidate alone raised, if that ended the run.
    """
    healing = Healing(comparer)
    symptoms = list(healing.unhealed())
    search = Search(comparer, experiment, may_run=may_run)
    if strict and not symptoms:
        symptoms = [row for row in comparer.rows if not row.agrees and not row.is_mask]
    if not symptoms and failure is None:
        symptoms = hidden_by_tolerance(search, healing)
    if not symptoms:
        if failure is not None:
            return _raising(search, failure)
        return _agreement(search, healing.regions())
    start, finding = first_origin(search, healing, symptoms)
    first = start if start in symptoms else symptoms[0]
    others = []
    is_otherwise = bool(search.trail.excused or healing.regions())
    goes_on = finding.confirmed or not is_otherwise
    if may_run and failure is None and goes_on and not _is_all(finding):
        others = other_findings(finding, start, search, is_otherwise=is_otherwise)
    return Verdict(
        agrees=False,
        symptom=Symptom.of(first),
        origin=finding.origin,
        confirmed=finding.confirmed,
        details=Divergence(
            (finding, *others),
            first,
            None if start is first else start,
            _outermost(one_sided),
            _spread(comparer.rows, first),
            None if is_otherwise or finding.is_hidden else other_checkpoint(experiment),
        ),
        mistakes=tuple(fit.mistake for fit in finding.mistakes),
        origins=(finding.origin, *(other.origin for other in others)),
    )


def _is_all(finding: Finding) -> bool:
    """Whether the model's output agrees once the finding is mended: nothing else reaches it."""
    alone = (Outcome.ALL_AGREES, Outcome.OUTPUT_AGREES)
    return finding.proof is not None and finding.proof.outcome in alone


def judge_ended(rows: Sequence[Row], raised: str = "") -> Verdict:
    """The verdict of a run that did not come to its end: what was not compared does not agree.

    Where a divergence began is left open, since it takes further runs to tell.
    """
    first = first_divergence(rows)
    symptom = None
    if first is not None:
        symptom = Symptom.of(first)
    return Verdict(False, symptom, None, False, Ended(first, raised))


def _raising(search: Search, failure: Failure) -> Verdict:
    """The candidate raised before any value had differed."""
    call = failure.call
    while call is not None and (record := search.trail.record_of(call.name, call.index)) is None:
        call = call.parent
    if call is None or record is None:
        return _agreement(search)
    finding = search.examine_failure(record)
    return Verdict(
        agrees=False,
        symptom=Symptom(record.module, record.call, OUTPUT, math.inf, record.other_name),
        origin=finding.origin,
        confirmed=finding.confirmed,
        details=Divergence((finding,)),
        origins=(finding.origin,),
    )


def _agreement(search: Search, regions: tuple[Region, ...] = ()) -> Verdict:
    rows = search.trail.rows
    measured = [row for row in rows if row.difference is not None]
    dtypes = {(row.candidate_dtype, row.dtype) for row in measured}
    coarse = {pair for pair in dtypes if search.tolerance.is_coarse(*pair)}
    details = Agreement(
        worst=max(measured, key=lambda row: row.error, default=None),
        nonfinite=sum(row.difference.reference_nonfinite for row in measured if row.difference),
        padded=Tally.of([row for row in rows if row.has(RemarkKind.PADDED)]),
        masks=Tally.of([row for row in rows if not row.agrees and row.is_mask]),
        coarse=Tally.of([row for row in measured if (row.candidate_dtype, row.dtype) in coarse]),
        settings=tuple(search.differing_settings()),
        regions=regions,
    )
    return Verdict(True, None, None, False, details)


def _spread(rows: Sequence[Row], first: Row) -> Spread | None:
    """How far the damage goes."""
    later = [row for row in rows if row.is_output and row.order > first.order]
    if not later:
        return None
    return Spread(len(later), sum(not row.agrees for row in later), later[-1])


def _outermost(calls: Sequence[tuple[str, str, int]]) -> tuple[tuple[str, str, int], ...]:
    """The calls that only one side made, without those of modules inside others of them."""
    names = {(side, name) for side, name, _ in calls}
    kept = []
    for side, name, call in calls:
        above = name.split(".")
        if not any((side, ".".join(above[:n])) in names for n in range(1, len(above))):
            kept.append((side, name, call))
    return tuple(kept)
