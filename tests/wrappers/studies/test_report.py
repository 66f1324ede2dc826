"""What studies say of results that are made up, and how it is written."""

import csv
import io
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wrappers.errors import StudyError
from wrappers.studies import (
    DecodeCalibration,
    Grid,
    MaskFill,
    Result,
    Results,
    report_of,
    save,
    show,
)
from wrappers.studies.mask_fill import FAITHFUL, SEARCH

PAIR = ("uint8", "uint8")
SEEDS = (0, 1, 2)


@pytest.fixture
def known(tmp_path: Path) -> Results:
    head = {"study": "s", "workload": {"model": "<m>", "text": None}, "environment": {"torch": "2"}}
    return Results(tmp_path / "r.jsonl", head)


def metrics(loss: float, seed: int) -> dict:
    loss += 0.001 * seed
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "float_past_loss": loss + 0.1,
        "layer_l2": [0.1, 0.3],
        "equal": 0.5,
        "tasks": {"copa": 0.5},
    }


def fill_in(study: MaskFill, known: Results, losses: dict[tuple[str, float], float]) -> None:
    """Results of the search and of the finalists, until nothing more is wanted."""
    while missing := known.missing(study.wanted(known)):
        for trial in missing:
            settings = trial.settings
            place = settings["variant"], settings["attention_mask_fill_value"]
            known.add(Result(trial, metrics(losses[place], trial.seed), "", 1.0))


def study(**options) -> MaskFill:
    return MaskFill(fills=(-40.0, -80.0), pairs=[PAIR], seeds=SEEDS, **options)


LOSSES = {(v, f): 1.0 + f / 1000 for v in (SEARCH, FAITHFUL) for f in (-40.0, -80.0, -120.0)}


class TestMaskFill:
    def test_the_default_is_always_tried(self):
        assert study().fills == (-40.0, -80.0, -120.0)

    def test_the_search_then_the_finalists(self, known: Results):
        first = study().wanted(known)
        assert {t.settings["variant"] for t in first} == {SEARCH}
        assert len(first) == 9
        fill_in(study(), known, LOSSES | {(SEARCH, -80.0): 0.5})
        last = [t for t in study().wanted(known) if t.settings["variant"] == FAITHFUL]
        fills = {t.settings["attention_mask_fill_value"] for t in last}
        assert fills == {-80.0, -120.0}  # the two best, of which one is the default

    def test_refining_looks_between_the_best_and_its_neighbours(self, known: Results):
        refined = study(refine=True)
        depth = {f: abs(f + 72) for f in (-40.0, -60.0, -70.0, -80.0, -90.0, -100.0, -120.0)}
        losses = {(v, f): 1 + d / 100 for v in (SEARCH, FAITHFUL) for f, d in depth.items()}
        fill_in(refined, known, losses)
        assert refined.searched(PAIR, known) == [-40, -60, -70, -80, -90, -100, -120]

    def test_a_clear_winner_is_chosen(self, known: Results):
        fill_in(study(), known, LOSSES | {(v, -80.0): 0.5 for v in (SEARCH, FAITHFUL)})
        reading = report_of(study(), known).reading
        assert len(reading) == 2
        assert all("clearly better than the default, by 0.38" in line for line in reading)
        assert all("choose -80" in line for line in reading)

    def test_variants_that_disagree(self, known: Results):
        fill_in(study(), known, LOSSES | {(SEARCH, -80.0): 0.5, (FAITHFUL, -80.0): 2.0})
        assert (
            "the variants disagree: prefill_reference speaks for -80, prefill"
            in (report_of(study(), known).reading[-1])
        )

    def test_no_difference(self, known: Results):
        class Noisy(dict):
            def __getitem__(self, place):
                return 1.0

        fill_in(study(), known, Noisy())
        reading = report_of(study(), known).reading
        assert all("it is the default; not clearly worse: -40, -80" in line for line in reading)

    def test_a_value_that_always_fails_is_not_chosen(self, known: Results):
        for trial in study().wanted(known):
            bad = trial.settings["attention_mask_fill_value"] == -40.0
            result = Result(trial, error="ValueError: x") if bad else Result(trial, metrics(1, 0))
            known.add(result)
        report = report_of(study(), known)
        assert len(report.failures) == 3
        assert {row[0] for table in report.tables for row in table.rows} == {"-80", "-120"}
        assert -40.0 not in study().finalists(PAIR, known)

    def test_before_a_trial_has_ended(self, known: Results):
        assert report_of(study(), known).reading == ("No trial has ended yet.",)

    def test_the_table(self, known: Results):
        fill_in(study(), known, LOSSES)
        table = report_of(study(), known).tables[0]
        assert table.columns[:3] == ("fill value", "perplexity", "loss over -120 [95 %]")
        assert table.columns[-1] == "copa"
        rows = {row[0]: row for row in table.rows}
        assert rows["-120"][2] == ""
        assert rows["-40"][2] == "+0.0800 [+0.0800, +0.0800]"
        assert rows["-120"][1] == f"{math.exp(0.881):.4g} ± 0.0024"
        assert table.rows[table.best][0] == "-120"


