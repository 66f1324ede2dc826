import torch
from torch import nn

from tests.builders.small_net import Net, X, recorded
from tracer.execution.weights import Weights


def test_most_numbers_say_the_dtype(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 3).half(), nn.Linear(2, 2), nn.Linear(1, 1).half())
    model.register_parameter("counts", nn.Parameter(torch.ones(99, dtype=torch.int64), False))
    found = Weights.of(model)
    assert found.numbers == {torch.float16: 12 + 2, torch.float32: 6}
    assert found.dtype is torch.float16
    assert found.devices == {torch.device("cpu")}


def test_of_nothing_there_is_none() -> None:
    assert Weights.of(nn.ReLU()) == Weights(numbers={}, devices=frozenset(), dtype=None)


def test_weights_on_the_meta_device_lie_nowhere() -> None:
    found = Weights.of(nn.Linear(2, 2, device="meta"))
    assert (found.dtype, found.devices) == (torch.float32, frozenset())


def test_a_recording_says_its_dtype(tmp_path) -> None:
    found = Weights.of(recorded(Net().double(), X.double(), tmp_path / "a"))
    assert (found.dtype, found.devices) == (torch.float64, frozenset())
    assert set(found.numbers) == {torch.float64}
