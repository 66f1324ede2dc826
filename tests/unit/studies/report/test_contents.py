"""What studies say of results that are made up."""

import math
from pathlib import Path

import pytest

from tests.builders.study_results import (
    LOSSES,
    PAIR,
    SEEDS,
    decoded,
    fill_in,
    fill_in_decode,
    metrics,
    study,
)
from wrappers.studies import DecodeCalibration, Grid, Result, Results, report_of, save, show
from wrappers.studies.plan.mask_fill import FAITHFUL, SEARCH


class TestMaskFill:
    def test_a_clear_winner_is_chosen(self, known: Results):
        fill_in(study(), known, LOSSES | {(v, -80.0): 0.5 for v in (SEARCH, FAITHFUL)})
        cost, *reading = report_of(study(), known).reading
        assert cost == (
            "At -120 quantisation costs +0.4810 ± 0.001 for uint8/uint8 of the loss over the float "
            "model's 0.4000 (prefill)."
        )
        assert len(reading) == 2
        assert all("better than the default, -120, by 0.38" in line for line in reading)
        assert all("choose -80" in line for line in reading)

    def test_a_value_that_always_fails_is_not_chosen(self, known: Results):
        for trial in study().wanted(known):
            bad = trial.settings["attention_mask_fill_value"] == -40.0
            result = Result(trial, error="ValueError: x") if bad else Result(trial, metrics(1, 0))
            known.add(result)
        report = report_of(study(), known)
        assert len(report.failures) == 3
        names = {row[0] for table in report.tables for row in table.rows}
        assert names == {"float model", "-80", "-120"}
        assert -40.0 not in study().finalists(PAIR, known)
        assert "-40 is left out: it has no result for any seed of -120" in report.reading[1]

    def test_a_bad_seed_that_failed_is_no_advantage(self, known: Results):
        """-40 is worse wherever it has a result, and lacks the seed that is hard for all."""
        for trial in study().wanted(known):
            is_40 = trial.settings["attention_mask_fill_value"] == -40.0
            loss = 3.0 if trial.seed == 1 else 1.5 if is_40 else 1.4
            failed = is_40 and trial.seed == 1
            known.add(Result(trial, error="x") if failed else Result(trial, metrics(loss, 0)))
        table, *_ = report_of(study(), known).tables
        line = report_of(study(), known).reading[1]
        assert "-120 has the least loss" in line
        assert "-40 is left out: it has no result for 1 of 3 seeds" in line
        assert table.rows[table.best][0] == "-120"
        assert next(row[2] for row in table.rows if row[0] == "-40").startswith("+0.1000 [")

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, known: Results, bad, tmp_path: Path, capsys):
        losses = LOSSES | {(v, -40.0): bad for v in (SEARCH, FAITHFUL)}
        for trial in study().wanted(known):
            place = SEARCH, trial.settings["attention_mask_fill_value"]
            known.add(Result(trial, metrics(losses[place], trial.seed)))
        report = report_of(study(), known)
        assert "-120 has the least loss" in report.reading[1]
        assert "-40 is left out: its figures are not finite" in report.reading[1]
        (points,) = report.plots[0].series.values()
        assert [point[0] for point in points] == [-80.0, -120.0]
        for suffix in (".md", ".html", ".csv", ".json"):
            save(report, tmp_path / f"r{suffix}")
        show(report)

    def test_nothing_is_finite(self, known: Results, capsys):
        for trial in study().wanted(known):
            known.add(Result(trial, metrics(math.nan, 0)))
        report = report_of(study(), known)
        assert "none has a finite loss: keep -120" in " ".join(report.reading)
        assert (report.plots, {table.best for table in report.tables}) == ((), {None})
        show(report)

    def test_before_a_trial_has_ended(self, known: Results):
        assert report_of(study(), known).reading == ("No trial has ended yet.",)

    def test_all_have_failed(self, known: Results):
        for trial in study().wanted(known):
            known.add(Result(trial, error="ValueError: x"))
        report = report_of(study(), known)
        assert report.reading == ("None of the 9 trials that have ended has succeeded.",)
        assert report.tables == report.plots == ()

    def test_the_default_has_failed(self, known: Results):
        for trial in study().wanted(known):
            bad = trial.settings["attention_mask_fill_value"] == -120.0
            known.add(Result(trial, error="x") if bad else Result(trial, metrics(1.0, trial.seed)))
        report = report_of(study(), known)
        assert report.reading[0] == (
            "uint8/uint8, prefill_reference: the default, -120, has no results: its trials failed."
        )
        assert report.tables[0].rows[1][2] == ""

    def test_the_default_has_not_ended(self, known: Results):
        known.add(Result(study().wanted(known)[0], metrics(1.0, 0)))
        assert report_of(study(), known).reading == (
            "uint8/uint8, prefill_reference: the default, -120, has no results yet.",
        )

    def test_the_method(self, known: Results):
        method = report_of(study(), known).method
        assert "on 3 calibration sets (one for each seed) of 8 sequences" in method
        assert "share 5 % (Bonferroni)" in method
        assert "not the choice of the text that is scored" in method


