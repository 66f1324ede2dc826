"""What the gate has decided, in words.

gate: fails (--fail-on regression)
2 of 71 outputs are worse than in main.json: first `lm_head`, relative L2 0.0213 → 0.31, ...
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tracer.text import figure, listed, module_in_words

if TYPE_CHECKING:
    from tracer.regression.related import Mismatch
    from tracer.regression.result import Change, Gate, Less, Limit, Measure, Reason

_MOST_NAMED = 5


def lines(gate: "Gate") -> list[str]:
    """The outcome and all findings."""
    return [outcome(gate), *findings(gate)]


def outcome(gate: "Gate") -> str:
    """One line: "gate: fails (--fail-on regression)"."""
    return f"gate: {'passes' if gate.passes else 'fails'} (--fail-on {gate.fail_on})"


def findings(gate: "Gate") -> Iterator[str]:
    """The reasons, what was let pass, what the limits have found, and how much has changed."""
    yield from map(str, gate.reasons)
    for reason in gate.let_pass:
        yield f"let pass: {reason}"
    for limit in gate.limits:
        if not limit.exceeded:
            yield _kept(limit)
    if gate.mismatches:
        yield f"let pass by --baseline-any: {gate.baseline} is of another comparison: " + "; ".join(
            map(mismatch, gate.mismatches)
        )
    if gate.unchecked:
        what = " and ".join(_UNCHECKED[name] for name in gate.unchecked)
        yield f"not checked: {gate.baseline} does not say of {what} it is"
    if gate.baseline is not None:
        yield f"{gate.outputs} outputs in common with {gate.baseline}: {counts(gate.changes)}"


_WHAT = {
    "worse": "{count} worse than in {baseline}",
    "new": "{new} that {baseline} does not have",
    "limit": "{count} beyond the limit {limit}",
    "agreed": "the models agreed in {baseline}, and diverge now",
    "less": "less was compared than in {baseline}",
    "diverges": "the models diverge",
}


def what(reason: "Reason") -> str:
    """What a comparison may fail for: "2 of 58 outputs are worse than in main.json"."""
    is_one, limit = reason.count == 1, reason.limit
    return _WHAT[reason.kind].format(
        count=f"{reason.count} of {reason.total} outputs {'is' if is_one else 'are'}",
        new="1 output diverges" if is_one else f"{reason.count} outputs diverge",
        limit="" if limit is None else _limit(limit),
        baseline=reason.baseline,
    )


def where(reason: "Reason") -> str:
    """Which outputs, and how much; the empty string where there is no more to say."""
    if reason.limit is not None:
        return f"most {_place(reason.limit)}, {_figure(reason.limit)}"
    if reason.first is not None and reason.most is not None:
        most = f"{_place(reason.most)}, {_moves(reason.most)}"
        if reason.first is reason.most:
            return most
        return f"first {_place(reason.first)}, {_moves(reason.first)}; most {most}"
    if reason.first is not None:
        return f"first {_place(reason.first)}"
    return "; ".join(map(_less, reason.less))


def counts(changes: "Sequence[Change]") -> str:
    """How many changes there are of each kind: "3 worse, 1 gone"."""
    kinds = Counter(change.kind for change in changes)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none has changed"


def _less(less: "Less") -> str:
    if less.what == "modules":
        names = listed([module_in_words(name) for name in less.modules], _MOST_NAMED)
        return f"{less.count} of {less.total} modules gone, {names}"
    if less.first is not None:
        gone = f"{less.count} of {less.total} outputs gone or of another shape"
        return f"{gone}, first {_place(less.first)}"
    return f"only {less.count:,} of {less.total:,} {less.what}"


_MEASURES: "Mapping[Measure, tuple[str, str]]" = {
    "peir": ("PEIR", ""), "sqnr": ("SQNR", " dB"), "cosine": ("cosine", ""),
    "relative_l2": ("relative L2", ""),
}  # fmt: skip
_AT_LEAST = ("sqnr", "cosine")


def limit_in_words(measure: "Measure", glob: str, bound: float) -> str:
    """A limit: "lm_head=0.2" for one on PEIR, else "lm_head: SQNR >= 30 dB"."""
    if measure == "peir":
        return f"{glob}={bound:g}"
    name, unit = _MEASURES[measure]
    return f"{glob}: {name} {'>=' if measure in _AT_LEAST else '<='} {bound:g}{unit}"


def _limit(limit: "Limit") -> str:
    bound = limit.peir if limit.bound is None else limit.bound
    assert bound is not None
    return limit_in_words(limit.measure, limit.glob, bound)


def _figure(limit: "Limit") -> str:
    """The figure of the worst output: "SQNR 12.4 dB"."""
    name, unit = _MEASURES[limit.measure]
    return f"{name} {figure(limit.worst)}{unit}"


def _kept(limit: "Limit") -> str:
    outputs = "1 output is" if limit.outputs == 1 else f"{limit.outputs} outputs are"
    name, unit = _MEASURES[limit.measure]
    worst = f"{name} at {'least' if limit.measure in _AT_LEAST else 'most'}"
    return f"{outputs} within the limit {_limit(limit)}: {worst} {figure(limit.worst)}{unit}"


_UNCHECKED = {
    "weights": "which weights of the reference",
    "inputs": "which inputs",
    "settings": "which candidate",
}
_OTHERS = {
    "class": "the {name} is of class {then}, and here {now}",
    "dtype": "the {name} computes in {then}, and here in {now}",
    "mode": "the {name} is in {then} mode, and here in {now} mode",
    "steps": "the {name} runs for {then} decode steps, and here {now}",
    "points": "the {name} is quantised to {then}, and here to {now}",
    "form": "the input `{name}` is {then}, and here {now}",
    "setting": "`{name}` is {then}, and here {now}",
}


def mismatch(found: "Mismatch") -> str:
    """In what a baseline is of another comparison: "activation is uint8, and here int16"."""
    if found.what == "weights":
        how = f"{found.then}, and here {found.now}" if found.then else ""
        how = how or f"relative L2 {figure(found.distance or 0.0)} apart"
        return f"the {found.name} has other weights ({how})"
    if found.what == "values":
        how = f"relative L2 {figure(found.distance or 0.0)} apart"
        return f"the input `{found.name}` holds other values ({how})"
    name = found.name.replace("_", "-") if found.what == "setting" else found.name
    missing = "nothing" if found.what in ("points", "form") else "not given"
    if found.what == "steps":
        missing = "no"
    return _OTHERS[found.what].format(
        name=name, then=found.then or missing, now=found.now or missing
    )


def refusal(baseline: str, found: "Sequence[Mismatch]") -> str:
    """What is said of a baseline of another comparison."""
    return (
        f"the baseline {baseline} is of another comparison: {'; '.join(map(mismatch, found))}. "
        "Compare the same models on the same inputs, write the baseline again, or let it pass with "
        "--baseline-any (baseline_any=True)"
    )


def _place(item: "Change | Limit") -> str:
    """An output: "`model.norm`", "`output.1` of `model.layers.0` (call 2)"."""
    value = "" if item.value == "output" else f"`{item.value}` of "
    return f"{value}{module_in_words(item.module)}{f' (call {item.call})' if item.call else ''}"


def _moves(change: "Change") -> str:
    """How far an output has moved: "relative L2 0.0213 → 0.31, PEIR 0.05 → 0.4"."""
    assert change.before is not None
    assert change.now is not None
    before, now = change.before, change.now
    text = f"relative L2 {figure(before.relative_l2)} → {figure(now.relative_l2)}"
    if before.unmatched != now.unmatched:
        text += f", {before.unmatched} → {now.unmatched} elements not finite on one side"
    return f"{text}, PEIR {figure(before.peir)} → {figure(now.peir)}"
