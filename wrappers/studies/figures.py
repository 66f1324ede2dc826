"""The figures of trials: tables with their spread, and plots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wrappers.studies.judgement import Difference, Spread
from wrappers.studies.trials import Result


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


def table_of(
    title: str,
    first: str,
    found: Mapping[str, Sequence[Result]],
    measured: str,
    default: str,
) -> Table:
    """A row for each setting: figures with their spread, and the difference to the default."""
    some = succeeded(next(iter(found.values())))[0]
    names = [name for name in _METRICS if _figure(some, name) is not None]
    tasks = sorted(some.metrics.get("tasks", {}))
    figures = {name: by_seed(results, measured) for name, results in found.items()}
    means = [statistics.fmean(each.values()) for each in figures.values()]
    rows = []
    for name, results in found.items():
        done = succeeded(results)
        cells = [cell([_figure(r, metric) for r in done], _METRICS[metric][1]) for metric in names]
        cells += [cell([r.metrics["tasks"][task] for r in done], ".3f") for task in tasks]
        over = "" if name == default or default not in figures else _over(figures, name, default)
        rows.append((name, cells[0], over, *cells[1:]))
    headers = [_METRICS[name][0] for name in names] + tasks
    columns = (first, headers[0], f"{measured} over {default} [95 %]", *headers[1:])
    return Table(title, columns, tuple(rows), means.index(min(means)))


def _over(figures: Mapping[str, Mapping[int, float]], name: str, default: str) -> str:
    difference = Difference.of(figures[name], figures[default])
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def cell(figures: Iterable[float | None], form: str) -> str:
    """The mean of some figures and their standard deviation; "" where none was measured."""
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
        return None if loss is None else _exp(float(loss))
    value = result.metrics.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return statistics.fmean(map(float, value)) if value else None
    return None if value is None else float(value)


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def points_of(
    found: Mapping[str, Sequence[Result]], metric: str, places: Sequence[float]
) -> list[tuple[float, float, float]]:
    """A point for each setting: its place, the mean of a metric and its standard deviation."""
    points = []
    for place, results in zip(places, found.values(), strict=True):
        spread = Spread.of([r.number(metric) for r in succeeded(results)])
        points.append((place, spread.mean, 0.0 if spread.count == 1 else spread.deviation))
    return points


def by_seed(results: Sequence[Result], metric: str) -> dict[int, float]:
    """A metric of the trials that have succeeded."""
    return {r.trial.seed: r.number(metric) for r in succeeded(results)}


def succeeded(results: Iterable[Result]) -> list[Result]:
    """Those without an error."""
    return [result for result in results if not result.error]
