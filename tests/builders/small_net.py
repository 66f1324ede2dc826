"""A small net of two blocks, and a recording of a model that is opened at once."""

from pathlib import Path

import torch
from torch import nn

import tracer
from tracer.traces.recorded import Recorded, open_trace

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.second(self.first(x).tanh() * scale)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Block(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(x, scale=2.0))


def recorded(model: nn.Module, inputs: object, path: Path, **options: object) -> Recorded:
    tracer.record(model, inputs, path, **options)
    return open_trace(path)
