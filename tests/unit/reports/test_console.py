"""The report for terminals: what it says, what it folds, and that it fits."""

import fcntl
import io
import math
import os
import re
import struct
import tempfile
import termios
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tracer.comparison.capturing import Captured
from tracer.comparison.result import Comparison
from tracer.isolation.causes import Cause
from tracer.isolation.result import IsolatedCall, IsolatedModule, Isolation, Recovery
from tracer.measurement.coverage import Coverage
from tracer.measurement.rows import FormDifference, Row
from tracer.reports import Run
from tracer.reports.console import make_console, show, show_rows
from tracer.reports.parts.curve import curve
from tracer.reports.parts.fold import Fold, arrange, number
from tracer.reports.parts.ranking import ranking
from tracer.reports.parts.table import shortened
from tracer.tensors.value_path import OUTPUT, ValuePath

LAYERS = [
    f"model.layers.{layer}.{part}"
    for layer in range(6)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "self_attn", "mlp.down_proj", "mlp")
]
ESCAPE = "\x1b"


@pytest.fixture
def diverging(make_row, make_comparison) -> Comparison:
    """Agrees at 4e-7 up to the attention of layer 3, and is far off from there on."""
    first = LAYERS.index("model.layers.3.self_attn.o_proj")
    rows = [make_row(name, 4e-7 if i < first else 0.5) for i, name in enumerate(LAYERS)]
    last = [make_row("lm_head", 0.25), make_row("", 0.25, value="output.logits")]
    return make_comparison([*rows, *last])


@pytest.fixture
def agreeing(make_row, make_comparison) -> Comparison:
    rows = [make_row(name, 1e-7 * (1 + i % 7)) for i, name in enumerate(LAYERS)]
    return make_comparison([*rows, make_row("", 1e-7, value="output.logits")])


def shown(comparison: Comparison, width: int = 80, **options: object) -> str:
    page = io.StringIO()
    show(comparison, console=Console(file=page, width=width), **options)
    return page.getvalue()


def labels(items: Sequence[Row | Fold]) -> list[str]:
    return [item.module if isinstance(item, Row) else "…" for item in items]


class TestTable:
    def test_the_statistics_come_first_and_a_wide_one_has_everything(self, diverging):
        header = shown(diverging).splitlines()[0].split()
        assert header == ["module", "mean", "min", "max", "stddev", "PEIR"]
        text = shown(diverging, width=200)
        header = text.splitlines()[0]
        assert re.split(r"\s{2,}", header.strip()) == [
            *("module", "mean", "min", "max", "stddev", "PEIR"),
            *("value", "shape", "dtype", "SQNR dB", "cosine", "limit", "status"),
        ]
        assert "differs first" in text

    @pytest.mark.parametrize("width", [40, 60, 80, 99, 100, 120, 200])
    def test_no_line_is_wider_than_the_terminal(self, diverging, width):
        table = shown(diverging, width=width).split("\n\n")[0]
        assert max(map(len, table.splitlines())) <= width

    def test_the_first_divergence_is_marked_once(self, diverging):
        marked = [line for line in shown(diverging).splitlines() if "▶" in line]
        assert len(marked) == 1
        assert "model.layers.3.self_attn.o_proj" in marked[0]
        assert marked[0].endswith("5.00e-01")

    def test_calls_and_values_are_named_where_they_are_not_the_usual_ones(
        self, make_row, make_comparison
    ):
        rows = [
            make_row("model.layers.10.norm", call=2),
            make_row("model.layers.10.attention", value="output.1"),
            make_row("model.layers.10.attention", 0.5, value="kwargs.attention_mask"),
        ]
        text = shown(make_comparison(rows))
        assert "  model.layers.10.norm#2 " in text
        assert "  model.layers.10.attention .1 " in text
        assert "▶ …10.attention (attention_mask) " in text

    def test_two_dtypes_and_what_could_not_be_computed(self, make_row, make_comparison):
        row = make_row("linear", candidate_dtype=torch.bfloat16)
        assert "float32→bfloat16" in shown(make_comparison([row]), width=200)
        note = "shape [2]; candidate [3]"
        text = shown(make_comparison([make_row("linear", None, note=note)]), width=200)
        line = next(line for line in text.splitlines() if "linear" in line)
        assert line.split()[:3] == [
            "▶",
            "linear",
            "output",
        ]  # what says nothing of any row is left out
        assert note in line
        rows = [make_row("linear", None, note=note), make_row("norm")]
        text = shown(make_comparison(rows), width=200)
        line = next(line for line in text.splitlines() if "linear" in line)
        assert line.split()[:6] == ["▶", "linear", "-", "-", "-", "-"]


