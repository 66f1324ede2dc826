"""Synthetic images and clips for a Qwen3-VL."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tracer.errors import UsageError
from tracer.models.builtin import Tokens, build
from tracer.models.inputs.synthetic import image_and_text, patches
from tracer.models.inputs.text import InputSpec, check


@pytest.fixture(scope="module")
def qwen() -> nn.Module:
    return build("tiny-qwen3-vl", seed=0).eval()


def visual_calls(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The grids that the vision model is called with, and finite logits at the end."""
    grids = []
    hook = model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: grids.append(kwargs["grid_thw"]), with_kwargs=True
    )
    with torch.no_grad(), hook:
        assert bool(model(**inputs).logits.isfinite().all())
    return grids


class TestImageAndText:
    @pytest.mark.parametrize("length", [None, 4, 30, 84, 200])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_the_model_takes_them(self, qwen, length, batch: int):
        made, _ = image_and_text(qwen, InputSpec(sequence_length=length, batch=batch))
        check(qwen, made, "tiny-qwen3-vl")
        assert made["input_ids"].shape == (batch, length or 84)
        assert len(visual_calls(qwen, made)) == 1

    def test_image_tokens_and_what_does_not_fit(self, qwen):
        made, description = image_and_text(qwen, InputSpec(batch=2))
        assert made["mm_token_type_ids"].sum(1).tolist() == [64, 64]
        assert made["image_grid_thw"].prod(1).tolist() == [256, 256]
        assert made["pixel_values"].shape == (512, 3 * 2 * 16 * 16)
        assert made["pixel_values"].abs().max() <= 1
        assert "64 of them a synthetic image of 16 x 16 patches" in description
        with pytest.raises(UsageError, match="needs at least 4 tokens, an image"):
            image_and_text(qwen, InputSpec(sequence_length=3))
        with pytest.raises(UsageError, match="a prompt goes with --image"):
            image_and_text(qwen, InputSpec(prompt="a cat"))

    def test_text_keeps_clear_of_the_tokens_with_a_meaning(self):
        tokens = Tokens(vocabulary=40, padding=0, image=30, video=20, vision_start=6, vision_end=11)
        made, _ = image_and_text(build("tiny-qwen3-vl", 0, tokens=tokens), InputSpec(frames=3))
        ids = made["input_ids"][0]
        assert set(ids.tolist()) - {30, 20, 6, 11} == set(range(1, 6))
        assert int((ids == 6).sum()) == int((ids == 11).sum()) == 3


class TestClip:
    @pytest.mark.parametrize("frames", [1, 4, 5])
    @pytest.mark.parametrize("options", [{}, {"batch": 3, "padding": "left"}], ids=str)
    def test_the_model_takes_them(self, qwen, frames: int, options):
        made, description = image_and_text(qwen, InputSpec(frames=frames, **options))
        check(qwen, made, "tiny-qwen3-vl")
        steps, batch = (frames + 1) // 2, options.get("batch", 1)
        assert made["video_grid_thw"].tolist() == [[steps, 4, 6]] * batch
        assert made["pixel_values_videos"].shape == (batch * steps * 24, 3 * 2 * 16 * 16)
        kinds = made["mm_token_type_ids"]
        assert (kinds == 2).sum(1).tolist() == [steps * 6] * batch
        assert (kinds == 1).sum(1).tolist() == [64] * batch
        images, clips = visual_calls(qwen, made)
        assert torch.equal(images, made["image_grid_thw"])
        assert torch.equal(clips, made["video_grid_thw"])
        assert f"a synthetic clip of {frames} frames of 4 x 6 patches" in description
        assert made["input_ids"].shape[1] == 84 + 11 * steps

    def test_each_step_has_its_own_place_in_time(self, qwen):
        made, _ = image_and_text(qwen, InputSpec(frames=6))
        positions, _ = qwen.model.get_rope_index(
            made["input_ids"],
            made["mm_token_type_ids"],
            made["image_grid_thw"],
            made["video_grid_thw"],
            made["attention_mask"],
        )
        times = positions[0, 0, made["mm_token_type_ids"][0] == 2].view(3, 6)
        assert bool((times == times[:, :1]).all())
        # A step of 2 x 3 tokens moves on by 3, and its end, the next time and start by 5.
        assert times[:, 0].diff().tolist() == [8, 8]

    def test_the_image_and_the_room_for_a_clip(self, qwen):
        (with_clip, _), (without, _) = (
            image_and_text(qwen, InputSpec(frames=frames)) for frames in (2, None)
        )
        assert torch.equal(with_clip["pixel_values"], without["pixel_values"])
        made, _ = image_and_text(qwen, InputSpec(sequence_length=15, frames=2))
        assert made["input_ids"].shape == (1, 15)
        assert made["image_grid_thw"].tolist() == [[1, 2, 2]]
        with pytest.raises(UsageError, match="at least 15 tokens, 11 of the clip"):
            image_and_text(qwen, InputSpec(sequence_length=14, frames=2))


class TestPatches:
    @given(
        st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3),
        st.integers(1, 2), st.integers(1, 3), st.integers(1, 3),
    )  # fmt: skip
    @settings(deadline=None, max_examples=30)
    def test_each_pixel_is_where_a_loop_puts_it(
        self, clips, count, rows, columns, merge, size, time
    ):
        config = SimpleNamespace(
            spatial_merge_size=merge, patch_size=size, temporal_patch_size=time
        )
        shape = (clips, count, 3, rows * merge * size, columns * merge * size)
        frames = torch.arange(torch.Size(shape).numel()).view(shape)
        expected = []
        for clip in frames:
            for step in range(0, count, time):
                shown = clip[[min(step + t, count - 1) for t in range(time)]]
                for row in range(0, rows * merge, merge):
                    for column in range(0, columns * merge, merge):
                        for i in range(row, row + merge):
                            for j in range(column, column + merge):
                                top, left = i * size, j * size
                                patch = shown[:, :, top : top + size, left : left + size]
                                expected.append(patch.transpose(0, 1).flatten())
        assert torch.equal(patches(frames, config), torch.stack(expected))

    def test_as_transformers_cuts_an_image(self):
        drawn = (torch.arange(64 * 96 * 3) % 251).to(torch.uint8).view(64, 96, 3)
        half = [0.5, 0.5, 0.5]
        expected = Qwen2VLImageProcessorPil(
            do_resize=False, patch_size=16, image_mean=half, image_std=half
        )([drawn.numpy()], return_tensors="pt")
        assert expected["image_grid_thw"].tolist() == [[1, 4, 6]]
        frame = drawn.permute(2, 0, 1) / 127.5 - 1
        config = SimpleNamespace(spatial_merge_size=2, patch_size=16, temporal_patch_size=2)
        cut = patches(frame[None, None], config)
        assert torch.allclose(cut, expected["pixel_values"], atol=1e-6)
