"""Of modules that nobody quantised nothing is known, and no library is imported for that."""

import subprocess
import sys

import torch
from torch import nn

from tracer.adapters.quantised.adapter import float_weight, given_weight
from tracer.adapters.quantised.lookup import adapter_of, is_quantized, settle
from tracer.adapters.quantised.silent import silent_mistakes
from tracer.tensors.dequantised import dequantised


def test_a_plain_model_is_not_quantised() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    assert adapter_of(model[0]) is None
    assert not is_quantized(model)
    assert silent_mistakes(model) is None
    settle(model)
    assert dequantised(model[0].weight) is model[0].weight


def test_no_library_is_imported_to_find_that_out() -> None:
    program = """
import sys
import torch.nn as nn
from tracer.adapters.quantised.silent import silent_mistakes
silent_mistakes(nn.Sequential(nn.Linear(2, 2)))
print({"torchao", "compressed_tensors", "tico", "transformers"}.intersection(sys.modules))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_weight_of_another_shape_is_none_of_its() -> None:
    own, other = nn.Linear(3, 2), nn.Linear(2, 3)
    assert float_weight(own, other) is None
    assert float_weight(own, None) is None
    before = own.weight
    with given_weight(own, None):
        assert own.weight is before
    same = nn.Linear(3, 2, dtype=torch.float64)
    weight = float_weight(own, same)
    assert weight is not None
    assert weight.dtype is torch.float32
    with given_weight(own, weight):
        assert torch.equal(own.weight, weight)
    assert own.weight is before
