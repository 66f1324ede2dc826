"""What a recipe measures is plain values, whatever a model computes."""

import json

import pytest

import tracer
from wrappers.recipes.measuring import in_words, measured
from wrappers.recipes.sections import Evaluation


@pytest.mark.parametrize("factor", [1e30, float("nan")])
def test_a_model_that_is_beyond_all_measure(tmp_path, factor) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time there was a girl.")
    loaded = tracer.models.load("tiny-llama")
    loaded.model.lm_head.weight.data *= factor
    evaluation = Evaluation(text=tmp_path / "text.txt")
    found = measured(loaded.model, loaded, evaluation)
    assert json.loads(json.dumps(found, allow_nan=False))["perplexity"]["value"] is None
    assert in_words(found)[0].startswith("perplexity beyond a float (")
