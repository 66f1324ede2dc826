"""A port with names of its own: which of the names are taken, and which are said."""

import inspect
import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import tracer
from tracer.errors import UsageError
from tracer.reports.console import show
from tracer.reports.json import render

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.o_proj = nn.Linear(16, 16)

    def forward(self, x):
        weights = (self.q_proj(x) @ self.k_proj(x).mT / 4.0).softmax(-1)
        return self.o_proj(weights @ x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.norm = Attention(), nn.LayerNorm(16)

    def forward(self, x):
        return x + self.self_attn(self.norm(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(5))
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        weights = (self.query(x) @ self.key(x).mT / 2.0).softmax(-1)  # the scale is wrong
        return self.out(weights @ x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.ln = Mix(), nn.LayerNorm(16)

    def forward(self, x):
        return x + self.attn(self.ln(x))


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.classifier = nn.Linear(16, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)


NAMES = {"self_attn": "attn", "norm": "ln", "q_proj": "query", "k_proj": "key", "o_proj": "out"}


@pytest.fixture(scope="module")
def models() -> tuple[Model, Port]:
    torch.manual_seed(0)
    reference, port = Model(), Port()
    state = {}
    for name, value in reference.state_dict().items():
        own = name.replace("layers.", "blocks.").replace("head", "classifier")
        state[".".join(NAMES.get(part, part) for part in own.split("."))] = value * 3.0
    port.load_state_dict(state)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(3.0)
    return reference.eval(), port.eval()


@pytest.fixture(scope="module")
def comparison(models) -> tracer.Comparison:
    return tracer.compare(*models, X)


@pytest.mark.covers
def test_the_same_mistake_in_five_layers_is_one_origin(comparison) -> None:
    verdict = comparison.verdict
    assert [origin.module for origin in verdict.origins] == [
        f"layers.{n}.self_attn" for n in range(5)
    ]
    assert [origin.candidate_module for origin in verdict.origins] == [
        f"blocks.{n}.attn" for n in range(5)
    ]
    assert all(finding.confirmed for finding in verdict.details.findings)
    assert "The same in blocks 1 to 4." in verdict.explanation.splitlines()
    assert "more origin" not in verdict.explanation
    assert verdict.explanation.startswith(
        "The error is introduced in the forward of `blocks.0.attn` (reference: "
        "`layers.0.self_attn`) itself"
    )


def test_the_headline_names_the_line_and_both_modules(comparison) -> None:
    source, first = inspect.getsourcelines(Mix.forward)
    line = first + next(i for i, text in enumerate(source) if "is wrong" in text)
    page = io.StringIO()
    show(comparison, console=Console(file=page, width=200))
    head, *after = page.getvalue().split("\n\n")[-1].splitlines()
    assert head.startswith("diverges: ")
    assert head.endswith(
        f"test_other_names.py:{line}, in `blocks.0.attn` (reference: `layers.0.self_attn`), the "
        "same in blocks 1 to 4"
    )
    (marked,) = [text for text in after if text.strip().startswith(f"{line} >")]
    assert "the scale is wrong" in marked


def test_rows_coverage_and_json_hold_both_names(comparison, models) -> None:
    pairs = dict(comparison.coverage.paired_modules)
    assert pairs["layers.3.self_attn.q_proj"] == "blocks.3.attn.query"
    row = next(row for row in comparison.rows if row.module == "layers.0.norm")
    assert row.candidate_module == "blocks.0.ln"
    frame = comparison.to_frame()
    assert set(frame[frame.module == "head"].candidate_module) == {"classifier"}
    report = json.loads(render(comparison))
    assert report["coverage"]["paired_modules"] == pairs
    assert report["verdict"]["origin"]["candidate_module"] == "blocks.0.attn"
    assert report["verdict"]["symptom"]["candidate_module"].startswith("blocks.0.attn")
    assert report["zoomed"]["candidate_module"] == "blocks.0.attn"
    assert "names" not in report["verdict"]


@pytest.mark.parametrize(("width", "header"), [(80, "  candidate "), (200, "  module ")])
def test_the_table_has_the_candidates_names(comparison, width, header) -> None:
    page = io.StringIO()
    show(comparison, console=Console(file=page, width=width))
    table = page.getvalue().split("\n\n")[0]
    assert table.startswith(header)
    assert "blocks.0.attn.query" in table
    assert ("layers.0.self_attn.q_proj" in table) == (width == 200)


@pytest.mark.covers
def test_include_zoom_and_capture_take_either_name(models) -> None:
    both = [
        {row.module for row in tracer.compare(*models, X, include=glob, confirm=False).rows}
        for glob in ("layers.1.self_attn.*", "blocks.1.attn.*")
    ]
    assert both[0] == both[1]
    assert both[0]
    zoomed = tracer.compare(*models, X, zoom="blocks.1.attn").zoomed
    assert (zoomed.module, zoomed.candidate_module) == ("layers.1.self_attn", "blocks.1.attn")
    assert "`blocks.1.attn` (reference: `layers.1.self_attn`)" in zoomed.explanation
    (captured,) = {value.module for value in tracer.capture(*models, X, include="classifier")}
    assert captured == "head"
    with pytest.raises(UsageError, match=r"zoom 'blocks\.9\.attn': .* mean 'blocks\.4\.attn'"):
        tracer.compare(*models, X, zoom="blocks.9.attn")
