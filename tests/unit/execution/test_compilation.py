"""What is compiled in a model, and the stages of it."""

import pytest
import torch
from torch import nn

from tests.builders.compiling import X, layers
from tracer.execution.compilation import (
    Stage,
    compiled_parts,
    leave_uncompiled,
    uncompiled_copy,
)
from tracer.execution.stepping import Stepping

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def custom(module, inputs):
    return module.forward


@pytest.mark.parametrize(
    ("backend", "stages"),
    [
        ("eager", "as_written dynamo"),
        ("aot_eager", "as_written dynamo aot"),
        ("aot_eager_decomp_partition", "as_written dynamo aot decomposed"),
        ("inductor", "as_written dynamo aot decomposed backend"),
        (custom, "as_written dynamo backend"),
    ],
)
def test_the_stages_of_a_backend(backend, stages) -> None:
    part = compiled_parts(torch.compile(layers(), backend=backend))[""]
    assert list(part.stages) == stages.split()


def test_parts_by_their_names_without_compiling() -> None:
    model = layers()
    model.layers[0] = torch.compile(model.layers[0], backend="eager")
    model.layers[1].mlp.compile(backend="aot_eager")
    model.head.compile(backend="eager")
    parts = compiled_parts(model)
    assert {name: part.name for name, part in parts.items()} == {
        "layers.0": "eager",
        "layers.1.mlp": "aot_eager",
        "head": "eager",
    }
    assert list(compiled_parts(torch.compile(model, backend="eager"))) == [""]
    assert compiled_parts(layers()) == {}
    assert list(compiled_parts(Stepping(torch.compile(layers()), steps=1))) == [""]


def test_a_copy_shares_parameters_and_leaves_the_model_compiled() -> None:
    model = layers()
    wrapper = model.layers[0] = torch.compile(model.layers[0], backend="eager")
    model.layers[1].compile(backend="eager")
    copy = uncompiled_copy(model)
    assert compiled_parts(copy) == {}
    assert copy.layers[0] is not wrapper._orig_mod
    assert copy.layers[0].mlp.up.weight is model.layers[0].mlp.up.weight
    assert model.layers[0] is wrapper
    assert list(compiled_parts(model)) == ["layers.0", "layers.1"]
    with torch.no_grad():
        assert torch.equal(copy(X), layers()(X))
    assert type(uncompiled_copy(torch.compile(nn.Linear(2, 2), backend="eager"))) is nn.Linear


def test_a_copy_of_one_under_two_names() -> None:
    made = uncompiled_copy(Stepping(torch.compile(layers(), backend="eager"), steps=1))
    assert made.prefill is made.decode
    assert compiled_parts(made) == {}


def test_the_random_numbers_of_inductor() -> None:
    parts = compiled_parts(torch.compile(layers()))
    assert parts[""].drawing_alike().options == {"fallback_random": True}
    for how in ({"options": {"fallback_random": True}}, {"backend": "eager"}):
        assert compiled_parts(torch.compile(layers(), **how))[""].drawing_alike() is None


def test_what_is_left_uncompiled_and_what_is_compiled_around_it() -> None:
    torch._dynamo.reset()
    operations: list[str] = []

    def keep(module, inputs):
        operations.extend(str(node.target) for node in module.graph.nodes if node.users)
        return module.forward

    part = compiled_parts(torch.compile(layers(), backend=keep))[""]
    model = layers()
    for layer in model.layers:
        leave_uncompiled(layer.mlp)
    part.apply(model, Stage.BACKEND)
    with torch.no_grad():
        assert torch.equal(model(X), layers()(X))
    assert any("layer_norm" in name for name in operations)
    assert not any("softmax" in name for name in operations)
