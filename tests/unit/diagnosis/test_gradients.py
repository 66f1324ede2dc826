"""Models that agree going forward: are they trained alike, and if not, where do they part?"""

import inspect
import re
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tracer
from tests.builders import training
from tests.builders.training import IDS, MLP, Net
from tracer.comparison.result import Comparison
from tracer.diagnosis.finding import OriginKind
from tracer.diagnosis.gradients import ForwardOnly, GradientsAgree
from tracer.errors import ModelRunError


def compared(reference: nn.Module, candidate: nn.Module) -> Comparison:
    return tracer.compare(reference, candidate, IDS, train=True)


def said(comparison: Comparison) -> object:
    """What was found of the gradients of models that agree."""
    assert comparison.verdict.agrees, comparison.verdict.explanation
    return comparison.verdict.beside[-1]


def line_of(kind: type, text: str) -> int:
    source, first = inspect.getsourcelines(kind)
    return first + next(i for i, line in enumerate(source) if text in line)


@pytest.mark.parametrize(
    "layer",
    [
        *(MLP, training.Written, training.Checkpointed, training.RightBackward),
        *(training.Complex, training.Hooked),
    ],
)
def test_right_layers_are_trained_alike(layer: type[nn.Module]) -> None:
    found = said(compared(Net(), Net(layer)))
    assert isinstance(found, GradientsAgree)
    assert (found.compared, found.left_out) == (17, 0)
    assert found.worst.error < 1e-5


@pytest.mark.covers
@pytest.mark.parametrize(("right", "layer", "at"), [
    (MLP, training.Detached, (training.Detached, "the gradient ends here")),
    (MLP, training.WithoutGrad, (training.WithoutGrad, "the gradient ends here")),
    (MLP, training.ToPython, (training.ToPython, "the gradient ends here")),
    (training.RightBackward, training.WrongBackward, (training._WrongGelu, "the sign is wrong")),
    (MLP, training.Scaling, (training.Scaling, "the hook scales")),
    (MLP, training.OtherState, (training.OtherState, "other numbers are drawn")),
])  # fmt: skip
def test_a_wrong_backward_is_named(
    right: type[nn.Module], layer: type[nn.Module], at: tuple[type, str]
) -> None:
    verdict = compared(Net(right), Net(layer)).verdict
    assert not verdict.agrees
    assert verdict.origin is not None
    assert (verdict.origin.module, verdict.origin.kind) == ("layers.1", OriginKind.GRADIENT)
    assert verdict.confirmed
    assert verdict.origin.candidate_line == f"{training.__file__}:{line_of(*at)}"
    assert "the backward of `layers.1`" in verdict.explanation
    assert "Confirmed: with the reference's module in its place" in verdict.explanation


@pytest.mark.covers
def test_each_wrong_layer_is_an_origin_the_last_first() -> None:
    verdict = compared(Net(), Net(training.WrongBackward, None)).verdict
    assert [origin.module for origin in verdict.origins] == ["layers.2", "layers.1", "layers.0"]
    assert verdict.confirmed


@pytest.mark.covers
def test_a_reference_that_stops_the_gradient() -> None:
    comparison = compared(Net(training.Detached), Net())
    origin = comparison.verdict.origin
    assert origin is not None
    line = line_of(training.Detached, "the gradient ends here")
    assert origin.reference_line == f"{training.__file__}:{line}"
    assert comparison.zoomed is not None
    assert comparison.zoomed.kind == "missing"


@pytest.mark.covers
@pytest.mark.parametrize("stops", [0, 1])
def test_a_part_of_a_gradient_that_is_stopped(stops: int) -> None:
    """It is shown by a run of that side in which it is not."""
    layers = [training.Gated, training.Gated]
    layers[stops] = training.GatedDetached
    verdict = compared(Net(layers[0]), Net(layers[1])).verdict
    assert verdict.origin is not None
    assert verdict.confirmed
    lines = verdict.origin.reference_line, verdict.origin.candidate_line
    line = line_of(training.GatedDetached, "a part of the gradient ends here")
    assert lines[stops] == f"{training.__file__}:{line}"


@pytest.mark.covers
def test_a_model_that_stops_the_gradient_itself() -> None:
    verdict = compared(Net(), training.BetweenLayers()).verdict
    assert verdict.origin is not None
    assert (verdict.origin.module, verdict.confirmed) == ("", True)
    line = line_of(training.BetweenLayers, "the gradient ends here")
    assert verdict.origin.candidate_line == f"{training.__file__}:{line}"
    assert "the reference's modules in the place of all that it calls" in verdict.explanation


@pytest.mark.covers
def test_a_hook_of_a_modules_backward() -> None:
    candidate = Net()
    up = candidate.layers[1].up
    up.register_full_backward_hook(lambda module, given, _: tuple(g * 0.5 for g in given))
    verdict = compared(Net(), candidate).verdict
    assert [origin.module for origin in verdict.origins] == ["layers.1.up"]
    assert verdict.confirmed
    assert verdict.origin is not None
    assert f"{verdict.origin.candidate_line}".startswith(__file__)


def test_checkpoints_of_shared_layers_draw_what_was_drawn() -> None:
    models = [Net(), Net(training.Checkpointed, 0)]
    for model in models:
        model.layers = nn.ModuleList([model.layers[0]] * 3)
    found = said(compared(*models))
    assert isinstance(found, GradientsAgree)


@pytest.mark.covers
def test_compiled_models() -> None:
    models = Net(), torch.compile(Net(), backend="aot_eager")
    found = said(compared(*models))
    assert isinstance(found, GradientsAgree)
    assert (found.compared, found.left_out) == (17, 0)