class TestDecodeCalibration:
    def test_each_objective_is_read(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2, 4))

        def measure(trial):
            loss = {"float": 1.0, "quantized": 0.9, "both": 1.1}[trial.settings["source"]]
            given = {"quantized_past_loss": 2.0, "float_past_loss": 2.0 - loss}
            return decoded(loss, trial.seed, **given)

        fill_in_decode(made, known, measure)
        assert len(known) == (2 + 1) * 3 * 3
        report = report_of(made, known)
        cost, *reading = report.reading
        assert cost == (
            "As deployed, calibrated on float, quantisation costs +0.6010 ± 0.001 for uint8/uint8 "
            "of the loss over the float model's 0.4000 (4 sequences, prefill)."
        )
        assert [line.partition(" has the least")[0] for line in reading] == [
            *(
                f"uint8/uint8, as deployed, {place}: quantized"
                for place in ("2 sequences, prefill_reference", "4 sequences, prefill_reference")
            ),
            "uint8/uint8, as deployed, 4 sequences, prefill: quantized",
            "uint8/uint8, over the quantised prefill's past: no difference to float at any size or "
            "variant matters: keep float; the largest is +0.0000 [+0.0000, +0.0000], quantized at "
            "2 sequences, prefill_reference.",
            *(
                f"uint8/uint8, over the float model's past, {place}: both"
                for place in ("2 sequences, prefill_reference", "4 sequences, prefill_reference")
            ),
            "uint8/uint8, over the float model's past, 4 sequences, prefill: both",
        ]
        assert report.plots[0].series.keys() == {"float", "quantized", "both"}

    def test_what_does_not_matter_takes_no_line(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))
        fill_in_decode(
            made,
            known,
            lambda trial: decoded(1.0 - 0.0005 * (trial.settings["source"] == "both"), trial.seed),
        )
        assert report_of(made, known).reading[1] == (
            "uint8/uint8, as deployed: no difference to float at any size or variant matters: "
            "keep float; the largest is -0.0005 [-0.0005, -0.0005], both at 2 sequences, "
            "prefill_reference."
        )

    def test_a_source_that_is_worse(self, known: Results):
        """And another that is better by less than the spread."""
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))

        def measure(trial):
            noise = (0.01, -0.01, -0.005)[trial.seed]
            loss = {"float": 1.0, "quantized": 1.5, "both": 1.0 + noise}
            return decoded(loss[trial.settings["source"]], trial.seed)

        fill_in_decode(made, known, measure)
        line = report_of(made, known).reading[1]
        assert "both has the least loss" in line
        assert "cannot tell it from the default, float (-0.0017 [" in line
        assert line.endswith("worse than the default: quantized, +0.5000 [+0.5000, +0.5000].")

    def test_what_cannot_be_told_takes_one_line(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))

        def measure(trial):
            noise = (0.01, -0.01, -0.005)[trial.seed]
            loss = {"float": 1.0, "quantized": 1.0, "both": 1.0 + noise}
            return decoded(loss[trial.settings["source"]], trial.seed)

        fill_in_decode(made, known, measure)
        assert report_of(made, known).reading[1] == (
            "uint8/uint8, as deployed: cannot tell both from float at any size or variant: more "
            "calibration sets may tell; the widest interval is -0.0017 [-0.0390, +0.0356], both at "
            "2 sequences, prefill_reference."
        )

    def test_answers_that_differ_by_size(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2, 4))

        def measure(trial):
            better = trial.settings["calibration"] == 2
            loss = {"float": 1.0, "quantized": 0.9 if better else 1.0, "both": 1.0}
            return decoded(loss[trial.settings["source"]], trial.seed)

        fill_in_decode(made, known, measure)
        _, quiet, one, differing, *_ = report_of(made, known).reading
        assert "at 4 sequences, prefill_reference or 4 sequences, prefill matters" in quiet
        assert one.startswith("uint8/uint8, as deployed, 2 sequences, prefill_reference: quantized")
        assert differing == (
            "uint8/uint8, as deployed: the answer is not the same for every size and variant "
            "(float, quantized)."
        )

    def test_the_float_source_has_failed(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))
        for trial in made.wanted(known):
            failed = trial.settings["source"] == "float"
            known.add(Result(trial, error="x") if failed else Result(trial, decoded(1.0, 0)))
        assert report_of(made, known).reading == (
            "uint8/uint8, 2 sequences, prefill_reference: the default, float, has no results: its "
            "trials failed.",
        )

    def test_the_table(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))
        fill_in_decode(made, known, lambda trial: decoded(1.0, trial.seed))
        table = report_of(made, known).tables[0]
        of_loss = "loss over float [95 %]", "verdict"
        assert table.columns[:10] == (
            *("calibrated on", "perplexity", *of_loss),
            *("perplexity, quantised past", *(f"quantised past, {name}" for name in of_loss)),
            *("perplexity, float past", *(f"float past, {name}" for name in of_loss)),
        )
        of_float, of_step = f"{math.exp(0.4):.4g}", f"{math.exp(0.5):.4g}"
        none = "", ""
        assert table.rows[0][:10] == (
            *("float model", of_float, *none), *(of_step, *none), *(of_step, *none)
        )  # fmt: skip
        assert table.rows[2][5:7] == ("+0.0000 [+0.0000, +0.0000]", "no difference")

    def test_layer_by_layer(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))

        def measure(trial):
            own = [0.1, 0.2 + trial.seed / 100]
            layers = {
                f"{past}_past_layer_{name}": errors
                for past in ("quantized", "float")
                for name, errors in {"own_l2": own, "sensitivity": [0.01, 0.02]}.items()
            }
            return decoded(1.0, trial.seed) | layers

        fill_in_decode(made, known, measure)
        tables = [table for table in report_of(made, known).tables if "by layer" in table.title]
        assert [table.title for table in tables] == [
            f"uint8/uint8, 2 sequences, prefill, by layer, {past}"
            for past in ("over the quantised prefill's past", "over the float model's past")
        ]
        assert tables[0].columns == (
            "layer",
            *("own error: float", "own error: quantized", "own error: both"),
            *("sensitivity: float", "sensitivity: quantized", "sensitivity: both"),
        )
        assert [row[0] for row in tables[0].rows] == ["0", "1"]
        assert (tables[0].rows[1][1], tables[0].rows[1][4]) == ("0.21 ± 0.01", "0.02 ± 0")

    def test_metrics_of_an_older_version(self, known: Results, capsys):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))
        fill_in_decode(made, known, lambda trial: {"loss": 1.0, "float_past_loss": 2.0})
        report = report_of(made, known)
        assert (len(report.reading), report.tables[0].rows[0][0]) == (2, "float")
        show(report)


