"""The graphs that run on an accelerator: static shapes, no cache objects, no masks being built.

    step = Step(decode.model.layers[0].self_attn)
    output, new_key, new_value = step(hidden_states, cos, sin, mask, past_key, past_value)

What a module needs besides its hidden states comes in as tensors: the rope tables, an additive
mask, and for each layer the keys and values of the past. What goes out besides its output is what
is new: the caller writes its own cache.

| argument | shape |
|---|---|
| hidden states (attention, layer, model) | [B, query, hidden] |
| token ids (causal LM) | [B, query] |
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

from torch import Tensor, nn

from tracer.annotations import checked
from wrappers.attention.cache import StepCache
from wrappers.attention.causal import AttentionInputs, CausalAttention
from wrappers.attention.masks import MaskBuilder
from wrappers.errors import ArgumentError, ModelInputError, WrapError


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
