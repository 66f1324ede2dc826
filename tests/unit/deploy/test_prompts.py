"""Prompts: packed to the left, with the positions that images give them."""

import pytest
import torch

from tests.builders.llama import tiny as tiny_llama
from tests.builders.llama import tokens
from tests.builders.qwen3_vl_whole import EXAMPLES, batch_of, tiny
from wrappers.deploy.prompts import Prompts
from wrappers.errors import ModelInputError

EACH_EXAMPLE = pytest.mark.parametrize("example", EXAMPLES)


class TestPacking:
    def test_padding_goes_to_the_end(self):
        ids = torch.arange(1, 5).expand(4, 4)
        mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]])
        prompts = Prompts.packed({"input_ids": ids, "attention_mask": mask})
        assert (prompts.lengths.tolist(), prompts.longest) == ([3, 2, 1, 2], 3)
        inputs = prompts.inputs()
        rows = (inputs["input_ids"] * inputs["attention_mask"]).tolist()
        assert rows == [[1, 2, 3], [3, 4, 0], [1, 0, 0], [2, 4, 0]]
        prompts = Prompts.packed(tokens(2, 5))
        assert torch.equal(prompts.input_ids, tokens(2, 5))
        assert prompts.lengths.tolist() == [5, 5]
        assert prompts.inputs()["attention_mask"].all()
        with pytest.raises(ModelInputError, match="prompts holds ids, mask; expected input_ids"):
            Prompts.packed({"ids": tokens(1, 2), "mask": tokens(1, 2)})


class TestImages:
    @EACH_EXAMPLE
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_positions_are_those_of_each_row_alone(self, example, side):
        model, inputs = tiny(), EXAMPLES[example](side=side)
        prompts = Prompts.packed(inputs)
        positions, deltas = prompts.positions(model)
        known = {name: value for name, value in inputs.items() if "pixel" not in name}
        if "mm_token_type_ids" not in known:
            assert positions.tolist() == [list(range(prompts.longest))]
            assert not deltas.any()
            return
        expected, offsets = model.model.get_rope_index(**known)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            length = int(mask.sum())
            assert torch.equal(positions[:, row, :length], expected[:, row, mask])
            assert int(deltas[row]) == int(offsets[row])

    def test_where_images_begin_and_text_goes_on(self):
        prompts = Prompts.packed(batch_of(
            [3, ("image", (1, 4, 6)), 4], [2, ("image", (1, 2, 2)), 1, ("image", (1, 6, 2)), 2],
            [9],
        ))  # fmt: skip
        # One token marks the beginning of an image, and one its end.
        assert prompts.first_visual.tolist() == [4, 3, 9]
        assert prompts.text_after.tolist() == [5, 3, 9]
        rest = prompts.after(torch.tensor([4, 3, 8]))
        assert rest.lengths.tolist() == [11, 10, 1]
        for row, (start, length) in enumerate([(4, 11), (3, 10), (8, 1)]):
            kept = slice(start, start + length)
            assert torch.equal(rest.input_ids[row, :length], prompts.input_ids[row, kept])
            assert torch.equal(rest.kinds[row, :length], prompts.kinds[row, kept])
        longer = prompts.beginning_with(torch.tensor([5, 6, 7]))
        assert longer.input_ids[:, 0].tolist() == [5, 6, 7]
        assert longer.first_visual.tolist() == [5, 4, 10]

    def test_kinds_without_images_are_text(self):
        ids = tokens(2, 5)
        prompts = Prompts.packed({"input_ids": ids, "mm_token_type_ids": torch.zeros_like(ids)})
        assert prompts.kinds is None
        assert set(prompts.inputs()) == {"input_ids", "attention_mask"}

    @pytest.mark.parametrize(("change", "message"), [
        (lambda i: i.pop("image_grid_thw"), "pixel_values without image_grid_thw; give both"),
        (lambda i: i.pop("pixel_values"), "image_grid_thw without pixel_values; give both"),
        (lambda i: i.pop("mm_token_type_ids"), "without mm_token_type_ids, by which images"),
        (
            lambda i: i.update(mm_token_type_ids=i["mm_token_type_ids"][:, 1:]),
            r"mm_token_type_ids of shape \[1, 13\] for prompts of shape \[1, 14\]",
        ),
        (lambda i: i.update(mm_token_type_ids=i["mm_token_type_ids"] * 2), "do not agree .* image"),
        (
            lambda i: i.update(pixel_values_videos=torch.ones(1), video_grid_thw=torch.ones(1)),
            "do not agree on whether there is a video",
        ),
    ])  # fmt: skip
    def test_what_is_not_whole_is_refused(self, change, message):
        inputs = batch_of([3, ("image", (1, 4, 6)), 3])
        change(inputs)
        with pytest.raises(ModelInputError, match=message):
            Prompts.packed(inputs)

    def test_what_a_model_cannot_take_is_refused(self):
        inputs = batch_of([1, ("image", (1, 2, 2)), 1, ("image", (1, 2, 2)), 1])
        said = "found pixel_values, image_grid_thw, and a LlamaForCausalLM takes no images"
        with pytest.raises(ModelInputError, match=said):
            Prompts.packed(inputs).positions(tiny_llama())
        inputs["image_grid_thw"] = inputs["image_grid_thw"][:1]
        with pytest.raises(ModelInputError, match="more images or videos than there are grids"):
            Prompts.packed(inputs).positions(tiny())
