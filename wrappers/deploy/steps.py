"""The graphs that run on an accelerator: static shapes, no cache objects, no masks being built.

    step = Step(decode.model.layers[0].self_attn)
    output, new_key, new_value = step(*step.example_inputs())

What a module needs besides its hidden states comes in as tensors: the rope tables, an additive
mask, and for each layer the keys and values of the past. What goes out besides its output is what
is new: the caller writes its own cache.

| argument | shape |
|---|---|
| hidden states (attention, layer, model) | [B, query, hidden] |
| token ids (causal LM) | [B, query]; or, with images, their embeddings [B, query, hidden] |
| cos, sin | [B or 1, query, head_dim] |
| mask | [B or 1, query, past + query], additive |
| past key, past value of each layer in turn | [B, kv_heads, past, head_dim] |
| new key, new value of each layer in turn | [B, kv_heads, query, head_dim] |

Query is 1 in decode, more in append-prefill; without a past it is a prefill. Keys are rotated and
carry the factor on the logits where the variant folds it, as the new keys do; the sine table is in
the form of the variant (`tables`). A query that may look at nothing, which is padding, gets an
arbitrary value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trace_model.annotations import checked
from wrappers.attention.cache import StepCache
from wrappers.attention.causal import AttentionInputs, CausalAttention, DecodeAttention
from wrappers.attention.masks import MaskBuilder
from wrappers.errors import ArgumentError, ModelInputError, WrapError

EXAMPLE_TOKENS = 32
"""Positions of example inputs, the past included."""
_ROPE_BASE = 10_000.0


@checked(ArgumentError)
class Step(nn.Module):
    """A wrapped attention, decoder layer, text model or causal LM as a static graph.

    Args:
        module: the wrapper.

    Raises:
        WrapError: `module` has no such graph.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        attentions = [part for part in module.modules() if isinstance(part, CausalAttention)]
        if not attentions or not hasattr(module, "step"):
            raise WrapError(
                f"{type(module).__name__} has no graph of a step; give a wrapped attention, "
                "decoder layer, text model or causal LM"
            )
        self.module = module
        self.layers = [attention.layer_idx for attention in attentions]
        self.masks = MaskBuilder(attentions[0].masks.fill_value)

    def forward(
        self, inputs: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *past: Tensor, **visual: Any
    ) -> tuple[Tensor, ...]:
        """See the table of this module; `visual` is what a text model takes of images.

        Raises:
            ModelInputError: keys and values of another number of layers, or a mask that does not
                fit.
        """
        cache = StepCache(self._by_layer(past))
        attention = AttentionInputs(cos, sin, self._additive(inputs, mask, cache), cache)
        output = self.module.step(inputs, attention, **visual)  # type: ignore[operator]
        return output, *(states for pair in cache.new.values() for states in pair)

    def tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """The float model's rope tables in the form that the graph takes."""
        attention = next(part for part in self.modules() if isinstance(part, CausalAttention))
        return cos, attention.sine_table(sin)

    def example_inputs(
        self, *, tokens: int | None = None, past: int | None = None, batch: int = 1, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Inputs of the shapes in the table of this module, to export the graph with.

            wrappers.export(step, step.example_inputs(tokens=1, past=255), "decode.pt2")

        Hidden states, tokens and the past are drawn at random; the tables are those of plain rope
        with the model's base, and each query sees the past and the tokens up to its own.

        Args:
            tokens: of the query; by default 1 for a decode graph, else 32.
            past: positions before it; by default 31 for a decode graph, else none.
            batch: sequences.
            seed: of what is random.

        Raises:
            ModelInputError: fewer than one token or sequence, or a past of less than none.
        """
        attention = next(part for part in self.modules() if isinstance(part, CausalAttention))
        decodes = isinstance(attention, DecodeAttention)
        tokens = (1 if decodes else EXAMPLE_TOKENS) if tokens is None else tokens
        past = (EXAMPLE_TOKENS - 1 if decodes else 0) if past is None else past
        if tokens < 1 or batch < 1 or past < 0:
            raise ModelInputError(
                f"found {tokens} tokens after a past of {past} in {batch} sequences; expected at "
                "least 1 token and sequence, and a past from 0 up"
            )
        config, generator = attention.config, torch.Generator().manual_seed(seed)
        parameter = next(self.module.parameters())

        def placed(tensor: Tensor) -> Tensor:
            return tensor.to(parameter.device, parameter.dtype)

        def drawn(*shape: int) -> Tensor:
            return placed(torch.randn(shape, generator=generator))

        if hasattr(self.module, "lm_head"):
            ids = torch.randint(0, config.vocab_size, (batch, tokens), generator=generator)
            inputs = ids.to(parameter.device)
        else:
            inputs = drawn(batch, tokens, config.hidden_size)
        cos, sin = self.tables(*_plain_tables(config, attention.head_dim, past, tokens))
        mask = torch.full((1, tokens, past + tokens), self.masks.fill_value).triu(past + 1)
        shape = batch, config.num_key_value_heads, past, attention.head_dim
        factor = getattr(attention, "key_factor", 1.0)
        states = [(drawn(*shape) * factor, drawn(*shape)) for _ in self.layers if past]
        return (
            inputs,
            placed(cos),
            placed(sin),
            placed(mask),
            *(each for kv in states for each in kv),
        )

    def _by_layer(self, past: Sequence[Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        if len(past) not in (0, 2 * len(self.layers)):
            raise ModelInputError(
                f"found {len(past)} tensors of the past; expected a key and a value for each of "
                f"{len(self.layers)} layers, or none"
            )
        return dict(zip(self.layers, zip(past[::2], past[1::2], strict=True), strict=False))

    def _additive(self, inputs: Tensor, mask: Tensor, cache: StepCache) -> Tensor:
        parameter = next(self.module.parameters())
        return self.masks.additive(
            mask.unsqueeze(1),
            batch_size=inputs.shape[0],
            query_length=inputs.shape[1],
            past_length=cache.get_seq_length(),
            dtype=parameter.dtype,
            device=parameter.device,
        )


def _plain_tables(config: Any, size: int, start: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rope without any scaling, [1, tokens, size] each."""
    base = float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", _ROPE_BASE))
    frequencies = base ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(start, start + tokens)[:, None] * frequencies
    both = angles.repeat(1, 2)[None]
    return both.cos(), both.sin()
