"""The figures of trials: tables with their spread, and plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wrappers.studies.judge.judgement import Choice, Difference, Spread, choose
from wrappers.studies.plan.trials import Result

Found = Mapping[str, Sequence[Result]]
"""The results of settings, by the name of each."""


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        title: what it shows.
        columns, rows: the first column names the rows.
        best: the index of the row with the least figure; None where there is none.
        recommended: that of the row that the figures speak for, as `Choice.chosen` says: the
            default, unless another is clearly better.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None = None
    recommended: int | None = None


@dataclass(frozen=True)
class Plot:
    """Means with their spread.

    Attributes:
        title, x, y: what it shows, and the names of the axes.
        series: by name, points of (x, mean, standard deviation), all finite.
        ticks: names of the x values 0, 1, ...; () for numbers.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float, float]]]
    ticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loss:
    """One way to measure a loss per token.

    Attributes:
        reference: the metric that holds the float model's on the same tokens.
        words: what it is, in a sentence.
        short: what tells it from the others, in the header of a table.
    """

    reference: str
    words: str
    short: str

    @property
    def header(self) -> str:
        """Of its perplexity."""
        return f"perplexity, {self.short}" if self.short else "perplexity"


# What settings can be compared by.
LOSSES: Mapping[str, Loss] = {
    "loss": Loss("float_loss", "loss", ""),
    "quantized_past_loss": Loss(
        "float_step_loss", "loss over the quantised prefill's past", "quantised past"
    ),
    "float_past_loss": Loss("float_step_loss", "loss over the float model's past", "float past"),
}

# The other metrics by their place in the tables: the header, and how a figure is written.
_METRICS: Mapping[str, tuple[str, str]] = {
    "weights_peir": ("PEIR softmax", ".3g"), "attention_peir": ("PEIR attention", ".3g"),
    "layer_l2": ("rel. L2 layers", ".3g"),
    "quantized_past_layer_l2": ("rel. L2 layers, quantised past", ".3g"),
    "quantized_past_layer_own_l2": ("layers' own, quantised past", ".3g"),
    "float_past_layer_l2": ("rel. L2 layers, float past", ".3g"),
    "float_past_layer_own_l2": ("layers' own, float past", ".3g"),
    "equal": ("equal tokens", ".0%"), "first_different": ("first other token", ".1f"),
    "repetition": ("repetition", ".0%"), "degenerate": ("loops", ".1f"), "leak": ("leak", ".2g"),
    "leaking": ("leaking queries", ".2%"), "mask_saturation": ("saturation", ".1%"),
    "mask_step": ("mask step", ".2g"),
}  # fmt: skip
FLOAT_MODEL = "float model"
VERDICT = "verdict"
"""The header of the column that says what a difference is, an `Outcome`."""


def table_of(
    title: str,
    first: str,
    found: Found,
    measured: Sequence[str],
    default: str,
    *,
    baseline: str | None = None,
) -> Table:
    """A row for each setting: figures with their spread, and the difference to the default.

    Args:
        title: what it shows.
        first: the header of the names.
        found: results by setting; one of which no trial has succeeded has no row.
        measured: losses, each with columns for its difference and what that is; the best is by
            the first.
        default: what is compared with.
        baseline: how headers and its row call it; its name, and nothing, if None.
    """
    done = {name: some for name, results in found.items() if (some := succeeded(results))}
    columns = [first]
    rows = {FLOAT_MODEL: [FLOAT_MODEL]} | {name: [name] for name in done}
    for name, loss in LOSSES.items():
        if name not in measured and not _is_there(name, done):
            continue
        columns.append(loss.header)
        for row, results in done.items():
            rows[row].append(cell([perplexity(r, name) for r in results], ".4g"))
        own = [perplexity(r, loss.reference) for some in done.values() for r in some]
        # The same tokens and model in all trials: they differ by rounding, if at all.
        rows[FLOAT_MODEL].append(next((f"{p:.4g}" for p in own if p is not None), ""))
        if name in measured:
            columns += [_over_header(loss, baseline or default), _verdict_header(loss)]
            figures = {row: by_seed(results, name) for row, results in done.items()}
            over = choose(figures, default).over if figures.get(default) else {}
            for row in done:
                is_default = row == default
                rows[row].append(baseline or "" if is_default else _over(figures, row, default))
                rows[row].append(over[row].outcome if row in over else "")
            rows[FLOAT_MODEL] += ["", ""]
    for name, (header, form) in _METRICS.items():
        if _is_there(name, done):
            columns.append(header)
            for row, results in done.items():
                rows[row].append(cell([figure(r, name) for r in results], form))
    for task in sorted({task for some in done.values() for r in some for task in _tasks(r)}):
        columns.append(task)
        for row, results in done.items():
            rows[row].append(cell([_tasks(r).get(task) for r in results], ".3f"))
    if not any(rows[FLOAT_MODEL][1:]):
        del rows[FLOAT_MODEL]
    choice = _choice({name: by_seed(some, measured[0]) for name, some in done.items()}, default)
    filled = tuple((*cells, *[""] * (len(columns) - len(cells))) for cells in rows.values())
    if choice is None:
        return Table(title, tuple(columns), filled)
    best, recommended = (list(rows).index(name) for name in (choice.best, choice.chosen))
    return Table(title, tuple(columns), filled, best, recommended)


