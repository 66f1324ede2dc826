"""What opening a compiled candidate makes of a comparison."""

from dataclasses import replace

from tracer.comparison.noise_floor import own_rounding
from tracer.comparison.result import Comparison
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Divergence, Verdict, judge
from tracer.execution.compilation import Stage
from tracer.execution.hooks import Location
from tracer.interventions.experiment import Experiment, Run
from tracer.isolation.compiled.opening import open_compiled
from tracer.isolation.compiled.result import CompiledInside
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallRecord


def is_hidden(verdict: Verdict) -> bool:
    """Whether a divergence begins in what is compiled."""
    details = verdict.details
    return isinstance(details, Divergence) and any(
        finding.kind is FindingKind.COMPILED for finding in details.findings
    )


def with_inside(
    comparison: Comparison,
    free: Comparer,
    experiment: Experiment,
    *,
    draws: bool,
    strict: bool,
    level: str | None,
) -> tuple[Comparison, tuple[Comparer, Experiment]]:
    """The comparison with what is found inside of what is compiled in the candidate.

    Args:
        free: the finished run.
        draws: whether random numbers were drawn in it.
        strict: as for `compare`.
        level: of the modules that are compiled alone; None where that is left open.

    Returns:
        It, and the run and experiment in which its origin can be looked at more closely: those of
        the candidate as it is written, where that differs itself.
    """
    session, phases = experiment.session, experiment.phases

    def rounding(modules: frozenset[str]) -> dict[tuple[str, int, str], float]:
        return own_rounding(session.reference, session.given, modules, experiment.roles, phases)

    opened = open_compiled(
        Run(free, None),
        experiment,
        agrees=comparison.verdict.agrees,
        draws=draws,
        rounding=rounding,
        level=level,
    )
    if opened is None:
        return comparison, (free, experiment)
    inside, verdict = opened.inside, comparison.verdict
    if inside.stage is Stage.AS_WRITTEN and opened.written is not None:
        experiment, run = opened.written
        free = run.comparer
        found = judge(free, experiment, may_run=True, strict=strict)
        verdict = replace(found, names=verdict.names, beside=verdict.beside)
    elif inside.culprits and opened.written is not None:
        verdict = _blaming(verdict, inside, opened.written[1])
    verdict = verdict.with_beside(inside)
    return replace(comparison, verdict=verdict, inside=inside), (free, experiment)


def _blaming(verdict: Verdict, inside: CompiledInside, written: Run) -> Verdict:
    """The verdict with the modules that compiling changes as its origins."""
    if not isinstance(verdict.details, Divergence):
        return verdict
    proof = Proof(Outcome.UNCOMPILED) if inside.left is not None and inside.left.agrees else None
    records = {record.module: record for record in written.records.values()}
    forward = records[inside.culprits[0]].candidate_definition
    findings = [
        Finding(_origin(inside, records[name], forward), FindingKind.MISCOMPILED, proof)
        for name in inside.culprits
    ]
    return replace(
        verdict,
        origin=findings[0].origin,
        confirmed=proof is not None,
        details=replace(verdict.details, findings=tuple(findings), checkpoints=None),
        origins=tuple(finding.origin for finding in findings),
        mistakes=(),
    )


def _origin(inside: CompiledInside, record: CallRecord, forward: Location | None) -> Origin:
    """A module that compiling changes, at the line of the node that is wrong.

    Args:
        forward: the one that the graph with this node was made of.
    """
    own = record.candidate_definition
    reference, candidate = (
        None if line is None else str(line) for line in (record.reference_definition, own)
    )
    if inside.node is not None and inside.node.file and own == forward:
        candidate = inside.node.location
    return Origin(
        record.module, None, OriginKind.COMPUTATION, reference, candidate, record.other_name
    )
