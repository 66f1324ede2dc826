"""What was compared of models in training mode, in words."""

import torch
from torch import nn

import tracer
from tracer.diagnosis.gradients import ForwardOnly

TOLD = "Their gradients agree: 3 were compared, all are equal."


def test_an_agreement_in_training_mode_says_what_was_compared() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(2, 4)
    assert TOLD in tracer.compare(net.train(), net, x, train=True).verdict.explanation
    assert TOLD not in tracer.compare(net.eval(), net, x).verdict.explanation


def test_and_what_it_does_not_show() -> None:
    told = tracer.explain(ForwardOnly("nothing is trained"))
    assert told.startswith("Forward passes were compared, gradients were not: nothing is trained.")
