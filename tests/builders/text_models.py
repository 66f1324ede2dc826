"""A small text model of each family that has wrappers, for tests of what they share."""

from tracer.models import builtin as tiny


def _of_two_layers(model):
    model.layers = model.layers[:2]
    model.config.num_hidden_layers = 2
    return model


FAMILIES = {
    "llama": lambda: _of_two_layers(tiny.build("random-llama", 0).model).eval(),
    "qwen3_vl": lambda: tiny.build("tiny-qwen3-vl", 0).model.language_model.eval(),
}
"""Makes the text model of a family: float, seeded, of two layers, hidden size 64."""
