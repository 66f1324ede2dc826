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

from wrappers.studies.judge.figures import (
    LOSSES,
    Plot,
    Table,
    layer_table,
    numbered,
    plot_of,
    succeeded,
    table_of,
)
from wrappers.studies.judge.judgement import (
    Choice,
    Difference,
    Spread,
    choose,
    extremes_in_words,
    in_words,
)
from wrappers.studies.judge.labels import differing, labels
from wrappers.studies.judge.sentences import (
    OBJECTIVES,
    costs_in_words,
    disagreement,
    figures_of,
    listed,
    of_objective,
    sets_in_words,
    without,
)
from wrappers.studies.plan.decode_calibration import BASELINE, DecodeCalibration
from wrappers.studies.plan.grid import Grid
from wrappers.studies.plan.mask_fill import DEFAULT_FILL, FAITHFUL, SEARCH, MaskFill, Pair
from wrappers.studies.plan.settings import SOURCES
from wrappers.studies.plan.trials import Result, Results, Trial

_TICKS = 60  # characters of all names of a plot's ticks; longer ones give way to numbers


@dataclass(frozen=True)
class Judgement:
    """A setting against the default.

    Attributes:
        place: where, such as "uint8/uint8, prefill".
        setting, default: their names.
        measured: the metric that they are compared by.
        difference: the setting's minus the default's, with the interval that its outcome is by.
    """

    place: str
    setting: str
    default: str
    measured: str
    difference: Difference


@dataclass(frozen=True)
class Report:
    """A study as it stands.

    Attributes:
        title: its name.
        question: what it asks, in words.
        reading: what it has found, a paragraph each.
        tables, plots: the figures.
        failures: trials that failed, and why.
        method: what was drawn how often, and what the intervals hold; "" if it is not reported.
        head: of the file of results: workload and environment.
        results: of the trials that the study wants.
        judgements: each setting against the default.
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
    judgements: tuple[Judgement, ...] = ()


@functools.singledispatch
def report_of(study: Any, known: Results) -> Report:
    """The report of a study on the results so far."""
    raise TypeError(f"no report is known of {type(study).__name__}")


@report_of.register
def _(study: MaskFill, known: Results) -> Report:
    default = _written(DEFAULT_FILL)
    measured = study.measured
    tables, layers, reading = [], [], []
    judged: list[Judgement] = []
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
            figures = figures_of(found, measured)
            if figures.get(default):
                choices[variant] = choose(figures, default)
                judged += _judgements(title, measured, choices[variant])
                costs[_named(pair)] = (variant, found[default])
                reading.append(f"{title}: {in_words(choices[variant])}")
            else:
                reading += without(title, found, default)
        both = {SEARCH: searched, FAITHFUL: finalists}
        reading += disagreement(_named(pair), choices, both, measured)
        title = f"{_named(pair)}, {FAITHFUL}, by layer"
        layers += layer_table(title, finalists, _PEIR_OF_LAYERS)
    return _report(
        study,
        known,
        "Masked positions get a finite number before the softmax. A small one leaks attention to "
        "hidden positions; a large one takes the codes of a quantised tensor from the logits.",
        [*costs_in_words(f"at {default}", costs), *reading],
        [*tables, *layers],
        plot_of(f"{SEARCH}: perplexity by fill value", "fill value", measured, series),
        f"{sets_in_words(study.seeds, f'{study.calibration} sequences')} {SEARCH} searches; the "
        f"best values and the default are run again in {FAITHFUL}, which computes as the hardware "
        "does, on the same sets.",
        judged,
    )


_PEIR_OF_LAYERS = {"weights_peir": "PEIR softmax", "attention_peir": "PEIR attention"}


def _of_fills(
    study: MaskFill, pair: Pair, variant: str, fills: Iterable[float], known: Results
) -> dict[str, list[Result]]:
    found = {_written(fill): known.of(study.trials(pair, fill, variant)) for fill in fills}
    return {name: results for name, results in found.items() if results}


def _written(fill: float) -> str:
    return f"{fill:.12g}"  # what a user may tell apart


@report_of.register
def _(study: DecodeCalibration, known: Results) -> Report:
    tables, layers, reading = [], [], []
    judged: list[Judgement] = []
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
                reading += without(title, each, BASELINE)
        for measured in study.measured:
            choices = {
                place: choose(figures, BASELINE)
                for place, each in found.items()
                if (figures := figures_of(each, measured)).get(BASELINE)
            }
            reading += of_objective(f"{_named(pair)}, {OBJECTIVES[measured]}", choices)
            for place, choice in choices.items():
                judged += _judgements(f"{_named(pair)}, {place}", measured, choice)
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
        [*costs_in_words(f"as deployed, calibrated on {BASELINE},", costs), *reading],
        [*tables, *layers],
        plots,
        f"{sets_in_words(study.seeds, f'{listed(study.sizes)} sequences')} {study.steps} tokens of "
        f"a sequence are decoded. The largest size is run in {SEARCH} and in {FAITHFUL}, which "
        "computes as the hardware does.",
        judged,
    )


_PASTS = {
    "quantized_past_": OBJECTIVES["quantized_past_loss"],
    "float_past_": OBJECTIVES["float_past_loss"],
}
# What is shown of each layer: of its output, and of the logits with this layer alone quantised.
_OF_LAYERS = {"layer_own_l2": "own error", "layer_sensitivity": "sensitivity"}


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
    figures = figures_of(found, study.measured)
    tables, plots, reading = [], [], []
    judged: list[Judgement] = []
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
        reading += costs_in_words(f"with the baseline, {baseline},", costs, study.measured)
        choice = choose(figures, baseline)
        judged = _judgements(study.name, study.measured, choice)
        reading.append(extremes_in_words(choice, loss.words))
    else:
        reading += without(study.name, found, baseline, "baseline")
    every = "combination" if len(varying) > 1 else "value"
    return _report(
        study,
        known,
        f"Every {every} of {varied}, compared with {baseline}.",
        reading,
        tables,
        plots,
        sets_in_words(study.seeds),
        judged,
    )


def _badness(figures: Mapping[int, float]) -> float:
    mean = Spread.of(list(figures.values())).mean
    return mean if math.isfinite(mean) else math.inf


def _report(
    study: MaskFill | DecodeCalibration | Grid,
    known: Results,
    question: str,
    reading: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    method: str,
    judged: Sequence[Judgement],
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
        tuple(judged),
    )


def _judgements(place: str, measured: str, choice: Choice) -> list[Judgement]:
    return [
        Judgement(place, name, choice.default, measured, over) for name, over in choice.over.items()
    ]


def _named(pair: Pair) -> str:
    return "/".join(pair)
