"""Models laid out in another way: another quantiser's wrappers, ports under other names."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import tracer
from benchmarks.blind.ports import ports


class Rounded(nn.Module):
    """Keeps the float layer, which never runs, and calls a copy with rounded weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.module = layer
        self.act_observer = nn.Identity()
        self.quantized = copy.deepcopy(layer)
        scale = layer.weight.detach().abs().max() / 2000
        self.quantized.weight.data.div_(scale).round_().mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act_observer(self.quantized(x))


class Around(nn.Module):
    """Keeps a float module, and calls a copy whose linear layers are rounded."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, module)
        self.run = copy.deepcopy(module)
        for name, layer in list(self.run.named_modules()):
            if isinstance(layer, nn.Linear):
                self.run.set_submodule(name, Rounded(layer))

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.run(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("run"), name)


def holders(model: nn.Module) -> set[str]:
    """The modules that hold parameters."""
    return {n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}


@pytest.mark.parametrize("attribute", ["wrapped", "module", "_orig", "float_model"])
@pytest.mark.parametrize("each_layer", [False, True])
def test_what_is_called_is_paired_and_not_the_float_copy_beside_it(
    attribute: str, each_layer: bool
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    candidate = copy.deepcopy(model)
    if each_layer:
        layers = candidate.model.layers
        for number, layer in enumerate(list(layers)):
            layers[number] = Around(layer, attribute)
    else:
        candidate = Around(candidate, attribute)
    comparison = tracer.compare(
        model, candidate, {"input_ids": torch.arange(8)[None]}, tolerance=0.05, confirm=False
    )
    seen = {row.module for row in comparison.rows if row.is_output}
    assert holders(model) <= seen
    assert {"model.layers.0", "model.layers.1.self_attn", "model.layers.1.mlp"} <= seen
    assert comparison.verdict.agrees


@pytest.mark.parametrize(("name", "make"), ports())
def test_ports_are_paired_where_they_hold_parameters(
    name: str, make: Callable[[], tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]]
) -> None:
    reference, candidate, inputs = make()
    comparison = tracer.compare(reference, candidate, inputs, confirm=False)
    paired = {name.partition("[")[0] for name in comparison.coverage.paired_modules}
    unpaired = holders(reference) - paired
    # The embedding that is shared is called for both stacks, and the router's weight is read.
    assert {n.rpartition(".")[2] for n in unpaired} <= {"shared", "embed_tokens", "gate"}
    assert len(unpaired) <= 2
    measured = [row for row in comparison.rows if row.is_output and row.difference is not None]
    assert measured[-1].peir < 1e-5
