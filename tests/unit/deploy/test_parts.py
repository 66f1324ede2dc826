"""The parts of a wrapped model that are exported alone."""

import pytest
import torch

import wrappers
from tests.builders.llama import tiny, wrap
from wrappers.deploy.parts import PARTS, exported_part
from wrappers.errors import ExportError, WrapError


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("variant", "tokens"), [
    ("prefill", 32), ("prefill_reference", 32), ("decode", 1)
])  # fmt: skip
def test_each_is_called_with_its_inputs(part, variant, tokens) -> None:
    wrapped = wrap(tiny(), variant)
    module, inputs = exported_part(wrapped, part, layer=1)
    with torch.no_grad():
        output = module(*inputs)
    first = output if part == "mlp" else output[0]
    size = wrapped.config.vocab_size if part == "model" else wrapped.config.hidden_size
    assert first.shape == (1, tokens, size)
    assert inputs[0].shape[:2] == (1, tokens)


def test_which_layer_and_how_long() -> None:
    wrapped = wrap(tiny(), "decode")
    step, inputs = exported_part(wrapped, "attention", layer=1, tokens=2, past=5)
    assert step.module is wrapped.model.layers[1].self_attn
    assert [tensor.shape[-2] for tensor in inputs] == [2, 2, 2, 2, 5, 5]
    mlp, (hidden_states,) = exported_part(wrapped, "mlp", tokens=3)
    assert mlp is wrapped.model.layers[0].mlp
    assert hidden_states.shape == (1, 3, wrapped.config.hidden_size)


@pytest.mark.parametrize(("options", "message"), [
    ({"part": "head"}, "found the part 'head'; expected attention, mlp, layer, model"),
    ({"part": "layer", "layer": 9}, r"found layer 9, and \w+ has \d wrapped .*: expected 0 to \d"),
    ({"part": "mlp", "past": 3}, "found a past of 3 positions, and an MLP takes none"),
])  # fmt: skip
def test_what_is_refused(options, message) -> None:
    with pytest.raises(ExportError, match=message):
        exported_part(wrap(tiny(), "prefill"), **options)


def test_a_model_without_steps() -> None:
    net = wrappers.prepare(torch.nn.Sequential(torch.nn.Linear(2, 2)), wrappers.PTQConfig())
    with pytest.raises(WrapError, match="no graph of a step"):
        exported_part(net, "model")
    with pytest.raises(ExportError, match="0 wrapped decoder layers"):
        exported_part(net, "layer")
