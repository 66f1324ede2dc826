"""The map of modules that is written beside a `.circle`."""

import hashlib
import json

import torch
from torch import nn

from wrappers.deploy.circle_map import map_of, written


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x).tanh()


def test_operations_have_their_modules_and_lines():
    model = nn.Sequential(Inner(), nn.ReLU())
    found = map_of(torch.export.export(model, (torch.ones(1, 3),), strict=False))
    assert found["inputs"] == ["input"]
    assert set(found["weights"].values()) == {"0.linear.weight", "0.linear.bias"}
    modules = {
        name: [module[1:] for module in each["modules"]]
        for name, each in found["operations"].items()
    }
    assert modules["linear"] == [("0", "Inner"), ("0.linear", "Linear")]
    assert modules["tanh"] == [("0", "Inner")]
    assert modules["relu"] == [("1", "ReLU")]
    file, line, function = found["operations"]["tanh"]["lines"][-1]
    assert (file, line, function) == (__file__, 18, "forward")


def test_it_is_of_one_file():
    assert json.loads(written({"version": 1}, b"data")) == {
        "version": 1,
        "checksum": hashlib.sha256(b"data").hexdigest(),
    }
