"""A folder with a configuration of four small checks, in which nothing is downloaded or large."""

from pathlib import Path

NETS = """
import torch
from torch import nn

def make(scale=1.0, batch=2):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[2].weight[1] *= scale
    return net, {"input": torch.linspace(-1, 1, 4 * batch).reshape(batch, 4)}

def right():
    return make()

def wrong():
    return make(1.5)

def crash():
    import os
    raise SystemExit(7)
"""
CHECKS = """
model = "nets.py:right"

[checks.good]
candidate = "nets.py:right"

[checks.gated]
candidate = "nets.py:wrong"
baseline = "{name}.json"
report = "{name}.md"

[checks.gated.input-sets.loose]
max-peir = { "*" = 5 }

[checks.gated.input-sets.strict]
max-peir = { "2" = 1e-9 }

[checks.bad]
candidate = "nets.py:wrong"

[checks.ended]
candidate = "nets.py:crash"
"""


def make_checks(folder: Path) -> Path:
    """Writes models and checks; the configuration."""
    (folder / "nets.py").write_text(NETS)
    (folder / "trace_model.toml").write_text(CHECKS)
    return folder / "trace_model.toml"
