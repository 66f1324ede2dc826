"""What every wrapped model keeps to: a text decoder, a vision model, or both together."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionRotaryEmbedding,
)

import wrappers
from tests.builders import llama, qwen3_vl, qwen3_vl_vision, qwen3_vl_whole
from tests.builders.agreement import IMPLEMENTATIONS, padding, record, redrawn
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode

FACTOR = 8**-0.5


@dataclass(frozen=True)
class Model:
    """A model that is wrapped as a whole.

    Attributes:
        tiny: makes a float one.
        prepare: wraps it in a variant.
        inputs: a batch that reaches every point.
        folded: where the factor on the logits is in `prefill`, if it is folded.
        rotary: the classes that stay float.
    """

    tiny: Callable[..., Any]
    prepare: Callable[..., Any]
    inputs: Callable[[], dict[str, Any]]
    folded: str | None
    rotary: set[type[nn.Module]]

    def quantized(self, model, variant):
        wrapped = self.prepare(model, variant)
        wrappers.calibrate(wrapped, [self.inputs()])
        return wrappers.convert(wrapped)

    def run(self, model):
        """All tensors that a model gives for its inputs."""
        with torch.no_grad():
            output = model(**self.inputs(), return_dict=False)
        leaves = torch.utils._pytree.tree_leaves(output)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


MODELS = {
    "llama": Model(
        tiny=llama.tiny, prepare=llama.wrap,
        inputs=lambda: {
            "input_ids": llama.tokens(3, 40), "attention_mask": padding(3, 40, "left"),
            "use_cache": False,
        },
        folded="k_proj", rotary={LlamaRotaryEmbedding},
    ),
    "qwen3_vl text": Model(
        tiny=qwen3_vl.tiny, prepare=qwen3_vl.wrap,
        inputs=lambda: qwen3_vl.with_features(3, 40, "left") | {"use_cache": False},
        folded="k_norm", rotary={Qwen3VLTextRotaryEmbedding},
    ),
    "qwen3_vl vision": Model(
        tiny=qwen3_vl_vision.tiny, prepare=qwen3_vl_vision.wrap,
        inputs=lambda: qwen3_vl_vision.inputs(qwen3_vl_vision.MIXED), folded=None,
        rotary={Qwen3VLVisionRotaryEmbedding},
    ),
    "qwen3_vl": Model(
        tiny=qwen3_vl_whole.tiny, prepare=qwen3_vl_whole.wrap,
        inputs=lambda: qwen3_vl_whole.EXAMPLES["both"]() | {"use_cache": False}, folded="k_norm",
        rotary={Qwen3VLTextRotaryEmbedding, Qwen3VLVisionRotaryEmbedding},
    ),
}  # fmt: skip
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
VARIANTS = pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])


def assert_equal(expected, found):
    assert len(found) == len(expected)
    assert all(torch.equal(r, c) for r, c in zip(expected, found, strict=True))


@EACH_MODEL
@VARIANTS
def test_names_are_kept_and_parameters_shared_but_for_what_is_folded(name, variant):
    kind = MODELS[name]
    model = kind.tiny()
    state = {key: p.clone() for key, p in model.state_dict().items()}
    before = kind.run(model)
    wrapped = kind.quantized(model, variant)
    kind.run(wrapped)
    assert [n for n, _ in wrapped.named_modules()] == [n for n, _ in model.named_modules()]
    for (key, p), (other, q) in zip(
        model.named_parameters(), wrapped.named_parameters(), strict=True
    ):
        folded = variant == "prefill" and kind.folded is not None and kind.folded in key
        assert key == other
        assert (p is q) != folded
        if folded:
            torch.testing.assert_close(q, p * FACTOR)
    assert all(torch.equal(p, state[key]) for key, p in model.state_dict().items())
    assert_equal(before, kind.run(model))


@EACH_MODEL
@VARIANTS
def test_only_rotary_embeddings_and_containers_stay_float(name, variant):
    kind = MODELS[name]
    modules = kind.prepare(kind.tiny(), variant).modules()
    unwrapped = {type(module) for module in modules if not isinstance(module, QuantModule)}
    assert unwrapped == {nn.ModuleList, *kind.rotary}


@EACH_MODEL
@VARIANTS
@IMPLEMENTATIONS
def test_calibrating_changes_no_bit_and_reaches_every_point(name, variant, implementation):
    kind = MODELS[name]
    wrapped = kind.prepare(kind.tiny(implementation), variant)
    _, expected = record(wrapped, **kind.inputs())
    wrappers.calibrate(wrapped, [kind.inputs()])
    assert all(module.mode is Mode.CALIBRATE for _, module in wrappers.iter_wrappers(wrapped))
    _, found = record(wrapped, **kind.inputs())
    for (module, _, before), (_, _, after) in zip(expected, found, strict=True):
        for a, b in zip(before, after, strict=True):
            assert not isinstance(a, torch.Tensor) or torch.equal(a, b), module
    wrappers.convert(wrapped)
    assert all(module.mode is Mode.QUANT for _, module in wrappers.iter_wrappers(wrapped))
    assert all(point.qparams is not None for _, _, point in wrappers.iter_points(wrapped))


@EACH_MODEL
@VARIANTS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same_and_are_apart(name, variant, copied):
    kind = MODELS[name]
    wrapped = kind.prepare(kind.tiny(), variant)
    unquantised = copied(wrapped)
    plain = kind.run(wrapped)
    wrappers.calibrate(wrapped, [kind.inputs()])
    quantised = kind.run(wrappers.convert(wrapped))
    assert_equal(quantised, kind.run(copied(wrapped)))
    assert_equal(plain, kind.run(unquantised))
    assert not torch.equal(plain[0], quantised[0])


@EACH_MODEL
@VARIANTS
def test_a_state_saved_and_loaded(name, variant):
    kind = MODELS[name]
    saved = kind.quantized(kind.tiny(), variant)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = kind.prepare(redrawn(kind.tiny(), seed=9), variant)
    assert not torch.equal(kind.run(loaded)[0], kind.run(saved)[0])
    loaded.load_state_dict(torch.load(file))
    assert_equal(kind.run(saved), kind.run(wrappers.convert(loaded)))
    tensors = {key for key in saved.state_dict() if not key.endswith("_extra_state")}
    assert tensors == set(kind.tiny().state_dict())
