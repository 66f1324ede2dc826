"""The Quantization Error Summary: its figures, its scatter, and that it fits."""

import io
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tracer.errors import ShapeMismatchError
from tracer.reports.console import error_summary
from tracer.reports.parts.summary import scatter

POINT = "•"


def shown(reference, quantized, width=80, **options):
    page = io.StringIO()
    options = {"title": "attention"} | options
    error_summary(reference, quantized, console=Console(file=page, width=width), **options)
    return page.getvalue()


def pair(seed=0, error=0.1):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(2, 8, 16, generator=generator)
    return reference, reference + error * torch.randn(2, 8, 16, generator=generator)


def figures(text):
    """(mean |diff|, PEIR in percent) by the name of the output."""
    rows = re.findall(r"│ (\S.*?)\s{2,}(\S+)\s+(\S+) %\s*│", text)
    return {name: (float(mean), float(peir)) for name, mean, peir in rows}


def drawing(text):
    """The lines of the picture alone, without its frame and rulers."""
    lines = text.split("╯")[1].splitlines()
    return [line.partition("│")[2].rstrip("│") for line in lines if line.endswith("│")]


class TestBox:
    def test_the_figures_of_every_output(self):
        outputs = {name: pair(seed) for seed, name in enumerate(["new key", "new value"], 1)}
        found = figures(shown(*pair(), extra=outputs))
        assert list(found) == ["output", "new key", "new value"]
        assert figures(shown(pair()[0], pair()[0])) == {"output": (0.0, 0.0)}
        assert re.search(r"output\s+1\s+inf %", shown(torch.ones(4), torch.ones(4) + 1))
        for name, (r, q) in {"output": pair(), **outputs}.items():
            difference = (r - q).abs()
            peir = 100 * difference.max() / (r.max() - r.min())
            assert found[name] == pytest.approx((difference.mean().item(), peir.item()), rel=1e-3)

    def test_it_returns_nothing_and_prints_to_standard_output(self, capsys):
        text = shown(*pair(), title="Llama attention, decode")
        assert text.startswith("╭─ Quantization Error Summary: Llama attention, decode ─")
        assert text.splitlines()[1].split() == ["│", "mean", "|diff|", "PEIR", "│"]
        assert error_summary(*pair(), title="attention") is None
        printed = capsys.readouterr().out
        assert "Quantization Error Summary: attention" in printed
        assert all(line == line.rstrip() for line in printed.splitlines())

    def test_figures_of_outputs_and_shapes_that_differ(self):
        reference = pair()[0].double()
        found = figures(shown(reference, reference + 1e-9))["output"]
        assert found == pytest.approx((1e-9, 1e-7 / float(reference.max() - reference.min())), 1e-3)
        reference, _ = pair()
        mean, _ = figures(shown(reference, reference.bfloat16()))["output"]
        expected = (reference - reference.bfloat16().float()).abs().mean()
        assert mean == pytest.approx(expected.item(), rel=1e-3)
        with pytest.raises(ShapeMismatchError):
            shown(torch.ones(4), torch.ones(5))
        with pytest.raises(ShapeMismatchError):
            shown(torch.ones(4), torch.ones(4), extra={"new key": (torch.ones(2), torch.ones(3))})


class TestNotFinite:
    def test_they_are_counted_and_the_rest_is_measured_and_drawn(self):
        reference, quantized = pair()
        clean = shown(reference[1:], quantized[1:])
        reference[0], quantized[0, 0, 0] = math.nan, math.inf
        reference[0, 0] = -math.inf
        text = shown(reference, quantized)
        assert "output: 128 of 256 values are not finite" in text
        assert (figures(text), drawing(text)) == (figures(clean), drawing(clean))

    @pytest.mark.parametrize("reference", [torch.full((3,), math.nan), torch.empty(0)])
    def test_nothing_is_left(self, reference):
        text = shown(reference, torch.ones_like(reference))
        assert re.search(r"│ output\s+-\s+-", text)
        assert ("3 of 3 values are not finite" in text) is bool(len(reference))
        assert POINT not in text


class TestScatter:
    def test_equal_values_lie_on_the_diagonal(self):
        values = torch.linspace(-3, 5, 500)
        lines = scatter(values, values, width=60, height=24).splitlines()
        rows = [line.partition("│")[2] or line.partition("┤")[2] for line in lines]
        rows = [row for row in rows if POINT in row]
        columns = [(row.index(POINT), row.rindex(POINT)) for row in rows]
        assert len(rows) > 15
        # From the top left away: every row further left than the one above, without a gap.
        for (first, _), (_, below) in itertools.pairwise(columns):
            assert first - 1 <= below <= first

    def test_values_off_the_diagonal_and_the_ruler(self):
        reference = torch.linspace(-1, 1, 100)
        quantized = reference.clone()
        quantized[0] = 1.0
        top = drawing(shown(reference, quantized))
        assert any(row.strip().startswith(POINT) and row.strip() != POINT for row in top[:3])
        text = scatter(torch.tensor([0.0, 1.0]), torch.tensor([-4.0, 2.0]), width=60, height=24)
        numbers = [float(n) for n in re.findall(r"^ *(-?[\d.]+)┤", text, re.MULTILINE)]
        assert max(numbers) == 2.0 and min(numbers) == -4.0
        assert [float(n) for n in text.splitlines()[-2].split()] == sorted(numbers)

    @pytest.mark.parametrize(
        "value", [0.0, 1.0, -2.5, 1e-30, 3e38, -3e38], ids=lambda value: f"{value:g}"
    )
    def test_a_single_value(self, value):
        text = scatter(torch.tensor([value]), torch.tensor([value]), width=40, height=12)
        assert text.count(POINT) == 1
        assert f"{value:.3g}" in text

    def test_many_values_and_figures_drawn_before(self):
        reference = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
        quantized = reference.clone()
        reference[123_457], quantized[123_457] = 100.0, -100.0
        text = scatter(reference, quantized, width=60, height=24)
        bottom = [line for line in text.splitlines() if POINT in line][-1]
        assert bottom.rstrip("│ ").endswith(POINT) and bottom.count(POINT) == 1
        first, second = pair(1), pair(2)
        alone = scatter(*first, width=60, height=24)
        scatter(*second, width=40, height=10)
        assert scatter(*first, width=60, height=24) == alone
        assert "\x1b" not in alone
        assert "\x1b" in scatter(*first, width=40, height=12, colour=True)


class TestWidth:
    @given(width=st.integers(30, 200), title=st.text("ab c", max_size=90))
    @settings(deadline=None, max_examples=25)
    def test_no_line_is_wider_than_the_terminal(self, width: int, title: str):
        reference, quantized = pair()
        reference[0, 0, 0] = math.nan
        extra = {"a long name of an output": pair(1)}
        text = shown(reference, quantized, width, title=title, extra=extra)
        assert max(map(len, text.splitlines())) <= width
        assert POINT in text

    def test_plain_characters_where_there_are_no_others(self, monkeypatch):
        file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        error_summary(*pair(), title="attention", console=Console(file=file, width=80))
        file.seek(0)
        text = file.read()
        assert text.startswith("+- Quantization Error Summary: attention -+")
        assert text.isascii() and "?" not in text
