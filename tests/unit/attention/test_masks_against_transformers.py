"""Masks in whole models, layers and attentions: wrapped against float, for every kind of mask.

The float model is given the same mask wherever it takes it to mean the same. Where it does not
(`Batch.for_float`), it is given what its attention implementation wants, with the same visible set.
What a query gets that may look at nothing is compared too, where the float model defines it.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import wrappers
from tests.builders.agreement import peir
from tests.builders.text_models import FAMILIES

LENGTH = 8  # positions cached and new
SLOTS = 11  # of a static cache
LIMIT = 2e-6
LEAST = torch.finfo(torch.float32).min

# A row for each sequence, with a 1 where there is a token.
BATCHES = {
    "one padded on the left": ["00111111"],
    "one padded on the right": ["11111100"],
    "padded on the left": ["11111111", "00111111", "00000011"],
    "padded on the right": ["11111111", "11111000", "10000000"],
    "padded anywhere": ["01011010", "00111100", "11111111"],
}
PASTS = {
    "no cache": (None, 0), "dynamic": ("dynamic", 4), "dynamic, one new": ("dynamic", 7),
    "static, empty": ("static", 0), "static": ("static", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """A padded batch, part of which is cached.

    Attributes:
        padding: which positions hold a token, bool [B, LENGTH].
        past_length: how many of them are cached.
        key_length: the keys attended over.
    """

    padding: Tensor
    past_length: int
    key_length: int

    @property
    def visible(self) -> Tensor:
        """Bool [B, 1, query, key]: the token itself and those before it."""
        positions = torch.arange(self.key_length)
        causal = positions[None, :] <= positions[self.past_length : LENGTH, None]
        return causal & self.of_all_slots[:, None, None, :]

    @property
    def of_all_slots(self) -> Tensor:
        return torch.nn.functional.pad(self.padding, (0, self.key_length - LENGTH))

    def additive(self, hidden: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(self.visible.shape, dtype=dtype).masked_fill(~self.visible, hidden)

    def for_float(self, mask: Tensor | None, implementation: str) -> Tensor | None:
        """A mask that the float model takes to mean what `mask` means to the wrapped one."""
        if mask is None or (mask.ndim == 2 and mask.shape[1] >= LENGTH):
            return mask
        # Eager attention would give NaN from -inf where a query sees nothing.
        if mask.dtype == torch.float32 and (implementation == "sdpa" or mask.isfinite().all()):
            return mask
        return self.final(implementation)

    def final(self, implementation: str) -> Tensor:
        """What the float model's attention wants."""
        return self.visible if implementation == "sdpa" else self.additive(LEAST)

    def compared(self, mask: Tensor | None, implementation: str) -> Tensor:
        """Bool [B, query]: where float and wrapped must be equal."""
        sees = self.visible.any(dim=-1).squeeze(1)
        if mask is None or mask.ndim == 2 or mask.dtype != torch.float32:
            return torch.ones_like(sees)
        # A weak minus infinity shows everything to a query that may look at nothing; and sdpa
        # gives it the mean of all values, where its own masks give zero.
        weak = mask.min() > LEAST or (implementation == "sdpa" and mask.isfinite().all())
        return sees if weak else torch.ones_like(sees)


KINDS: dict[str, Callable[[Batch], Tensor]] = {
    "2-D bool": lambda batch: batch.padding, "2-D int64": lambda batch: batch.padding.long(),
    "2-D float32": lambda batch: batch.padding.float(),
    "2-D of all slots": lambda batch: batch.of_all_slots.int(),
    "4-D bool": lambda batch: batch.visible, "4-D int64": lambda batch: batch.visible.long(),
    "4-D -inf": lambda batch: batch.additive(-math.inf),
    "4-D least": lambda batch: batch.additive(LEAST),
    "4-D -1e4": lambda batch: batch.additive(-1e4),
    "4-D float16": lambda batch: batch.additive(-math.inf, torch.float16),
}  # fmt: skip

for_each_model = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.parametrize("variant", ["prefill", "prefill_reference"]),
    pytest.mark.parametrize("implementation", ["eager", "sdpa"]),
]


def on_each_model(test):
    for mark in for_each_model:
        test = mark(test)
    return test


@functools.cache
def models(family, variant, implementation):
    """The float text model, and its wrapped copy with quantisation off."""
    model = FAMILIES[family]()
    model.set_attn_implementation(implementation)
    return model, wrappers.prepare(model, wrappers.PTQConfig(variant=variant))


def batch_of(rows, past):
    kind, past_length = PASTS[past]
    padding = torch.tensor([[digit == "1" for digit in row] for row in rows])
    return Batch(padding, past_length, SLOTS if kind == "static" else LENGTH)


def tokens(batch):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 500, batch.padding.shape, generator=generator)


def cached(model, batch, past):
    """The cache after the float model has seen the earlier positions."""
    kind, past_length = PASTS[past]
    if kind is None:
        return None
    cache = DynamicCache() if kind == "dynamic" else StaticCache(model.config, max_cache_len=SLOTS)
    if past_length:
        padding = batch.padding[:, :past_length].long()
        with torch.no_grad():
            model(tokens(batch)[:, :past_length], attention_mask=padding, past_key_values=cache)
    return cache


def hidden_states(model, batch, mask, cache):
    with torch.no_grad():
        return model(
            tokens(batch)[:, batch.past_length :],
            attention_mask=mask,
            past_key_values=copy.deepcopy(cache),
            use_cache=cache is not None,
        ).last_hidden_state


