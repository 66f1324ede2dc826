"""QuantSpec: validation, defaults by role, changes, the way through plain values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers import QuantSpec, affine, microscaling, no_quantization
from wrappers.core.spec import FrozenMapping
from wrappers.errors import ConfigError
from wrappers.numerics.dtypes import INT8, UINT8, QScheme

specs = st.one_of(
    st.builds(affine, st.sampled_from(["uint4", "uint8", "int16"])),
    st.builds(
        lambda momentum: affine("int8", observer="ema", momentum=momentum), st.floats(0, 0.99)
    ),
    st.just(affine("int4", qscheme="per_channel_symmetric", observer="percentile", seed=3)),
    st.builds(microscaling, st.sampled_from(["int8", "fp4_e2m1"])),
    st.builds(affine, st.sampled_from(["fp8_e4m3", "fp8_e5m2", "nvfp4", "mxfp4"])),
    st.just(no_quantization()),
)


@settings(deadline=None)
@given(spec=specs)
def test_a_spec_there_and_back(spec):
    assert QuantSpec.from_dict(spec.to_dict()) == spec


def test_names_and_values_mean_the_same():
    assert affine("uint8") == affine(UINT8) == QuantSpec("uint8")
    assert affine("int8", qscheme="per_channel_symmetric") == QuantSpec(
        INT8, QScheme.PER_CHANNEL_SYMMETRIC
    )


def test_a_microscaling_type_is_the_observer_with_its_element_format():
    assert affine("mxfp4") == QuantSpec("mxfp4") == QuantSpec(observer="mx", options={
        "element": "fp4_e2m1"
    })  # fmt: skip
    spec = affine("uint8", observer="ema", momentum=0.5)
    assert spec.changed({"dtype": "mxfp4"}) == affine("mxfp4")
    assert affine("mxfp4").changed({"dtype": "fp8_e4m3"}) == affine("fp8_e4m3")
    with pytest.raises(ConfigError, match="mxfp4 takes its scales from each tensor"):
        affine("mxfp4", observer="ema")


@pytest.mark.parametrize(("fields", "message"), [
    ({"dtype": "float8"}, "unknown integer type 'float8'.* fp8_e4m3, fp8_e5m2, nvfp4, mxint8"),
    ({"dtype": "uint8", "qscheme": "per_tensor_symmetric"}, "cannot be per_tensor_symmetric"),
    ({"dtype": "uint8", "qscheme": "per_row"}, "unknown qscheme"),
    ({"dtype": "uint8", "observer": "histogram"}, "choose one of minmax, ema"),
    ({"dtype": "uint8", "observer": "ema", "options": {"beta": 1}}, "no option 'beta'"),
    ({"dtype": "uint8", "observer": "ema", "options": {"momentum": 2}}, "momentum"),
    ({"dtype": "uint8", "observer": "identity"}, "has no integer type"),
    ({"observer": "mx", "qscheme": "per_tensor_asymmetric"}, "has no integer type"),
    ({}, "needs a dtype"),
    ({"dtype": "uint8", "options": {"x": object()}}, "expected None, bool"),
])  # fmt: skip
def test_a_spec_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        QuantSpec(**fields)


def test_schemes_and_changes_of_a_spec():
    assert affine("uint8").resolved_qscheme(channels=True) is QScheme.PER_CHANNEL_ASYMMETRIC
    assert affine("uint8").resolved_qscheme(channels=False) is QScheme.PER_TENSOR_ASYMMETRIC
    assert affine("int8").resolved_qscheme(channels=True) is QScheme.PER_CHANNEL_ASYMMETRIC
    assert affine("int8").resolved_qscheme(channels=False) is QScheme.PER_TENSOR_SYMMETRIC
    assert no_quantization().resolved_qscheme(channels=True) is None
    spec = affine("int8", qscheme="per_channel_symmetric", observer="ema", momentum=0.5)
    assert spec.changed({"dtype": "int4"}) == affine(
        "int4", qscheme="per_channel_symmetric", observer="ema", momentum=0.5
    )
    assert spec.changed({"observer": "minmax"}) == affine("int8", qscheme="per_channel_symmetric")
    assert spec.changed({"observer": "identity"}) == no_quantization()


def test_frozen_mappings_are_mappings():
    mapping = FrozenMapping({"a": [1, {"b": 2}]})
    assert dict(mapping) == {"a": (1, {"b": 2})}
    assert len(mapping) == 1
    assert hash(mapping) == hash(FrozenMapping({"a": (1, FrozenMapping({"b": 2}))}))
    assert repr(mapping) == "{'a': (1, {'b': 2})}"
