"""The fill value of attention masks: written once, and everywhere what the config says."""

import ast
import functools
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import tracer
import wrappers
from benchmarks import mask_fill
from tests.builders.text_models import FAMILIES
from tracer.models import builtin as tiny
from wrappers.attention.causal import CausalAttention

FILL = -37.5
LENGTH = 8
MASK_POINTS = {"attn_mask", "causal_mask", "attention_mask"}

PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]])
VISIBLE = PADDING.bool()[:, None, None, :] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
KINDS = {
    "none": None, "2-D bool": PADDING.bool(), "2-D int64": PADDING, "2-D float32": PADDING.float(),
    "4-D bool": VISIBLE, "4-D int64": VISIBLE.long(),
    "4-D -inf": torch.where(VISIBLE, 0.0, -math.inf),
    "4-D least": torch.where(VISIBLE, 0.0, torch.finfo(torch.float32).min),
    "4-D -1e4": torch.where(VISIBLE, 0.0, -1e4),
    "4-D float16": torch.where(VISIBLE, 0.0, -math.inf).half(),
}  # fmt: skip

each_family = pytest.mark.parametrize("family", FAMILIES)
each_variant = pytest.mark.parametrize("variant", ["prefill", "prefill_reference"])
each_activation = pytest.mark.parametrize("activation", ["uint8", "int16"])
each_part = pytest.mark.parametrize("part", ["model", "layer", "attention"])


