"""The names that can be chosen, for the command line to list and check without loading PyTorch."""

from collections.abc import Mapping

BUILT_IN: Mapping[str, str] = {
    "tiny-llama": "a Llama of 4 layers, hidden size 64, trained on children's stories",
    "random-llama": "the same shape with seeded random weights and without a tokenizer",
    "tiny-qwen3-vl": "a Qwen3-VL of 2 vision blocks and 2 decoder layers, with an image as input",
}
# Those that are built with the vocabulary of a processor, whatever they are run on.
WITH_VOCABULARY = ("tiny-qwen3-vl",)

CANDIDATES: Mapping[str, str] = {
    "wrapped": "wrapped for quantisation, with quantisation off",
    "quantized": "wrapped, calibrated and quantised; differences are expected",
    "bfloat16": "a copy cast to bfloat16",
    "float16": "a copy cast to float16",
    "sdpa": "the same weights with PyTorch's fused attention",
    "eager": "the same weights with attention in plain steps; the reference then uses sdpa",
    "compile": "the same weights through torch.compile",
}
NEED_WRAPPERS = ("wrapped", "quantized")
# The file in the folder of a saved quantised model that says what it is.
SAVED_HEADER = "quantized.json"
# The candidate that is the model as it was loaded, to be compared with a recording of it.
ITSELF = "itself"

# How a trace is recorded: every value, outputs alone, or fingerprints of all.
VALUES = ("all", "outputs", "fingerprints")
# The file in the folder of a trace that says what it is.
TRACE_HEADER = "header.json"

# The suffixes of files with an exported graph, which is a side like any model.
GRAPHS = (".pt2", ".onnx", ".circle")
EXPORTED_TO = tuple(suffix.removeprefix(".") for suffix in GRAPHS)

# Names in torch; of these, and of what else can be chosen for a value, the first is the default.
DTYPES = ("float32", "float64", "bfloat16", "float16")
PADDING_SIDES = ("right", "left")

DEBUGGERS = ("ipdb", "pdb")
# Where in a call a breakpoint stops, and at which of its calls.
BREAK_AT = ("start", "end")
BREAK_WHEN = ("always", "diverged")

# What is isolated, besides modules that a glob names, and what says that nothing is.
LEVELS = ("leaves", "blocks", "layers")
NO_ISOLATION = "none"

# What makes the gate fail; each includes those after it.
FAIL_ON = ("divergence", "regression", "coverage", "never")

# The files that hold what has become of several checks, by their suffixes.
SUMMARIES = (".xml", ".md")

# What is logged on standard error, from much to little, and when there is colour.
LOG_LEVELS = ("debug", "info", "warning", "error")
COLORS = ("auto", "always", "never")

# The environment variables that stand for options which were not given.
VARIABLES: Mapping[str, str] = {
    "device": "TRACE_MODEL_DEVICE",
    "dtype": "TRACE_MODEL_DTYPE",
    "cache": "TRACE_MODEL_CACHE",
}

# What is taken where nothing is given: by the public functions, and as the help says.
DEFAULT_CANDIDATE = "wrapped"
DEFAULT_DTYPE, DEFAULT_DEVICE = DTYPES[0], "cpu"
DEFAULT_BATCH, DEFAULT_PADDING = 1, PADDING_SIDES[0]
# What the variants of the wrappers are, in short.
VARIANTS = {
    "prefill": "the whole prompt in one forward, attention head by head, as it is exported",
    "prefill_reference": "the whole prompt in one forward, all heads at once, as in transformers",
    "decode": "one token over a cache",
}
DEFAULT_VARIANT, DEFAULT_ACTIVATION, DEFAULT_WEIGHT = "prefill", "uint8", "uint8"
DEFAULT_CALIBRATE, DEFAULT_SEED = 8, 0
