"""The gate: whether a comparison passes, checked against a baseline and against limits.

>>> gate = tracer.gate(comparison, tracer.Baseline.read("main.json"))
>>> gate.passes, gate.reasons
(False, (Reason('worse', 'main.json', 1, 58, Change('worse', 'lm_head', ...), ...),))

What may fail is nested: "coverage", less was compared than in the baseline; "regression", that, or
an output is worse than in the baseline or beyond a limit; "divergence", that, or the models
diverge; "never", nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set

from trace_model.annotations import checked
from tracer.choices import FAIL_ON
from tracer.comparison.result import Comparison
from tracer.errors import UsageError
from tracer.regression.baseline import Baseline, Figures, ValueKey
from tracer.regression.limits import Judged, Limits, are_excused, found_by
from tracer.regression.related import Mismatch, mismatches, unchecked
from tracer.regression.result import Change, Gate, Kind, Less, Limit, Reason
from tracer.reports.narrator.gate import refusal

# By what factor the error of a value beyond its tolerance has to move to be called worse or better.
# What is computed is the same on every machine, its rounding is not: where a value lies at the edge
# of a quantization step, another order of summation moves it by a whole step, and what follows with
# it. `benchmarks/gate_margins.py` prints by what factors errors move between one and two threads,
# and PyTorch's kernels for AVX-512, AVX2 and SSE. Over quantised stories260K, a WikiText-2 Llama
# and the tiny Qwen3-VL, the relative L2 error moved by 1.04 at most, also in bfloat16; PEIR, the
# largest of many values, by 1.25, in bfloat16 by 1.54.
RELATIVE_L2_MARGIN, PEIR_MARGIN = 1.25, 2.5

_KINDS: tuple[Kind, ...] = ("worse", "new", "gone", "better")


@checked(UsageError)
def gate(
    comparison: Comparison,
    baseline: Baseline | None = None,
    *,
    fail_on: str | None = None,
    max_peir: Mapping[str, float] | None = None,
    min_sqnr: Mapping[str, float] | None = None,
    min_cosine: Mapping[str, float] | None = None,
    max_l2: Mapping[str, float] | None = None,
    differences_expected: bool = False,
    baseline_any: bool = False,
) -> Gate:
    """Decides whether a comparison passes.

    Args:
        baseline: what a former comparison of these models on these inputs has measured.
        fail_on: "divergence" (the default without a baseline), "regression" (the default with
            one, and with limits where differences are expected), "coverage" or "never"; see the
            module's docstring.
        max_peir, min_sqnr, min_cosine, max_l2: limits on the outputs of modules by globs of the
            reference's names: PEIR, SQNR in dB, cosine and relative L2 error; of several of one
            kind that match, the last counts. They replace the tolerance: what is within all of its
            limits neither diverges nor is worse. Where differences are expected they are limits
            beside the baseline.
        differences_expected: the candidate is quantised: that it differs everywhere is no failure,
            unless `fail_on` is "divergence".
        baseline_any: the baseline may be of another reference, candidate or inputs.

    Raises:
        UsageError: `fail_on` is none of these or has nothing to be checked against, a limit is
            none or matches no compared module, the baseline is of another comparison or nothing of
            it is found again, or the comparison did not come to its end.
    """
    limits = Limits.of(max_peir=max_peir, min_sqnr=min_sqnr, min_cosine=min_cosine, max_l2=max_l2)
    expected = differences_expected and fail_on != "divergence"
    has_other = baseline is not None or (expected and bool(limits.bounds))
    fail_on = fail_on or ("regression" if has_other else "divergence")
    _check_fail_on(fail_on, has_baseline=baseline is not None, has_limits=bool(limits.bounds))
    limits.check({row.module for row in comparison.rows if row.is_output})
    now = Baseline.of(comparison, "the comparison")
    judged = [Judged(row, limits.matching(row.module)) for row in comparison.rows]
    excused = {item.key for item in judged if item.is_within and not expected}
    diverges = not (expected or comparison.verdict.agrees or are_excused(judged))
    found = tuple(found_by(judged))
    begins_elsewhere = diverges and baseline is not None and _begins_elsewhere(comparison, baseline)
    return _decided(
        now,
        baseline,
        fail_on=fail_on,
        excused=excused,
        expected=expected,
        diverges=diverges,
        begins_elsewhere=begins_elsewhere,
        limits=found,
        baseline_any=baseline_any,
    )


def gate_between(
    former: Baseline,
    now: Baseline,
    *,
    fail_on: str = "regression",
    baseline_any: bool = False,
) -> Gate:
    """Decides as `gate` does, of a comparison whose report alone is there.

    Raises:
        UsageError: `fail_on` is none of these, the reports are of different comparisons, or have
            nothing in common.
    """
    _check_fail_on(fail_on, has_baseline=True, has_limits=False)
    expected = now.differences_expected and fail_on != "divergence"
    return _decided(
        now,
        former,
        fail_on=fail_on,
        excused=frozenset(),
        expected=expected,
        diverges=not (expected or now.agrees),
        begins_elsewhere=former.agrees,
        limits=(),
        baseline_any=baseline_any,
    )


def _decided(
    now: Baseline,
    baseline: Baseline | None,
    *,
    fail_on: str,
    excused: Set[ValueKey],
    expected: bool,
    diverges: bool,
    begins_elsewhere: bool,
    limits: tuple[Limit, ...],
    baseline_any: bool,
) -> Gate:
    """What fails, of all that is found.

    Args:
        excused: outputs that are within the limits on them.
        expected: differences are.
        begins_elsewhere: models that agreed diverge in something else than an output.
    """
    reasons = [
        Reason("limit", count=limit.exceeded, total=limit.outputs, limit=limit)
        for limit in limits
        if limit.exceeded
    ]
    changes: list[Change] = []
    gone: tuple[str, ...] = ()
    other: tuple[Mismatch, ...] = ()
    if baseline is not None:
        other = mismatches(baseline.identity, now.identity)
        _check_related(baseline, now, () if baseline_any else other)
        changes = _changes(baseline, now, excused, expected=expected)
        there = set(now.modules)
        gone = tuple(name for name in baseline.modules if name not in there)
        reasons = [*_regressions(baseline, now, changes), *reasons]
        if diverges and not reasons and begins_elsewhere:
            reasons.append(Reason("agreed", baseline.source))
        reasons += _less_covered(baseline, now, gone, changes)
    if diverges:
        reasons.append(Reason("diverges"))
    counting = FAIL_ON[FAIL_ON.index(fail_on) :]
    failing = tuple(reason for reason in reasons if reason.level in counting)
    return Gate(
        passes=not failing,
        fail_on=fail_on,
        reasons=failing,
        let_pass=tuple(reason for reason in reasons if reason not in failing),
        diverges=diverges,
        baseline=None if baseline is None else baseline.source,
        outputs=0 if baseline is None else _common(baseline, now),
        changes=tuple(changes),
        modules_gone=gone,
        limits=limits,
        mismatches=other,
        unchecked=() if baseline is None else unchecked(baseline.identity, now.identity),
    )


def _check_fail_on(fail_on: str, *, has_baseline: bool, has_limits: bool) -> None:
    """Checks that there is something to check a comparison against.

    Raises:
        UsageError: there is not, or it is an unknown word.
    """
    if fail_on not in FAIL_ON:
        raise UsageError(f"fail on {fail_on!r}: expected one of {', '.join(FAIL_ON)}")
    if fail_on == "coverage" and not has_baseline:
        raise UsageError("fail on coverage: it is checked against a baseline, and there is none")
    if fail_on == "regression" and not (has_baseline or has_limits):
        raise UsageError(
            "fail on regression: it is checked against a baseline or limits, and there are none"
        )


def _check_related(baseline: Baseline, now: Baseline, other: Sequence[Mismatch]) -> None:
    """Checks that a baseline is of the same comparison, as far as that is known.

    Raises:
        UsageError: it is not, or nothing of it is found again.
    """
    if other:
        raise UsageError(refusal(baseline.source, other))
    if not _common(baseline, now):
        raise UsageError(
            f"none of the {len(baseline.figures)} outputs in the baseline {baseline.source} is "
            f"found among the {len(now.figures)} of this comparison with the same name and shape: "
            "compare the same models on the same inputs, or write the baseline again"
        )


def _changes(
    baseline: Baseline, now: Baseline, excused: Set[ValueKey], *, expected: bool
) -> list[Change]:
    """The outputs that are not as they were: what fails first, then by kind, the worst first."""
    ranked: list[tuple[float, Change]] = []
    for key in {**now.figures, **baseline.figures}:
        before, after = baseline.figures.get(key), now.figures.get(key)
        kind: Kind
        if before is None or after is None:
            kind, factor = ("new" if before is None else "gone"), 0.0
            fails = not (expected or after is None or after.agrees or key in excused)
        else:
            moved = _moved(before, after, is_within=key in excused, expected=expected)
            if moved is None:
                continue
            kind, factor = moved
            fails = kind == "worse"
        ranked.append((factor, Change(kind, *key[:3], before, after, fails)))
    ranked.sort(key=lambda item: (not item[1].fails, _KINDS.index(item[1].kind), -item[0]))
    return [change for _, change in ranked]


def _moved(
    before: Figures, now: Figures, *, is_within: bool, expected: bool
) -> tuple[Kind, float] | None:
    """Whether an output is worse or better than it was, and by how many margins.

    What is within its tolerance is never worse. Crossing it is enough where that is no matter of
    course, and both figures were measured and checked against the same limit.
    """
    is_significant = (
        not (expected or before.estimated or now.estimated) and before.limit == now.limit
    )
    growth, fall = _growth(before, now), _growth(now, before)
    if not (now.agrees or is_within) and (growth > 1.0 or (before.agrees and is_significant)):
        return "worse", growth
    if not before.agrees and (fall > 1.0 or (now.agrees and is_significant)):
        return "better", fall
    return None


def _growth(before: Figures, now: Figures) -> float:
    """By how many of the margins an error has grown at least."""
    growths = [
        _ratio(before.bounds[1], now.bounds[0]) / RELATIVE_L2_MARGIN,
        _ratio(before.unmatched, now.unmatched) / RELATIVE_L2_MARGIN,
    ]
    if not (before.estimated or now.estimated):
        growths.append(_ratio(before.peir, now.peir) / PEIR_MARGIN)
    return max(growths)


def _ratio(before: float, now: float) -> float:
    """How many times as large it is now; what is no number is as large as can be."""
    before, now = (math.inf if math.isnan(value) else value for value in (before, now))
    if before == now:
        return 1.0
    return now / before if before else math.inf


def _regressions(baseline: Baseline, now: Baseline, changes: Sequence[Change]) -> Iterator[Reason]:
    """What is worse, and what is new and disagrees."""
    worse = {(c.module, c.call, c.value): c for c in changes if c.kind == "worse"}
    if worse:
        first = next(worse[key[:3]] for key in now.figures if key[:3] in worse)
        count = len(worse), _common(baseline, now)
        yield Reason("worse", baseline.source, *count, first, next(iter(worse.values())))
    new = [change for change in changes if change.kind == "new" and change.fails]
    if new:
        yield Reason("new", baseline.source, len(new), first=new[0])


def _less_covered(
    baseline: Baseline, now: Baseline, gone: tuple[str, ...], changes: Sequence[Change]
) -> Iterator[Reason]:
    """What the baseline has covered and the comparison has not."""
    less = [Less("modules", len(gone), len(baseline.modules), gone)] if gone else []
    outputs = [change for change in changes if change.kind == "gone" and change.module not in gone]
    if outputs:
        less.append(Less("outputs", len(outputs), len(baseline.figures), first=outputs[0]))
    if now.calls < baseline.calls:
        less.append(Less("calls", now.calls, baseline.calls))
    if now.elements < baseline.elements:
        less.append(Less("elements", now.elements, baseline.elements))
    if less:
        yield Reason("less", baseline.source, less=tuple(less))


def _begins_elsewhere(comparison: Comparison, baseline: Baseline) -> bool:
    """Whether models that agreed diverge in an argument, which no output of the baseline tells."""
    symptom = comparison.verdict.symptom
    return baseline.agrees and symptom is not None and not symptom.value.is_result


def _common(baseline: Baseline, now: Baseline) -> int:
    return len(baseline.figures.keys() & now.figures.keys())
