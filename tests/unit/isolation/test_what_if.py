"""Modules of the reference's that compute in the candidate's place, in models of any form."""

import copy

import pytest
import torch
from torch import nn

import tracer
from tracer import models
from tracer.models.loading import Loaded


@pytest.fixture(scope="module")
def llama() -> Loaded:
    """The built-in Llama and three sequences, padded on the right."""
    return models.load("tiny-llama", batch=3, sequence_length=20)


def last_recovery(reference, candidate, inputs, **options):
    """What swapping all that is wrong together has led to."""
    found = tracer.compare(reference, candidate, inputs, confirm=False, **options).isolation
    assert found is not None
    return found.recoveries[-1]


def with_wrong_attention(model: nn.Module) -> nn.Module:
    """A copy whose queries, keys and values are off in two layers."""
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (0, 2):
            attention = wrong.model.layers[layer].self_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
                projection.weight *= 1.5
    return wrong


@pytest.mark.covers
@pytest.mark.parametrize("cached", [False, True])
def test_attention_with_a_cache(llama, cached: bool):
    """Swapped attention leaves in the cache what the reference's would."""
    reference, candidate = llama.model, with_wrong_attention(llama.model)
    inputs = dict(llama.inputs)
    if cached:
        inputs = models.ending_in_steps(inputs, 3)
        reference, candidate = (tracer.Stepping(m, steps=3) for m in (reference, candidate))
    recovery = last_recovery(reference, candidate, inputs, isolate="*.self_attn", what_if=2)
    assert set(recovery.modules) == {"model.layers.0.self_attn", "model.layers.2.self_attn"}
    assert recovery.before > 0.1
    assert recovery.after < 1e-5
    assert recovery.after_l2 < 1e-5


@pytest.mark.covers
def test_projections_in_other_forms(llama):
    """The wrapped k_proj carries a factor, and attention goes head by head."""
    candidate = models.candidate(llama, "wrapped", variant="prefill")
    with torch.no_grad():
        for layer in candidate.model.layers:
            layer.self_attn.k_proj.weight.data = 1.5 * layer.self_attn.k_proj.weight
    recovery = last_recovery(llama.model, candidate, llama.inputs, what_if=4)
    assert {name.rpartition(".")[2] for name in recovery.modules} == {"k_proj"}
    assert recovery.before > 1e-2
    assert recovery.after < 1e-5


@pytest.mark.covers
def test_images(llama):
    loaded = models.load("tiny-qwen3-vl")
    candidate = models.candidate(loaded, "wrapped", variant="prefill")
    with torch.no_grad():
        projection = candidate.model.visual.patch_embed.proj
        projection.weight = nn.Parameter(1.5 * projection.weight)
    recovery = last_recovery(loaded.model, candidate, loaded.inputs, what_if=1)
    assert recovery.modules == ("model.visual.patch_embed.proj",)
    assert recovery.unswapped == ()
    assert recovery.before > 1e-3
    assert recovery.after < 1e-5


@pytest.mark.covers
def test_another_dtype(llama):
    """The reference's module computes in float32, and its output goes on in bfloat16."""
    candidate = copy.deepcopy(models.candidate(llama, "bfloat16"))
    with torch.no_grad():
        candidate.lm_head.weight *= 1.5
    recovery = last_recovery(llama.model, candidate, llama.inputs, what_if=1)
    assert recovery.modules == ("lm_head",)
    assert recovery.before_l2 == pytest.approx(0.5, rel=0.05)
    assert 1e-3 < recovery.after_l2 < 0.05


@pytest.mark.covers
def test_a_module_with_a_wrong_one_inside_is_swapped_with_it():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    reference = nn.Sequential(nn.Linear(4, 4), inner)
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate[1][0].weight *= 2
    recovery = last_recovery(reference, candidate, torch.randn(5, 4), isolate="1", what_if=1)
    assert recovery.modules == ("1",)
    assert (recovery.after, recovery.after_l2) == (0.0, 0.0)


@pytest.mark.covers
def test_an_output_that_cannot_take_the_candidates_place():
    class Turned(nn.Linear):
        """Gives its output in another order."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return super().forward(input).flip(-1)

        def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
            return output.flip(-1)

    class Model(nn.Module):
        def __init__(self, linear: nn.Module) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output = self.linear(x)
            return output.flip(-1) if isinstance(self.linear, Turned) else output

    reference, candidate = Model(nn.Linear(4, 4)), Model(Turned(4, 4))
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate.linear.weight *= 2
    found = tracer.compare(reference, candidate, torch.randn(5, 4), what_if=1).isolation
    (recovery,) = found.recoveries
    assert found.unforced == (("linear", 0),)
    assert recovery.unswapped == recovery.modules == ("linear",)
    assert recovery.after == recovery.before
    assert "Not swapped, for the form of their output: `linear`." in found.explanation


@pytest.mark.covers
def test_inputs_in_the_references_form():
    """What one side is not given, and a mask in a form of the candidate's own."""

    class Attend(nn.Module):
        def __init__(self, factor: float = 1.0) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x, scale=None, attention_mask=None):
            y = self.factor * x * (2.0 if scale is None else scale)
            if attention_mask is None:
                return y
            visible = attention_mask
            if attention_mask.dtype != torch.bool:
                visible = attention_mask[0] == 0
            return y * visible

    class Model(nn.Module):
        def __init__(self, attend: Attend, additive: bool) -> None:
            super().__init__()
            self.attend, self.additive = attend, additive

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = x > 0
            if self.additive:
                hidden = torch.zeros_like(x).masked_fill(~mask, -120.0)[None]
                return self.attend(x, attention_mask=hidden)
            return self.attend(x, torch.tensor(2.0), attention_mask=mask)

    x = torch.linspace(-1, 2, 12).view(3, 4)
    reference, candidate = Model(Attend(), False), Model(Attend(1.5), True)
    recovery = last_recovery(reference, candidate, x, isolate="attend", what_if=1)
    assert recovery.before > 0.1
    assert recovery.after == 0.0
