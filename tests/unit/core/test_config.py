"""QuantSpec and PTQConfig: validation, precedence, overrides, the way through JSON."""

import copy
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers import PTQConfig, QuantSpec, affine, microscaling, no_quantization
from wrappers.errors import ConfigError
from wrappers.numerics.dtypes import UINT4, UINT8, QScheme

specs = st.one_of(
    st.builds(affine, st.sampled_from(["uint4", "uint8", "int16"])),
    st.builds(
        lambda momentum: affine("int8", observer="ema", momentum=momentum), st.floats(0, 0.99)
    ),
    st.just(affine("int4", qscheme="per_channel_symmetric", observer="percentile", seed=3)),
    st.builds(microscaling, st.sampled_from(["int8", "fp4_e2m1"])),
    st.just(no_quantization()),
)
keywords = st.sampled_from([{"dtype": "int8"}, {"observer": "ema", "options": {"momentum": 0.5}}])
names = st.sampled_from(["layers", "0", "q_proj", "weight", "act_in"])
configs = st.builds(
    PTQConfig, activation=specs, weight=specs,
    overrides=st.dictionaries(st.lists(names, min_size=1, max_size=4).map(
        ".".join,
    ), specs | keywords, max_size=4),
    model_args=st.dictionaries(
        names, st.integers() | st.text('aé"\n', max_size=4) | st.lists(st.booleans()) | st.none(),
        max_size=3,
    ),
    strict_wrap=st.booleans(), attention_mask_fill_value=st.floats(-1e30, -1),
    variant=st.sampled_from(["prefill", "prefill_reference", "decode"]),
)  # fmt: skip


@settings(deadline=None)
@given(config=configs)
def test_json_there_and_back(config):
    back = PTQConfig.from_json(config.to_json())
    assert (back, hash(back)) == (config, hash(config))
    assert PTQConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@settings(deadline=None)