def tokens():
    return torch.randint(3, 500, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@functools.cache
def quantised(family, variant, activation="uint8"):
    config = wrappers.PTQConfig(
        activation=wrappers.affine(activation), variant=variant, attention_mask_fill_value=FILL
    )
    wrapped = wrappers.prepare(FAMILIES[family](), config)
    wrappers.calibrate(wrapped, [{"input_ids": tokens(), "attention_mask": PADDING}])
    return wrappers.convert(wrapped)


def part_of(model, part):
    """A part of a text model, and its inputs without a mask."""
    if part == "model":
        return model, {"input_ids": tokens(), "use_cache": False}
    layer = model.layers[1]
    states = torch.randn(2, LENGTH, 64, generator=torch.Generator().manual_seed(2))
    tables = model.rotary_emb(states, torch.arange(LENGTH)[None])
    inputs = {"hidden_states": states, "position_embeddings": tables}
    return (layer if part == "layer" else layer.self_attn), inputs


def run(module, inputs, mask):
    """The hidden states that a part gives."""
    with torch.no_grad():
        output = module(**inputs, attention_mask=mask)
    return output if isinstance(output, Tensor) else output[0]


class Masks:
    """All masks that come by while a quantised model runs.

    Attributes:
        built: what attentions attend with.
        observed: what goes into a mask's quantization point, and what comes out.
        added: what is added to the logits; by subtraction, so with the rounding of the sum.
    """

    def __init__(self, monkeypatch):
        self.built, self.observed, self.added = [], [], []
        self._logits = None
        attend, quantize = CausalAttention.attend, wrappers.QuantModule.quantize

        def attend_watched(module, hidden_states, inputs):
            self.built.append(inputs.mask)
            assert inputs.exact_mask is None
            return attend(module, hidden_states, inputs)

        def quantize_watched(module, x, name, **options):
            if name in MASK_POINTS:
                self.observed.append(x)
            if name == "mask_add":
                self.added.append(x - self._logits)
            x = quantize(module, x, name, **options)
            if name in MASK_POINTS:
                self.observed.append(x)
            if name == "logits":
                self._logits = x.clone()
            return x

        monkeypatch.setattr(CausalAttention, "attend", attend_watched)
        monkeypatch.setattr(wrappers.QuantModule, "quantize", quantize_watched)

    def check(self):
        """Each reaches down to the fill value and no further."""
        assert self.built and self.observed and self.added
        for mask in self.built + self.observed:
            assert mask.is_floating_point()
            assert float(mask.min()) == pytest.approx(FILL, rel=1e-6)
            assert float(mask.max()) == 0
        for mask in self.added:
            assert float(mask.min()) == pytest.approx(FILL, rel=1e-5)


@pytest.mark.covers
def test_the_default_is_written_once():
    default = wrappers.PTQConfig().attention_mask_fill_value
    assert default == -120.0
    numbers, texts = [], []
    for package in (tracer, wrappers):
        for path in Path(package.__file__).parent.rglob("*.py"):
            source = path.read_text()
            texts += [path] * len(re.findall(r"-\s*120(?!\d)", source))
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                    operand = node.operand
                    if isinstance(operand, ast.Constant) and operand.value == -default:
                        numbers.append(path)
    config = Path(wrappers.__file__).parent / "core" / "config.py"
    assert numbers == [config]
    assert texts == [config]  # comments and docstrings included


@each_variant
@pytest.mark.parametrize("name", ["random-llama", "tiny-qwen3-vl"])
def test_every_builder_of_masks_has_the_value_of_its_config(name, variant):
    model = tiny.build(name, 0)
    values = []
    for fill in (FILL, -50.0):
        config = wrappers.PTQConfig(variant=variant, attention_mask_fill_value=fill)
        wrapped = wrappers.prepare(model, config)
        values.append({m.masks.fill_value for m in wrapped.modules() if hasattr(m, "masks")})
    assert values == [{FILL}, {-50.0}]


def assert_observed(model):
    """The points of masks, and of logits with a mask added, reach down to the fill value."""
    minima = [
        float(point.observer.minimum)
        for _, name, point in wrappers.iter_points(model)
        if name in MASK_POINTS
    ]
    assert len(minima) > len(model.layers)
    assert set(minima) == {FILL}
    for layer in model.layers:
        logits, masked = (layer.self_attn.points[name].observer for name in ("logits", "mask_add"))
        # In float32, as the sums were, whose rounding keeps their order.
        assert FILL + logits.minimum <= masked.minimum <= FILL + logits.maximum


@each_family
@each_variant
@each_activation
def test_mask_points_observe_it(family, variant, activation):
    assert_observed(quantised(family, variant, activation))


@each_family
@each_variant
@pytest.mark.parametrize("batches", ["one token each", "all visible"])
def test_mask_points_observe_it_where_nothing_is_hidden(family, variant, batches):
    config = wrappers.PTQConfig(variant=variant, attention_mask_fill_value=FILL)
    wrapped = wrappers.prepare(FAMILIES[family](), config)
    if batches == "all visible":
        visible = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
        wrappers.calibrate(wrapped, [{"input_ids": tokens(), "attention_mask": visible}])
    else:
        wrappers.calibrate(wrapped, [{"input_ids": tokens()[:, i : i + 1]} for i in range(LENGTH)])
    assert_observed(wrapped)


@each_family
@each_variant
@each_activation
@each_part
def test_every_mask_reaches_down_to_it_and_no_further(
    family, variant, activation, part, monkeypatch
):
    module, inputs = part_of(quantised(family, variant, activation), part)
    masks = Masks(monkeypatch)
    outputs = {kind: run(module, inputs, mask) for kind, mask in KINDS.items()}
    masks.check()
    causal, padded = outputs.pop("none"), outputs.pop("2-D bool")
    assert not torch.equal(causal, padded)
    assert all(torch.equal(output, padded) for output in outputs.values())


@each_family
@each_variant
@pytest.mark.parametrize("make", ["dynamic", "static"])
def test_masks_after_a_past_reach_down_to_it(family, variant, make, monkeypatch):
    model = quantised(family, variant)
    past = LENGTH - 1
    cache = DynamicCache() if make == "dynamic" else StaticCache(model.config, max_cache_len=11)
    inputs = {"past_key_values": cache, "use_cache": True}
    run(model, inputs | {"input_ids": tokens()[:, :past]}, PADDING[:, :past])
    masks = Masks(monkeypatch)
    run(model, inputs | {"input_ids": tokens()[:, past:]}, PADDING)
    masks.check()


@pytest.mark.slow
@pytest.mark.no_cover  # measuring coverage takes a capture several times as long
@each_family
@each_variant
@pytest.mark.parametrize(("part", "kind"), [
    ("model", "none"), ("layer", "4-D bool"), ("attention", "2-D int64"), ("attention", "4-D -inf"),
])  # fmt: skip
def test_exported_graphs_carry_it(family, variant, part, kind):
    module, inputs = part_of(quantised(family, variant), part)
    mask = KINDS[kind]
    example = None if mask is None else torch.zeros_like(mask)
    with torch.no_grad():
        program = torch.export.export(module, (), inputs | {"attention_mask": example})
    numbers = numbers_in(program)
    assert FILL in numbers
    assert min(numbers) == FILL
    # The graph's own arithmetic on a mask that it was not exported with.
    assert torch.equal(run(program.module(), inputs, mask), run(module, inputs, mask))


def numbers_in(program):
    """The numbers in an exported graph: arguments of its operators, and its constants."""
    found, pending = [], [(node.args, node.kwargs) for node in program.graph.nodes]
    pending += program.constants.values()
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, tuple | list):
            pending += value
        elif isinstance(value, Tensor):
            found += value.flatten().tolist()
        elif isinstance(value, int | float):
            found.append(value)
    return found


@pytest.mark.slow
@each_variant
def test_a_large_value_costs_a_quantised_attention_its_logits(variant):
    cases = [mask_fill.case_of(seed, length=24) for seed in range(3)]

    def error(dtype, fill):
        return statistics.median(mask_fill.clamped(case, variant, dtype, fill) for case in cases)

    fills = (-40.0, -120.0, -1e4, mask_fill.LEAST)
    narrow = [error("uint8", fill) for fill in fills]
    wide = [error("int16", fill) for fill in fills]
    assert 1.5 * narrow[0] < narrow[1] < narrow[2] / 3
    assert narrow[2] == pytest.approx(narrow[3])  # no step is left for the logits in either
    assert wide[0] == pytest.approx(wide[1], rel=0.1)
    assert 3 * wide[1] < wide[2] < wide[3] / 5
    for dtype, clamped in (("uint8", narrow), ("int16", wide)):
        unclamped = statistics.median(mask_fill.unclamped(case, variant, dtype) for case in cases)
        assert unclamped > 1.5 * max(clamped)
