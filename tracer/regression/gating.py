"""The gate: whether a comparison passes, held against a baseline and against limits.

>>> gate = tracer.gate(comparison, tracer.Baseline.read("main.json"))
>>> gate.passes, gate.reasons
(False, (Reason('regression', '1 of 58 outputs is worse than in main.json', '`lm_head`, ...'),))

What may fail is nested: "coverage", less was compared than in the baseline; "regression", that, or
an output is worse than in the baseline or beyond a limit; "divergence", that, or the models
diverge; "never", nothing.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from tracer.choices import FAIL_ON
from tracer.comparison.result import Comparison
from tracer.errors import UsageError, near_names
from tracer.measurement.rows import Row
from tracer.regression.baseline import Baseline, Figures, ValueKey
from tracer.text import figure, listed, module_in_words

# By what factor the error of a value beyond its tolerance has to move to be called worse or better.
# What is computed is the same on every machine, its rounding is not: where a value lies at the edge
# of a quantization step, another order of summation moves it by a whole step, and what follows with
# it. `benchmarks/gate_margins.py` prints by what factors errors move between one and two threads,
# and PyTorch's kernels for AVX-512, AVX2 and SSE. Over quantised stories260K, a WikiText-2 Llama
# and the tiny Qwen3-VL, the relative L2 error moved by 1.04 at most, also in bfloat16; PEIR, the
# largest of many values, by 1.25, in bfloat16 by 1.54.
RELATIVE_L2_MARGIN, PEIR_MARGIN = 1.25, 2.5

_MOST_NAMED = 5

Kind = Literal["worse", "new", "gone", "better"]
_KINDS: tuple[Kind, ...] = ("worse", "new", "gone", "better")


@dataclass(frozen=True)
class Change:
    """An output that is not as it was in the baseline.

    Attributes:
        kind: "worse" or "better", by more than the margins and than an estimate leaves open; "gone"
            is only in the baseline, "new" only in the comparison.
        module, call, value: as for a Row.
        before, now: None where there is none.
        fails: it is a regression.
    """

    kind: Kind
    module: str
    call: int
    value: str
    before: Figures | None
    now: Figures | None
    fails: bool


@dataclass(frozen=True)
class Limit:
    """What a limit on the outputs of some modules has found.

    Attributes:
        glob: of the modules' names.
        peir: the limit.
        outputs, exceeded: how many it was held against, and how many are beyond it.
        module, call, value: the worst of them.
        worst: its PEIR, as it is held against a tolerance; see `Row.error`.
    """

    glob: str
    peir: float
    outputs: int
    exceeded: int
    module: str
    call: int
    value: str
    worst: float


@dataclass(frozen=True)
class Reason:
    """Something for which a comparison may fail.

    Attributes:
        level: from which of `tracer.choices.FAIL_ON` up it does.
        what: "2 of 58 outputs are worse than in main.json".
        where: which, and how much.
    """

    level: str
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.where}" if self.where else self.what


@dataclass(frozen=True)
class Gate:
    """Whether a comparison passes, and why not.

    Attributes:
        passes: it does.
        fail_on: what was to fail, one of `tracer.choices.FAIL_ON`.
        reasons: why it does not, in words.
        let_pass: what was found and was not to fail.
        diverges: the models do, beyond the limits that were given.
        baseline: where the baseline is from; None without one.
        outputs: how many are both in the baseline and in the comparison.
        changes: since the baseline, what fails first, and the worst of it.
        modules_gone: those that were compared in the baseline, and not now.
        limits: those that were given, with the worst of their outputs.
    """

    passes: bool
    fail_on: str
    reasons: tuple[Reason, ...]
    let_pass: tuple[Reason, ...]
    diverges: bool
    baseline: str | None = None
    outputs: int = 0
    changes: tuple[Change, ...] = ()
    modules_gone: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()


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
            that match, the last counts. They take the place of the tolerance: what is within one
            neither diverges nor is worse. Where differences are expected they are limits beside
            the baseline.
        differences_expected: the candidate is quantised: that it differs everywhere is no failure.

    Raises:
        UsageError: `fail_on` is none of these or has nothing to be held against, a limit is no
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
    found = _held_against(judged)
    reasons = [_exceeding(limit) for limit in found if limit.exceeded]
    changes: list[Change] = []
    gone: tuple[str, ...] = ()
    if baseline is not None:
        _check_related(baseline, now)
        changes = _changes(baseline, now, excused, expected=differences_expected)
        there = set(now.modules)
        gone = tuple(name for name in baseline.modules if name not in there)
        reasons = [*_regressions(baseline, now, changes), *reasons]
        if diverges and not reasons and _begins_elsewhere(comparison, baseline):
            text = f"the models agreed in {baseline.source}, and diverge now"
            reasons.append(Reason("regression", text))
        reasons += _less_covered(baseline, now, gone, changes)
    if diverges:
        reasons.append(Reason("divergence", "the models diverge"))
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
    """Checks that there is something to hold a comparison against.

    Raises:
        UsageError: there is not, or it is an unknown word.
    """
    if fail_on not in FAIL_ON:
        raise UsageError(f"fail on {fail_on!r}: expected one of {', '.join(FAIL_ON)}")
    if fail_on == "coverage" and not has_baseline:
        raise UsageError("fail on coverage: it is held against a baseline, and there is none")
    if fail_on == "regression" and not (has_baseline or has_limits):
        raise UsageError(
            "fail on regression: it is held against a baseline or limits, and there are none"
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


def _held_against(judged: Sequence[_Judged]) -> list[Limit]:
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
    course, and both figures were measured and held against the same limit.
    """
    is_telling = not (expected or before.estimated or now.estimated) and before.limit == now.limit
    growth, fall = _growth(before, now), _growth(now, before)
    if not (now.agrees or is_within) and (growth > 1.0 or (before.agrees and is_telling)):
        return "worse", growth
    if not before.agrees and (fall > 1.0 or (now.agrees and is_telling)):
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
        most = next(iter(worse.values()))
        said = f"{place_of(most)}, {moves(most)}"
        if first is not most:
            said = f"first {place_of(first)}, {moves(first)}; most {said}"
        count = f"{len(worse)} of {_common(baseline, now)} outputs {_is(len(worse))}"
        yield Reason("regression", f"{count} worse than in {baseline.source}", said)
    new = [change for change in changes if change.kind == "new" and change.fails]
    if new:
        count = "1 output diverges" if len(new) == 1 else f"{len(new)} outputs diverge"
        text = f"{count} that {baseline.source} does not have"
        yield Reason("regression", text, f"first {place_of(new[0])}")


