"""From a checkpoint and a recipe to files: the model, the decode model, figures, graphs."""

import json
import math

import pytest
import torch

import tracer
import wrappers
from tests.builders.llama import calibrated, tiny, tokens
from wrappers.errors import (
    ExportError,
    ModelInputError,
    RecipeError,
    SavedModelError,
    UnknownOverrideError,
)
from wrappers.evaluate import documents, perplexity
from wrappers.recipes import Recipe, make
from wrappers.recipes.making import _exported
from wrappers.recipes.sections import Export

RECIPE = """
[quantization]
activation = "int16"
weight = "uint4"
kv-cache = { keys = "int8", values = "int4", group = 4, residual = 4 }

[[stages]]
name = "rotation"

[[stages]]
name = "gptq"

[calibration]
data = "text"
file = "text.txt"
count = 2
length = 16
batch = 2

[decode]
steps = 3

[evaluation]
text = "text.txt"
tokens = 60
"""
TEXT = "Once upon a time there was a little girl who had a red ball. She played all day. " * 8


def recipe_of(tmp_path, text=RECIPE):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "recipe.toml").write_text(text)
    return Recipe.read(tmp_path / "recipe.toml")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    told = []

    class Told:
        def __init__(self, what):
            told.append(what)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

    return make(recipe_of(folder), "tiny-llama", folder / "out", during=Told), told


@pytest.mark.covers
def test_what_is_written(made) -> None:
    found, told = made
    assert {path.name for path in found.folder.iterdir()} == {
        "quantized.json", "weights.safetensors", "qparams.safetensors", "recipe.toml",
        "evaluation.json", "decode",
    }  # fmt: skip
    assert (found.folder / "recipe.toml").read_text() == RECIPE
    assert told == [
        "loading tiny-llama", "stage 1 of 2, rotation", "stage 2 of 2, gptq", "calibrating",
        "calibrating the decode model", "measuring the float model",
        "measuring the quantized model", "writing",
    ]  # fmt: skip
    assert found.notes[-1].startswith("calibrated on 2 sequences of 16 tokens of ")


def test_the_figures_are_those_of_what_is_loaded_again(made) -> None:
    folder = made[0].folder
    figures = json.loads((folder / "evaluation.json").read_text())
    loaded = tracer.models.load("tiny-llama")
    texts = documents(TEXT, loaded.tokenizer)
    for name, model in (
        ("float", loaded.model),
        ("quantized", wrappers.load(folder)),
        ("quantized", wrappers.load(folder, loaded.model)),
    ):
        found = perplexity(model, [texts[0][:60]], bos=loaded.tokenizer.bos_token_id)
        assert figures[name]["perplexity"]["value"] == found.value
    assert math.isclose(
        figures["float"]["perplexity"]["value"], figures["quantized"]["perplexity"]["value"],
        rel_tol=0.5,
    )  # fmt: skip
    assert "float: perplexity " in made[0].in_words()[0]


def test_the_decode_model_has_the_weights_of_its_prefill(made) -> None:
    folder = made[0].folder
    model = tracer.models.load("tiny-llama").model
    prefill, decode = (wrappers.load(place, model) for place in (folder, folder / "decode"))
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        one, other = (each.model.layers[1].get_submodule(name) for each in (prefill, decode))
        assert torch.equal(one.weight, other.weight)
        assert one.points["weight"].locked and other.points["weight"].locked
        assert torch.equal(one.points["weight"].qparams.scale, other.points["weight"].qparams.scale)
    assert decode.model.layers[1].self_attn.points["kv_value"].kind == "int4"
    runtime = wrappers.Runtime(prefill, decode, capacity=32)
    ids = torch.tensor([[1, 5, 7, 9]])
    tokens = runtime.generate(ids, max_new_tokens=6)
    # The decode graph goes on as the prefill model does with all tokens so far.
    for count in range(1, 4):
        whole = torch.cat((ids, tokens[:, :count]), dim=1)
        with torch.no_grad():
            best = prefill(whole).logits[0, -1].topk(3).indices
        assert tokens[0, count] in best


def test_a_folder_is_replaced_by_force_alone(made, tmp_path) -> None:
    folder = made[0].folder
    recipe = recipe_of(tmp_path, "[calibration]\ndata = 'random'\ncount = 1\nlength = 4")
    with pytest.raises(SavedModelError, match="holds a saved model already"):
        make(recipe, "tiny-llama", folder)


