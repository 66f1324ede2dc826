"""A recipe is checked wholly when it is read: what is wrong is named, with what is right."""

import json

import pytest

import wrappers
from wrappers import algorithms
from wrappers.errors import MissingExtraError, ModelInputError, RecipeError
from wrappers.recipes import Recipe, known_stages

WHOLE = """
[quantization]
activation = "int16"
weight = { dtype = "uint4", observer = "percentile", percentile = 99.5 }
attention-mask-fill-value = -60
grid-thw = [[1, 4, 6]]
kv-cache = { keys = "int4", group = 8 }

[[stages]]
name = "SmoothQuant"
strengths = [0.25, 0.5]

[[stages]]
name = "gptq"
ranges = "mse"
group_size = 8

[[overrides]]
modules = "*.down_proj"
role = "weight"
spec = "uint8"

[[overrides]]
modules = "lm_head"
spec = "float"

[[overrides]]
modules = "*.up_proj"
spec = "mxfp4"

[[overrides]]
modules = "*.layers.0.*"
role = "cache"
spec = "float"

[[overrides]]
points = "act_in"
spec = { qscheme = "per_tensor_asymmetric" }

[calibration]
data = "text"
file = "stories.txt"
length = 32

[decode]
steps = 4

[evaluation]
text = "stories.txt"
tokens = 100

[export]
per-layer = true
"""


def read(tmp_path, text):
    (tmp_path / "stories.txt").write_text("Once upon a time.")
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    return Recipe.read(file)


def test_all_of_it(tmp_path) -> None:
    recipe = read(tmp_path, WHOLE)
    config = recipe.config
    assert config.activation == wrappers.affine("int16")
    assert config.weight == wrappers.affine("uint4", observer="percentile", percentile=99.5)
    assert config.attention_mask_fill_value == -60
    assert config.model_args == {"grid_thw": ((1, 4, 6),)}
    assert config.overrides["lm_head.*"] == wrappers.no_quantization()
    assert str(config.overrides["*.down_proj.*:weight"]["dtype"]) == "uint8"
    assert list(config.overrides) == [
        "*.down_proj.*:weight", "lm_head.*", "*.up_proj.*", "*.layers.0.*.*:cache", "*.act_in",
    ]  # fmt: skip
    assert config.overrides["*.up_proj.*"] == {"dtype": "mxfp4", "qscheme": None}
    assert config.kv_cache == wrappers.KVCacheSpec("int4", "int8", group=8)
    assert recipe.stages == (
        ("smooth-quant", algorithms.SmoothQuant(strengths=(0.25, 0.5))),
        ("gptq", algorithms.GPTQ(ranges="mse", group_size=8)),
    )
    assert recipe.calibration.file == tmp_path / "stories.txt"
    assert (recipe.decode.steps, recipe.decode.source) == (4, "float")
    assert recipe.export.format == "pt2" and recipe.export.per_layer
    assert recipe.text == WHOLE


def test_nothing_is_needed(tmp_path) -> None:
    recipe = read(tmp_path, "")
    assert recipe.config == wrappers.PTQConfig()
    assert recipe.calibration.data == "own"
    assert (recipe.stages, recipe.evaluation, recipe.export) == ((), None, None)


def test_each_algorithm_is_a_stage() -> None:
    stages = known_stages()
    assert stages["gptq"] is algorithms.GPTQ
    assert stages["ada-round"] is algorithms.AdaRound
    assert all(isinstance(stage.rewrites_float, bool) for stage in stages.values())
    assert {"bias-correction", "cross-layer-equalisation", "rotation", "smooth-quant"} <= set(
        stages
    )
    assert "quantize" not in stages and "stage" not in stages


