"""The exact line in a backward."""

import torch
from torch import nn

import tracer
from tests.builders import training
from tests.builders.training import IDS, MLP, Net
from tracer.diagnosis.zoom.zoom import Zoomed


def zoomed(reference: type[nn.Module], candidate: type[nn.Module]) -> Zoomed:
    found = tracer.compare(Net(reference), Net(candidate), IDS, train=True).zoomed
    assert found is not None
    assert found.is_backward
    assert found.module == "layers.1"
    return found


def test_a_line_of_a_backward_that_is_written_in_python() -> None:
    found = zoomed(training.RightBackward, training.WrongBackward)
    assert found.culprit is not None
    assert found.expected is not None
    assert found.culprit.text == "return gradient * (cdf - x * density)  # the sign is wrong"
    assert found.expected.text == "return gradient * (cdf + x * density)"
    assert found.operations == (found.operations[0],) * 2


def test_where_the_gradient_ends() -> None:
    found = zoomed(MLP, training.Detached)
    assert found.culprit is not None
    assert (found.culprit.name, found.kind, found.expected) == ("detach", "wrong", None)
    found = zoomed(MLP, training.WithoutGrad)
    assert found.culprit is not None
    assert found.culprit.name == "linear"
    found = zoomed(training.Detached, MLP)
    assert found.expected is not None
    assert (found.expected.name, found.kind, found.culprit) == ("detach", "missing", None)


class Clamped(MLP):
    def forward(self, x):
        h = self.up(x)
        return self.drop(self.down(nn.functional.gelu(h.clamp(max=float(h.max())))))


class Rounded(MLP):
    def forward(self, x):
        h = self.up(x)
        kept = h + (h - h.detach()) * 1e-9  # the gradient is that of h, and a little more
        return self.drop(self.down(nn.functional.gelu(kept * 2.0 - kept.detach())))


def test_an_operation_of_pytorch_has_the_line_of_its_forward() -> None:
    found = zoomed(MLP, Rounded)
    assert found.culprit is not None
    assert found.culprit.file == __file__
    assert found.culprit.text.startswith(("return self.drop", "kept ="))
    assert torch.is_grad_enabled()
