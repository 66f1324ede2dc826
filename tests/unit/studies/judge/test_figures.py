"""Tables of a study: means with intervals, layer by layer."""

import math

from tests.builders.study_results import LOSSES, PAIR, fill_in, metrics, study
from wrappers.studies import MaskFill, Result, Results, report_of
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH


def test_the_table(known: Results):
    fill_in(study(), known, LOSSES)
    table = report_of(study(), known).tables[0]
    assert table.columns[:3] == ("fill value", "perplexity", "loss over -120 [95 %]")
    assert table.columns[-1] == "copa"
    blank = ("",) * (len(table.columns) - 2)
    assert table.rows[0] == ("float model", f"{math.exp(0.4):.4g}", *blank)
    rows = {row[0]: row for row in table.rows}
    assert (rows["-120"][2], rows["-40"][2]) == ("", "+0.0800 [+0.0800, +0.0800]")
    assert rows["-120"][1] == f"{math.exp(0.881):.4g} ± 0.0024"
    assert table.rows[table.best][0] == "-120"


def test_by_layer(known: Results):
    while missing := known.missing(study().wanted(known)):
        for trial in missing:
            peir = {"weights_peir": [0.1, 0.2], "attention_peir": [0.3, 0.4 + trial.seed / 100]}
            loss = LOSSES[SEARCH, trial.settings["attention_mask_fill_value"]]
            known.add(Result(trial, metrics(loss, trial.seed) | peir))
    table = report_of(study(), known).tables[-1]
    assert table.title == "uint8/uint8, prefill, by layer"
    assert table.columns == (
        "layer",
        *("PEIR softmax: -80", "PEIR softmax: -120"),
        *("PEIR attention: -80", "PEIR attention: -120"),
    )
    assert table.rows[1] == ("1", "0.2 ± 0", "0.2 ± 0", "0.41 ± 0.01", "0.41 ± 0.01")


def test_only_what_is_wanted_now(known: Results):
    """The file of a study that went on with fewer seeds and values, in any order."""
    fill_in(study(), known, LOSSES)
    fewer = MaskFill(fills=(-80.0,), pairs=[PAIR], seeds=(0, 1))
    report = report_of(fewer, known)
    assert [result.trial for result in report.results] == fewer.wanted(known)
    assert {result.trial.seed for result in report.results} == {0, 1}


def test_rows_of_values_that_are_close_or_beyond(known: Results):
    made = MaskFill(fills=(-100.0, -100.00001), pairs=[PAIR], seeds=(0,))
    for trial in made.wanted(known):
        known.add(Result(trial, metrics(1.0, 0)))
    names = [row[0] for row in report_of(made, known).tables[0].rows]
    assert names == ["float model", "-100", "-100.00001", "-120"]
    losses = LOSSES | {(v, -40.0): 800.0 for v in (SEARCH, FAITHFUL)}
    fill_in(study(), known, losses)
    report = report_of(study(), known)
    assert report.tables[0].rows[1][:2] == ("-40", "inf")
    assert [point[0] for point in report.plots[0].series["uint8/uint8"]] == [-80.0, -120.0]
