"""What meets what, and what waits for it."""

import pytest
import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.lockstep import Outcome, lockstep
from tracer.execution.side import EventKey

X = torch.ones(2, 4)


class Pair(nn.Module):
    """Two layers, called in a given order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.order = order

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(self, name)(x) for name in self.order)


class Met:
    """Notes what it is shown."""

    observer = None

    def __init__(self) -> None:
        self.seen: list[str] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        assert (reference.name, reference.index) == (candidate.name, candidate.index)
        if phase is Phase.END and reference.name:
            self.seen.append(f"{reference.name}{reference.index}")
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        raise AssertionError(key)

    def end(self) -> None:
        self.seen.append("end")


def run(reference: str, candidate: str) -> tuple[list[str], Outcome]:
    models = Pair(reference), Pair(candidate)
    names = [{id(module): name for name, module in m.named_modules()} for m in models]
    visitor = Met()
    pairs = {name: name for name in ("", "a", "b")}
    outcome = lockstep(
        *models,
        lambda: models[0](X),
        lambda: models[1](X),
        pairs,
        visitor,
        reference_names=names[0],
        candidate_names=names[1],
    )
    return visitor.seen, outcome


@pytest.mark.parametrize(
    ("reference", "candidate", "seen", "unmatched"),
    [
        ("ab", "ab", ["a0", "b0"], ([], [])),
        ("ab", "ba", ["b0", "a0"], ([], [])),
        ("aab", "ab", ["a0", "b0"], ([("a", 1)], [])),
        ("a", "aab", ["a0"], ([], [("a", 1), ("b", 0)])),
    ],
)
def test_orders(reference: str, candidate: str, seen: list[str], unmatched: object) -> None:
    met, outcome = run(reference, candidate)
    assert (sorted(met[:-1]), met[-1]) == (sorted(seen), "end")
    found = list(outcome.unmatched_reference), sorted(outcome.unmatched_candidate)
    assert found == unmatched


def test_only_what_comes_in_another_order_is_held() -> None:
    assert run("ab", "ab")[1].held_bytes_peak == 0
    assert run("ab", "ba")[1].held_bytes_peak > 0