def _is_there(metric: str, found: Found) -> bool:
    return any(figure(r, metric) is not None for results in found.values() for r in results)


def _over_header(loss: Loss, default: str) -> str:
    return f"{f'{loss.short}, ' if loss.short else ''}loss over {default} [95 %]"


def _verdict_header(loss: Loss) -> str:
    return f"{loss.short}, {VERDICT}" if loss.short else VERDICT


def _over(figures: Mapping[str, Mapping[int, float]], name: str, default: str) -> str:
    if not figures[name].keys() & figures.get(default, {}).keys():
        return ""
    return str(Difference.of(figures[name], figures[default]))


def _choice(figures: Mapping[str, Mapping[int, float]], default: str) -> Choice | None:
    if not figures.get(default):
        return None
    choice = choose(figures, default)
    return choice if math.isfinite(choice.spread.mean) else None


def _tasks(result: Result) -> Mapping[str, float]:
    return {name: float(score) for name, score in result.metrics.get("tasks", {}).items()}


def layer_table(title: str, found: Found, metrics: Mapping[str, str]) -> list[Table]:
    """A row for each layer, and of each setting some metrics that are lists by layer.

    Args:
        title: what it shows.
        found: results by setting.
        metrics: by name, what it is called in the headers.

    Returns:
        The table; none where nothing of this was measured.
    """
    columns, lists = ["layer"], []
    for metric, words in metrics.items():
        for name, results in found.items():
            given = [r.metrics[metric] for r in succeeded(results) if r.metrics.get(metric)]
            if given:
                columns.append(f"{words}: {name}")
                lists.append(given)
    if not lists:
        return []
    count = min(len(each) for given in lists for each in given)
    rows = tuple(
        (str(layer), *(cell([float(each[layer]) for each in given], ".3g") for given in lists))
        for layer in range(count)
    )
    return [Table(title, tuple(columns), rows)]


def cell(figures: Iterable[float | None], form: str) -> str:
    """The mean of some figures and their standard deviation; "" where none was measured."""
    known = [figure for figure in figures if figure is not None]
    if not known:
        return ""
    spread = Spread.of(known)
    mean = format(spread.mean, form)
    if math.isnan(spread.deviation) or form.endswith("%"):
        return mean
    return f"{mean} ± {spread.deviation:.2g}"


def figure(result: Result, name: str) -> float | None:
    """One figure of a result: of lists the mean; None where it was not measured."""
    value = result.metrics.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Spread.of([float(each) for each in value]).mean if value else None
    return None if value is None else float(value)


def perplexity(result: Result, loss: str) -> float | None:
    """That of one of the losses of a result; None where it was not measured."""
    value = figure(result, loss)
    try:
        return None if value is None else math.exp(value)
    except OverflowError:
        return math.inf


def plot_of(
    title: str,
    x: str,
    measured: str,
    series: Mapping[str, tuple[Found, Sequence[float]]],
    ticks: Sequence[str] = (),
) -> list[Plot]:
    """A plot of perplexities.

    Args:
        title, x: what it shows, and the name of that axis.
        measured: the loss that the perplexities are of.
        series: by name, results by setting, and the place of each setting.
        ticks: names of the places; () for numbers.

    Returns:
        The plot, without points that are not finite; none where no point is left.
    """
    drawn = {}
    for name, (found, places) in series.items():
        points = [
            (place, spread.mean, 0.0 if math.isnan(spread.deviation) else spread.deviation)
            for place, results in zip(places, found.values(), strict=True)
            if (known := [p for r in succeeded(results) if (p := perplexity(r, measured))])
            and math.isfinite((spread := Spread.of(known)).mean)
        ]
        if points:
            drawn[name] = points
    return [Plot(title, x, LOSSES[measured].header, drawn, tuple(ticks))] if drawn else []


def numbered(table: Table) -> Table:
    """The same with its settings numbered from 1, as the ticks of a plot then are."""
    rows, number = [], 0
    for name, *cells in table.rows:
        number += name != FLOAT_MODEL
        rows.append((name if name == FLOAT_MODEL else f"{number}. {name}", *cells))
    return replace(table, rows=tuple(rows))


def by_seed(results: Iterable[Result], metric: str) -> dict[int, float]:
    """A metric of the trials that have succeeded and measured it."""
    return {
        r.trial.seed: value for r in succeeded(results) if (value := figure(r, metric)) is not None
    }


def succeeded(results: Iterable[Result]) -> list[Result]:
    """Those without an error."""
    return [result for result in results if not result.error]
