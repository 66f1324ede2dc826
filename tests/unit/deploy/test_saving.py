"""A saved model is the same model, wherever it is loaded; what is damaged or foreign is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import wrappers
from tests.builders import qwen3_vl_whole
from tests.builders.llama import calibrated, specs, tiny, tokens, wrap
from wrappers import algorithms
from wrappers.deploy.folders import FORMAT, HEADER, QPARAMS, WEIGHTS
from wrappers.errors import ArgumentError, ModeError, SavedModelError

VARIANTS = ("prefill", "decode")
BATCHES = [{"input_ids": tokens(2, 24, seed)} for seed in (1, 2)]
CONFIG = wrappers.PTQConfig(
    **specs("int16", "uint4"),
    overrides={"lm_head.*": wrappers.no_quantization(), "*.mlp.act_in": {"dtype": "uint8"}},
)


@pytest.fixture(scope="module")
def model():
    return tiny(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A quantised model, and the folder that it was saved in."""
    folder = tmp_path_factory.mktemp("saved") / "quantized"
    quantized = wrappers.convert(calibrated(model, "prefill", BATCHES, **specs("uint8", "uint8")))
    wrappers.save(quantized, folder, model)
    return quantized, folder


def logits(model, inputs=BATCHES[0]):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("stages", [
    [],
    [algorithms.GPTQ(), algorithms.BiasCorrection()],
    [algorithms.Rotation(), algorithms.GPTQ(group_size=8)],
    [algorithms.SmoothQuant(), algorithms.CrossLayerEqualisation()],
], ids=["rounding", "gptq and biases", "rotation and groups", "smoothing"])  # fmt: skip
def test_the_same_logits_after_each_algorithm(model, tmp_path, stages) -> None:
    before = logits(model)
    quantized = algorithms.quantize(model, CONFIG, BATCHES, stages)
    wrappers.save(quantized, tmp_path / "q", model)
    loaded = wrappers.load(tmp_path / "q", model)
    assert torch.equal(logits(loaded), logits(quantized))
    assert not torch.equal(logits(loaded), before)
    assert torch.equal(logits(model), before)
    # Other inputs than those of the calibration, and what the model is otherwise.
    assert torch.equal(logits(loaded, BATCHES[1]), logits(quantized, BATCHES[1]))
    assert loaded.config.tie_word_embeddings == quantized.config.tie_word_embeddings
    assert model.config.tie_word_embeddings
    locked = [
        [point.locked for _, _, point in wrappers.iter_points(each)] for each in (loaded, quantized)
    ]
    assert locked[0] == locked[1]


@pytest.mark.parametrize("variant", ["prefill_reference", "decode"])
def test_other_variants(model, tmp_path, variant) -> None:
    wrapped = wrap(model, variant, **specs("uint8", "uint8"))
    if variant == "decode":
        prompts = [batch["input_ids"] for batch in BATCHES]
        wrappers.calibrate_decode(model, wrapped, prompts, steps=8, source="float")
        inputs = next(wrappers.decode_inputs(model, wrapped, prompts, steps=2, source="float"))
    else:
        wrappers.calibrate(wrapped, BATCHES)
        inputs = BATCHES[0]
    quantized = wrappers.convert(wrapped)
    wrappers.save(quantized, tmp_path / "q", model)
    loaded = wrappers.load(tmp_path / "q", model)
    expected = logits(quantized, inputs)
    if variant == "decode":  # a step writes its cache
        inputs = next(wrappers.decode_inputs(model, wrapped, prompts, steps=2, source="float"))
    assert torch.equal(logits(loaded, inputs), expected)


FEW_BITS = wrappers.KVCacheSpec("int4", "int8", group=4, residual=3)


