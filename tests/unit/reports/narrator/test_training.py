"""What was compared of models in training mode, in words."""

import torch
from torch import nn

import tracer

TOLD = "Forward passes were compared, gradients were not"


def test_an_agreement_in_training_mode_says_what_it_does_not_show() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(2, 4)
    assert TOLD in tracer.compare(net.train(), net, x, train=True).verdict.explanation
    assert TOLD not in tracer.compare(net.eval(), net, x).verdict.explanation
