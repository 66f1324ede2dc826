"""Wrapping modules whose weights accelerate loads when they are needed."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from wrappers import PTQConfig, calibrate, convert, prepare
from wrappers.quantize import iter_points

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def models() -> tuple[nn.Module, nn.Module]:
    """A model in memory, and the same one offloaded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 3)).eval()
    return model, cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))


def test_weights_are_loaded_by_both_and_by_a_hook_of_several(models) -> None:
    expected = models[0](X)
    wrapped = prepare(models[1], PTQConfig())
    assert torch.equal(wrapped(X), expected)
    assert torch.equal(models[1](X), expected)
    assert all(p.is_meta for model in (models[1], wrapped) for p in model.parameters())
    weights = [model[0]._hf_hook.weights_map for model in (models[1], wrapped)]
    assert weights[0] is weights[1]
    kept, offloaded = models[0][0], cpu_offload(models[0][2], execution_device=torch.device("cpu"))
    x = kept(X)
    wrapped = prepare(offloaded, PTQConfig())
    assert torch.equal(wrapped(x), offloaded(x))
    assert wrapped._hf_hook is not offloaded._hf_hook
    assert not set(map(id, wrapped._hf_hook.hooks)) & set(map(id, offloaded._hf_hook.hooks))


def test_a_folded_scale_is_in_what_is_loaded(models) -> None:
    kept, offloaded = (prepare(model, PTQConfig()) for model in models)
    for wrapped in (kept, offloaded):
        wrapped[2].fold_output_scale(0.3)
        wrapped[2].fold_output_scale(0.5)
    assert torch.equal(offloaded(X), kept(X))
    assert torch.equal(models[1](X), models[0](X))  # the float model has none of it
    loaded = offloaded[2]._hf_hook.weights_map
    assert (set(loaded), len(loaded)) == ({"weight", "bias"}, 2)


def test_quantised_weights_are_not_kept(models) -> None:
    outputs = []
    for model in models:
        wrapped = prepare(model, PTQConfig())
        calibrate(wrapped, [X])
        with torch.no_grad():
            outputs.append(convert(wrapped)(X))
        kept = [point for _, _, point in iter_points(wrapped) if point._cache is not None]
        assert len(kept) == (2 if model is models[0] else 0)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], models[0](X))