@pytest.mark.parametrize(("family", "activation", "weight", "kv_cache"), [
    ("llama", "int16", "uint4", FEW_BITS),
    ("llama", "fp8_e4m3", "nvfp4", FEW_BITS),
    ("llama", "nvfp4", "mxfp4", None),
    ("qwen3_vl", "int16", "uint8", FEW_BITS),
    pytest.param("qwen3_vl", "fp8_e5m2", "fp8_e4m3", FEW_BITS, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_decode_model_inside(tmp_path, family, activation, weight, kv_cache) -> None:
    if family == "llama":
        model, batch = tiny(num_hidden_layers=1), {"input_ids": tokens(1, 12)}
        turns = batch, {"input_ids": tokens(1, 5, 3)}
    else:
        model = qwen3_vl_whole.tiny(text={"num_hidden_layers": 1})
        batch = qwen3_vl_whole.batch_of([3, ("image", (1, 4, 6)), 6])
        turns = batch, qwen3_vl_whole.batch_of([2, ("image", (1, 4, 2)), 3], seed=5)
    config = specs(activation, weight)
    prefill, decode = (wrap(model, each, kv_cache=kv_cache, **config) for each in VARIANTS)
    wrappers.calibrate_both(prefill, decode, [batch], steps=3, source="float")
    both = wrappers.convert(prefill), wrappers.convert(decode)
    places = tmp_path / "q", tmp_path / "q" / "decode"
    for each, place in zip(both, places, strict=True):
        wrappers.save(each, place, model)
    loaded = [wrappers.load(place, model) for place in places]
    assert torch.equal(logits(loaded[0], batch), logits(both[0], batch))
    chats = [wrappers.Runtime(*each, capacity=60).conversation() for each in (both, loaded)]
    for turn in turns:
        made = [chat.generate(**turn, max_new_tokens=6) for chat in chats]
        assert torch.equal(*made)
    for keys in zip(*(chat._slots.layers for chat in chats), strict=True):
        assert torch.equal(keys[0][0], keys[1][0])
    summaries = [wrappers.summary(each) for each in (decode, loaded[1])]
    for point, known in summaries[0].items():  # all but what calibration has seen
        seen = ("observed_min", "observed_max")
        assert {k: v for k, v in known.items() if k not in seen} == {
            k: v for k, v in summaries[1][point].items() if k not in seen
        }  # fmt: skip


def test_microscaling_and_half_precision_from_the_checkpoint(model, tmp_path, monkeypatch) -> None:
    model.save_pretrained(tmp_path / "float")
    half = LlamaForCausalLM.from_pretrained(
        tmp_path / "float", dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    config = wrappers.PTQConfig(
        activation=wrappers.microscaling("int8"), weight=wrappers.microscaling("fp4_e2m1")
    )
    quantized = algorithms.quantize(half, config, BATCHES)
    wrappers.save(quantized, tmp_path / "q")
    assert torch.equal(logits(wrappers.load(tmp_path / "q")), logits(quantized))
    # Both moved together, and seen from elsewhere.
    (tmp_path / "moved").mkdir()
    for name in ("float", "q"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    monkeypatch.chdir(tmp_path / "moved")
    assert torch.equal(logits(wrappers.load("q")), logits(quantized))
    with pytest.raises(SavedModelError, match="bfloat16 model, and this one is float32"):
        wrappers.load("q", model)
    (tmp_path / "moved" / "float").rename(tmp_path / "gone")
    with pytest.raises(SavedModelError, match="which is not there: give the float model"):
        wrappers.load("q")


def test_only_what_differs_is_written(model, saved, tmp_path) -> None:
    _, folder = saved
    weights, qparams = (load_file(folder / name) for name in (WEIGHTS, QPARAMS))
    # Buffers that no checkpoint holds; the factor of k_proj is folded in again by prepare().
    assert all(name.endswith("inv_freq") for name in weights)
    scale = qparams["model.layers.0.mlp.up_proj:weight.scale"]
    assert scale.shape == (40,) and scale.dtype == torch.float32
    header = json.loads((folder / HEADER).read_text())
    assert header["versions"]["torch"] == torch.__version__
    assert wrappers.PTQConfig.from_dict(header["config"]).weight == wrappers.affine("uint8")
    rounded = algorithms.quantize(model, CONFIG, BATCHES, [algorithms.GPTQ()])
    wrappers.save(rounded, tmp_path / "q", model)
    own = {name for name in load_file(tmp_path / "q" / WEIGHTS) if not name.endswith("inv_freq")}
    assert "model.embed_tokens.weight" not in own
    assert {name.rpartition(".")[2] for name in own} == {"weight"}
    assert len(own) == 14


def test_what_cannot_be_saved(model, saved, tmp_path) -> None:
    quantized, _ = saved
    wrapped = wrap(model, "prefill")
    for unready, message in (
        (model, "has no wrappers"),
        (wrapped, r"wrappers are not quantised: .* and \d+ more; call convert\(\) first"),
        (quantized.model.layers[0], "is a part of a prepared model"),
    ):
        with pytest.raises(ModeError, match=message):
            wrappers.save(unready, tmp_path / "q", model)
    with pytest.raises(SavedModelError, match="does not say where its checkpoint is"):
        wrappers.save(quantized, tmp_path / "q")
    with pytest.raises(SavedModelError, match="checkpoint is a wrapped model"):
        wrappers.save(quantized, tmp_path / "q", wrapped)
    with pytest.raises(ArgumentError, match="save: folder is 3"):
        wrappers.save(quantized, 3)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_not_replaced(model, saved, tmp_path) -> None:
    quantized, _ = saved
    folder = tmp_path / "q"
    folder.mkdir()
    wrappers.save(quantized, folder, model)  # an empty one is taken
    with pytest.raises(SavedModelError, match="holds a saved model already"):
        wrappers.save(quantized, folder, model)
    wrappers.save(quantized, folder, model, force=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SavedModelError, match=r"holds notes\.txt, which no saved model has"):
        wrappers.save(quantized, folder, model, force=True)
    with pytest.raises(SavedModelError, match="does not exist; create it first"):
        wrappers.save(quantized, tmp_path / "nowhere" / "q", model)
    with pytest.raises(SavedModelError, match="cannot be written: File name too long; give an"):
        wrappers.save(quantized, tmp_path / ("q" * 250), model)
    (tmp_path / "file").write_text("")
    with pytest.raises(SavedModelError, match="is no folder"):
        wrappers.save(quantized, tmp_path / "file", model, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"q", "file"}


def test_a_save_that_fails_leaves_the_former_one(model, saved, tmp_path, monkeypatch) -> None:
    quantized, _ = saved
    folder = tmp_path / "q"
    wrappers.save(quantized, folder, model)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wrappers.deploy.folders.save_file", full)
    with pytest.raises(SavedModelError, match="No space left on device"):
        wrappers.save(quantized, folder, model, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["q"]
    assert torch.equal(logits(wrappers.load(folder, model)), logits(quantized))


def damaged(folder, tmp_path, change):
    """A copy of a saved model, changed."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    change(copy)
    return copy


def edited(**changes):
    def edit(folder):
        header = json.loads((folder / HEADER).read_text()) | changes
        from wrappers.deploy.folders import _checksum

        header["checksum"] = _checksum(header)
        (folder / HEADER).write_text(json.dumps(header))

    return edit


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: (f / QPARAMS).unlink(), "lacks qparams.safetensors"),
    (lambda f: (f / QPARAMS).write_bytes((f / QPARAMS).read_bytes()[:-9]), "it is cut off"),
    (lambda f: (f / QPARAMS).write_bytes(b"\1" + (f / QPARAMS).read_bytes()[1:]), "is damaged"),
    (lambda f: (f / HEADER).unlink(), "a folder without quantized.json"),
    (lambda f: (f / HEADER).write_text((f / HEADER).read_text()[:300]), "it is no JSON"),
    (lambda f: (f / HEADER).write_text("[1]"), "its checksum is another"),
    (lambda f: (f / HEADER).write_text((f / HEADER).read_text().replace("uint8", "uint4")),
     "was changed by hand"),
    (edited(format=FORMAT + 1), "has format 2, and this version reads up to 1"),
    (edited(config={"weigth": None}), "config cannot be used: .* has no 'weigth'"),
    (edited(config={"variant": "decoding"}), "no wrapper in the variant 'decoding'"),
    (edited(points={"model.layers.7": {}}), "there are no wrappers model.layers.7"),
    (edited(points={}), "it has nothing for the points"),
    (edited(**{"class": "transformers.FutureForCausalLM"}), "was made of a transformers.Future"),
])  # fmt: skip
def test_damage_is_told(model, saved, tmp_path, change, message) -> None:
    with pytest.raises(SavedModelError, match=message):
        wrappers.load(damaged(saved[1], tmp_path, change), model)


def test_a_class_that_is_not_installed(saved, tmp_path) -> None:
    change = edited(**{"class": "transformers.FutureForCausalLM", "checkpoint": {"hub": "a/b"}})
    with pytest.raises(SavedModelError, match="FutureForCausalLM, which is not installed here"):
        wrappers.load(damaged(saved[1], tmp_path, change))


@pytest.mark.parametrize(("other", "message"), [
    (lambda: tiny(seed=3, tie_word_embeddings=True), "made of another checkpoint"),
    (lambda: tiny(num_hidden_layers=1, tie_word_embeddings=True), "with num_hidden_layers = 2"),
    (lambda: tiny(tie_word_embeddings=True).model, "made of a transformers.*LlamaForCausalLM"),
    (lambda: wrap(tiny(tie_word_embeddings=True), "prefill"), "is wrapped: give the float model"),
])  # fmt: skip
def test_another_model(saved, other, message) -> None:
    with pytest.raises(SavedModelError, match=message):
        wrappers.load(saved[1], other())


def test_no_checkpoint_is_known(saved) -> None:
    with pytest.raises(SavedModelError, match="was made of no checkpoint: give the float model"):
        wrappers.load(saved[1])
    with pytest.raises(SavedModelError, match="is no folder"):
        wrappers.load("nowhere")
