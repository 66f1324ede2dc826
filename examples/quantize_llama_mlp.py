"""Post-training quantisation of a Llama MLP, and its graph in a file.

    python examples/quantize_llama_mlp.py [FOLDER]

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

config = wrappers.PTQConfig(activation=wrappers.affine("uint8"), weight=wrappers.affine("uint8"))
model = tracer.models.load("random-llama").model
mlp = wrappers.prepare(model, config).model.layers[0].mlp
generator = torch.Generator().manual_seed(0)


def random_inputs():
    return torch.randn(1, 32, model.config.hidden_size, generator=generator)


sample = random_inputs()
with torch.no_grad():
    output = mlp(sample)
    wrappers.calibrate(mlp, [random_inputs() for _ in range(16)])
    wrappers.convert(mlp)
    error_summary(output, mlp(sample), title="Llama MLP")

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
for suffix in (".pt2", ".circle"):
    file = folder / f"mlp{suffix}"
    try:
        wrappers.export(mlp, sample, file)
        print(f"{file}: {file.stat().st_size} bytes")
    except MissingExtraError as error:
        print(error)
