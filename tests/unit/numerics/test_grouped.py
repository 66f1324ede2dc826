"""Scales by groups of columns, against numpy."""

import numpy as np
import pytest
import torch

from wrappers.core.quantizers import quantizer_from_state
from wrappers.errors import QParamsError
from wrappers.numerics.dtypes import DType
from wrappers.numerics.grouped import GroupedQParams

UINT4 = DType.parse("uint4")
COLUMNS = torch.tensor([1, 0, 1, 0, 1])


def made(**changes):
    fields = {
        "scale": torch.tensor([[0.5, 0.25], [2.0, 0.125]]),
        "zero_point": torch.tensor([[8, 0], [15, 4]]),
        "dtype": UINT4,
        "columns": COLUMNS,
    }
    return GroupedQParams(**fields | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_element_by_the_scale_of_its_group(dtype):
    qparams = made()
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).to(dtype) * 4
    expected = np.empty((2, 5))
    for row, column in np.ndindex(2, 5):
        scale = float(qparams.scale[row, COLUMNS[column]])
        zero = int(qparams.zero_point[row, COLUMNS[column]])
        code = np.clip(np.rint(float(x[row, column]) / scale) + zero, 0, 15)
        expected[row, column] = (code - zero) * scale
    found = qparams.fake_quantize(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.double().numpy(), expected)
    again = quantizer_from_state(qparams.state())
    assert torch.equal(again.fake_quantize(x), found)
    assert qparams.to(torch.device("cpu")) is qparams


@pytest.mark.parametrize(("changes", "said"), [
    ({"scale": torch.ones(2)}, r"expected \[channels, groups\] twice"),
    ({"scale": torch.zeros(2, 2)}, "positive and finite"),
    ({"zero_point": torch.full((2, 2), 16)}, r"uint4 lies in \[0, 15\]"),
    ({"columns": torch.tensor([0, 2])}, "groups from 0 to 1"),
])  # fmt: skip
def test_what_cannot_be(changes, said):
    with pytest.raises(QParamsError, match=said):
        made(**changes)


def test_a_weight_of_another_shape():
    with pytest.raises(QParamsError, match=r"of shape \(2, 5\), found \(2, 4\)"):
        made().fake_quantize(torch.ones(2, 4))