class TestShortened:
    def test_the_middle_goes_first(self):
        name = "model.layers.0.self_attn.q_proj"
        assert shortened(name, 31) == name
        assert shortened(name, 24) == "model…0.self_attn.q_proj"
        assert shortened(name, 18) == "…self_attn.q_proj"
        assert shortened(name, 5) == "…proj"

    @given(st.lists(st.text("abc0", max_size=8), min_size=1, max_size=6), st.integers(1, 60))
    @settings(deadline=None)
    def test_it_always_fits_and_keeps_the_end(self, parts: list[str], width: int):
        name = ".".join(parts)
        short = shortened(name, width)
        assert len(short) <= width
        assert name.endswith(short.rpartition("…")[2])


class TestFold:
    def test_what_is_open_and_what_is_folded(self, diverging, make_row, agreeing):
        items = arrange(diverging.rows, diverging.verdict.symptom)
        assert labels(items) == [*LAYERS[:2], "…", *LAYERS[13:20], "…", "lm_head", ""]
        text = shown(diverging)
        assert "… 11 rows agree, PEIR at most 4.00e-07" in text
        assert "… 10 rows differ, PEIR 5.00e-01" in text
        fold = Fold((make_row("a"), make_row("b", 0.5), make_row("c", 0.25)))
        said = "… 1 row agree, all of them equal; 2 rows differ, PEIR 2.50e-01 to 5.00e-01"
        assert str(fold) == said
        items = arrange(agreeing.rows, None)
        assert max(agreeing.rows, key=lambda row: row.peir).module in labels(items)
        assert (labels(items)[:2], labels(items)[-1]) == (LAYERS[:2], "")
        assert "…" in labels(items)

    def test_arguments_that_agree_are_hidden_unless_all_is_asked_for(self, make_row):
        output, argument = make_row("a"), make_row("a", value="kwargs.x")
        wrong = make_row("a", 0.5, value="kwargs.y")
        rows = [argument, wrong, output]
        assert arrange(rows, None) == [wrong, output]
        assert arrange(rows, None, all_rows=True) == rows
        few = [make_row(str(i)) for i in range(12)]
        assert arrange(few, None) == few

    @given(st.lists(st.floats(0, 1), max_size=60))
    @settings(deadline=None)
    def test_no_row_is_lost_or_moved(self, peirs: list[float]):
        rows = [_row(i, peir) for i, peir in enumerate(peirs)]
        items = arrange(rows, next((row for row in rows if not row.agrees), None))
        flat = [r for item in items for r in (item.rows if isinstance(item, Fold) else (item,))]
        assert flat == rows
        assert all(len(item.rows) > 1 for item in items if isinstance(item, Fold))

    def test_numbers_have_three_digits(self):
        assert [number(x) for x in (0.0, 1.23456e-7, 12345.0, math.inf)] == [
            *("0", "1.23e-07", "1.23e+04", "inf")
        ]


def _row(i: int, peir: float) -> Row:
    from tracer.tensors.difference import Difference

    r = torch.tensor([0.0, 1.0, 0.5])
    difference = Difference.of(r, r + torch.tensor([0.0, 0.0, peir]))
    dtype = torch.float32
    return Row(i, f"m{i}", 0, "output", (3,), dtype, dtype, difference, 1e-5, peir <= 1e-5)


