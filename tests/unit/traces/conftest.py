"""The net that is recorded, and one with a mistake."""

import copy

import pytest
import torch

from tests.builders.small_net import Net


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture
def broken(net: Net) -> Net:
    """The net with a wrong weight."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.block.second.weight[3] *= 1.5
    return other
