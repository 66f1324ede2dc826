"""What a study has found, as tables, plots and sentences; `render` writes them.

report = report_of(study, results)
report.reading    # "uint8/uint8, prefill: -60 has the least loss, ..."
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrappers.studies.decode_calibration import BASELINE, DecodeCalibration
from wrappers.studies.figures import (
    LOSSES,
    Found,
    Plot,
    Table,
    by_seed,
    layer_table,
    numbered,
    plot_of,
    succeeded,
    table_of,
)
from wrappers.studies.grid import Grid
from wrappers.studies.judgement import (
    NEGLIGIBLE,
    Choice,
    Difference,
    Spread,
    choose,
    extremes_in_words,
    in_words,
)
from wrappers.studies.labels import differing, labels
from wrappers.studies.mask_fill import DEFAULT_FILL, FAITHFUL, SEARCH, MaskFill, Pair
from wrappers.studies.quantising import SOURCES
from wrappers.studies.trials import Result, Results, Trial

_TICKS = 60  # characters of all names of a plot's ticks; longer ones give way to numbers


@dataclass(frozen=True)
class Report:
    """A study as it stands.

    Attributes:
        title: its name.
        question: what it asks, in words.
        reading: what it has found, a paragraph each.
        tables, plots: the figures.
        failures: trials that failed, and why.
        method: what was drawn how often, and what the intervals hold; "" if it is not told.
        head: of the file of results: workload and environment.
        results: of the trials that the study wants.
    """

    title: str
    question: str
    reading: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    failures: tuple[str, ...]
    method: str = ""
    head: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()


@functools.singledispatch
def report_of(study: Any, known: Results) -> Report:
    """The report of a study on the results so far."""
    raise TypeError(f"no report is known of {type(study).__name__}")


@report_of.register
def _(study: MaskFill, known: Results) -> Report:
    default = _written(DEFAULT_FILL)
    measured = study.measured
    tables, layers, reading = [], [], []
    series = {}
    costs = {}
    for pair in study.pairs:
        searched = _of_fills(study, pair, SEARCH, study.searched(pair, known), known)
        finalists = _of_fills(study, pair, FAITHFUL, study.finalists(pair, known), known)
        series[_named(pair)] = (searched, [float(name) for name in searched])
        choices = {}
        for variant, found in ((SEARCH, searched), (FAITHFUL, finalists)):
            title = f"{_named(pair)}, {variant}"
            if any(map(succeeded, found.values())):
                tables.append(table_of(title, "fill value", found, [measured], default))
            figures = _figures(found, measured)
            if figures.get(default):
                choices[variant] = choose(figures, default)
                costs[_named(pair)] = (variant, found[default])
                reading.append(f"{title}: {in_words(choices[variant])}")
            else:
                reading += _without(title, found, default)
        both = {SEARCH: searched, FAITHFUL: finalists}
        reading += _disagreement(_named(pair), choices, both, measured)
        title = f"{_named(pair)}, {FAITHFUL}, by layer"
        layers += layer_table(title, finalists, _PEIR_OF_LAYERS)
    return _report(
        study,
        known,
        "Masked positions get a finite number before the softmax. A small one leaks attention to "
        "hidden positions; a large one takes the codes of a quantised tensor from the logits.",
        [*_costs(f"at {default}", costs), *reading],
        [*tables, *layers],
        plot_of(f"{SEARCH}: perplexity by fill value", "fill value", measured, series),
        f"{_sets(study.seeds, f'{study.calibration} sequences')} {SEARCH} searches; the best "
        f"values and the default are run again in {FAITHFUL}, which computes as the hardware does, "
        "on the same sets.",
    )


_PEIR_OF_LAYERS = {"weights_peir": "PEIR softmax", "attention_peir": "PEIR attention"}


def _of_fills(
    study: MaskFill, pair: Pair, variant: str, fills: Iterable[float], known: Results
) -> dict[str, list[Result]]:
    found = {_written(fill): known.of(study.trials(pair, fill, variant)) for fill in fills}
    return {name: results for name, results in found.items() if results}


def _written(fill: float) -> str:
    return f"{fill:.12g}"  # what a user may tell apart


def _disagreement(
    what: str, choices: Mapping[str, Choice], found: Mapping[str, Found], measured: str
) -> list[str]:
    """What each variant says of the other's best, where they differ."""
    if len(choices) < 2 or choices[SEARCH].best == choices[FAITHFUL].best:
        return []
    bests = [choices[SEARCH].best, choices[FAITHFUL].best]
    told, clear = [], []
    for variant, choice in choices.items():
        figures = _figures(found[variant], measured)
        means = [
            f"{name} has {Spread.of(list(figures[name].values())).mean:.4f}"
            for name in bests
            if figures.get(name)
        ]
        told.append(f"in {variant} {' and '.join(means)}")
        one, other = (figures.get(name, {}) for name in bests)
        if one.keys() & other.keys():
            difference = Difference.of(one, other, comparisons=len(choice.above))
            clear += [variant] if difference.is_clear else []
    sure = f"clear in {' and '.join(clear)}" if clear else "not clear in either"
    text = f"{what}: the variants differ in what is best ({'; '.join(told)}), which is {sure}"
    chosen = [choices[variant].chosen for variant in (SEARCH, FAITHFUL)]
    if len(set(chosen)) > 1:
        text += (
            f"; they disagree: {SEARCH} speaks for {chosen[0]}, {FAITHFUL}, which computes as the "
            f"hardware does, for {chosen[1]}"
        )
    return [f"{text}."]


