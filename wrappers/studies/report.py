"""What a study has found, as tables, plots and sentences; `render` writes them.

report = report_of(study, results)
report.reading    # "uint8/uint8, prefill: -60 has the least loss, ..."
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrappers.studies.decode_calibration import BASELINE, DecodeCalibration
from wrappers.studies.figures import Plot, Table, by_seed, cell, points_of, succeeded, table_of
from wrappers.studies.grid import Grid
from wrappers.studies.judgement import choose, in_words
from wrappers.studies.mask_fill import DEFAULT_FILL, FAITHFUL, SEARCH, MaskFill, Pair
from wrappers.studies.quantising import SOURCES
from wrappers.studies.trials import Result, Results, Trial


@dataclass(frozen=True)
class Report:
    """A study as it stands.

    Attributes:
        title: its name.
        question: what it asks, in words.
        reading: what it has found, a paragraph each.
        tables, plots: the figures.
        failures: trials that failed, and why.
        head: of the file of results: workload and environment.
        results: all of them.
    """

    title: str
    question: str
    reading: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...]
    failures: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[Result, ...] = ()


@functools.singledispatch
def report_of(study: Any, known: Results) -> Report:
    """The report of a study on the results so far."""
    raise TypeError(f"no report is known of {type(study).__name__}")


@report_of.register
def _(study: MaskFill, known: Results) -> Report:
    tables, plots, reading = [], [], []
    for variant in (SEARCH, FAITHFUL):
        series = {}
        for pair in study.pairs:
            fills = study.searched(pair, known)
            if variant == FAITHFUL:
                fills = study.finalists(pair, known)
            found = {f"{fill:g}": known.of(study.trials(pair, fill, variant)) for fill in fills}
            found = {name: results for name, results in found.items() if succeeded(results)}
            if not found:
                continue
            default = f"{DEFAULT_FILL:g}"
            tables.append(
                table_of(f"{_named(pair)}, {variant}", "fill value", found, study.measured, default)
            )
            series[_named(pair)] = points_of(found, "perplexity", [float(name) for name in found])
        if series and variant == SEARCH:
            plots.append(Plot("perplexity by fill value", "fill value", "perplexity", series))
    for pair in study.pairs:
        reading += _reading_of_fills(study, pair, known)
    question = (
        "Masked positions get a finite number before the softmax. A small one leaks attention to "
        "hidden positions; a large one takes the codes of a quantised tensor from the logits."
    )
    return _report(study.name, question, reading, tables, plots, known)


def _reading_of_fills(study: MaskFill, pair: Pair, known: Results) -> list[str]:
    chosen = {}
    lines = []
    for variant in (SEARCH, FAITHFUL):
        fills = study.searched(pair, known) if variant == SEARCH else study.finalists(pair, known)
        figures = {
            f"{fill:g}": found
            for fill in fills
            if (found := by_seed(known.of(study.trials(pair, fill, variant)), study.measured))
        }
        if f"{DEFAULT_FILL:g}" not in figures:
            continue
        choice = choose(figures, f"{DEFAULT_FILL:g}")
        chosen[variant] = choice.chosen
        lines.append(f"{_named(pair)}, {variant}: {in_words(choice, figures)}")
    if len(set(chosen.values())) > 1:
        lines.append(
            f"{_named(pair)}: the variants disagree: {SEARCH} speaks for {chosen[SEARCH]}, "
            f"{FAITHFUL}, which computes as the hardware does, for {chosen[FAITHFUL]}."
        )
    return lines


@report_of.register
def _(study: DecodeCalibration, known: Results) -> Report:
    tables, plots, reading = [], [], []
    for pair in study.pairs:
        chosen: dict[tuple[str, str], set[str]] = {}
        for variant in (SEARCH, FAITHFUL):
            sizes = study.sizes if variant == SEARCH else [max(study.sizes)]
            for size in sizes:
                found = {
                    source: results
                    for source in SOURCES
                    if succeeded(results := known.of(study.trials(pair, source, size, variant)))
                }
                if BASELINE not in found:
                    continue
                title = f"{_named(pair)}, {size} sequences, {variant}"
                tables.append(table_of(title, "calibrated on", found, study.measured[0], BASELINE))
                for measured, words in zip(study.measured, _OBJECTIVES, strict=True):
                    figures = {name: by_seed(each, measured) for name, each in found.items()}
                    choice = choose(figures, BASELINE)
                    chosen.setdefault((measured, words), set()).add(choice.chosen)
                    reading.append(f"{title}, {words}: {in_words(choice, figures)}")
        for (_, words), names in chosen.items():
            if len(names) > 1:
                reading.append(
                    f"{_named(pair)}, {words}: the answer is not the same for every size and "
                    f"variant ({', '.join(sorted(names))})."
                )
        tables += _layers_of_sources(study, pair, known)
        plots += _plots_of_sources(study, pair, known)
    question = (
        "A decode model is calibrated on the steps of given prompts. The keys and values before "
        "them come from the float model (the objective: to decode as the float model does, on the "
        "float model's past), from the quantised prefill model (to decode well on the past that "
        "it will meet), or half of the prompts from each. Both objectives are measured for all."
    )
    return _report(study.name, question, reading, tables, plots, known)


_OBJECTIVES = ("over the quantised past, as deployed", "over the float model's past")


def _layers_of_sources(study: DecodeCalibration, pair: Pair, known: Results) -> list[Table]:
    """For each past, a row for each layer: of each source its own error and its sensitivity."""
    size = max(study.sizes)
    found = {
        source: done
        for source in SOURCES
        if (done := succeeded(known.of(study.trials(pair, source, size, FAITHFUL))))
    }
    tables = []
    for prefix, words in zip(("", "float_past_"), _OBJECTIVES, strict=True):
        lists = {
            f"{source}: {words}": [done.metrics[prefix + name] for done in results]
            for source, results in found.items()
            for name, words in _OF_LAYERS.items()
            if prefix + name in results[0].metrics
        }
        count = min((len(each) for given in lists.values() for each in given), default=0)
        rows = tuple(
            (
                str(layer),
                *(cell([float(e[layer]) for e in given], ".3g") for given in lists.values()),
            )
            for layer in range(count)
        )
        if rows:
            title = f"{_named(pair)}, {size} sequences, {FAITHFUL}, by layer, {words}"
            tables.append(Table(title, ("layer", *lists), rows))
    return tables


# What is shown of each layer: of its output, and of the logits with this layer alone quantised.
_OF_LAYERS = {"layer_own_l2": "own error", "layer_sensitivity": "sensitivity"}


def _plots_of_sources(study: DecodeCalibration, pair: Pair, known: Results) -> list[Plot]:
    series = {}
    for source in SOURCES:
        found = {
            str(size): results
            for size in study.sizes
            if succeeded(results := known.of(study.trials(pair, source, size, SEARCH)))
        }
        if found:
            series[source] = points_of(found, "perplexity", [float(size) for size in found])
    if not series:
        return []
    title = f"{_named(pair)}: perplexity of decode by calibration size"
    return [Plot(title, "sequences", "perplexity", series)]


@report_of.register
def _(study: Grid, known: Results) -> Report:
    found = {}
    for settings in study.combinations:
        results = known.of(Trial(settings, seed) for seed in study.seeds)
        if succeeded(results):
            found[_label(settings, study.varied)] = results
    baseline = _label(study.baseline, study.varied)
    if baseline not in found:
        return _report(study.name, "", ["The baseline has no results."], [], [], known)
    figures = {name: by_seed(results, study.measured) for name, results in found.items()}
    order = sorted(found, key=lambda name: statistics.fmean(figures[name].values()))
    found = {name: found[name] for name in order}
    table = table_of(
        "by " + study.measured, ", ".join(study.varied), found, study.measured, baseline
    )
    points = points_of(found, study.measured, [float(place) for place in range(len(found))])
    plot = Plot(study.measured, "", study.measured, {study.name: points}, tuple(found))
    reading = [in_words(choose(figures, baseline), figures)]
    question = f"Every combination of {', '.join(study.varied)}, compared with {baseline}."
    return _report(study.name, question, reading, [table], [plot], known)


def _report(
    title: str,
    question: str,
    reading: Sequence[str],
    tables: Sequence[Table],
    plots: Sequence[Plot],
    known: Results,
) -> Report:
    failures = tuple(
        f"{json.dumps(dict(result.trial.settings))}, seed {result.trial.seed}: {result.error}"
        for result in known
        if result.error
    )
    return Report(
        title,
        question,
        tuple(reading) or ("No trial has ended yet.",),
        tuple(tables),
        tuple(plots),
        failures,
        known.head,
        tuple(known),
    )


def _named(pair: Pair) -> str:
    return "/".join(pair)


def _label(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    values = [settings[name] for name in varied]
    return ", ".join(v if isinstance(v, str) else json.dumps(v) for v in values)
