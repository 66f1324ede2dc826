"""A comparison of models that agree, and nets that compute something else."""

import copy

from torch import nn

import tracer


def agreed(*models_and_inputs: object, **options: object) -> tracer.Comparison:
    """The comparison, of which the verdict is that they do."""
    comparison = tracer.compare(*models_and_inputs, **options)
    assert comparison.verdict.agrees, comparison.verdict.explanation
    return comparison


def doing(net: nn.Module, how: object) -> nn.Module:
    """A copy of a net that is told by `how` what to compute."""
    other = copy.deepcopy(net)
    other.how = how
    return other
