"""Post-training quantisation of a Llama decoder layer's decode step, and its graph in a file.

    python examples/quantize_llama_decoder_layer_decode.py [FOLDER]

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

POSITIONS = 32  # of the past and the new token

config = wrappers.PTQConfig(
    activation=wrappers.affine("uint8"),
    weight=wrappers.affine("uint8"),
    variant="decode",
)
model = tracer.models.load("random-llama").model
wrapped = wrappers.prepare(model, config)
attention = wrapped.model.layers[0].self_attn
step = wrappers.Step(wrapped.model.layers[0])
generator = torch.Generator().manual_seed(0)


def random_inputs():
    """One token, after a past of random length: the slots that are not in use are masked."""
    used = int(torch.randint(1, POSITIONS, (), generator=generator))
    hidden_states = torch.randn(1, 1, model.config.hidden_size, generator=generator)
    cos, sin = step.tables(*model.model.rotary_emb(hidden_states, torch.tensor([[used]])))
    mask = torch.zeros(1, 1, POSITIONS)
    mask[..., used:-1] = config.attention_mask_fill_value
    kv_heads, head_dim = model.config.num_key_value_heads, model.config.head_dim
    past = torch.randn(2, 1, kv_heads, POSITIONS - 1, head_dim, generator=generator)
    # Keys carry the factor on the logits, which this variant folds into what makes them.
    return hidden_states, cos, sin, mask, past[0] * attention.key_factor, past[1]


sample = random_inputs()
with torch.no_grad():
    output, new_key, new_value = step(*sample)
    wrappers.calibrate(step, [random_inputs() for _ in range(64)])
    wrappers.convert(step)
    quantized, quantized_key, quantized_value = step(*sample)

error_summary(
    output,
    quantized,
    title="Llama decoder layer, decode",
    extra={"new key": (new_key, quantized_key), "new value": (new_value, quantized_value)},
)

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
for suffix in (".pt2", ".circle"):
    file = folder / f"decoder_layer_decode{suffix}"
    try:
        wrappers.export(step, sample, file)
        print(f"{file}: {file.stat().st_size} bytes")
    except MissingExtraError as error:
        print(error)