class TestDecodeCalibration:
    def test_both_objectives_are_read(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2, 4))
        while missing := known.missing(made.wanted(known)):
            for trial in missing:
                loss = {"float": 1.0, "quantized": 0.9, "both": 1.1}[trial.settings["source"]]
                given = metrics(loss, trial.seed) | {"float_past_loss": 2.0 - loss}
                known.add(Result(trial, given))
        assert len(known) == (2 + 1) * 3 * 3
        report = report_of(made, known)
        deployed = [line for line in report.reading if "as deployed: quantized has" in line]
        principled = [line for line in report.reading if "float model's past: both has" in line]
        assert len(deployed) == len(principled) == 3
        assert report.plots[0].series.keys() == {"float", "quantized", "both"}

    def test_answers_that_differ_by_size(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2, 4))
        while missing := known.missing(made.wanted(known)):
            for trial in missing:
                better = trial.settings["calibration"] == 2
                loss = {"float": 1.0, "quantized": 0.9 if better else 1.1, "both": 1.2}
                known.add(Result(trial, metrics(loss[trial.settings["source"]], trial.seed)))
        assert any("not the same for every size" in line for line in report_of(made, known).reading)

    def test_layer_by_layer(self, known: Results):
        made = DecodeCalibration(pairs=[PAIR], seeds=SEEDS, sizes=(2,))
        while missing := known.missing(made.wanted(known)):
            for trial in missing:
                own = [0.1, 0.2 + trial.seed / 100]
                layers = {"layer_own_l2": own, "layer_sensitivity": [0.01, 0.02]}
                known.add(Result(trial, metrics(1.0, trial.seed) | layers))
        report = report_of(made, known)
        (table,) = [table for table in report.tables if "by layer" in table.title]
        assert table.title.endswith("by layer, over the quantised past, as deployed")
        assert table.columns == (
            "layer",
            *("float: own error", "float: sensitivity"),
            *("quantized: own error", "quantized: sensitivity"),
            *("both: own error", "both: sensitivity"),
        )
        assert [row[0] for row in table.rows] == ["0", "1"]
        assert table.rows[1][1:3] == ("0.21 ± 0.01", "0.02 ± 0")


class TestGrid:
    def test_the_best_come_first(self, known: Results):
        combinations = [{"weight": w} for w in ("uint4", "uint8", "int16")]
        grid = Grid("g", combinations, SEEDS, combinations[0], "loss", ("weight",))
        for trial in grid.wanted(known):
            loss = {"uint4": 1.0, "uint8": 0.5, "int16": 0.7}[trial.settings["weight"]]
            known.add(Result(trial, metrics(loss, trial.seed)))
        report = report_of(grid, known)
        assert [row[0] for row in report.tables[0].rows] == ["uint8", "int16", "uint4"]
        assert "choose uint8" in report.reading[0]


class Checked(HTMLParser):
    """What is opened is closed, and nothing is loaded from elsewhere."""

    open_ended = frozenset({"meta", "th", "td", "tr", "li", "circle", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href"} & dict(attrs).keys()
        if tag not in self.open_ended:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


class TestFiles:
    def test_each_kind(self, known: Results, tmp_path: Path, capsys):
        fill_in(study(), known, LOSSES)
        report = report_of(study(), known)
        for suffix in (".md", ".html", ".csv"):
            save(report, tmp_path / f"r{suffix}")
        markdown = (tmp_path / "r.md").read_text()
        assert "### uint8/uint8, prefill_reference" in markdown
        assert "| **-120** |" in markdown
        assert "perplexity by fill value" in markdown
        page = Checked()
        page.feed((tmp_path / "r.html").read_text())
        assert page.stack == []
        assert "<m>" in page.text
        rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
        assert len(rows) == len(known)
        assert rows[0]["attention_mask_fill_value"] == "-40.0"
        assert float(rows[0]["loss"]) == 0.96

    @pytest.mark.parametrize("width", ["80", "200"])
    def test_the_terminal(self, known: Results, capsys, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", width)
        fill_in(study(), known, LOSSES)
        show(report_of(study(), known))
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= int(width)
        assert ("more columns" in text) == (width == "80")
        assert "keep the default" in text or "it is the default" in text

    @pytest.mark.parametrize(
        ("name", "message"),
        [("r.pdf", "has the suffix '.pdf'"), ("none/r.md", "there is no folder")],
    )
    def test_files_that_cannot_be(self, known: Results, tmp_path: Path, name, message):
        with pytest.raises(StudyError, match=message):
            save(report_of(study(), known), tmp_path / name)