@report_of.register
def _(study: DecodeCalibration, known: Results) -> Report:
    tables, layers, reading = [], [], []
    plots: list[Plot] = []
    costs = {}
    places = [(size, SEARCH) for size in study.sizes] + [(max(study.sizes), FAITHFUL)]
    for pair in study.pairs:
        found = {
            f"{size} sequences, {variant}": {
                source: results
                for source in SOURCES
                if (results := known.of(study.trials(pair, source, size, variant)))
            }
            for size, variant in places
        }
        for place, each in found.items():
            title = f"{_named(pair)}, {place}"
            if any(map(succeeded, each.values())):
                tables.append(table_of(title, "calibrated on", each, study.measured, BASELINE))
            if succeeded(each.get(BASELINE, ())):
                costs[_named(pair)] = (place, each[BASELINE])
            else:
                reading += _without(title, each, BASELINE)
        for measured in study.measured:
            choices = {
                place: choose(figures, BASELINE)
                for place, each in found.items()
                if (figures := _figures(each, measured)).get(BASELINE)
            }
            reading += _of_objective(f"{_named(pair)}, {_OBJECTIVES[measured]}", choices)
        *_, (title, last) = found.items()
        for prefix, words in _PASTS.items():
            metrics = {f"{prefix}{name}": name_words for name, name_words in _OF_LAYERS.items()}
            layers += layer_table(f"{_named(pair)}, {title}, by layer, {words}", last, metrics)
        plots += _plot_of_sources(study, pair, known)
    return _report(
        study,
        known,
        "A decode model is calibrated on the steps of given prompts. The keys and values before "
        "them come from the float model (the objective: to decode as the float model does, on the "
        "float model's past), from the quantised prefill model (to decode well on the past that "
        "it will meet), or half of the prompts from each. All are measured as deployed (the "
        "quantised prefill reads a prompt, then the decode model goes on over its own past), and "
        "for the two objectives one step at a time, over a past that the quantised prefill or the "
        "float model has made.",
        [*_costs(f"as deployed, calibrated on {BASELINE},", costs), *reading],
        [*tables, *layers],
        plots,
        f"{_sets(study.seeds, f'{_listed(study.sizes)} sequences')} {study.steps} tokens of a "
        f"sequence are decoded. The largest size is run in {SEARCH} and in {FAITHFUL}, which "
        "computes as the hardware does.",
    )


_OBJECTIVES = {
    "loss": "as deployed",
    "quantized_past_loss": "over the quantised prefill's past",
    "float_past_loss": "over the float model's past",
}
_PASTS = {
    "quantized_past_": _OBJECTIVES["quantized_past_loss"],
    "float_past_": _OBJECTIVES["float_past_loss"],
}
# What is shown of each layer: of its output, and of the logits with this layer alone quantised.
_OF_LAYERS = {"layer_own_l2": "own error", "layer_sensitivity": "sensitivity"}


def _of_objective(what: str, choices: Mapping[str, Choice]) -> list[str]:
    """One line for all places where nothing is told from the default, and one for each other."""
    lines = []
    quiet = {}
    for place, choice in choices.items():
        left_out = choice.incomplete or choice.not_finite
        if left_out or any(over.matters for over in choice.over.values()):
            worse = [f"{name}, {over}" for name, over in choice.over.items() if _is_worse(over)]
            told = f"; clearly worse than {BASELINE}: {'; '.join(worse)}" if worse else ""
            lines.append(f"{what}, {place}: {in_words(choice)[:-1]}{told}.")
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


def _is_worse(over: Difference) -> bool:
    return over.matters and over.low > 0


def _plot_of_sources(study: DecodeCalibration, pair: Pair, known: Results) -> list[Plot]:
    series = {
        source: (
            {str(size): known.of(study.trials(pair, source, size, SEARCH)) for size in study.sizes},
            [float(size) for size in study.sizes],
        )
        for source in SOURCES
    }
    title = f"{_named(pair)}, {SEARCH}: perplexity as deployed by calibration size"
    return plot_of(title, "sequences", "loss", series)


