"""Post-training quantisation of a Llama in three steps, and what it costs.

    python examples/quantize_llama.py [MODEL]

Activations in 16 bits, weights in 4, those of the head in 8.
"""

import sys

import tracer
import wrappers

name = sys.argv[1] if len(sys.argv) > 1 else "tiny-llama"
loaded = tracer.models.load(name)
config = wrappers.PTQConfig(
    activation=wrappers.affine("int16"),
    weight=wrappers.affine("uint4"),
    overrides={"lm_head.weight": wrappers.affine("uint8")},
    variant="prefill_reference",
)

wrapped = wrappers.prepare(loaded.model, config)
off = tracer.compare(loaded.model, wrapped, loaded.inputs)
print(f"quantisation off: {off.verdict.explanation}")

data = tracer.models.calibration(loaded)
print(f"calibrated on {data.description}")
wrappers.calibrate(wrapped, data.batches)
quantized = wrappers.convert(wrapped)

frame = tracer.compare(loaded.model, quantized, loaded.inputs, confirm=False).to_frame()
outputs = frame[frame.value.str.startswith("output")]
print(outputs.nlargest(5, "peir")[["module", "peir", "sqnr", "cosine"]].to_string(index=False))
logits = outputs[outputs.value == "output.logits"].iloc[0]
print(f"logits: PEIR {logits.peir:.3f}, SQNR {logits.sqnr:.1f} dB, cosine {logits.cosine:.4f}")
