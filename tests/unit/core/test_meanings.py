"""What is at each quantization point, in words."""

import pytest

from tests.builders.layers import LAYERS
from tracer import models
from wrappers import PTQConfig, iter_wrappers, prepare
from wrappers.core.meanings import meaning
from wrappers.core.module import QuantModule


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        *(("tiny-llama", variant) for variant in ("prefill", "prefill_reference", "decode")),
        *(("tiny-qwen3-vl", variant) for variant in ("prefill", "prefill_reference")),
    ],
)
def test_every_point_of_a_model_is_known(model: str, variant: str) -> None:
    wrapped = prepare(models.load(model).model, PTQConfig(variant=variant))
    found = [(type(own).__name__, p) for _, own in iter_wrappers(wrapped) for p in own.points]
    known = {
        (type(own).__name__, p) for _, own in iter_wrappers(wrapped) for p in own.point_meanings()
    }
    assert found
    assert set(found) - known == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_every_point_of_a_layer_is_known(layer: str) -> None:
    wrapped = prepare(LAYERS[layer][0](), PTQConfig())
    assert isinstance(wrapped, QuantModule)
    assert list(wrapped.point_meanings()) == list(wrapped.points)


def test_names_with_parts() -> None:
    assert meaning("q_rot") == "the queries after rotation"
    assert meaning("k_cos") == "the keys times cosine, in the rotation"
    assert meaning("deepstack_sum_2") == (
        "the hidden states of layer 2 with the visual features added"
    )
    assert [meaning(name) for name in ("v_rot", "q_other", "other_2", "")] == [""] * 4


def test_a_product_is_another_one_in_silu() -> None:
    llama = prepare(models.load("tiny-llama").model, PTQConfig())
    mlp = llama.model.layers[0].mlp
    assert mlp.point_meanings()["mul"] == "the gated product that down_proj takes"
    assert mlp.act_fn.point_meanings()["mul"] == "x * sigmoid(x) inside SiLU"
