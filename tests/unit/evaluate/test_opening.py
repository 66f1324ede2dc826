"""Sequences that begin with an image: scored as one forward after the other says."""

import pytest
import torch

from tests.builders.qwen3_vl_whole import EXAMPLES, IMAGE, batch_of, tiny, wrap
from wrappers.deploy.runtime import Runtime
from wrappers.errors import ModelInputError
from wrappers.evaluate import (
    DecodedModel,
    Opening,
    decoded_perplexity,
    generation_check,
    perplexity,
    step_perplexity,
    windows,
)
from wrappers.evaluate.opening import with_images

INPUTS = batch_of([3, ("image", (1, 4, 6)), 2])
OPENING = Opening.of(INPUTS)
TEXTS = [list(range(5, 17)), list(range(20, 40, 3))]
WINDOW = len(OPENING.ids) + 6


def losses(model, prompt):
    """Of each window, those of the tokens after its first ones, each by a forward of its own."""
    found = []
    for each in windows(TEXTS, window=WINDOW, bos=OPENING):
        for place in range(prompt, len(each.ids)):
            given = with_images(torch.tensor([each.ids[:place]]), OPENING)
            with torch.no_grad():
                likely = model(**given).logits[0, -1].double().log_softmax(-1)
            found.append(-float(likely[each.ids[place]]))
    return found


def test_windows_begin_with_it():
    made = windows(TEXTS, window=WINDOW, bos=OPENING)
    assert all(each.ids[: len(OPENING.ids)] == OPENING.ids for each in made)
    assert [each.scored for each in made] == [6, 6, 6, 1]
    assert made[1].ids[len(OPENING.ids) :] == tuple(TEXTS[0][6:])
    with pytest.raises(ModelInputError, match="a window of 13 tokens; expected at least 14"):
        windows(TEXTS, window=len(OPENING.ids), bos=OPENING)


def test_as_keyword_arguments_of_a_model():
    given = with_images(torch.tensor([[*OPENING.ids, 5, 6]] * 2), OPENING)
    assert given["mm_token_type_ids"].tolist() == [[*OPENING.kinds, 0, 0]] * 2
    assert torch.equal(given["pixel_values"], INPUTS["pixel_values"].repeat(2, 1))
    assert given["image_grid_thw"].tolist() == [[1, 4, 6]] * 2
    assert list(with_images(torch.zeros(1, 2), 7)) == ["input_ids"]


def test_perplexity():
    model = tiny()
    found = perplexity(model, TEXTS, bos=OPENING, window=WINDOW, batch=3)
    expected = losses(model, len(OPENING.ids))
    assert sum(found.tokens) == len(expected)
    assert sum(found.losses) == pytest.approx(sum(expected), rel=1e-5)


def test_of_steps():
    model, prompt = tiny(), len(OPENING.ids) + 1
    expected = losses(model, prompt + 1)
    how = {"bos": OPENING, "prompt": prompt, "window": WINDOW, "batch": 2}
    for prefill, decode in ((model, model), (wrap(model, "prefill"), wrap(model, "decode"))):
        for score in (decoded_perplexity, step_perplexity):
            found = score(prefill, decode, TEXTS, **how)
            assert sum(found.tokens) == len(expected)
            assert sum(found.losses) == pytest.approx(sum(expected), rel=1e-5)


def test_images_beyond_the_prompt_are_refused():
    model = DecodedModel(tiny(), tiny(), prompt=6)
    with pytest.raises(ModelInputError, match=r"images end at token 10 .* reads 6: give a longer"):
        model(**INPUTS)
    with pytest.raises(ModelInputError, match=r"images end at token 10 .* reads 8: give a longer"):
        step_perplexity(tiny(), tiny(), TEXTS, bos=OPENING, prompt=8, window=WINDOW)


def test_generation():
    model = tiny()
    prompts = [EXAMPLES[name]() for name in ("one image", "video")]
    runtime = Runtime(wrap(model, "prefill"), wrap(model, "decode"), capacity=40)
    check = generation_check(model, runtime, [*prompts, [5, 6, 7]], max_new_tokens=6)
    assert (check.identical, check.equal_share) == (3, 1.0)


@pytest.mark.parametrize(("inputs", "message"), [
    (EXAMPLES["text"](), "found no images; expected one sequence"),
    (EXAMPLES["batch"](), "found 3 sequences; expected one sequence"),
])  # fmt: skip
def test_what_is_no_opening_is_refused(inputs, message):
    with pytest.raises(ModelInputError, match=message):
        Opening.of(inputs)


def test_what_it_holds():
    assert OPENING.ids.count(IMAGE) == sum(OPENING.kinds) == 6
