"""The pieces of a model, run in the order of their manifest, compute what the whole model does."""

import json

import numpy as np
import pytest
import torch

import wrappers
from tests.builders import qwen3_vl_whole
from tests.builders.llama import calibrated, specs, tiny, tokens, wrap
from wrappers.deploy.manifest import MANIFEST, export_pieces, pieces_of
from wrappers.deploy.prompts import Prompts
from wrappers.deploy.runtime import run_prefill, step_inputs
from wrappers.deploy.visual_pieces import places
from wrappers.errors import ExportError

LENGTH = 12


def attention_inputs(model, length, rotary, positions):
    """Tables and mask of a prefill as the graphs take them."""
    cos, sin = rotary(torch.zeros(1), positions)
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]
    cos, sin = wrappers.Step(layer).tables(cos, sin)
    return {"cos": cos, "sin": sin, "mask": torch.full((1, length, length), -120.0).triu(1)}


def run(folder, values, stages, call):
    """All pieces of some stages, in the order of the manifest, with nothing but its names."""
    for piece in json.loads((folder / MANIFEST).read_text())["pieces"]:
        if piece["stage"] not in stages:
            continue
        inputs = [values[value["name"]] for value in piece["inputs"]]
        assert [list(each.shape) for each in inputs] == [v["shape"] for v in piece["inputs"]]
        outputs = call(folder / piece["file"], inputs)
        for value, output in zip(piece["outputs"], outputs, strict=True):
            values[value["name"]] = torch.as_tensor(output).reshape(value["shape"])
    return values["logits"]


def by_torch(file, inputs):
    with torch.no_grad():
        made = torch.export.load(file).module()(*inputs)
    return made if isinstance(made, (tuple, list)) else (made,)


def both_models(model, ids):
    prefill = wrappers.convert(calibrated(model, "prefill", [ids], **specs("int16", "uint8")))
    decode = wrap(model, "decode", **specs("int16", "uint8"))
    wrappers.calibrate_decode(model, decode, [ids], steps=6, source="float")
    return prefill, wrappers.convert(decode)


@pytest.mark.covers
def test_a_llama_piece_by_piece(tmp_path) -> None:
    model, ids = tiny(num_hidden_layers=1), tokens(1, LENGTH)
    prefill, decode = both_models(model, ids)
    files = export_pieces(prefill, tmp_path, decode=decode, tokens=LENGTH, past=LENGTH)
    assert [file.name for file in files] == [
        "prefill.embedding.pt2", "prefill.layer.0.pt2", "prefill.head.pt2",
        "decode.embedding.pt2", "decode.layer.0.pt2", "decode.head.pt2", MANIFEST,
    ]  # fmt: skip
    rotary = model.model.rotary_emb
    values = {"input_ids": ids}
    values |= attention_inputs(prefill, LENGTH, rotary, torch.arange(LENGTH)[None])
    with torch.no_grad():
        expected = prefill(ids, use_cache=True)
        assert torch.equal(run(tmp_path, values, ["prefill"], by_torch), expected.logits)
        # A step on the keys and values that the pieces of the prefill have given.
        step = wrappers.Step(decode)
        token = expected.logits[:, -1:].argmax(-1)
        cos, sin = step.tables(*rotary(torch.zeros(1), torch.tensor([[LENGTH]])))
        given = token, cos, sin, torch.zeros(1, 1, LENGTH + 1)
        logits, *_ = step(*given, values["key.0"], values["value.0"])
    values |= dict(zip(("input_ids", "cos", "sin", "mask"), given, strict=True))
    values |= {"past_key.0": values["key.0"], "past_value.0": values["value.0"]}
    assert torch.equal(run(tmp_path, values, ["decode"], by_torch), logits)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["inputs"] == ["cos", "input_ids", "mask", "past_key.0", "past_value.0", "sin"]
    layer = manifest["pieces"][1]
    assert layer["module"] == "model.layers.0" and layer["inputs"][0]["dtype"] == "float32"
    point = prefill.model.layers[0].points["mlp_residual_out"].qparams
    assert layer["outputs"][0]["qparams"] == {
        "scale": pytest.approx(float(point.scale)), "zero_point": int(point.zero_point),
        "axis": None, "min": -32768, "max": 32767,
    }  # fmt: skip


