"""Post-training quantisation of a Llama decoder layer for prefill, and its graph in a file.

    python examples/quantize_llama_decoder_layer_prefill.py [FOLDER]

Activations and weights in 8 bits, random inputs.

Writes into FOLDER, by default a new temporary one.
"""

import sys
import tempfile
from pathlib import Path

import torch

import tracer
import wrappers
from tracer.reports.console import error_summary
from wrappers.errors import MissingExtraError

LENGTH = 32

config = wrappers.PTQConfig(
    activation=wrappers.affine("uint8"),
    weight=wrappers.affine("uint8"),
    variant="prefill",
)
model = tracer.models.load("random-llama").model
wrapped = wrappers.prepare(model, config)
step = wrappers.Step(wrapped.model.layers[0])
generator = torch.Generator().manual_seed(0)
mask = torch.full((1, LENGTH, LENGTH), config.attention_mask_fill_value).triu(1)


def random_inputs():
    """A sequence without a past, and the mask of causal attention."""
    hidden_states = torch.randn(1, LENGTH, model.config.hidden_size, generator=generator)
    tables = step.tables(*model.model.rotary_emb(hidden_states, torch.arange(LENGTH)[None]))
    return hidden_states, *tables, mask


sample = random_inputs()
with torch.no_grad():
    output, key, value = step(*sample)
    wrappers.calibrate(step, [random_inputs() for _ in range(16)])
    wrappers.convert(step)
    quantized, quantized_key, quantized_value = step(*sample)

error_summary(
    output,
    quantized,
    title="Llama decoder layer, prefill",
    extra={"key": (key, quantized_key), "value": (value, quantized_value)},
)

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
for suffix in (".pt2", ".circle"):
    file = folder / f"decoder_layer_prefill{suffix}"
    try:
        wrappers.export(step, sample, file)
        print(f"{file}: {file.stat().st_size} bytes")
    except MissingExtraError as error:
        print(error)
