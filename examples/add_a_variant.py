"""A variant of one wrapper: one class and one decorator line.

    python examples/add_a_variant.py

An accelerator with tanh but no sigmoid computes the SiLU by sigmoid(x) = (1 + tanh(x / 2)) / 2.
Registered for `prefill`, this class stands in models of that variant. The others keep the common
wrapper, and whatever has no wrapper of its own in `prefill` is looked up as before.
"""

import torch
from transformers.activations import SiLUActivation

import tracer
import wrappers


@wrappers.register(SiLUActivation, variant="prefill")
class SiLUByTanh(wrappers.QuantModule, SiLUActivation):
    def _setup(self, config):
        for point in ("act_in", "tanh", "sigmoid", "act_out"):
            self._add_point(point)

    def forward(self, input):  # noqa: A002 - the name that the float class has
        x = self.quantize(input, "act_in")
        tanh = self.quantize(torch.tanh(x / 2), "tanh", may_overwrite=True)
        sigmoid = self.quantize((1 + tanh) / 2, "sigmoid", may_overwrite=True)
        return self.quantize(x * sigmoid, "act_out", may_overwrite=True)


loaded = tracer.models.load("tiny-llama")
for variant in ("prefill", "prefill_reference"):
    wrapped = wrappers.prepare(loaded.model, wrappers.PTQConfig(variant=variant))
    activation = wrapped.model.layers[0].mlp.act_fn
    print(f"{variant}: {type(activation).__name__} with {', '.join(activation.points)}")
    off = tracer.compare(loaded.model, wrapped, loaded.inputs)
    print(f"quantisation off: {off.verdict.explanation}")

    wrappers.calibrate(wrapped, [loaded.inputs])
    quantized = wrappers.convert(wrapped)
    frame = tracer.compare(loaded.model, quantized, loaded.inputs, confirm=False).to_frame()
    outputs = frame[frame.module.str.endswith("act_fn") & (frame.value == "output")]
    print(outputs[["module", "peir", "sqnr", "cosine"]].to_string(index=False))
