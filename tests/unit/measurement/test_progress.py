"""Phases of a comparison, and who is told what of them."""

import copy

import pytest
import torch
from torch import nn

import tracer
from tests.builders.layers import X
from tracer.measurement.progress import PhasedProgress, Phases, in_words


class Told:
    """Keeps what it is told: each phase, and how many calls there were in it."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int | None]] = []
        self.calls: list[list[int]] = []

    def phase(self, name: str, run: int, runs: int | None) -> None:
        self.phases.append((name, run, runs))
        self.calls.append([])

    def __call__(self, finished: int) -> None:
        self.calls[-1].append(finished)


def layers() -> tuple[nn.Module, nn.Module]:
    """A stack, and a copy in which two modules are wrong."""
    torch.manual_seed(0)
    right = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    wrong = copy.deepcopy(right)
    wrong[0].weight.data *= 1.5
    wrong[2].weight.data *= 1.1
    return right, wrong


@pytest.mark.covers
def test_every_run_of_a_comparison_is_named() -> None:
    told = Told()
    comparison = tracer.compare(
        *layers(), X, isolate="leaves", what_if=2, noise_floor=True, progress=told
    )
    names = [name for name, _, _ in told.phases]
    assert list(dict.fromkeys(names)) == [
        "measuring the noise floor", "comparing", "confirming", "isolating", "swapping",
    ]  # fmt: skip
    assert told.phases[2] == ("comparing", 1, None)
    confirming = [run for name, run, _ in told.phases if name == "confirming"]
    assert confirming == [*range(1, len(confirming) + 1)]
    assert [phase for phase in told.phases if phase[2] is not None] == [
        *(("measuring the noise floor", run, 2) for run in (1, 2)),
        ("isolating", 1, 1),
        *(("swapping", run, 3) for run in (1, 2, 3)),
    ]
    # Each run counts its calls from 1: three modules and the model; of those that swap some, these
    # and the model.
    assert comparison.coverage.compared_calls == 4
    swapped = [len(recovery.modules) for recovery in comparison.isolation.recoveries]
    assert [calls[-1] for calls in told.calls[-3:]] == [1 + count for count in swapped]
    assert all(calls == [1, 2, 3, 4] for calls in told.calls[:-3])


def test_each_depth_of_isolation_is_a_run() -> None:
    told = Told()
    right, wrong = (nn.Sequential(model) for model in layers())
    tracer.compare(right, wrong, X, confirm=False, isolate="0*", progress=told)
    isolating = [phase for phase in told.phases if phase[0] == "isolating"]
    assert isolating == [("isolating", 1, 2), ("isolating", 2, 2)]


@pytest.mark.covers
def test_gradients_and_zooming() -> None:
    told = Told()
    right, wrong = layers()
    tracer.compare(right, copy.deepcopy(right), X, train=True, progress=told)
    assert told.phases == [("comparing", 1, None), ("comparing gradients", 1, None)]
    told = Told()
    tracer.compare(right, wrong, X, confirm=False, zoom="0", progress=told)
    assert ("zooming", 1, None) in told.phases


@pytest.mark.covers
def test_a_plain_function_is_told_the_calls_of_the_comparison_only() -> None:
    counts: list[int] = []
    tracer.compare(*layers(), X, isolate="leaves", noise_floor=True, progress=counts.append)
    assert counts == [1, 2, 3, 4]


def test_who_takes_part() -> None:
    assert isinstance(Told(), PhasedProgress)
    assert not isinstance(print, PhasedProgress)
    phases = Phases()
    phases.begin_comparing()
    assert phases.next_run() is None


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (("comparing", 1, None), "comparing"),
        (("confirming", 2, None), "confirming, run 2"),
        (("isolating", 1, 1), "isolating"),
        (("isolating", 3, 7), "isolating 3 of 7"),
    ],
)
def test_in_words(phase: tuple[str, int, int | None], words: str) -> None:
    assert in_words(*phase) == words