class TestGrid:
    def grid(self, weights: tuple[str, ...], measured: str = "loss") -> Grid:
        combinations = [{"weight": weight} for weight in weights]
        return Grid("g", combinations, SEEDS, combinations[0], measured, ("weight",))

    def test_least_and_most(self, known: Results):
        grid = self.grid(("uint4", "uint8", "int16"))
        for trial in grid.wanted(known):
            loss = {"uint4": 1.0, "uint8": 0.5, "int16": 0.7}[trial.settings["weight"]]
            known.add(Result(trial, metrics(loss, trial.seed)))
        report = report_of(grid, known)
        (table,) = report.tables
        assert [row[0] for row in table.rows] == ["float model", "uint8", "int16", "uint4"]
        assert table.columns[2] == "loss over baseline [95 %]"
        assert report.reading == (
            "With the baseline, uint4, quantisation costs +0.6010 ± 0.001 of the loss over the "
            "float model's 0.4000.",
            "uint8 has the least loss: -0.5000 [-0.5000, -0.5000] over uint4, better; uint4, "
            "the baseline, has the most loss.",
        )
        assert table.rows[3][2:4] == ("baseline", "")
        assert table.rows[1][3] == "better"
        assert [(j.setting, j.default, j.difference.outcome) for j in report.judgements] == [
            ("uint8", "uint4", "better"), ("int16", "uint4", "better"),
        ]  # fmt: skip
        assert report.plots[0].ticks == ("uint8", "int16", "uint4")

    def test_another_loss(self, known: Results):
        grid = self.grid(("uint4", "uint8"), "float_past_loss")
        for trial in grid.wanted(known):
            loss = {"uint4": 1.0, "uint8": 0.5}[trial.settings["weight"]]
            known.add(Result(trial, decoded(9.0, trial.seed, float_past_loss=loss)))
        report = report_of(grid, known)
        assert "uint8 has the least loss over the float model's past: -0.5000" in report.reading[1]
        assert report.plots[0].y == "perplexity, float past"
        assert "float past, loss over baseline [95 %]" in report.tables[0].columns

    def test_long_names_are_numbered(self, known: Results):
        names = tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in range(4))
        grid = self.grid(names)
        for trial in grid.wanted(known):
            known.add(Result(trial, metrics(names.index(trial.settings["weight"]), trial.seed)))
        report = report_of(grid, known)
        assert report.plots[0].ticks == ("1", "2", "3", "4")
        assert [row[0] for row in report.tables[0].rows[:3]] == [
            "float model", f"1. {names[0]}", f"2. {names[1]}",
        ]  # fmt: skip
        assert report.tables[0].best == 1

    def test_the_baseline_has_failed(self, known: Results):
        grid = self.grid(("uint4", "uint8"))
        for trial in grid.wanted(known):
            failed = trial.settings["weight"] == "uint4"
            known.add(Result(trial, error="x") if failed else Result(trial, metrics(1.0, 0)))
        report = report_of(grid, known)
        assert report.reading == ("g: the baseline, uint4, has no results: its trials failed.",)
        assert report.tables[0].rows[1][0] == "uint8"


def test_what_is_no_study(known: Results):
    with pytest.raises(TypeError, match="no report is known of str"):
        report_of("mask-fill", known)