class TestCurve:
    def test_it_has_labels_and_a_log_scale(self, diverging):
        text = curve(diverging.rows, width=80, height=12)
        assert "PEIR" in text
        assert "calls in execution order" in text
        assert {"1e0", "1e-3"} <= set(re.findall(r"1e-?\d+", text))
        assert ESCAPE not in text
        assert max(map(len, text.splitlines())) <= 80
        assert ESCAPE in curve(diverging.rows, width=80, height=12, colour=True)

    def test_zero_infinity_and_what_is_drawn(self, make_row):
        rows = [make_row("a", 0.0), make_row("b", 1e-3), make_row("c", None)]
        ticks = [line.split("┤")[0].strip() for line in _curve_lines(rows)]
        assert (ticks[0], ticks[-1]) == ("inf", "0")
        assert curve([make_row(str(i), 0.0) for i in range(9)], width=80, height=12) == ""
        assert curve([make_row("a", 0.5), make_row("b", 0.5)], width=80, height=12) == ""
        assert curve([], width=80, height=12) == ""
        rows = [make_row(m, p, value=f"output.{i}") for m in "abc" for i, p in ((0, 0.1), (1, 0.2))]
        assert curve(rows, width=80, height=12).count("•") == 3


def _curve_lines(rows: list[Row]) -> list[str]:
    return [line for line in curve(rows, width=80, height=12).splitlines() if "┤" in line]


class TestRanking:
    def test_by_growth_and_the_worst_output(self, make_row):
        rows = [
            make_row("embed", 0.01, input_peir=0.0), make_row("a", 0.02, input_peir=0.01),
            make_row("b", 0.06, input_peir=0.01), make_row("c", 0.01, input_peir=0.02),
            make_row("same", 0.0, input_peir=0.0), make_row("unknown", 0.5, input_peir=None),
        ]  # fmt: skip
        found = ranking(rows)
        assert [item.module for item in found] == ["embed", "b", "a", "c"]
        assert [item.growth for item in found] == [math.inf, *map(pytest.approx, (6.0, 2.0, 0.5))]
        rows = [
            make_row("model.embed", 0.01, input_peir=0.0),
            make_row("model", 0.5, input_peir=0.0),
            make_row("", 0.5, input_peir=0.0),
        ]
        assert [item.module for item in ranking(rows)] == ["model.embed"]
        rows = [make_row("a", p, value=f"output.{p}", input_peir=0.1) for p in (0.1, 0.4, 0.2)]
        assert [item.value for item in ranking(rows)] == ["output.0.4"]

    def test_it_is_printed_for_a_quantised_candidate(self, diverging, make_row, make_comparison):
        comparison = make_comparison([make_row("norm", 0.3, input_peir=0.1)])
        text = shown(comparison, ranked=True)
        assert "where the error grows" in text
        assert re.search(r"1\.00e-01  3\.00e-01 +3  norm", text)
        assert "where the error grows" not in shown(comparison)


def isolated(module: str, share: float, **fields: object) -> IsolatedModule:
    """A module that introduces a PEIR of 0.125 at its only call."""
    defaults = {
        "value": "output", "own_lines": False, "depth": 0, "input_peir": 0.25, "peir": 0.5,
        "introduced_peir": 0.125, "introduced": 0.0625, "share": share,
    }  # fmt: skip
    causes = fields.pop("causes", ())
    call = IsolatedCall(module, fields.pop("call", 0), **(defaults | fields))
    return IsolatedModule(module, call, 1 + call.call, share, causes)


@pytest.fixture
def isolation() -> Isolation:
    """Of twelve modules, of which one introduces nothing."""
    causes = (
        Cause("weight", "uint4 weight", 0.0625, 0.001),
        Cause("act_in", "int16 activation", 0.0625, 0.05),
        Cause("act_out", "int16 activation", 0.0625, 0.06),
    )
    modules = [
        isolated("model.layers.3.self_attn.o_proj", 0.5, causes=causes),
        isolated("model.layers.3.self_attn", 0.1, own_lines=True, value="o_proj.kwargs.input"),
        isolated("lm_head", 0.1, call=2, input_peir=None, peir=None, introduced=math.inf),
        *(isolated(f"model.layers.{layer}.mlp", 0.0375) for layer in range(8)),
        isolated("model.norm", 0.0),
    ]
    calls = tuple(module.worst for module in modules)
    recoveries = (
        Recovery(("lm_head",), 0.5, 0.25, 0.4, 0.2),
        Recovery(("lm_head", "model.norm"), 0.5, 0.1, 0.4, 0.05, ("lm_head",)),
    )
    return Isolation("leaves", calls, tuple(modules), recoveries, (("model.norm", 0),))


