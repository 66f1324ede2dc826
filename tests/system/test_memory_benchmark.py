"""What a comparison holds in tensors does not grow with the number of layers."""

import pytest
import torch

from benchmarks.memory import RUNS, LiveTensors, candidate_of, llama


@pytest.mark.parametrize("run", ["wrapped", "copy", "isolated"])
def test_flat_in_depth(run: str) -> None:
    peaks = []
    for layers in (2, 4):
        model, inputs = llama(layers, 16)
        candidate = candidate_of(run, model)
        with LiveTensors() as live:
            RUNS[run](model, candidate, inputs)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1] > 0


def test_what_is_kept_is_counted_and_what_is_gone_is_not() -> None:
    with LiveTensors() as live:
        kept = [torch.zeros(256) for _ in range(4)]
        assert live.peak == 4 * 1024
        for _ in range(4):
            torch.zeros(256).add_(1.0).view(16, 16)
        assert live.peak == 5 * 1024
        kept[0] + 1.0
        assert live.peak == 5 * 1024
