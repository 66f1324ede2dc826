"""All origins: independent mistakes are each named, and one mistake is named once."""

import copy

import pytest
import torch
from torch import nn

import tracer
import wrappers
from benchmarks.mistakes import llama
from benchmarks.mistakes.models import tiny_llama
from tracer.diagnosis.origin import Search

FLOAT = {mistake.name: mistake for mistake in llama.FLOAT}
WRAPPED = {mistake.name: mistake for mistake in llama.WRAPPED}


class Double(nn.Module):
    """Two layers, of which a test can break either, with a form of output that cannot be forced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Reversed(nn.Linear):
    """Returns its channels in another order than it says."""

    def forward(self, x):
        return super().forward(x).flip(-1)

    def to_reference_output(self, output):
        return output.flip(-1)


class ReversedBack(nn.Linear):
    """Takes its channels in that order."""

    def forward(self, x):
        return super().forward(x.flip(-1))

    def to_reference_input(self, name, value):
        return value.flip(-1)


@pytest.fixture
def reference() -> Double:
    torch.manual_seed(0)
    return Double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def check(reference, candidate, inputs, mistakes):
    verdict = tracer.compare(reference, candidate, inputs).verdict
    found = [(o.module, o.argument or o.kind) for o in verdict.origins]
    assert sorted(found) == sorted((m.module, m.found) for m in mistakes)
    assert verdict.origins[0] == verdict.origin
    assert verdict.confirmed
    assert verdict.explanation.count("Confirmed:") == len(mistakes)


@pytest.mark.covers
@pytest.mark.parametrize("names", [
    ("mask of a window", "one bad channel", "logits scaled"),
    ("position ids off by one", "gate not activated", "bias added"),
    ("rotate-half sign", "norm weight plus one", "last norm left out"),
    ("embedding of another row", "mask of a window", "norm taken out"),
    ("another rope base", "attention scale missing", "two heads of v_proj exchanged"),
])  # fmt: skip
def test_three_mistakes_are_named_in_one_run(names) -> None:
    reference, inputs = tiny_llama()
    candidate = copy.deepcopy(reference)
    mistakes = [FLOAT[name] for name in names]
    for mistake in mistakes:
        mistake.plant(candidate)
    check(reference, candidate, inputs, mistakes)


@pytest.mark.covers
@pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])
def test_three_mistakes_of_a_wrapped_model_are_named(variant) -> None:
    reference, inputs = tiny_llama()
    candidate = wrappers.prepare(reference, wrappers.PTQConfig(variant=variant))
    mistakes = [WRAPPED[name] for name in ("one weight", "KV head order", "head not converted")]
    for mistake in mistakes:
        mistake.plant(candidate)
    check(reference, candidate, inputs, mistakes)


@pytest.mark.covers
@pytest.mark.parametrize("name", ["one weight", "mask of a window", "second norm left out"])
def test_one_mistake_is_named_once(name) -> None:
    reference, inputs = tiny_llama()
    candidate = copy.deepcopy(reference)
    FLOAT[name].plant(candidate)
    verdict = tracer.compare(reference, candidate, inputs).verdict
    assert verdict.origins == (verdict.origin,)
    assert "more origin" not in verdict.explanation


@pytest.mark.covers
def test_they_come_in_execution_order_with_their_evidence(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.second.bias += 1.0
        candidate.first.weight[1] *= 2.0
    verdict = tracer.compare(reference, candidate, x).verdict
    assert [origin.module for origin in verdict.origins] == ["first", "second"]
    *_, head, second, _, _, proof = verdict.explanation.splitlines()
    assert head == "One more origin, each with the reference's values before it:"
    assert second.startswith("2. The inputs of `second` agree, its `bias` differs")
    assert proof.startswith("   Confirmed: with the reference's `bias`, PEIR at output of `second`")
    assert proof.endswith(" to 0.")


@pytest.mark.covers
def test_what_follows_a_value_that_has_to_stay_is_no_origin(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.first.__class__, candidate.second.__class__ = Reversed, ReversedBack
    assert tracer.compare(reference, candidate, x).verdict.agrees
    candidate.first.weight.data[1] *= 2.0
    verdict = tracer.compare(reference, candidate, x).verdict
    assert [origin.module for origin in verdict.origins] == ["first"]


def test_without_a_second_run_or_a_divergence(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.second.bias += 1.0
        candidate.first.weight[1] *= 2.0
    verdict = tracer.compare(reference, candidate, x, confirm=False).verdict
    assert verdict.origins == (verdict.origin,)
    assert tracer.compare(reference, copy.deepcopy(reference), x).verdict.origins == ()


@pytest.mark.covers
def test_very_many_are_counted() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12))).eval()
    candidate = copy.deepcopy(reference)
    for layer in candidate:
        layer.bias.data += 1.0
    verdict = tracer.compare(reference, candidate, torch.randn(3, 4)).verdict
    assert [origin.module for origin in verdict.origins] == [str(n) for n in range(9)]
    assert verdict.explanation.endswith("3 more values disagree although their inputs are right.")


@pytest.mark.covers
def test_two_mistakes_where_one_is_in_a_module_called_twice(x) -> None:
    class Twice(Double):
        def forward(self, x):
            return self.second(torch.relu(self.first(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    reference = Twice().eval()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.first.weight[1] *= 2.0
        candidate.second.bias += 1.0
    verdict = tracer.compare(reference, candidate, x).verdict
    assert [origin.module for origin in verdict.origins] == ["first", "second"]


@pytest.mark.covers
@pytest.mark.parametrize("by", ["module", "argument"])
def test_one_mistake_in_every_step_is_examined_once(by, monkeypatch) -> None:
    class Scaled(Double):
        def forward(self, x, scale):
            return super().forward(x) * scale

    class Giver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = Scaled()
            self.shift = 0

        def forward(self, x, number):
            return self.step(x, scale=torch.tensor(1 + number + self.shift))

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.giver = Giver()

        def forward(self, x):
            for number in range(6):
                x = self.giver(x, number)
            return x

    torch.manual_seed(0)
    reference = Steps().eval()
    candidate = copy.deepcopy(reference)
    if by == "module":
        candidate.giver.step.first.weight.data[1] *= 2.0
    else:
        candidate.giver.shift = 1
    examined = []
    examine = Search.examine
    monkeypatch.setattr(Search, "examine", lambda *args: examined.append(args) or examine(*args))
    verdict = tracer.compare(reference, candidate, torch.randn(3, 4)).verdict
    assert verdict.origins == (verdict.origin,)
    assert verdict.origin.argument == (None if by == "module" else "scale")
    assert len(examined) == 1
