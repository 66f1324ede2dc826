"""What the figures of a study say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wrappers.studies.judge.figures import LOSSES, Found, by_seed
from wrappers.studies.judge.judgement import (
    MARGIN,
    MARGIN_SOURCE,
    Choice,
    Difference,
    Outcome,
    Spread,
    in_words,
)
from wrappers.studies.plan.decode_calibration import BASELINE
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH
from wrappers.studies.plan.trials import Result

# Of each loss of a decode model, what it is measured over.
OBJECTIVES = {
    "loss": "as deployed",
    "quantized_past_loss": "over the quantised prefill's past",
    "float_past_loss": "over the float model's past",
}


def figures_of(found: Found, measured: str) -> dict[str, dict[int, float]]:
    """The losses of each setting by seed."""
    return {name: by_seed(results, measured) for name, results in found.items()}


def disagreement(
    what: str, choices: Mapping[str, Choice], found: Mapping[str, Found], measured: str
) -> list[str]:
    """What each variant says of the other's best, unless that is no difference in both."""
    if len(choices) < 2 or choices[SEARCH].best == choices[FAITHFUL].best:
        return []
    bests = [choices[SEARCH].best, choices[FAITHFUL].best]
    clauses, outcomes = [], set()
    for variant, choice in choices.items():
        figures = figures_of(found[variant], measured)
        means = [
            f"{name} has {Spread.of(list(figures[name].values())).mean:.4f}"
            for name in bests
            if figures.get(name)
        ]
        one, other = (figures.get(name, {}) for name in bests)
        if one.keys() & other.keys():
            difference = Difference.of(one, other, comparisons=len(choice.order) - 1)
            means[-1] += f": {difference.outcome}"
            outcomes.add(difference.outcome)
        clauses.append(f"in {variant} {' and '.join(means)}")
    text = f"{what}: the variants differ in what is best ({'; '.join(clauses)})"
    chosen = [choices[variant].chosen for variant in (SEARCH, FAITHFUL)]
    is_the_same = len(set(chosen)) == 1
    if is_the_same and outcomes == {Outcome.ALIKE}:
        return []
    if not is_the_same:
        text += (
            f"; they disagree: {SEARCH} speaks for {chosen[0]}, {FAITHFUL}, which computes as the "
            f"hardware does, for {chosen[1]}"
        )
    return [f"{text}."]


def of_objective(what: str, choices: Mapping[str, Choice]) -> list[str]:
    """One line for all places without a difference that matters, one for all where that cannot be
    told, and one for each other place."""
    lines = []
    quiet: dict[Outcome, dict[str, Choice]] = {Outcome.ALIKE: {}, Outcome.UNKNOWN: {}}
    for place, choice in choices.items():
        outcomes = {over.outcome for over in choice.over.values()}
        if choice.incomplete or choice.not_finite or outcomes & {Outcome.BETTER, Outcome.WORSE}:
            lines.append(f"{what}, {place}: {in_words(choice)}")
        elif outcomes:
            is_unknown = Outcome.UNKNOWN in outcomes
            quiet[Outcome.UNKNOWN if is_unknown else Outcome.ALIKE][place] = choice
    lines[:0] = [
        f"{what}: {_of_places(outcome, places, len(choices))}"
        for outcome, places in quiet.items()
        if places
    ]
    chosen = {choice.chosen for choice in choices.values()}
    if len(chosen) > 1:
        lines.append(
            f"{what}: the answer is not the same for every size and variant "
            f"({', '.join(sorted(chosen))})."
        )
    return lines


def _of_places(outcome: Outcome, places: Mapping[str, Choice], count: int) -> str:
    """What is the same in several places, of `count` in all."""
    overs = [
        (over, name, place)
        for place, choice in places.items()
        for name, over in choice.over.items()
        if over.outcome is outcome
    ]
    where = " or ".join(places)
    if outcome is Outcome.ALIKE:
        where = "any size or variant" if len(places) == count else where
        largest, name, place = max(overs, key=lambda each: abs(each[0].mean))
        return (
            f"no difference to {BASELINE} at {where} matters: keep {BASELINE}; the largest is "
            f"{largest}, {name} at {place}."
        )
    where = "any size or variant" if len(places) == count > 1 else where
    widest, name, place = max(overs, key=lambda each: each[0].high - each[0].low)
    names = " or ".join(dict.fromkeys(name for _, name, _ in overs))
    return (
        f"cannot tell {names} from {BASELINE} at {where}: more calibration sets may tell; the "
        f"widest interval is {widest}, {name} at {place}."
    )


def without(what: str, found: Found, default: str, role: str = "default") -> list[str]:
    """Why nothing is reported of some results."""
    if not found:
        return []
    why = "no results: its trials failed" if default in found else "no results yet"
    return [f"{what}: the {role}, {default}, has {why}."]


def costs_in_words(
    where: str, found: Mapping[str, tuple[str, Sequence[Result]]], measured: str = "loss"
) -> list[str]:
    """A line: what quantisation costs with the default, by pair of dtypes."""
    clauses, reference, places = [], math.nan, []
    for pair, (place, results) in found.items():
        floats = by_seed(results, LOSSES[measured].reference)
        own = by_seed(results, measured)
        seeds = floats.keys() & own.keys()
        if not seeds:
            continue
        reference = floats[min(seeds)]
        cost = Spread.of([own[seed] - floats[seed] for seed in seeds])
        spread = "" if math.isnan(cost.deviation) else f" ± {cost.deviation:.2g}"
        clauses.append(f"{cost.mean:+.4f}{spread}{f' for {pair}' if pair else ''}")
        places.append(place)
    if not clauses:
        return []
    text = (
        f"{where} quantisation costs {', '.join(clauses)} of the {LOSSES[measured].words} over the "
        f"float model's {reference:.4f}"
    )
    if found.keys() != {""}:
        text += f" ({'; '.join(dict.fromkeys(places))})"
    return [f"{text[0].upper()}{text[1:]}."]


def sets_in_words(seeds: Sequence[int], size: str = "") -> str:
    """What was drawn, and what the intervals hold."""
    of = f" of {size}" if size else ""
    many = (
        f"on {len(seeds)} calibration sets (one for each seed)"
        if len(seeds) > 1
        else "on one calibration set"
    )
    return (
        f"Each setting was calibrated {many}{of}, drawn from the part of the text that is "
        "not scored; all settings on the same sets, and they are compared set by set. Figures are "
        "means ± standard deviations over the sets. An interval in a table, [95 %], is Student's t "
        "of that one difference. Verdicts, and the intervals in the sentences, are by wider ones: "
        "all comparisons of one table with the default share 5 % (Bonferroni), since the best of "
        f"many is the luckiest as well. One that lies wholly beyond {MARGIN} of the loss either "
        "way is a difference (better, worse); one wholly within is no difference that matters; of "
        f"any other it is said that it cannot tell. {MARGIN} of the loss is 0.1 % of the "
        f"perplexity, {MARGIN_SOURCE}. The intervals cover the luck of the calibration sets; not "
        "the choice of the text that is scored, nor another model."
    )


def listed(sizes: Sequence[int]) -> str:
    """Numbers as a text has them: "2, 4 or 8"."""
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
