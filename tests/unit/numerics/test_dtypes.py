"""Integer types and schemes."""

import pytest
import torch

from wrappers.errors import ConfigError
from wrappers.numerics.dtypes import (
    INT4,
    INT8,
    INT16,
    UINT4,
    UINT8,
    DType,
    QScheme,
    check_qscheme,
    default_qscheme,
)


@pytest.mark.parametrize(
    ("dtype", "info"), [(INT8, torch.int8), (INT16, torch.int16), (UINT8, torch.uint8)]
)
def test_ranges_are_those_of_torch(dtype, info):
    assert (dtype.qmin, dtype.qmax) == (torch.iinfo(info).min, torch.iinfo(info).max)


def test_the_four_bit_presets():
    assert ((INT4.qmin, INT4.qmax), (UINT4.qmin, UINT4.qmax)) == ((-8, 7), (0, 15))


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_every_width_has_all_its_codes_and_reads_back_its_name(bits, signed):
    dtype = DType(bits, signed)
    assert (dtype.qmax - dtype.qmin, DType.parse(str(dtype))) == (2**bits - 1, dtype)
    assert DType.parse(dtype) is dtype


@pytest.mark.parametrize("name", ["int", "int1", "uint17", "float8", "Int8", "int8 ", "", 8, None])
def test_what_is_no_integer_type_is_refused(name):
    with pytest.raises(ConfigError):
        DType.parse(name)


@pytest.mark.parametrize("bits", [1, 17, 8.0, "8"])
def test_a_width_out_of_range_is_refused(bits):
    with pytest.raises(ConfigError, match="2 to 16 bits"):
        DType(bits, signed=True)


def test_default_schemes():
    assert default_qscheme(INT16) is QScheme.PER_TENSOR_SYMMETRIC
    assert default_qscheme(INT8, channels=True) is QScheme.PER_CHANNEL_ASYMMETRIC
    assert default_qscheme(UINT8) is QScheme.PER_TENSOR_ASYMMETRIC
    assert default_qscheme(UINT8, channels=True) is QScheme.PER_CHANNEL_ASYMMETRIC


@pytest.mark.parametrize("qscheme", list(QScheme))
def test_unsigned_and_symmetric_exclude_each_other(qscheme):
    check_qscheme(INT8, qscheme)
    if qscheme.symmetric:
        with pytest.raises(ConfigError, match=r"uint8 cannot be .* use int8"):
            check_qscheme(UINT8, qscheme)
    else:
        check_qscheme(UINT8, qscheme)


def test_schemes_by_name():
    assert QScheme.parse("per_channel_symmetric").per_channel
    assert QScheme.parse(QScheme.PER_TENSOR_SYMMETRIC).symmetric
    assert QScheme.PER_CHANNEL_SYMMETRIC.per_tensor is QScheme.PER_TENSOR_SYMMETRIC
    assert QScheme.PER_CHANNEL_ASYMMETRIC.per_tensor is QScheme.PER_TENSOR_ASYMMETRIC
    with pytest.raises(ConfigError, match="'per_tensor_asymmetric'"):
        QScheme.parse("per_row")
