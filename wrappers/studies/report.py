"""What a study has found, as tables, plots and sentences; `render` writes them.

report = report_of(study, results)
report.reading    # "uint8/uint8, prefill: -60 has the least loss, ..."
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrappers.studies.decode_calibration import BASELINE, DecodeCalibration
from wrappers.studies.grid import Grid
from wrappers.studies.judgement import Choice, Difference, Spread, choose
from wrappers.studies.mask_fill import DEFAULT_FILL, FAITHFUL, SEARCH, MaskFill, Pair
from wrappers.studies.quantising import SOURCES
from wrappers.studies.trials import Result, Results, Trial


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        title: what it shows.
        columns, rows: the first column names the rows.
        best: the index of the row with the least figure; None where there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None


@dataclass(frozen=True)
class Plot:
    """Means with their spread.

    Attributes:
        title, x, y: what it shows, and the names of the axes.
        series: by name, points of (x, mean, standard deviation).
        ticks: names of the x values; () for numbers.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float, float]]]
    ticks: tuple[str, ...] = ()


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


# Metrics by their place in the tables: the header, and how a figure is written.
_METRICS: Mapping[str, tuple[str, str]] = {
    "perplexity": ("perplexity", ".4g"),
    "float_past_perplexity": ("perplexity, float past", ".4g"),
    "weights_peir": ("PEIR softmax", ".3g"),
    "attention_peir": ("PEIR attention", ".3g"),
    "layer_l2": ("rel. L2 layers", ".3g"),
    "layer_own_l2": ("rel. L2 layers' own", ".3g"),
    "float_past_layer_l2": ("rel. L2 layers, float past", ".3g"),
    "float_past_layer_own_l2": ("layers' own, float past", ".3g"),
    "equal": ("equal tokens", ".0%"),
    "first_different": ("first other token", ".1f"),
    "repetition": ("repetition", ".0%"),
    "degenerate": ("loops", ".1f"),
    "leak": ("leak", ".2g"),
    "mask_saturation": ("saturation", ".1%"),
    "mask_step": ("mask step", ".2g"),
}


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
            found = {name: results for name, results in found.items() if _succeeded(results)}
            if not found:
                continue
            default = f"{DEFAULT_FILL:g}"
            tables.append(
                _table(f"{_named(pair)}, {variant}", "fill value", found, study.measured, default)
            )
            series[_named(pair)] = _points(found, "perplexity", [float(name) for name in found])
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
            f"{fill:g}": by_seed
            for fill in fills
            if (by_seed := _by_seed(known.of(study.trials(pair, fill, variant)), study.measured))
        }
        if f"{DEFAULT_FILL:g}" not in figures:
            continue
        choice = choose(figures, f"{DEFAULT_FILL:g}")
        chosen[variant] = choice.chosen
        lines.append(f"{_named(pair)}, {variant}: {_in_words(choice, figures)}")
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
                    if _succeeded(results := known.of(study.trials(pair, source, size, variant)))
                }
                if BASELINE not in found:
                    continue
                title = f"{_named(pair)}, {size} sequences, {variant}"
                tables.append(_table(title, "calibrated on", found, study.measured[0], BASELINE))
                for measured, words in zip(study.measured, _OBJECTIVES, strict=True):
                    figures = {name: _by_seed(each, measured) for name, each in found.items()}
                    choice = choose(figures, BASELINE)
                    chosen.setdefault((measured, words), set()).add(choice.chosen)
                    reading.append(f"{title}, {words}: {_in_words(choice, figures)}")
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
        if (done := _succeeded(known.of(study.trials(pair, source, size, FAITHFUL))))
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
                *(_cell([float(e[layer]) for e in given], ".3g") for given in lists.values()),
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
            if _succeeded(results := known.of(study.trials(pair, source, size, SEARCH)))
        }
        if found:
            series[source] = _points(found, "perplexity", [float(size) for size in found])
    if not series:
        return []
    title = f"{_named(pair)}: perplexity of decode by calibration size"
    return [Plot(title, "sequences", "perplexity", series)]


@report_of.register
def _(study: Grid, known: Results) -> Report:
    found = {}
    for settings in study.combinations:
        results = known.of(Trial(settings, seed) for seed in study.seeds)
        if _succeeded(results):
            found[_label(settings, study.varied)] = results
    baseline = _label(study.baseline, study.varied)
    if baseline not in found:
        return _report(study.name, "", ["The baseline has no results."], [], [], known)
    figures = {name: _by_seed(results, study.measured) for name, results in found.items()}
    order = sorted(found, key=lambda name: statistics.fmean(figures[name].values()))
    found = {name: found[name] for name in order}
    table = _table("by " + study.measured, ", ".join(study.varied), found, study.measured, baseline)
    points = _points(found, study.measured, [float(place) for place in range(len(found))])
    plot = Plot(study.measured, "", study.measured, {study.name: points}, tuple(found))
    reading = [_in_words(choose(figures, baseline), figures)]
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


