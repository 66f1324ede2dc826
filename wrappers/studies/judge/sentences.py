"""What the figures of a study say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wrappers.studies.judge.figures import LOSSES, Found, by_seed
from wrappers.studies.judge.judgement import NEGLIGIBLE, Choice, Difference, Spread, in_words
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
    """What each variant says of the other's best, where they differ by more than is negligible."""
    if len(choices) < 2 or choices[SEARCH].best == choices[FAITHFUL].best:
        return []
    bests = [choices[SEARCH].best, choices[FAITHFUL].best]
    clauses, clear, differences = [], [], []
    for variant, choice in choices.items():
        figures = figures_of(found[variant], measured)
        means = [
            f"{name} has {Spread.of(list(figures[name].values())).mean:.4f}"
            for name in bests
            if figures.get(name)
        ]
        clauses.append(f"in {variant} {' and '.join(means)}")
        one, other = (figures.get(name, {}) for name in bests)
        if one.keys() & other.keys():
            difference = Difference.of(one, other, comparisons=len(choice.above))
            differences.append(abs(difference.mean))
            clear += [variant] if difference.is_clear else []
    sure = f"clear in {' and '.join(clear)}" if clear else "not clear in either"
    text = f"{what}: the variants differ in what is best ({'; '.join(clauses)}), which is {sure}"
    chosen = [choices[variant].chosen for variant in (SEARCH, FAITHFUL)]
    is_the_same = len(set(chosen)) == 1
    if is_the_same and max(differences, default=math.inf) <= NEGLIGIBLE:
        return []
    if not is_the_same:
        text += (
            f"; they disagree: {SEARCH} speaks for {chosen[0]}, {FAITHFUL}, which computes as the "
            f"hardware does, for {chosen[1]}"
        )
    return [f"{text}."]


def of_objective(what: str, choices: Mapping[str, Choice]) -> list[str]:
    """One line for all places where nothing clearly differs, and one for each other place."""
    lines = []
    quiet = {}
    for place, choice in choices.items():
        left_out = choice.incomplete or choice.not_finite
        if left_out or any(over.matters for over in choice.over.values()):
            lines.append(f"{what}, {place}: {with_worse(choice)}")
        else:
            quiet[place] = choice
    overs = [
        (over, f"{name} at {place}")
        for place, choice in quiet.items()
        for name, over in choice.over.items()
    ]
    if overs:
        where = "any size or variant" if len(quiet) == len(choices) else " or ".join(quiet)
        largest, name = max(overs, key=lambda pair: abs(pair[0].mean))
        is_none_clear = not any(over.is_clear for over, _ in overs)
        how = "clear" if is_none_clear else f"clear and more than negligible ({NEGLIGIBLE})"
        lines.insert(
            0,
            f"{what}: no difference to {BASELINE} at {where} is {how}: keep {BASELINE}; the "
            f"largest is {largest}, {name}.",
        )
    chosen = {choice.chosen for choice in choices.values()}
    if len(chosen) > 1:
        alike = set.intersection(*(set(choice.alike) for choice in choices.values()))
        among = f"among the best in all: {', '.join(sorted(alike)) or 'none'}"
        lines.append(
            f"{what}: the answer is not the same for every size and variant "
            f"({', '.join(sorted(chosen))}); {among}."
        )
    return lines


def with_worse(choice: Choice) -> str:
    """A choice in words, with what is clearly worse than the default, and by how much."""
    worse = [
        f"{name}, {over}" for name, over in choice.over.items() if over.matters and over.low > 0
    ]
    clauses = f"; clearly worse than {choice.default}: {'; '.join(worse)}" if worse else ""
    return f"{in_words(choice)[:-1]}{clauses}."


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
        "of that one difference. Those in the sentences are wider: all comparisons of one table "
        "with the default share 5 % (Bonferroni), since the best of many is the luckiest as well; "
        "'clear' is what holds by them. They cover the luck of the calibration sets; not the "
        "choice of the text that is scored, nor another model. A difference of up to "
        f"{NEGLIGIBLE} of the loss, 0.1 % of the perplexity, counts as negligible."
    )


def listed(sizes: Sequence[int]) -> str:
    """Numbers as a text has them: "2, 4 or 8"."""
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
