"""A Llama whose re-implementation forgets the padding: where does it diverge from the original?

python examples/find_a_wrong_mask.py
"""

import copy
import types

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

import tracer


def forward(self, input_ids, attention_mask=None, **kwargs):
    """Our own version of the model's forward. It looks right."""
    hidden = self.embed_tokens(input_ids)
    length = hidden.shape[1]
    positions = torch.arange(length).unsqueeze(0)
    hidden_value = torch.finfo(hidden.dtype).min
    causal_mask = torch.full((length, length), hidden_value).triu(diagonal=1)[None, None]
    position_embeddings = self.rotary_emb(hidden, position_ids=positions)
    for layer in self.layers:
        hidden = layer(
            hidden,
            attention_mask=causal_mask,
            position_embeddings=position_embeddings,
            position_ids=positions,
        )
    return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


loaded = tracer.models.load("tiny-llama", batch=3, padding="left")
candidate = copy.deepcopy(loaded.model)
candidate.model.forward = types.MethodType(forward, candidate.model)

comparison = tracer.compare(loaded.model, candidate, loaded.inputs)
comparison.show()
