"""Post-training quantisation of Qwen3-VL's text model, and its graph in a file.

    python examples/quantize_qwen3_vl_text_model.py [FOLDER]

Activations and weights in 8 bits, random tokens.

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

config = wrappers.PTQConfig(activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"))
model = tracer.models.load("tiny-qwen3-vl").model.model.language_model
wrapped = wrappers.prepare(model, config)
step = wrappers.Step(wrapped)
generator = torch.Generator().manual_seed(0)
mask = torch.full((1, LENGTH, LENGTH), config.attention_mask_fill_value).triu(1)


def random_tokens():
    return torch.randint(model.config.vocab_size, (1, LENGTH), generator=generator)


def step_inputs(tokens):
    """Embeddings, rope tables for the same position in time, row and column, and the mask."""
    embeddings = wrapped.embed_tokens(tokens)
    positions = torch.arange(LENGTH).expand(3, 1, LENGTH)
    return embeddings, *step.tables(*model.rotary_emb(embeddings, positions)), mask


tokens = random_tokens()
with torch.no_grad():
    output, *_ = step(*step_inputs(tokens))
    wrappers.calibrate(wrapped, [random_tokens() for _ in range(16)])
    wrappers.convert(wrapped)
    sample = step_inputs(tokens)
    quantized, *_ = step(*sample)

error_summary(output, quantized, title="Qwen3-VL text model")

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
for suffix in (".pt2", ".circle"):
    file = folder / f"qwen3_vl_text_model{suffix}"
    try:
        wrappers.export(step, sample, file)
        print(f"{file}: {file.stat().st_size} bytes")
    except MissingExtraError as error:
        print(error)
