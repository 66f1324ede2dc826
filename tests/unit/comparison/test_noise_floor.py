"""The noise floor: rounding alone, and differences as multiples of it."""

import copy

import pytest
import torch
from torch import nn

import tracer
from benchmarks.mistakes.models import tiny_llama
from tracer.comparison.noise_floor import NoiseRun, measure_noise


class Chain(nn.Module):
    """A linear layer and a sum that cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.linear(x)) + 1.0


class Tokens(nn.Module):
    """Takes integers only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.chain = Chain()

    def forward(self, ids, attention_mask=None):
        return self.chain(self.embed(ids))


class Fixed(Chain):
    """Cannot run in float64."""

    def forward(self, x):
        return super().forward(x.float())


@pytest.fixture
def reference() -> Chain:
    torch.manual_seed(0)
    return Chain().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def test_what_the_floor_is_at_least(reference, x) -> None:
    floor = measure_noise(reference, x, "*")
    exact = copy.deepcopy(reference).double()(x.double())
    error = (exact - reference(x).double()).abs().max() / (exact.max() - exact.min())
    assert floor.unmeasured == ()
    assert error.item() > 0
    assert error.item() * (1 - 1e-9) <= floor.peir["", 0, "output"] < 20 * error.item()
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    floor = measure_noise(model, x, "*").peir["1", 0, "output"]
    last_place = (torch.nextafter(x, torch.tensor(torch.inf)) - x).max()
    assert 0 < floor <= (last_place / (x.max() - x.min())).item() * (1 + 1e-6)


def test_embeddings_are_perturbed_where_inputs_are_integers() -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    model.chain.linear = nn.Identity()
    mask = torch.zeros(1, 4)
    floor = measure_noise(model, {"ids": torch.arange(4)[None], "attention_mask": mask}, "*").peir
    assert floor["embed", 0, "output"] == 0.0
    assert floor["chain.linear", 0, "output"] > 0.0
    assert not any("attention_mask" in value for _, _, value in floor)


def test_rows_have_multiples_and_the_verdict_says_so(reference, x) -> None:
    candidate = copy.deepcopy(reference)
    candidate.linear.weight.data[3] *= 1.01
    comparison = tracer.compare(reference, candidate, x, noise_floor=True)
    row = next(row for row in comparison.rows if row.module == "linear" and row.is_output)
    assert row.multiple == row.peir / row.floor > 1000
    assert f"is {row.multiple:.3g} times the noise floor" in comparison.verdict.explanation
    frame = comparison.to_frame()
    assert frame["multiple"].max() >= row.multiple
    assert "floor" in frame.columns


def test_a_right_model_stays_near_its_floor() -> None:
    reference, inputs = tiny_llama()
    candidate = copy.deepcopy(reference)
    candidate.set_attn_implementation("sdpa")
    comparison = tracer.compare(reference, candidate, inputs, noise_floor=True)
    assert comparison.verdict.agrees
    assert max([row.multiple for row in comparison.rows if row.multiple is not None]) < 20
    assert "The farthest from the noise floor is" in comparison.verdict.explanation


def test_what_is_not_finite_in_float64_is_said() -> None:
    reference, inputs = tiny_llama()  # padded on the left
    floor = measure_noise(reference, inputs, "*")
    assert all(0 <= peir < 1e-4 for peir in floor.peir.values())
    (unmeasured,) = floor.unmeasured
    assert unmeasured.nonfinite > 0
    said = tracer.explain(floor.read(()))
    assert f"{unmeasured.nonfinite} values are finite on one side only" in said


def test_the_floor_of_models_that_do_not_run_in_float64(x, reference) -> None:
    torch.manual_seed(0)
    floor = measure_noise(Fixed().eval(), x, "*")
    assert floor.unmeasured[0].run is NoiseRun.FLOAT64
    assert "RuntimeError" in floor.unmeasured[0].error
    assert "in float64 was not measured everywhere" in tracer.explain(floor.read(()))
    assert floor.peir["", 0, "output"] > 0
    reference.held = (number for number in range(3))
    floor = measure_noise(reference, x, "*")
    assert "TypeError" in floor.unmeasured[0].error
    assert floor.peir["", 0, "output"] > 0


def test_without_it_rows_have_none(reference, x) -> None:
    comparison = tracer.compare(reference, reference, x)
    assert {row.floor for row in comparison.rows} == {row.multiple for row in comparison.rows}
    assert comparison.rows[0].floor is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_has_its_own_floor(reference, x, dtype) -> None:
    floor = measure_noise(reference.to(dtype), x.to(dtype), "*").peir["", 0, "output"]
    assert 0 < floor < 20 * torch.finfo(dtype).eps


def test_the_model_stays_as_it_is(reference, x) -> None:
    before = reference(x)
    state = torch.get_rng_state()
    measure_noise(reference, x, "*")
    assert torch.equal(reference(x), before)
    assert reference.linear.weight.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


class Cancels(nn.Module):
    """What it adds it takes away again, in one order or another; the digits in between are lost."""

    def __init__(self, *, at_once: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.at_once, self.weight = at_once, nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        x = x * self.weight
        return x if self.at_once else (x + 1e5) - 1e5


@pytest.mark.covers
def test_what_is_rounding_agrees() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    models = Cancels(at_once=False), Cancels(at_once=True)
    assert not tracer.compare(*models, x).verdict.agrees
    comparison = tracer.compare(*models, x, noise_floor=True)
    assert comparison.verdict.agrees
    row = comparison.rows[-1]
    assert row.floor is not None
    assert 1e-5 < row.peir <= row.limit
    wrong = models[0], Cancels(at_once=True, factor=1.1)
    assert not tracer.compare(*wrong, x, noise_floor=True).verdict.agrees
