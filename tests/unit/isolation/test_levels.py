"""Which modules a level of isolation chooses, in models of any make."""

import pytest
import torch
from torch import nn

from tracer import models
from tracer.errors import UsageError
from tracer.execution.pairing import pair
from tracer.isolation.levels import modules_at


class Block(nn.Module):
    """A layer with a block that calls modules, and modules that call none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


def chosen(level: str, model: nn.Module) -> list[str]:
    names = modules_at(level, pair(model, model))
    assert names is not None
    return sorted(names)


def test_leaves_and_layers():
    assert modules_at("leaves", pair(nn.Linear(2, 2), nn.Linear(2, 2))) is None
    model = nn.Module()
    model.blocks = nn.ModuleList([Block(), Block()])
    model.stack = nn.Sequential(Block(), Block())
    model.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert chosen("layers", model) == ["blocks.0", "blocks.1", "stack.0", "stack.1"]
    assert chosen("blocks", model) == ["blocks.0.mlp", "blocks.1.mlp", "stack.0.mlp", "stack.1.mlp"]
    assert chosen("layers", nn.Sequential(Block(), Block())) == ["0", "1"]


def test_lists_in_lists():
    layer = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])})
    model = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    assert chosen("layers", model) == ["layers.0"]
    assert chosen("blocks", model) == ["layers.0.experts"]
    model = nn.ModuleDict({"stages": nn.ModuleList([nn.ModuleList([Block(), Block()])])})
    assert chosen("layers", model) == ["stages.0.0", "stages.0.1"]
    assert chosen("blocks", model) == ["stages.0.0.mlp", "stages.0.1.mlp"]
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2), Block()])
    assert chosen("blocks", model) == ["layers.0", "layers.1.mlp"]


def test_blocks_of_text_and_images():
    model = models.load("tiny-qwen3-vl").model
    text, vision = "model.language_model.layers", "model.visual.blocks"
    mergers = [f"model.visual.deepstack_merger_list.{i}" for i in range(2)]
    assert chosen("blocks", model) == [
        *(f"{text}.{i}.{block}" for i in range(2) for block in ("mlp", "self_attn")),
        *(f"{vision}.{i}.{block}" for i in range(2) for block in ("attn", "mlp")),
        *mergers,
    ]
    assert chosen("layers", model) == [
        *(f"{text}.{i}" for i in range(2)), *(f"{vision}.{i}" for i in range(2)), *mergers,
    ]  # fmt: skip


def test_a_glob_names_modules_of_the_reference():
    model = nn.Sequential(Block(), Block())
    assert chosen("*.norm", model) == ["0.norm", "1.norm"]
    assert chosen("1*", model) == ["1", "1.mlp", "1.mlp.0", "1.mlp.1", "1.norm"]


@pytest.mark.parametrize(("level", "message"), [
    ("2.mlp", "'2.mlp' matches none of the 11 modules .* did you mean .*'1.mlp'"),
    ("leafs", "expected leaves, blocks, layers, or a glob .*; did you mean 'leaves'"),
])  # fmt: skip
def test_a_glob_that_matches_nothing(level: str, message: str):
    model = nn.Sequential(Block(), Block())
    with pytest.raises(UsageError, match=message):
        modules_at(level, pair(model, model))


@pytest.mark.parametrize("level", ["blocks", "layers"])
def test_without_repeated_modules(level: str):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(UsageError, match="no lists of repeated modules in common; isolate leaves"):
        modules_at(level, pair(model, model))


def test_modules_without_a_counterpart_are_left_out():
    reference = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
    candidate = nn.ModuleDict({"layers": nn.ModuleList([Block()])})
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.zero_()
    assert modules_at("layers", pair(reference, candidate)) == {"layers.0"}
