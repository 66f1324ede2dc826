"""A small vision model of Qwen3-VL: images and videos, and the parts of it."""

import io

import pytest
import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

import wrappers
from tests.builders.agreement import peir
from tracer.models.loading import load

HIDDEN, HEADS, HEAD_DIM, PIXELS = 64, 4, 16, 3 * 2 * 16 * 16


ONE = [[1, 4, 6]]


SEVERAL = [[1, 4, 6], [1, 2, 2], [1, 8, 2]]


VIDEO = [[3, 4, 4]]


MIXED = [[1, 4, 6], [2, 4, 2]]


GRIDS = pytest.mark.parametrize(
    "grids", [ONE, SEVERAL, VIDEO, MIXED], ids=["one", "several", "video", "mixed"]
)


def tiny(implementation="eager", *, dtype=torch.float32):
    visual = load("tiny-qwen3-vl").model.model.visual
    visual.set_attn_implementation(implementation)
    return visual.to(dtype).eval()


def wrap(model, variant, *, fixed=None, **config):
    model_args = {} if fixed is None else {"grid_thw": fixed}
    return wrappers.prepare(
        model, wrappers.PTQConfig(variant=variant, model_args=model_args, **config)
    )


def patches_of(grids):
    return sum(t * h * w for t, h, w in grids)


def pixels(grids, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(patches_of(grids), PIXELS, generator=generator) * 2 - 1).to(dtype)


def inputs(grids, seed=1, dtype=torch.float32):
    return {"hidden_states": pixels(grids, seed, dtype), "grid_thw": torch.tensor(grids)}


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def tensors_of(output):
    return output.last_hidden_state, output.pooler_output, *output.deepstack_features


def assert_outputs_agree(expected, found, limit):
    assert type(found) is type(expected) is BaseModelOutputWithDeepstackFeatures
    assert list(found) == list(expected)
    for r, c in zip(tensors_of(expected), tensors_of(found), strict=True):
        assert r.shape == c.shape and r.dtype == c.dtype
        assert peir(r, c) <= limit


def assert_outputs_equal(expected, found):
    for r, c in zip(tensors_of(expected), tensors_of(found), strict=True):
        assert torch.equal(r, c)


def calibrated(model, variant, grids=MIXED, **config):
    wrapped = wrap(model, variant, **config)
    wrappers.calibrate(wrapped, [inputs(grids, seed) for seed in (1, 2)])
    return wrapped


def attention_inputs(grids, seed=3):
    """Hidden states of patches and what goes with them, tables of angles drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    patches = patches_of(grids)
    angles = torch.randn(patches, HEAD_DIM // 2, generator=generator).repeat(1, 2)
    frames = torch.tensor([h * w for t, h, w in grids for _ in range(t)])
    return {
        "hidden_states": torch.randn(patches, HIDDEN, generator=generator),
        "cu_seqlens": nn.functional.pad(frames.cumsum(0), (1, 0)).int(),
        "position_embeddings": (angles.cos(), angles.sin()),
    }


def assert_a_few_steps_apart(found, expected, last):
    """float32 and float64 fall on different sides of a rounding now and then: a step at one point
    moves a few outputs by a few steps and no more. Without any one of the attention's points that
    matter, the root mean square is above half a step."""
    step = float(last.points["act_out"].qparams.scale)
    difference = (found.double() - expected) / step
    assert difference.abs().max() <= 4
    assert difference.square().mean().sqrt() < 0.5


def exported(module, args, kwargs):
    """What the program gives that was captured, saved and loaded, and the program."""
    with torch.no_grad():
        program = torch.export.export(module, args, kwargs, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    program = torch.export.load(file)
    with torch.no_grad():
        return program.module()(*args, **kwargs), program


def operators_of(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