def _table(
    title: str,
    first: str,
    found: Mapping[str, Sequence[Result]],
    measured: str,
    default: str,
) -> Table:
    """A row for each setting: figures with their spread, and the difference to the default."""
    some = next(iter(found.values()))[0]
    names = [name for name in _METRICS if _figure(some, name) is not None]
    tasks = sorted(some.metrics.get("tasks", {}))
    figures = {name: _by_seed(results, measured) for name, results in found.items()}
    means = [statistics.fmean(by_seed.values()) for by_seed in figures.values()]
    rows = []
    for name, results in found.items():
        done = _succeeded(results)
        cells = [_cell([_figure(r, metric) for r in done], _METRICS[metric][1]) for metric in names]
        cells += [_cell([r.metrics["tasks"][task] for r in done], ".3f") for task in tasks]
        over = "" if name == default or default not in figures else _over(figures, name, default)
        rows.append((name, cells[0], over, *cells[1:]))
    headers = [_METRICS[name][0] for name in names] + tasks
    columns = (first, headers[0], f"{measured} over {default} [95 %]", *headers[1:])
    return Table(title, columns, tuple(rows), means.index(min(means)))


def _over(figures: Mapping[str, Mapping[int, float]], name: str, default: str) -> str:
    difference = Difference.of(figures[name], figures[default])
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _cell(figures: Iterable[float | None], form: str) -> str:
    known = [figure for figure in figures if figure is not None]
    if not known:
        return ""
    spread = Spread.of(known)
    mean = format(spread.mean, form)
    if spread.count == 1 or form.endswith("%"):
        return mean
    return f"{mean} ± {spread.deviation:.2g}"


def _figure(result: Result, name: str) -> float | None:
    """One figure of a result: of lists the mean; None where it was not measured."""
    if name == "float_past_perplexity":
        loss = result.metrics.get("float_past_loss")
        return None if loss is None else math.exp(float(loss))
    value = result.metrics.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return statistics.fmean(map(float, value)) if value else None
    return None if value is None else float(value)


def _points(
    found: Mapping[str, Sequence[Result]], metric: str, places: Sequence[float]
) -> list[tuple[float, float, float]]:
    points = []
    for place, results in zip(places, found.values(), strict=True):
        spread = Spread.of([r.number(metric) for r in _succeeded(results)])
        points.append((place, spread.mean, 0.0 if spread.count == 1 else spread.deviation))
    return points


def _by_seed(results: Sequence[Result], metric: str) -> dict[int, float]:
    return {r.trial.seed: r.number(metric) for r in _succeeded(results)}


def _succeeded(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if not result.error]


def _in_words(choice: Choice, figures: Mapping[str, Mapping[int, float]]) -> str:
    best = Spread.of(list(figures[choice.best].values()))
    text = f"{choice.best} has the least loss, {best.mean:.4f}"
    if best.count > 1:
        text += f" ± {best.deviation:.2g} over {best.count} seeds"
    text += f"; {_against_default(choice)}"
    others = [name for name in choice.alike if name != choice.best]
    if others:
        text += f"; not clearly worse: {', '.join(others)}"
    elif len(figures) > 1:
        text += "; all others are clearly worse"
    return f"{text}."


def _against_default(choice: Choice) -> str:
    over = choice.over_default
    if over is None:
        return "it is the default"
    if over.count == 1:
        return (
            f"{-over.mean:.4f} below the default with one seed, which says nothing of the spread: "
            "keep the default"
        )
    if choice.chosen == choice.best:
        return (
            f"clearly better than the default, by {-over.mean:.4f} [{-over.high:.4f}, "
            f"{-over.low:.4f}]: choose {choice.best}"
        )
    if over.is_clear:
        return (
            f"clearly better than the default, but by {-over.mean:.4f} only, which is negligible: "
            "keep the default"
        )
    return (
        f"no clear difference to the default ({over.mean:+.4f} [{over.low:+.4f}, "
        f"{over.high:+.4f}]): keep the default"
    )


def _named(pair: Pair) -> str:
    return "/".join(pair)


def _label(settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    values = [settings[name] for name in varied]
    return ", ".join(v if isinstance(v, str) else json.dumps(v) for v in values)