def assert_equal(expected, found, where=slice(None), *, limit=LIMIT):
    assert found.isfinite().all()
    assert peir(expected[where], found[where]) <= limit


@on_each_model
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
def test_models(family, variant, implementation, past, rows):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(rows, past)
    cache = cached(model, batch, past)
    for give in KINDS.values():
        mask = give(batch)
        expected = hidden_states(model, batch, batch.for_float(mask, implementation), cache)
        found = hidden_states(wrapped, batch, mask, cache)
        assert_equal(expected, found, batch.compared(mask, implementation))


@on_each_model
def test_the_fill_value_matters_to_quantised_models_only(family, variant, implementation):
    model, _ = models(family, variant, implementation)
    config = wrappers.PTQConfig(variant=variant, attention_mask_fill_value=-0.5)
    wrapped = wrappers.prepare(model, config)
    batch = batch_of(["00111111", "11111100"], "no cache")
    for give in (KINDS["2-D int64"], KINDS["4-D bool"], KINDS["4-D -inf"]):
        expected = hidden_states(model, batch, batch.for_float(give(batch), implementation), None)
        assert_equal(expected, hidden_states(wrapped, batch, give(batch), None))


@on_each_model
@pytest.mark.parametrize("past", PASTS)
def test_no_mask(family, variant, implementation, past):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(["11111111"] * 2, past)
    cache = cached(model, batch, past)
    expected = hidden_states(model, batch, None, cache)
    assert_equal(expected, hidden_states(wrapped, batch, None, cache))


@on_each_model
@pytest.mark.parametrize("past", [name for name, (_, length) in PASTS.items() if length])
def test_padding_of_only_the_new_positions(family, variant, implementation, past):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(["11110110", "11110011", "11111101"], past)
    batch.padding[:, : batch.past_length] = True
    cache = cached(model, batch, past)
    new = batch.padding[:, batch.past_length :]
    expected = hidden_states(model, batch, batch.padding.long(), cache)
    for dtype in (torch.bool, torch.int64, torch.float32):
        assert_equal(expected, hidden_states(wrapped, batch, new.to(dtype), cache))


@on_each_model
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("rows", [1, 3], ids=["one for the batch", "one each"])
def test_four_dimensions_of_any_pattern(family, variant, implementation, past, rows):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(["11111111"] * 3, past)
    shape = (rows, 1, LENGTH - batch.past_length, batch.key_length)
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.4
    visible[..., LENGTH:] = False  # slots that hold nothing
    visible[0, 0, 0] = False
    additive = torch.zeros(shape).masked_fill(~visible, LEAST)
    cache = cached(model, batch, past)
    final = additive if implementation == "eager" else visible
    expected = hidden_states(model, batch, final, cache)
    for mask in (visible, visible.long(), visible.byte() * 2, additive, additive.half()):
        assert_equal(expected, hidden_states(wrapped, batch, mask, cache))


@on_each_model
@pytest.mark.parametrize("past", PASTS)
def test_additive_values_between_visible_and_hidden(family, variant, implementation, past):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(["11111111", "01011010"], past)
    bias = -3 * torch.rand(batch.visible.shape, generator=torch.Generator().manual_seed(4))
    cache = cached(model, batch, past)
    sees = batch.visible.any(dim=-1).squeeze(1)
    # Only differences within a row count, so all of it may be low.
    for shift in (0.0, -70.0, -100.0):
        mask = batch.additive(LEAST).where(~batch.visible, bias + shift)
        expected = hidden_states(model, batch, mask, cache)
        # A logit near the shift is rounded to a multiple of the shift's own step.
        limit = LIMIT - shift * torch.finfo(torch.float32).eps
        assert_equal(expected, hidden_states(wrapped, batch, mask, cache), sees, limit=limit)


@on_each_model
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("part", ["", "self_attn"], ids=["layer", "attention"])
def test_parts_called_by_themselves(family, variant, implementation, past, part):
    model, wrapped = models(family, variant, implementation)
    batch = batch_of(["11111111", "00111111", "00000011", "01011100"], past)
    cache = cached(model, batch, past)
    positions = torch.arange(batch.past_length, LENGTH)[None].expand(len(batch.padding), -1)
    states = torch.randn(
        *positions.shape, model.config.hidden_size, generator=torch.Generator().manual_seed(3)
    )

    def output(model, mask):
        with torch.no_grad():
            found = model.layers[1].get_submodule(part)(
                hidden_states=states,
                position_embeddings=model.rotary_emb(states, positions),
                attention_mask=mask,
                past_key_values=copy.deepcopy(cache),
            )
        return found[0] if isinstance(found, tuple) else found

    expected = output(model, batch.final(implementation))
    for give in KINDS.values():
        assert_equal(expected, output(wrapped, give(batch)))
    whole = batch_of(["11111111"], past)
    assert_equal(output(model, whole.final(implementation)), output(wrapped, None))


@on_each_model
def test_attention_in_both_directions_by_configuration(family, variant, implementation):
    model = FAMILIES[family]()
    model.config.is_causal = False
    model.set_attn_implementation(implementation)
    wrapped = wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
    batch = batch_of(["11111100", "00111111"], "no cache")
    for mask in (None, batch.padding, batch.padding.long(), batch.padding.float()):
        expected = hidden_states(model, batch, mask, None)
        assert_equal(expected, hidden_states(wrapped, batch, mask, None))