@pytest.mark.parametrize(("text", "message"), [
    ("[quantisation]", r"unknown section 'quantisation'; expected one of .*; did you mean 'quant"),
    ("[[quantization]]", r"\[quantization\] is a list; expected a table"),
    ("[quantization]\nactivaton = 'int8'", "unknown key 'activaton'.* did you mean 'activation'"),
    ("[quantization]\nweight = 'unit8'", "weight: .*unit8"),
    ("[quantization]\nweight = 8", r"weight is 8 \(an int\); expected a string or a mapping"),
    ("[quantization]\nweight = {dtype='int8', observr='ema'}", "weight: "),
    ("[quantization]\nvariant = 'prefil'", "one of prefill, prefill_reference, decode; did you"),
    ("[quantization]\nvariant = 'decode'", r"made with the variant 'prefill' and \[decode\]"),
    ("[quantization]\nattention-mask-fill-value = 3", "must be a finite number below zero"),
    ("[quantization]\nkv-cache = 'int4'", "kv-cache is 'int4'"),
    ("[quantization]\nkv-cache = {keys = 'int3'}", "kv-cache: cached states are int2, int4, int8"),
    ("[quantization]\nkv-cache = {kyes = 'int4'}", "unknown key 'kyes'.* did you mean 'keys'"),
    ("[[overrides]]\nrole = 'cache'\nspec = 'int4'", "have the type that kv-cache gives them"),
    ("[stages]\nname = 'gptq'", r"expected a list of them, \[\[stages\]\]"),
    ("[[stages]]\nname = 'gptq'\n[[stages]]\nname = 'rotation'", "put Rotation before GPTQ"),
    ("[[stages]]\nname = 'gtpq'", r"\[\[stages\]\] 1: unknown stage 'gtpq'; .*did you mean 'gptq'"),
    ("[[stages]]\nranges = 'mse'", "names no stage: give name; expected one of"),
    ("[[stages]]\nname = 'gptq'\ndampening = 1", "unknown key 'dampening'.*mean 'damping'"),
    ("[[stages]]\nname = 'gptq'\nranges = 'msee'", r"1 \(gptq\): ranges is .*did you mean 'mse'"),
    ("[[stages]]\nname = 'gptq'\ndamping = -1.0", "damping must be above 0"),
    ("[[stages]]\nname = 'gptq'\nact-order = 'yes'", "act-order is 'yes'.*expected True or False"),
    ("[[overrides]]\nmodules = 'a'", r"\[\[overrides\]\] 1 lacks spec"),
    ("[[overrides]]\nspec = 'int8'\nrole = 'wieght'", "did you mean 'weight'"),
    ("[[overrides]]\nspec = {dtyp = 'int8'}", "dtyp"),
    ("[[overrides]]\nspec = 'int8'\n[[overrides]]\nspec = 'int4'", "for the same points as one"),
    ("[calibration]\nlenght = 3", "unknown key 'lenght'.*did you mean 'length'"),
    ("[calibration]\ncount = 0", "count is 0; expected at least 1"),
    ("[calibration]\ncount = 1.5", "count is 1.5"),
    ("[calibration]\ndata = 'text'", "data 'text' needs a file"),
    ("[calibration]\nfile = 'stories.txt'", "data 'own' takes no file"),
    ("[calibration]\ndata = 'text'\nfile = 'none.txt'", "there is no file .*none.txt"),
    ("[calibration]\ndata = 'images'", "images go with data \"images\""),
    ("[decode]\nsource = 'flaot'", "did you mean 'float'"),
    ("[quantization]\nvariant = 'prefill_reference'\n[decode]", "has the variant 'prefill_ref"),
    ("[evaluation]", "there is nothing to measure"),
    ("[evaluation]\ntext = 'none.txt'", "there is no file"),
    ("[evaluation]\nquestions = 'none.jsonl'", "none.jsonl cannot be read"),
    ("[export]\nformat = 'onnx'", "expected one of pt2, circle"),
    ("[export", "is no TOML that can be read"),
])  # fmt: skip
def test_what_is_refused(tmp_path, text, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, text)


def test_what_is_measured_is_looked_for(tmp_path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.read(tmp_path / "none.toml")
    with pytest.raises((ModelInputError, MissingExtraError), match="task"):
        read(tmp_path, "[evaluation]\ntasks = ['none.yaml']")


def test_questions_are_read_at_once(tmp_path) -> None:
    question = {"image": "cat.png", "question": "What?", "answer": "cat"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    with pytest.raises(RecipeError, match=r"q.jsonl, line 1: there is no image .*cat.png"):
        read(tmp_path, "[evaluation]\nquestions = 'q.jsonl'")


def test_a_circle_without_its_converter(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("wrappers.recipes.sections.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="written by tico, which is not installed"):
        read(tmp_path, "[export]\nformat = 'circle'")