class TestIsolation:
    @pytest.mark.parametrize("width", [80, 100, 200])
    def test_it_fits(self, diverging, isolation, width: int):
        text = shown(replace(diverging, isolation=isolation), width=width)
        assert max(map(len, text.splitlines())) <= width

    @pytest.mark.parametrize("width", [80, 200])
    def test_the_table_has_a_column_of_introduced_error(self, diverging, isolation, width: int):
        text = shown(replace(diverging, isolation=isolation), width=width)
        header, *lines = text.splitlines()
        assert "PEIR own PEIR" in re.sub(" +", " ", header)
        assert re.search(r"5\.00e-01 +1\.25e-01", next(line for line in lines if "▶" in line))
        assert "own PEIR" not in shown(diverging, width=width)

    def test_rows_of_other_modules_and_arguments_have_none(
        self, make_row, make_comparison, isolation
    ):
        rows = [
            make_row("model.embed_tokens", 0.5),
            make_row("lm_head", 0.5, call=2, value="kwargs.input"),
            make_row("lm_head", 0.5, call=2),
            make_row("lm_head", 0.5, call=1),
        ]
        lines = shown(make_comparison(rows, isolation=isolation), width=76).splitlines()[2:6]
        assert [line.split()[-1] for line in lines] == ["-", "-", "1.25e-01", "-"]

    def test_modules_are_ranked_with_both_errors(self, diverging, isolation):
        text = shown(replace(diverging, isolation=isolation), width=100, ranked=True)
        assert "where the error grows" not in text
        section = text.split("where the error is introduced (leaves)")[1].split("\n\n")[0]
        _, heads, first, second, third, *_, rest = section.splitlines()[0:14]
        assert re.split(r"\s{2,}", heads.strip()) == [
            *("share", "PEIR in", "PEIR out", "own PEIR", "own L2", "module")
        ]
        assert first.split() == [
            *("50.0%", "2.50e-01", "5.00e-01", "1.25e-01", "6.25e-02"),
            "model.layers.3.self_attn.o_proj",
        ]
        assert second.split()[-2:] == ["model.layers.3.self_attn", "(o_proj.kwargs.input)"]
        assert third.split() == ["10.0%", "-", "-", "1.25e-01", "inf", "lm_head#2"]
        assert rest.split() == ["3.8%", "…", "1", "more"]

    def test_the_verdict_names_modules_causes_and_recoveries(self, diverging, isolation):
        verdict = shown(replace(diverging, isolation=isolation), width=200).split("\n\n")[-1]
        lines = verdict[verdict.index("The error that") :].splitlines()
        assert lines == [
            "The error that modules introduce themselves (leaves):",
            "   50.0%  `model.layers.3.self_attn.o_proj`, PEIR 0.125, relative L2 0.0625",
            "          without `weight` (uint4 weight): relative L2 0.0625 → 0.001",
            "          without `act_in` (int16 activation): relative L2 0.0625 → 0.05",
            "   10.0%  `model.layers.3.self_attn` in its own forward at `o_proj.kwargs.input`, "
            "PEIR 0.125, relative L2 0.0625",
            "   10.0%  `lm_head`, PEIR 0.125, relative L2 inf, worst at call 2 of 3",
            "    3.8%  `model.layers.0.mlp`, PEIR 0.125, relative L2 0.0625",
            "    3.8%  `model.layers.1.mlp`, PEIR 0.125, relative L2 0.0625",
            "   22.5%  6 more",
            "With the reference's `lm_head`, the final output goes from PEIR 0.5 to 0.25, and from "
            "relative L2 0.4 to 0.2.",
            "With the reference's `lm_head`, `model.norm`, the final output goes from PEIR 0.5 to "
            "0.1, and from relative L2 0.4 to 0.05. Not swapped, for the form of their output: "
            "`lm_head`.",
            "What follows `model.norm` inherits an error: its form cannot be replaced.",
        ]

    def test_where_there_is_no_error(self, agreeing):
        text = shown(replace(agreeing, isolation=Isolation("layers", (), ())))
        assert "where the error is introduced" not in text
        assert text.rstrip().endswith("No module introduces an error of its own.")


