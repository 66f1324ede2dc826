"""How the report of a study is written."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wrappers.errors import StudyError
from wrappers.studies import Difference, Judgement, Report, Result, Trial, save, show
from wrappers.studies.judge.figures import Plot, Table
from wrappers.studies.report.render import document, markdown, page, table_of_results, text_plot

HEAD = {
    "workload": {"model": "<m>", "text": None, "tokens": 64, "checksum": "c0ffee"},
    "environment": {"command": "trace_model ablate x", "torch": "2.1"},
}


@pytest.fixture
def report() -> Report:
    names = [f"-{value}" for value in (40, 80, 120)]
    interval = "+0.0800 [+0.0700, +0.0900]"
    columns = ("fill value", "perplexity", "loss over -120 [95 %]", *(f"m{n}" for n in range(9)))
    rows = tuple((name, "5.9 ± 0.01", interval, *["0.123 ± 0.04"] * 9) for name in names)
    points = [(float(name), 5.0 + place, 0.1) for place, name in enumerate(names)]
    trial = Trial({"weight": "uint8", "overrides": {"a": 1}}, 0)
    metrics = {"loss": 0.96, "layer_l2": [0.1, 0.2], "tokens": [3, 4]}
    return Report(
        title="study", question="Which?", reading=("-80 has the least loss.",),
        tables=(Table("uint8/uint8", columns, rows, best=1),),
        plots=(Plot("by value", "fill value", "perplexity", {"a": points, "b": points}),),
        failures=(), method="Each was calibrated on 3 sets.", head=HEAD,
        results=(Result(trial, metrics, "", 1.5), Result(replace(trial, seed=1), {}, "E: x", 1.0)),
    )  # fmt: skip


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
    def test_markdown_and_its_signs(self, report: Report):
        text = markdown(report)
        assert "### uint8/uint8" in text
        assert "| **-80** | **5.9 ± 0.01** |" in text
        assert "by value (• a, o b)" in text
        assert "Each was calibrated on 3 sets." in text
        for line in ("- command: `trace_model ablate x`", "- torch: `2.1`", "- checksum: `c0ffee`"):
            assert line in text
        assert "- trials: `2, 2 s in all, one thread each`" in text
        odd = replace(report, tables=(Table("t", ("a|b", "c"), (("x|y", "`"),)),))
        head = HEAD | {"environment": {"command": "a `b`"}}
        text = markdown(replace(odd, head=head))
        assert r"| a\|b | c |" in text
        assert r"| x\|y | ` |" in text
        assert "- command: `` a `b` ``" in text

    def test_pages_and_tables(self, report: Report):
        read = Checked()
        read.feed(page(replace(report, failures=("{<x>}: E: x",))))
        assert read.stack == []
        for text in ("<m>", "c0ffee", "trace_model ablate x", "{<x>}", "calibrated on 3 sets"):
            assert text in read.text
        rows = list(csv.DictReader(io.StringIO(table_of_results(report))))
        assert [row["seed"] for row in rows] == ["0", "1"]
        assert (float(rows[0]["loss"]), rows[0]["overrides"]) == (0.96, '{"a": 1}')
        assert (rows[1]["loss"], rows[1]["error"]) == ("", "E: x")
        for row in rows:
            assert (row["command"], row["torch"]) == ("trace_model ablate x", "2.1")
            assert (row["checksum"], row["workload_tokens"]) == ("c0ffee", "64")
        assert rows[0]["tokens"] == "[3, 4]"

    def test_json_holds_each_difference_with_its_verdict(self, report: Report):
        difference = Difference(-0.01, -math.inf, math.inf, 1)
        judged = Judgement("uint8/uint8", "-80", "-120", "loss", difference)
        found = json.loads(document(replace(report, judgements=(judged,))))
        assert found["judgements"] == [{
            "place": "uint8/uint8", "setting": "-80", "default": "-120", "measured": "loss",
            "verdict": "cannot tell", "mean": -0.01, "low": "-inf", "high": "inf", "count": 1,
        }]  # fmt: skip
        assert found["margin"]["loss"] == 0.001
        assert found["results"][0]["metrics"]["loss"] == 0.96
        assert found["reading"] == ["-80 has the least loss."]

    def test_no_results_and_each_suffix(self, report: Report, tmp_path: Path):
        assert table_of_results(replace(report, results=())).startswith("model,text,")
        writers = {".md": markdown, ".html": page, ".csv": table_of_results, ".json": document}
        for suffix, write in writers.items():
            save(report, tmp_path / f"r{suffix}")
            assert (tmp_path / f"r{suffix}").read_text() == write(report)
        assert len(list(tmp_path.iterdir())) == 4

    @pytest.mark.parametrize(
        ("name", "message"), [("r.pdf", "has the suffix '.pdf'"), ("none/r.md", "create it first")]
    )
    def test_files_that_cannot_be(self, report: Report, tmp_path: Path, name, message):
        with pytest.raises(StudyError, match=message):
            save(report, tmp_path / name)


class TestTerminal:
    @pytest.mark.parametrize("width", ["80", "200"])
    def test_it_fits(self, report: Report, capsys, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", width)
        show(report)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= int(width)
        assert ("8 more columns in the reports" in text) == (width == "80")
        for line in ("- -80 has the least loss.", "command: trace_model ablate x", "torch: 2.1"):
            assert line in text
        assert "checksum: c0ffee" in text

    def test_long_names_leave_the_difference_alone(self, report: Report, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        (table,) = report.tables
        rows = tuple((f"observer={name[0]}, " * 9, *name[1:]) for name in table.rows)
        show(replace(report, tables=(replace(table, rows=rows),)))
        text = capsys.readouterr().out
        assert text.count("+0.0800 [+0.0700, +0.0900]") == 3
        assert max(map(len, text.splitlines())) <= 80

    def test_markup_is_text(self, report: Report, capsys):
        odd = "[/x] [red]y[/red]"
        table = Table(odd, (odd, "b"), ((odd, "1"),))
        plot = Plot(odd, odd, "y", {odd: [(0.0, 1.0, 0.0)]})
        texts = {"title": odd, "question": odd, "reading": (odd,), "failures": (odd,)}
        show(
            replace(report, tables=(table,), plots=(plot,), **texts, head={"workload": {"m": odd}})
        )
        assert capsys.readouterr().out.count(odd) == 10


class TestPlots:
    def test_names_have_room(self):
        places = [-240.0, -120.0, -95.0, -90.0, -85.0, -40.0]
        plot = Plot("t", "x", "y", {"a": [(place, 1.0, 0.0) for place in places]})
        *_, ticks, _ = text_plot(plot, width=60).splitlines()
        shown = [float(name) for name in ticks.split()]
        assert {-240.0, -120.0, -40.0} < set(shown) < set(places)
        # The second of three settings has no finite figure.
        points = [(0.0, 1.0, 0.0), (2.0, 2.0, 0.0)]
        plot = Plot("t", "", "y", {"a": points}, ("first", "second", "third"))
        text = text_plot(plot, width=60)
        assert "first" in text
        assert "second" not in text
        assert "third" in text

    def test_points_and_figures_of_any_size(self, report: Report):
        plot = Plot("t", "x", "y", {"a": [(3.0, 1.0, 0.0)]})
        assert "3" in text_plot(plot)
        assert "<circle" in page(replace(report, plots=(plot,)))
        for high in (1e-300, 1e300):
            plot = Plot("t", "x", "y", {"a": [(0.0, high, high / 10), (1.0, 2 * high, 0.0)]})
            assert text_plot(plot)
            assert "nan" not in page(replace(report, plots=(plot,)))
        assert math.isfinite(high)


def test_the_page_marks_what_is_recommended_and_has_a_dark_mode(report):
    table = replace(report.tables[0], best=1, recommended=0)
    text = page(replace(report, tables=(table,)))
    rows = re.findall(r"<tr( class='[^']*')?>(.*?)(?=<tr|</table>)", text.split("<h2>")[1])
    assert [classes for classes, _ in rows] == [
        *("", " class='recommended'", " class='best'"),
        *("" for _ in table.rows[2:]),
    ]
    assert [place for place, (_, row) in enumerate(rows) if ">recommended</b>" in row] == [1]
    assert "@media(prefers-color-scheme:dark)" in text
    both = page(replace(report, tables=(replace(table, recommended=1),)))
    assert "<tr class='best recommended'>" in both
