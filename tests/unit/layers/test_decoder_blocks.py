"""What the decoders of all families share, where the families' own tests do not ask for it."""

import pytest
import torch

import wrappers
from tests.builders.agreement import IMPLEMENTATIONS, VARIANTS
from tests.builders.text_models import FAMILIES

FAMILY = pytest.mark.parametrize("family", FAMILIES)


def quantised_attention(family, variant, implementation):
    """The first attention of a quantised text model, and tables for five positions."""
    model = FAMILIES[family]()
    model.config._attn_implementation = implementation
    wrapped = wrappers.prepare(model, wrappers.PTQConfig(variant=variant))
    wrappers.calibrate(wrapped, [torch.arange(10).view(2, 5)])
    wrappers.convert(wrapped)
    positions = torch.arange(5).view(1, 1, 5).expand(3, 1, 5)
    positions = positions if family == "qwen3_vl" else positions[0]
    return wrapped.layers[0].self_attn, model.rotary_emb(torch.zeros(1), positions)


@FAMILY
@VARIANTS
@IMPLEMENTATIONS
def test_a_quantised_query_with_nothing_to_see_gets_what_the_implementation_gives(
    family, variant, implementation
):
    attention, tables = quantised_attention(family, variant, implementation)
    hidden_states = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2))
    padding = torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        output, weights = attention(hidden_states, tables, padding)
    if implementation == "eager":
        assert weights[:, :, :2].amax() == weights[:, :, :2].amin() > 0
        assert torch.equal(output[0, 0], output[0, 1])
        assert weights[:, :, 4, 2:].amax() > 1.5 * weights[:, :, 4, 2:].amin()
    else:
        assert not output[0, :2].any()
    assert output[0, 2:].abs().amax(-1).min() > 0
