"""Algorithms on models whose weights accelerate loads when they are needed: the same numbers."""

import copy
import gc
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from tests.builders.llama import tiny, tokens
from wrappers import PTQConfig, affine, algorithms
from wrappers.algorithms import GPTQ, BiasCorrection, BlockReconstruction, SmoothQuant
from wrappers.core.offloading import parameter_of
from wrappers.errors import WrapError

CONFIG = PTQConfig(activation=affine("uint8"), weight=affine("uint4"))
CPU = torch.device("cpu")
BATCHES = [{"input_ids": tokens(2, 12, seed)} for seed in (1, 2)]


def offloaded(model, where, folder):
    copied = copy.deepcopy(model)
    if where == "disk":
        return disk_offload(copied, folder, execution_device=CPU)
    return cpu_offload(copied, execution_device=CPU)


def all_values(model):
    return {
        f"{name}.{parameter}": parameter_of(module, parameter)
        for name, module in model.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
    }


@pytest.mark.covers
@pytest.mark.parametrize(
    ("where", "tied", "stages"),
    [
        ("disk", True, [GPTQ(), BiasCorrection()]),
        ("disk", False, [GPTQ(match_float=True, group_size=8)]),
        ("cpu", True, [GPTQ(), BlockReconstruction(steps=3)]),
    ],
    ids=["disk, tied", "disk", "cpu, tied"],
)
def test_the_result_is_that_of_the_model_in_memory(where, tied, stages, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = tiny(tie_word_embeddings=tied)
    loaded = offloaded(model, where, tmp_path / "weights")
    expected = algorithms.quantize(model, CONFIG, BATCHES, stages)
    found = algorithms.quantize(loaded, CONFIG, BATCHES, stages)
    assert all(parameter.is_meta for parameter in found.parameters())
    values, wanted = all_values(found), all_values(expected)
    assert values.keys() == wanted.keys()
    assert all(torch.equal(values[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        assert torch.equal(found(**BATCHES[0]).logits, expected(**BATCHES[0]).logits)
        assert torch.equal(loaded(**BATCHES[0]).logits, model(**BATCHES[0]).logits)
    files = [path for path in Path(tmp_path).iterdir() if path.name != "weights"]
    assert files
    del found
    gc.collect()
    assert not any(path.exists() for path in files)


def test_what_cannot_be(tmp_path):
    model = tiny()
    with pytest.raises(WrapError, match=r"embed_tokens .* SmoothQuant rewrites several at a time"):
        SmoothQuant()(offloaded(model, "disk", tmp_path), CONFIG, BATCHES)
    whole = cpu_offload(copy.deepcopy(model), CPU, preload_module_classes=["LlamaMLP"])
    with pytest.raises(WrapError, match=r"mlp\.gate_proj are on the meta device, and no hook"):
        GPTQ()(whole, CONFIG, BATCHES)