@given(config=configs)
def test_copies_are_equal(config):
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_is_frozen():
    config = PTQConfig(model_args={"grids": [[1, 4, 4]]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.variant = "decode"
    with pytest.raises(TypeError):
        config.model_args["grids"] = ()
    assert config.model_args["grids"] == ((1, 4, 4),)
    overrides = {"a": {"weight": affine("int8")}}
    config = PTQConfig(overrides=overrides)
    overrides["a"]["weight"] = affine("uint4")
    assert config.overrides["a.weight"] == affine("int8")


def test_defaults_and_unknown_keywords():
    config = PTQConfig()
    assert config.activation == config.weight == affine("uint8")
    assert (config.attention_mask_fill_value, config.variant) == (-120.0, "prefill")
    assert not config.strict_wrap
    with pytest.raises(ConfigError, match=r"no 'bits'; it has dtype, qscheme, observer, options"):
        QuantSpec.from_dict({"bits": 8})
    with pytest.raises(ConfigError, match=r"no 'scope'; it has activation, weight"):
        PTQConfig.from_dict({"scope": "x"})


# --- specs


@pytest.mark.parametrize("text", ["{", "[1]", '"uint8"'])
def test_json_that_is_no_config(text):
    with pytest.raises(ConfigError, match="not a PTQConfig in JSON"):
        PTQConfig.from_json(text)


# --- configs


@pytest.mark.parametrize(("fields", "message"), [
    ({"activation": "uint8"}, r"activation must be a QuantSpec such as affine\('uint8'\)"),
    ({"weight": None}, "weight must be a QuantSpec"),
    ({"strict_wrap": 1}, "strict_wrap must be True or False"),
    ({"variant": ""}, "variant must be a name"),
    ({"attention_mask_fill_value": 0.0}, "below zero"),
    ({"attention_mask_fill_value": -math.inf}, "finite"),
    ({"attention_mask_fill_value": math.nan}, "finite"),
    ({"attention_mask_fill_value": True}, "finite"),
    ({"attention_mask_fill_value": "-120"}, "finite"),
    ({"overrides": [("a", affine("int8"))]}, "must be a mapping"),
    ({"overrides": {"a": {"weight": "int8"}}}, "the override 'a.weight' is 'int8'"),
    ({"overrides": {"a": {"weight": {"dtpye": "int8"}}}}, "'a.weight.dtpye' is 'int8'"),
    ({"overrides": {"a": {"weight": {"dtype": "int8", "bits": 4}}}}, "'a.weight.dtype' is"),
    ({"overrides": {"a": {}}}, "the override 'a' is"),
    ({"overrides": {"a": {"w": {"dtype": "int99"}}}}, "the override 'a.w': an integer type"),
    ({"overrides": {"a": {"w": {"qscheme": "rows"}}}}, "the override 'a.w': unknown qscheme"),
    ({"overrides": {"a": {"w": {"observer": "log"}}}}, "the override 'a.w': unknown observer"),
    ({"overrides": {1: affine("int8")}}, "keys must be strings"),
    (
        {"overrides": {"a.weight": affine("int8"), "a": {"weight": affine("int4")}}},
        "two overrides for the same point: a.weight",
    ),
    ({"model_args": {"f": print}}, "expected None, bool"),
])  # fmt: skip
def test_a_config_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        PTQConfig(**fields)


def test_dot_paths_and_keywords():
    spec = affine("int8")
    nested = {"model": {"layers": {"0": {"mlp": {"weight": spec, "act_in": {"dtype": "int16"}}}}}}
    mixed = {
        "model.layers": {"0.mlp.weight": spec},
        "model.layers.0.mlp.act_in": {"dtype": "int16"},
    }
    assert PTQConfig(overrides=nested) == PTQConfig(overrides=mixed)
    by_value = PTQConfig(
        overrides={"a.w": {"dtype": UINT8, "qscheme": QScheme.PER_TENSOR_ASYMMETRIC}}
    )
    by_name = PTQConfig(overrides={"a.w": {"dtype": "uint8", "qscheme": "per_tensor_asymmetric"}})
    assert by_value == by_name == PTQConfig.from_json(by_value.to_json())


def test_a_child_has_everything_and_what_lies_below_it():
    config = PTQConfig(
        weight=affine("uint4"),
        overrides={
            "a.b.weight": affine("int8"), "ab.weight": affine("int4"), "a.x": affine("int4"),
        },
        attention_mask_fill_value=-77.0, model_args={"grid": 3}, variant="decode", strict_wrap=True,
    )  # fmt: skip
    child = config.child("a").child("b")
    assert (child.scope, dict(child.overrides)) == ("a.b", {"weight": affine("int8")})
    assert child.attention_mask_fill_value == -77.0
    assert (child.variant, child.strict_wrap, child.model_args["grid"]) == ("decode", True, 3)
    assert child.weight.dtype == UINT4


def test_more_model_args_keep_what_is_known_and_where_it_applies():
    config = PTQConfig(
        overrides={"a.b.weight": affine("int8"), "c.weight": affine("int8")},
        model_args={"grid": 3},
        attention_mask_fill_value=-50.0,
        variant="decode",
        strict_wrap=True,
    ).child("a")
    found = config.with_model_args(layers=2, grid=4)
    assert found.model_args == {"layers": 2, "grid": 3}
    assert found.scope == "a"
    assert dataclasses.replace(found, model_args=config.model_args) == config
    assert found.child("b").scope == "a.b"
    assert found.child("b").overrides == {"weight": affine("int8")}
    assert found.child("b").model_args["layers"] == 2
    assert config.model_args == {"grid": 3}


def test_model_args_that_cannot_be_added():
    with pytest.raises(ConfigError, match="expected None, bool"):
        PTQConfig().with_model_args(layers=object())


def test_what_an_override_changes():
    role, default, override = affine("uint8"), affine("int16"), affine("int4")
    config = PTQConfig(activation=role, weight=affine("uint4"))
    assert config.spec_for("act_in") == role
    assert config.spec_for("weight", role="weight") == affine("uint4")
    assert config.spec_for("act_in", default=default) == default
    overridden = PTQConfig(activation=role, overrides={"act_in": override})
    assert overridden.spec_for("act_in", default=default) == override
    default = affine("int8", observer="ema", momentum=0.5)
    by_keyword = PTQConfig(overrides={"act_in": {"dtype": "int4"}})
    assert by_keyword.spec_for("act_in", default=default) == affine(
        "int4", observer="ema", momentum=0.5
    )
    whole = PTQConfig(overrides={"act_in": affine("int4")})
    assert whole.spec_for("act_in", default=default) == affine("int4")


def test_overrides_by_pattern_and_role():
    config = PTQConfig(
        overrides={
            "a.*": affine("int16"),
            "a.*:weight": {"dtype": "int4"},
            "?.norm.*": {"dtype": "int8"},
            "a.b.weight": {"observer": "ema"},
        }
    )
    below = config.child("a").child("b")
    assert below.spec_for("act_in") == affine("int16")
    assert below.spec_for("weight", role="weight") == affine("int4", observer="ema")
    assert config.child("a").child("norm").spec_for("weight", role="weight") == affine("int8")
    assert config.child("ab").spec_for("act_in") == affine("uint8")
    assert config.child("c").child("norm").spec_for("act_in") == affine("int8")
    assert PTQConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="role 'bias': write ':activation' or ':weight'"):
        PTQConfig(overrides={"a.*:bias": affine("int4")})