class TestVerdict:
    def test_last_in_words_with_the_argument(self, diverging, agreeing, make_row, make_comparison):
        assert (
            shown(diverging)
            .split("\n\n")[-1]
            .startswith(
                "diverges: /b/model.py:5, in `model.layers.3.self_attn.o_proj`\nThe error is "
            )
        )
        assert shown(agreeing).split("\n\n")[-1].startswith("agrees\nThe models agree.")
        rows = [make_row("attention", 0.5, value="kwargs.attention_mask", call=1)]
        text = " ".join(shown(make_comparison(rows)).split())
        assert (
            "First visible at argument `attention_mask` of `attention` (call 1), PEIR 0.5" in text
        )

    def test_a_quantised_candidate_differs_unless_limited(self, diverging):
        text = " ".join(shown(diverging, ranked=True).split())
        assert "as expected of a quantised candidate" in text
        assert "output.logits of the model ends at PEIR 2.50e-01, SQNR" in text
        run = Run("a", "b", quantized=True, differences_expected=False)
        text = shown(diverging, ranked=True, run=run)
        assert "as expected" not in text
        assert "The error is introduced in the forward of" in text


class TestCoverage:
    def test_unpaired_modules_by_their_reasons(self, make_row, make_comparison):
        names = tuple(f"extra.{i}" for i in range(8))
        reasons = dict.fromkeys(names, "the reference has no such module")
        reasons["own"] = "the candidate has no such module"
        coverage = Coverage(("a",), ("own",), names, reasons, 1, 3, (("candidate", "a", 1),), 0)
        text = shown(make_comparison([make_row("a")], coverage=coverage), width=120)
        assert "coverage: 1 of 2 modules, 1 calls, 3 elements compared; 8 modules in the" in text
        assert "unpaired: the candidate has no such module: own\n" in text
        assert (
            "unpaired: the reference has no such module: extra.0, extra.1, extra.2 and 5 more\n"
        ) in text
        assert "unpaired: called by the candidate only: a, call 1\n" in text

    def test_reasons_and_forms_are_grouped(self, make_row, make_comparison):
        reasons = {f"extra.{i}": f"reason {i}" for i in range(8)}
        coverage = Coverage(("a",), (), tuple(reasons), reasons, 1, 3, (), 0)
        text = shown(make_comparison([make_row("a")], coverage=coverage))
        assert "unpaired: reason 4: extra.4\nunpaired: 3 more\n" in text
        forms = tuple(
            FormDifference(i, f"layers.{i}", 0, "kwargs.attention_mask", "float32 [1]", "None")
            for i in range(5)
        )
        text = shown(make_comparison([make_row("a")], form_differences=forms), width=120)
        assert "in another form: `attention_mask` is of another form: 5 calls\n" in text


class TestFocus:
    def test_values_of_both_sides(self, agreeing):
        reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        focus = [Captured("mlp", 0, OUTPUT, reference, torch.tensor([[1.0, 2.0], [3.5, 4.0]]))]
        text = shown(agreeing, focus=focus)
        assert "values of mlp, call 0" in text
        assert "output, float32 [2, 2]" in text
        assert re.search(r"reference +2\.5 +1\.12 +1 +4  1, 2, 3, 4", text)
        assert re.search(r"candidate +2\.62 +1\.19 +1 +4  1, 2, 3\.5, 4", text)
        assert "furthest apart at [1, 0]: 3 and 3.5, PEIR 1.67e-01" in text
        focus = [Captured("m", 0, OUTPUT, torch.ones(2), torch.ones(3))]
        assert "output, float32 [2], candidate float32 [3]" in shown(agreeing, focus=focus)

    @pytest.mark.parametrize("tensor", [
        torch.empty(0, 3), torch.tensor(2.5), torch.tensor([True, False]), torch.tensor([1, 2]),
        torch.tensor([1 + 2j]), torch.tensor([math.nan, math.inf]),
        torch.arange(12.0).view(3, 4).t(), torch.ones(3, dtype=torch.bfloat16),
    ], ids=str)  # fmt: skip
    def test_tensors_of_every_kind(self, agreeing, tensor):
        assert "values of m, call 3" in shown(
            agreeing, focus=[Captured("m", 3, ValuePath.of_argument("x"), tensor, tensor.clone())]
        )