@pytest.mark.parametrize(("text", "error", "message"), [
    ("[[overrides]]\nmodules='*.up_prj'\nspec='int8'", UnknownOverrideError, "no quantization poi"),
    ("[[stages]]\nname='gptq'\n[calibration]\ndata='random'\nlength=8\n[decode]\nsteps=8",
     ModelInputError, "a prompt has 8 tokens, and 8 are to be decoded"),
    ("[calibration]\nlength = 9999", RecipeError, "and tiny-llama has 512 pos"),
    ("[calibration]\ndata='text'\nfile='text.txt'\nlength=200\n", RecipeError, "takes 199"),
    ("[calibration]\ndata='jsonl'\nfile='text.txt'", RecipeError, "line 1 is no JSON"),
    ("[calibration]\ndata='text'\nfile='empty.txt'", RecipeError, "empty.txt: found no text"),
    ("[evaluation]\ntext='empty.txt'", RecipeError, "empty.txt: found no text among 0"),
    ("[evaluation]\ntext='text.txt'\nstride=512", ModelInputError, "a stride of 512 for a wi"),
    ("[calibration]\ndata='jsonl'\nfile='empty.txt'", RecipeError, "found no sequence to cal"),
    ("[quantization]\nweight='nvfp4'\n[export]\nformat='circle'", ExportError, "no type for"),
    ("[evaluation]\nquestions='q.jsonl'", RecipeError, "needs? one: --processor"),
])  # fmt: skip
def test_what_does_not_go_with_the_model(tmp_path, monkeypatch, text, error, message) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("")
    question = {"image": "cat.png", "question": "What?", "answer": "cat"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    monkeypatch.setattr("wrappers.recipes.sections.find_spec", lambda name: name)  # tico
    recipe = recipe_of(tmp_path, text)
    if "takes 199" in message:
        (tmp_path / "text.txt").write_text("Too short.")
    with pytest.raises(error, match=message):
        make(recipe, "tiny-llama", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lines_of_two_kinds(tmp_path) -> None:
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"text": "A girl had a ball."}) + "\n\n" + json.dumps({"input_ids": [1, 5, 7]})
    )
    recipe = recipe_of(
        tmp_path, "[calibration]\ndata='jsonl'\nfile='lines.jsonl'\nbatch=2\nlength=16"
    )
    found = make(recipe, "tiny-llama", tmp_path / "out")
    assert found.notes[-1].startswith("calibrated on 2 lines of ")
    assert found.evaluation == {} and found.exported == ()
    (tmp_path / "lines.jsonl").write_text(json.dumps({"input_ids": [1, 99999]}))
    with pytest.raises(RecipeError, match="token 99999 is none of the model's 512"):
        make(recipe, "tiny-llama", tmp_path / "other")


@pytest.mark.covers
def test_photos_and_questions(tmp_path, shared_data) -> None:
    pytest.importorskip("PIL")
    photo = str(shared_data / "images" / "chelsea.png")
    question = {"image": photo, "question": "What?", "choices": ["cat", "dog"], "answer": 0}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    recipe = recipe_of(
        tmp_path,
        f"[calibration]\ndata='images'\nimages=['{photo}']\ncount=2\nmax-pixels=20000\n"
        "[evaluation]\nquestions='q.jsonl'\nmax-pixels=20000",
    )
    processor = str(shared_data / "qwen_processor" / "qwen3vl")
    found = make(recipe, "tiny-qwen3-vl", tmp_path / "out", processor=processor)
    assert found.evaluation["quantized"]["questions"]["questions"] == 1
    assert found.evaluation["float"]["questions"]["standard_error"] is None
    assert "100.0% of 1 questions" in found.in_words()[0] or "0.0% of 1" in found.in_words()[0]


@pytest.mark.covers
@pytest.mark.parametrize(("per_layer", "expected"), [
    (True, ["manifest.json", "prefill.embedding.pt2", "prefill.head.pt2", "prefill.layer.0.pt2"]),
    (False, ["prefill.pt2"]),
])  # fmt: skip
def test_graphs(tmp_path, per_layer, expected) -> None:
    batches = [{"input_ids": tokens(1, 8)}]
    quantized = wrappers.convert(calibrated(tiny(num_hidden_layers=1), "prefill", batches))
    made = _exported(Export(per_layer=per_layer, tokens=8), quantized, None, tmp_path / "export")
    assert list(made) == expected
    assert _exported(None, quantized, None, tmp_path / "other") == ()