@pytest.mark.covers
def test_a_qwen3_vl_piece_by_piece(tmp_path) -> None:
    model = qwen3_vl_whole.tiny(text={"num_hidden_layers": 1})
    inputs = qwen3_vl_whole.EXAMPLES["one image"]()
    config = {
        **specs("int16", "uint8"), "model_args": {"grid_thw": [[1, 4, 6]]},
        "kv_cache": wrappers.KVCacheSpec("int4", "int4", group=4, residual=4),
    }  # fmt: skip
    both = (qwen3_vl_whole.wrap(model, variant, **config) for variant in ("prefill", "decode"))
    quantized, decode = both
    wrappers.calibrate_both(quantized, decode, [inputs], steps=2, source="float")
    wrappers.convert(quantized), wrappers.convert(decode)
    ids = inputs["input_ids"]
    length = ids.shape[1]
    export_pieces(quantized, tmp_path, decode=decode, tokens=length, past=length)
    positions = model.model.compute_3d_position_ids(
        input_ids=ids,
        image_grid_thw=inputs["image_grid_thw"],
        video_grid_thw=None,
        inputs_embeds=torch.zeros(*ids.shape, 32),
        attention_mask=inputs["attention_mask"],
        past_key_values=None,
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    text, rotary = quantized.model.language_model, model.model.language_model.rotary_emb
    rows, visual = places(ids, qwen3_vl_whole.IMAGE)
    values = {
        "input_ids": ids, "pixel_values": inputs["pixel_values"], "rows": rows, "visual": visual,
        **attention_inputs(text, ids.shape[1], rotary, positions),
    }  # fmt: skip
    with torch.no_grad():
        expected = quantized(**inputs).logits
        assert torch.equal(run(tmp_path, values, ["vision", "prefill"], by_torch), expected)
        # A step on the keys and values that the pieces of the prefill have given.
        _, slots = run_prefill(quantized, decode, Prompts.packed(inputs), length, logits_to_keep=1)
        given = step_inputs(decode, expected[:, -1].argmax(-1), slots, slots.step())
        expected = decode(**given).logits
    tables = rotary(torch.zeros(1), given["position_ids"])
    tables = wrappers.Step(decode.model.language_model).tables(*tables)
    values |= dict(zip(("cos", "sin"), tables, strict=True))
    values |= {"input_ids": given["input_ids"], "mask": given["attention_mask"].squeeze(1)}
    values |= {"past_key.0": values["key.0"], "past_value.0": values["value.0"]}
    assert torch.equal(run(tmp_path, values, ["decode"], by_torch), expected)


@pytest.mark.covers
def test_circles_in_a_runtime(tmp_path) -> None:
    """onert runs float circles of batched heads alone; see docs/guides/export.md."""
    onert = pytest.importorskip("onert", reason="needs onert")
    pytest.importorskip("tico", reason="needs the extra export")
    model, ids = tiny(num_hidden_layers=1), tokens(1, LENGTH)
    wrapped = wrap(model, "prefill_reference")
    export_pieces(wrapped, tmp_path, suffix=".circle", tokens=LENGTH)
    rotary = model.model.rotary_emb
    values = {"input_ids": ids}
    values |= attention_inputs(wrapped, LENGTH, rotary, torch.arange(LENGTH)[None])

    def by_onert(file, inputs):
        return onert.infer.session(str(file)).infer([each.numpy() for each in inputs])

    found = run(tmp_path, values, ["prefill"], lambda f, i: map(np.array, by_onert(f, i)))
    with torch.no_grad():
        torch.testing.assert_close(found, wrapped(ids).logits, rtol=0, atol=1e-5)


def test_the_pieces_in_order() -> None:
    quantized = qwen3_vl_whole.wrap(
        qwen3_vl_whole.tiny(), "prefill", model_args={"grid_thw": [[1, 4, 6]]}
    )
    found = pieces_of(quantized, tokens=9)
    assert [piece.name for piece in found] == [
        "vision.patches", "vision.block.0", "vision.deepstack.0", "vision.block.1",
        "vision.block.2", "vision.deepstack.1", "vision.merger", "prefill.embedding",
        "prefill.fusion", "prefill.layer.0", "prefill.deepstack.0", "prefill.layer.1",
        "prefill.deepstack.1", "prefill.layer.2", "prefill.head",
    ]  # fmt: skip
    given = {"input_ids", "pixel_values", "cos", "sin", "mask", "rows", "visual"}
    for piece in found:  # nothing is taken before it is there
        assert set(piece.inputs) <= given
        given |= set(piece.outputs)


@pytest.mark.parametrize(("model", "message"), [
    (lambda: qwen3_vl_whole.wrap(qwen3_vl_whole.tiny(), "prefill"), "are for fixed grids"),
    (lambda: wrappers.prepare(torch.nn.Sequential(torch.nn.Linear(2, 2)), wrappers.PTQConfig()),
     "has 0 wrapped text models and no head"),
])  # fmt: skip
def test_what_has_no_pieces(tmp_path, model, message) -> None:
    with pytest.raises(ExportError, match=message):
        export_pieces(model(), tmp_path)
    assert not list(tmp_path.iterdir())