def test_autocast_on_one_side() -> None:
    found = said(compared(Net(), training.InAutocast()))
    assert isinstance(found, GradientsAgree)
    assert found.worst.limit > 1e-3


def test_complex_outputs_and_inputs() -> None:
    z = torch.view_as_complex(torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)))
    models = [training.Phase(of_parts=parts).train() for parts in (False, True)]
    found = said(tracer.compare(*models, z, train=True))
    assert isinstance(found, GradientsAgree)
    assert found.compared == 2


def test_gradients_that_differ_are_rows() -> None:
    comparison = compared(Net(), Net(training.WrongBackward))
    wrong = [row for row in comparison.rows if not row.agrees]
    names = {(row.module, str(row.value)) for row in wrong}
    # What comes after the layer is trained alike; of what comes before it the gradients differ.
    assert ("embed", "gradient.weight") in names
    assert {name for name, _ in names} <= {"embed", "layers.0.up", "layers.0.down", "layers.1.up"}
    assert comparison.verdict.symptom is not None
    assert comparison.verdict.symptom.value.is_gradient


@pytest.mark.covers
def test_gradients_are_those_of_pytorch() -> None:
    """The same weights, and a plain backward of both."""
    comparison = compared(Net(), Net(training.WrongBackward))
    gradients = []
    for model in (Net(), Net(training.WrongBackward)):
        model.eval()  # the rows are of training; here without dropout, for the direction alone
        output = model(IDS["ids"])
        weight = torch.randn(output.numel(), generator=torch.Generator().manual_seed(0))
        (output * weight.reshape(output.shape)).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    differ = {
        name
        for name, gradient in gradients[0].items()
        if not torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
    }
    rows = {f"{row.module}.{row.value.argument}" for row in comparison.rows if not row.agrees}
    assert rows == differ


class Bias(nn.Module):
    """The gradient of a bias of the keys is nothing but rounding."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.mT / 8**0.5).softmax(-1) @ v


def test_rounding_is_no_difference() -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    models = [Bias(fused=fused).train() for fused in (False, True)]
    found = said(tracer.compare(*models, x, train=True))
    assert isinstance(found, GradientsAgree)
    assert found.compared == 7  # the input's, and three weights and biases
    assert found.worst.error < found.worst.limit


@pytest.mark.covers
def test_what_one_side_alone_trains() -> None:
    for frozen, words in (
        (1, "does not train its `weight`"),
        (0, "trains its `weight`, which the"),
    ):
        models = Net(), Net(training.WrongBackward)
        models[frozen].layers[0].up.weight.requires_grad_(False)
        verdict = compared(*models).verdict
        assert [origin.module for origin in verdict.origins] == ["layers.0.up", "layers.1"]
        assert verdict.confirmed
        assert f"`layers.0.up` {words}" in verdict.explanation
        assert "Confirmed: trained on both sides, its gradients agree." in verdict.explanation
        trained = [model.layers[0].up.weight.requires_grad for model in models]
        assert trained == [frozen == 1, frozen == 0]
    candidate = Net()
    candidate.requires_grad_(False)
    assert said(compared(Net(), candidate)) == ForwardOnly(
        "there is nothing that both models are trained by"
    )


def test_without_the_models_themselves() -> None:
    comparison = tracer.compare(Net(), Net(), IDS, train=True, include="layers.*")
    found = said(comparison)
    assert isinstance(found, ForwardOnly)
    assert found.why.startswith("only some modules")


@pytest.mark.covers
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_cannot_be_differentiated() -> None:
    found = said(compared(Net(), Net(training.Reentrant)))
    assert isinstance(found, ForwardOnly)
    assert "use_reentrant=False" in found.why
    found = said(compared(Net(training.Edited), Net(training.Kept)))
    assert isinstance(found, ForwardOnly)
    assert found.why.startswith("the reference raised RuntimeError: one of the variables")
    with pytest.raises(ModelRunError, match=r"candidate raised RuntimeError.*backward") as raised:
        compared(Net(training.Kept), Net(training.Edited))
    assert raised.value.comparison is not None
    assert not raised.value.comparison.verdict.agrees


def tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.state_dict().values()
    for parameter in model.parameters():
        assert parameter.grad is not None
        yield parameter.grad


@pytest.mark.covers
def test_models_stay_as_they_are() -> None:
    models = [Net(training.WrongBackward), Net()]
    for model in models:
        model(IDS["ids"]).sum().backward()
    before = [[t.clone() for t in tensors(model)] for model in models]
    state = torch.get_rng_state()
    compared(*models)
    assert torch.equal(torch.get_rng_state(), state)
    for model, values in zip(models, before, strict=True):
        assert all(map(torch.equal, tensors(model), values))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_padding_has_no_gradient() -> None:
    class Pad(nn.Module):
        def __init__(self, hidden: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head, self.hidden = nn.Embedding(9, 8), nn.Linear(8, 4), hidden

        def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            x = torch.where(attention_mask[..., None].bool(), x, x * self.hidden)
            return self.head(x)

    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[0, :3] = 0
    models = [Pad(hidden).train() for hidden in (1.0, 3.0)]
    found = said(tracer.compare(*models, {**IDS, "attention_mask": mask}, train=True))
    assert isinstance(found, GradientsAgree)


@pytest.mark.covers
def test_words() -> None:
    text = compared(Net(), Net()).verdict.explanation
    assert re.search(r"Their gradients agree: 17 were compared, all are equal\.", text)
    candidate = Net(training.Written)
    parametrizations.weight_norm(candidate.layers[0].up)
    text = compared(Net(), candidate).verdict.explanation
    assert re.search(r"16 were compared, the largest PEIR is .*, at the gradient of `", text)
    assert "1 parameters that the reference trains have no counterpart" in text