@report_of.register
def _(study: Grid, known: Results) -> Report:
    names = labels(study.combinations, study.varied)
    found = {}
    for name, settings in zip(names, study.combinations, strict=True):
        results = known.of(Trial(settings, seed) for seed in study.seeds)
        if results:
            found[name] = results
    varying = differing(study.combinations, study.varied)
    varied = ", ".join(varying)
    baseline = names[list(study.combinations).index(study.baseline)]
    loss = LOSSES[study.measured]
    figures = _figures(found, study.measured)
    tables, plots, reading = [], [], []
    shown = sorted((n for n in found if figures[n]), key=lambda n: _badness(figures[n]))
    if shown:
        ordered = {name: found[name] for name in shown}
        table = table_of(
            f"by {loss.words}", varied, ordered, [study.measured], baseline, baseline="baseline"
        )
        ticks = shown
        if sum(len(name) + 2 for name in shown) > _TICKS:
            table, ticks = numbered(table), [str(place + 1) for place in range(len(shown))]
        tables.append(table)
        places = [float(place) for place in range(len(shown))]
        plots = plot_of(
            f"{study.name}: {loss.header}",
            varied if ticks == shown else f"{varied}, by its number in the table",
            study.measured,
            {study.name: (ordered, places)},
            ticks,
        )
    if figures.get(baseline):
        costs = {"": (f"baseline {baseline}", found[baseline])}
        reading += _costs(f"with the baseline, {baseline},", costs, study.measured)
        reading.append(extremes_in_words(choose(figures, baseline), loss.words))
    else:
        reading += _without(study.name, found, baseline, "baseline")
    every = "combination" if len(varying) > 1 else "value"
    return _report(
        study,
        known,
        f"Every {every} of {varied}, compared with {baseline}.",
        reading,
        tables,
        plots,
        _sets(study.seeds),
    )


def _badness(figures: Mapping[int, float]) -> float:
    mean = Spread.of(list(figures.values())).mean
    return mean if math.isfinite(mean) else math.inf


def _figures(found: Found, measured: str) -> dict[str, dict[int, float]]:
    return {name: by_seed(results, measured) for name, results in found.items()}


def _without(what: str, found: Found, default: str, role: str = "default") -> list[str]:
    """Why nothing is said of some results."""
    if not found:
        return []
    why = "no results: its trials failed" if default in found else "no results yet"
    return [f"{what}: the {role}, {default}, has {why}."]


def _costs(
    where: str, found: Mapping[str, tuple[str, Sequence[Result]]], measured: str = "loss"
) -> list[str]:
    """A line: what quantisation costs with the default, by pair of dtypes."""
    told, reference, places = [], math.nan, []
    for pair, (place, results) in found.items():
        floats = by_seed(results, LOSSES[measured].reference)
        own = by_seed(results, measured)
        seeds = floats.keys() & own.keys()
        if not seeds:
            continue
        reference = floats[min(seeds)]
        cost = Spread.of([own[seed] - floats[seed] for seed in seeds])
        spread = "" if math.isnan(cost.deviation) else f" ± {cost.deviation:.2g}"
        told.append(f"{cost.mean:+.4f}{spread}{f' for {pair}' if pair else ''}")
        places.append(place)
    if not told:
        return []
    text = (
        f"{where} quantisation costs {', '.join(told)} of the {LOSSES[measured].words} over the "
        f"float model's {reference:.4f}"
    )
    if found.keys() != {""}:
        text += f" ({'; '.join(dict.fromkeys(places))})"
    return [f"{text[0].upper()}{text[1:]}."]


def _sets(seeds: Sequence[int], size: str = "") -> str:
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


def _report(
    study: MaskFill | DecodeCalibration | Grid,
    known: Results,
    question: str,
    reading: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    method: str,
) -> Report:
    # The file may hold more, of seeds or values that the study no longer wants.
    results = known.of({trial.key: trial for trial in study.wanted(known)}.values())
    failures = tuple(
        f"{json.dumps(dict(result.trial.settings))}, seed {result.trial.seed}: {result.error}"
        for result in results
        if result.error
    )
    if not results:
        reading = ["No trial has ended yet."]
    elif not succeeded(results):
        reading = [f"None of the {len(results)} trials that have ended has succeeded."]
    return Report(
        study.name,
        question,
        tuple(reading),
        tuple(tables),
        tuple(plots),
        failures,
        method,
        known.head,
        tuple(results),
    )


def _named(pair: Pair) -> str:
    return "/".join(pair)


def _listed(sizes: Sequence[int]) -> str:
    *most, last = map(str, sizes)
    return f"{', '.join(most)} or {last}" if most else last