def _less_covered(
    baseline: Baseline, now: Baseline, gone: Sequence[str], changes: Sequence[Change]
) -> Iterator[Reason]:
    """What the baseline has covered and the comparison has not."""
    parts = []
    if gone:
        names = listed([module_in_words(name) for name in gone], _MOST_NAMED)
        parts.append(f"{len(gone)} of {len(baseline.modules)} modules gone, {names}")
    outputs = [change for change in changes if change.kind == "gone" and change.module not in gone]
    if outputs:
        parts.append(
            f"{len(outputs)} of {len(baseline.figures)} outputs gone or of another shape, first "
            f"{place_of(outputs[0])}"
        )
    for what, before, after in (
        ("calls", baseline.calls, now.calls),
        ("elements", baseline.elements, now.elements),
    ):
        if after < before:
            parts.append(f"only {after:,} of {before:,} {what}")
    if parts:
        yield Reason("coverage", f"less was compared than in {baseline.source}", "; ".join(parts))


def _exceeding(limit: Limit) -> Reason:
    count = f"{limit.exceeded} of {limit.outputs} outputs {_is(limit.exceeded)}"
    return Reason(
        "regression",
        f"{count} beyond the limit {limit.glob}={limit.peir:g}",
        f"most {place_of(limit)}, PEIR {figure(limit.worst)}",
    )


def _begins_elsewhere(comparison: Comparison, baseline: Baseline) -> bool:
    """Whether models that agreed diverge in an argument, which no output of the baseline tells."""
    symptom = comparison.verdict.symptom
    return baseline.agrees and symptom is not None and not symptom.value.is_result


def place_of(item: Change | Limit) -> str:
    """An output in words: "`model.norm`", "`output.1` of `model.layers.0` (call 2)"."""
    what = "" if item.value == "output" else f"`{item.value}` of "
    return f"{what}{module_in_words(item.module)}{f' (call {item.call})' if item.call else ''}"


def moves(change: Change) -> str:
    """How far an output has moved: "relative L2 0.0213 → 0.31, PEIR 0.05 → 0.4"."""
    assert change.before is not None
    assert change.now is not None
    before, now = change.before, change.now
    text = f"relative L2 {figure(before.relative_l2)} → {figure(now.relative_l2)}"
    if before.unmatched != now.unmatched:
        text += f", {before.unmatched} → {now.unmatched} elements not finite on one side"
    return f"{text}, PEIR {figure(before.peir)} → {figure(now.peir)}"


def _common(baseline: Baseline, now: Baseline) -> int:
    return len(baseline.figures.keys() & now.figures.keys())


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