class TestPlainText:
    def test_no_escape_codes_and_no_trailing_blanks(self, diverging, monkeypatch, capsys):
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.delenv("COLUMNS", raising=False)
        show(diverging)
        text = capsys.readouterr().out
        assert ESCAPE not in text
        assert "╭" not in text  # no panel
        assert all(line == line.rstrip() for line in text.splitlines())
        assert "cosine" in text.splitlines()[0]  # 200 columns

    def test_columns_set_the_width(self, diverging, monkeypatch, capsys):
        monkeypatch.setenv("COLUMNS", "80")
        show(diverging)
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
        for columns, width in (("123", 123), ("wide", 200)):
            monkeypatch.setenv("COLUMNS", columns)
            assert make_console().width == width

    def test_colours(self, diverging, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        page = io.StringIO()
        show(diverging, console=Console(file=page, force_terminal=True, width=100))
        assert "╭" in page.getvalue()
        assert not re.search(r"\x1b\[[\d;]*3[0-7]", page.getvalue())
        monkeypatch.delenv("NO_COLOR", raising=False)
        page = io.StringIO()
        console = Console(file=page, force_terminal=True, color_system="standard", width=100)
        show(diverging, console=console)
        assert f"{ESCAPE}[1;31m▶ model.layers.3.self_attn.o_proj" in page.getvalue()

    def test_an_encoding_without_box_drawing(self, diverging):
        raw = io.BytesIO()
        console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
        show(diverging, console=console)
        console.file.flush()
        text = raw.getvalue().decode("ascii")
        assert "> model.layers.3.self_attn.o_proj" in text
        assert "?" not in text

    def test_a_head_and_an_unfinished_comparison_without_a_verdict(self, agreeing):
        run = Run("tiny (float32)", "wrapped", ("inputs: 3 tokens",))
        head = "tiny (float32) against wrapped\ninputs: 3 tokens\n\n"
        assert shown(agreeing, run=run).startswith(head)
        page = io.StringIO()
        show_rows(agreeing, console=Console(file=page, width=80))
        assert "model.layers.0.self_attn.q_proj" in page.getvalue()
        assert "agrees" not in page.getvalue()


def test_show_is_the_method_of_a_comparison(diverging, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    diverging.show(all_rows=True)
    assert "…" not in capsys.readouterr().out.split("\n\n")[0].replace("model…", "")


class TestWidthBesideAPipe:
    """`trace_model compare ... | less` is read on the terminal that standard error is."""

    @pytest.fixture
    def columns(self, monkeypatch):
        def made(*, columns: str | None = None, piped: bool = True, terminal: bool = True) -> int:
            monkeypatch.delenv("COLUMNS", raising=False)
            if columns is not None:
                monkeypatch.setenv("COLUMNS", columns)
            ends, (leader, follower) = os.pipe(), os.openpty()
            fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 93, 0, 0))
            try:
                with (
                    os.fdopen(os.dup(ends[1]), "w")
                    if piped
                    else tempfile.TemporaryFile("w") as out,
                    os.fdopen(os.dup(follower if terminal else ends[1]), "w") as err,
                ):
                    monkeypatch.setattr("sys.stdout", out)
                    monkeypatch.setattr("sys.stderr", err)
                    width = make_console().width
                    monkeypatch.undo()
            finally:
                for end in (*ends, leader, follower):
                    os.close(end)
            return width

        return made

    def test_that_terminal_counts_for_a_pipe_alone(self, columns):
        assert columns() == 93
        assert columns(piped=False) == 200  # a file is read elsewhere
        assert columns(terminal=False) == 200
        assert columns(columns="120") == 120
