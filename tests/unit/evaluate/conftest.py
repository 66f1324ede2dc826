"""A float model and its quantised copies, made once."""

import pytest

import wrappers
from tests.builders.llama import calibrated, tiny, tokens, wrap


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def quantized(model):
    """The prefill and the decode variant, uint8, calibrated on the same prompts."""
    prompts = [tokens(2, 24, seed) for seed in (5, 6)]
    decode = wrap(model, "decode")
    wrappers.calibrate_decode(model, decode, prompts, steps=8, source="float")
    prefill = wrappers.convert(calibrated(model, "prefill_reference", prompts))
    return prefill, wrappers.convert(decode)
