"""The walks over a model, against PyTorch's own."""

import pytest
import torch
from torch import nn

from tracer.execution.walks import all_parameters, modules_of, named_modules_of


def shared() -> nn.Module:
    """A model with a module under two names, at two depths, and a name without a module."""
    twice = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(nn.ModuleList([nn.Identity(), twice]), twice, nn.Linear(2, 2))
    model.register_module("none", None)
    model[2].weight = twice[0].weight
    model.append(nn.ModuleList())
    return model


MODELS = {
    "a leaf": nn.Linear(2, 2),
    "nothing": nn.Module(),
    "shared modules and parameters": shared(),
    "transformer": nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_in_the_order_of_pytorch(model: nn.Module) -> None:
    assert named_modules_of(model) == list(model.named_modules())
    assert modules_of(model) == list(model.modules())
    for own, other in zip(all_parameters(model), model.parameters(), strict=True):
        assert own is other


def test_of_two_models_each_module_comes_once() -> None:
    model = shared()
    both = nn.Sequential(model[1], nn.Identity())
    own = list(model.modules())
    assert modules_of(model, both) == own + [m for m in both.modules() if m not in own]


def test_a_module_that_holds_itself_ends() -> None:
    model = nn.Module()
    vars(model)["_modules"]["itself"] = model
    assert named_modules_of(model) == [("", model)]
    assert modules_of(model) == [model]


def test_a_scripted_model() -> None:
    with pytest.warns(DeprecationWarning):
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert [name for name, _ in named_modules_of(model)] == [n for n, _ in model.named_modules()]
    assert len(list(all_parameters(model))) == 2
