"""The gate: whether a comparison passes, checked against a baseline and against limits.

>>> gate = tracer.gate(comparison, tracer.Baseline.read("main.json"))
>>> gate.passes, gate.reasons
(False, (Reason('worse', 'main.json', 1, 58, Change('worse', 'lm_head', ...), ...),))

What may fail is nested: "coverage", less was compared than in the baseline; "regression", that, or
an output is worse than in the baseline or beyond a limit; "divergence", that, or the models
diverge; "never", nothing.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from tracer.annotations import checked
from tracer.choices import FAIL_ON
from tracer.comparison.result import Comparison
from tracer.errors import UsageError, near_names
from tracer.measurement.rows import Row
from tracer.regression.baseline import Baseline, Figures, ValueKey
from tracer.regression.result import Change, Gate, Kind, Less, Limit, Reason
from tracer.text import listed

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
    differences_expected: bool = False,
) -> Gate:
    """Decides whether a comparison passes.

    Args:
        baseline: what a former comparison of these models on these inputs has measured.
        fail_on: "divergence" (the default without a baseline), "regression" (the default with
            one), "coverage" or "never"; see the module's docstring.
        max_peir: limits on the outputs of modules by globs of the reference's names; of several
            that match, the last counts. They replace the tolerance: what is within one
            neither diverges nor is worse. Where differences are expected they are limits beside
            the baseline.
        differences_expected: the candidate is quantised: that it differs everywhere is no failure.

    Raises:
        UsageError: `fail_on` is none of these or has nothing to be checked against, a limit is no
            PEIR or matches no compared module, nothing of the baseline is found again, or the
            comparison did not come to its end.
    """
    limits = dict(max_peir or {})
    fail_on = fail_on or ("divergence" if baseline is None else "regression")
    _check_fail_on(fail_on, has_baseline=baseline is not None, has_limits=bool(limits))
    check_limits(limits, {row.module for row in comparison.rows if row.is_output})
    now = Baseline.of(comparison, "the comparison")
    judged = [_Judged(row, _matching(row.module, limits)) for row in comparison.rows]
    excused = {item.key for item in judged if item.is_within and not differences_expected}
    diverges = not (differences_expected or comparison.verdict.agrees or _is_excused(judged))
    found = _checked(judged)
    reasons = [
        Reason("limit", count=limit.exceeded, total=limit.outputs, limit=limit)
        for limit in found
        if limit.exceeded
    ]
    changes: list[Change] = []
    gone: tuple[str, ...] = ()
    if baseline is not None:
        _check_related(baseline, now)
        changes = _changes(baseline, now, excused, expected=differences_expected)
        there = set(now.modules)
        gone = tuple(name for name in baseline.modules if name not in there)
        reasons = [*_regressions(baseline, now, changes), *reasons]
        if diverges and not reasons and _begins_elsewhere(comparison, baseline):
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
        limits=tuple(found),
    )


def check_limits(limits: Mapping[str, float], modules: Iterable[str]) -> None:
    """Checks that each limit is one, and on modules that there are.

    Raises:
        UsageError: it is not.
    """
    names = list(modules)
    for glob, peir in limits.items():
        if not (peir >= 0.0 and math.isfinite(peir)):
            raise UsageError(f"the limit {glob}={peir!r}: expected a finite PEIR of at least 0")
        if not fnmatch.filter(names, glob):
            raise UsageError(
                f"the limit {glob}={peir:g} matches none of the {len(names)} modules that are "
                f"compared, such as {listed([name for name in names if name][:3])}"
                f"{near_names(glob, names)}"
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


@dataclass(frozen=True)
class _Judged:
    """A row and the limit that applies to it, if one does."""

    row: Row
    limit: tuple[str, float] | None

    @property
    def key(self) -> ValueKey:
        return self.row.module, self.row.call, self.row.value, self.row.shape

    @property
    def diverges(self) -> bool:
        return not self.row.agrees and not self.row.is_mask

    @property
    def is_within(self) -> bool:
        return self.limit is not None and self.row.error <= self.limit[1]


def _is_excused(judged: Sequence[_Judged]) -> bool:
    """Whether all that diverges is within a limit; what shows in no row is not."""
    diverging = [item for item in judged if item.diverges]
    return bool(diverging) and all(item.is_within for item in diverging)


def _matching(module: str, limits: Mapping[str, float]) -> tuple[str, float] | None:
    """The last limit on a module."""
    return next(
        (item for item in reversed(list(limits.items())) if fnmatch.fnmatchcase(module, item[0])),
        None,
    )


def _checked(judged: Sequence[_Judged]) -> list[Limit]:
    groups: dict[tuple[str, float], list[Row]] = {}
    for item in judged:
        if item.limit is not None and item.row.is_output:
            groups.setdefault(item.limit, []).append(item.row)
    found = []
    for (glob, peir), rows in groups.items():
        worst = max(rows, key=lambda row: row.error)
        exceeded = sum(row.error > peir for row in rows)
        place = worst.module, worst.call, worst.value
        found.append(Limit(glob, peir, len(rows), exceeded, *place, worst.error))
    return found


def _check_related(baseline: Baseline, now: Baseline) -> None:
    if _common(baseline, now):
        return
    raise UsageError(
        f"none of the {len(baseline.figures)} outputs in the baseline {baseline.source} is found "
        f"among the {len(now.figures)} of this comparison with the same name and shape: compare "
        "the same models on the same inputs, or write the baseline again"
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
