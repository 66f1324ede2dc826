"""Quantisers: what a frozen observer leaves behind, and the way through its state."""

import pytest
import torch

from wrappers.core.quantizers import IdentityQuantizer, quantizer_from_state
from wrappers.errors import QParamsError
from wrappers.numerics.affine import affine_qparams
from wrappers.numerics.dtypes import FP8_E5M2, INT8, NVFP4, UINT8, QScheme
from wrappers.numerics.floats import FloatQParams
from wrappers.numerics.microscaling import MXQuantizer

PER_TENSOR, PER_CHANNEL = QScheme.PER_TENSOR_ASYMMETRIC, QScheme.PER_CHANNEL_ASYMMETRIC


@pytest.mark.parametrize("quantizer", [
    affine_qparams(torch.tensor(-1.0), torch.tensor(2.0), UINT8, PER_TENSOR),
    affine_qparams(
        torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 3.0]), INT8, QScheme.PER_CHANNEL_SYMMETRIC,
        axis=1,
    ),
    MXQuantizer("fp8_e4m3", block_size=16, axis=0),
    IdentityQuantizer(),
    FloatQParams(torch.tensor([0.1, 3.0]), FP8_E5M2, axis=1),
    FloatQParams(torch.tensor(0.01), NVFP4),
], ids=["affine", "affine per channel", "mx", "identity", "fp8", "nvfp4"])  # fmt: skip
def test_a_quantiser_survives_its_state(quantizer):
    back = quantizer_from_state(quantizer.state())
    x = torch.randn(32, 2)
    assert torch.equal(back.fake_quantize(x), quantizer.fake_quantize(x))
    assert type(back) is type(quantizer)


def test_an_unknown_state_is_refused():
    with pytest.raises(QParamsError, match="unknown kind 'log'"):
        quantizer_from_state({"kind": "log"})
