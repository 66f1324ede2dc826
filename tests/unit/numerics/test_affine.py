"""Affine quantisation against torch's operators and against its own formulas in float64."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers import affine as affine_factory
from wrappers.errors import ConfigError, QParamsError, TensorError
from wrappers.numerics.affine import (
    CHUNK,
    FEW,
    AffineQParams,
    affine_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from wrappers.numerics.dtypes import DType, QScheme

TYPES = [
    DType.parse(name) for name in ("uint4", "int4", "uint8", "int8", "int16", "int2", "uint16")
]
ASYMMETRIC, SYMMETRIC = QScheme.PER_TENSOR_ASYMMETRIC, QScheme.PER_TENSOR_SYMMETRIC
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def qparams(scale, zero_point=0, dtype="uint8"):
    return AffineQParams(torch.tensor(scale), torch.tensor(zero_point), DType.parse(dtype))


def by_torch(x, parameters):
    dtype = parameters.dtype
    return torch.fake_quantize_per_tensor_affine(
        x, float(parameters.scale), int(parameters.zero_point), dtype.qmin, dtype.qmax
    )


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


# --- scale and zero point


@settings(deadline=None)
@given(
    bounds=st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)).map(sorted),
    dtype=st.sampled_from(TYPES),
)
def test_asymmetric_parameters_by_their_formula(bounds, dtype):
    low, high = (float(np.float32(bound)) for bound in bounds)
    found = affine_qparams(torch.tensor(low), torch.tensor(high), dtype, ASYMMETRIC)
    if low == high:
        expected = max(abs(low), 1e-12)
    else:
        expected = max((max(high, 0.0) - min(low, 0.0)) / (dtype.qmax - dtype.qmin), 1e-12)
    assert float(found.scale) == float(np.float32(expected))
    zero_point = round(dtype.qmin - min(low, 0.0) / float(found.scale))
    assert int(found.zero_point) == min(max(zero_point, dtype.qmin), dtype.qmax)
    # Zero and both ends are representable, the ends to within half a step.
    ends = torch.tensor([0.0, low, high], dtype=torch.float32)
    error = (fake_quantize(ends, found) - ends).abs()
    assert error[0] == 0
    assert (error <= 0.5001 * found.scale + 1e-6 * ends.abs()).all()


@settings(deadline=None)
@given(
    bounds=st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)).map(sorted),
    dtype=st.sampled_from([dtype for dtype in TYPES if dtype.signed]),
)
def test_symmetric_parameters_by_their_formula(bounds, dtype):
    low, high = (float(np.float32(bound)) for bound in bounds)
    found = affine_qparams(torch.tensor(low), torch.tensor(high), dtype, SYMMETRIC)
    largest = max(abs(low), abs(high))
    expected = max(largest if low == high else largest / dtype.qmax, 1e-12)
    assert float(found.scale) == float(np.float32(expected))
    assert int(found.zero_point) == 0


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1, -3.3e-7, 1e-5, 123456.789, -3e38])
def test_a_constant_is_represented_exactly(dtype, value):
    constant = torch.full((3,), value)
    for qscheme in (ASYMMETRIC, SYMMETRIC) if dtype.signed else (ASYMMETRIC,):
        found = affine_qparams(constant.min(), constant.max(), dtype, qscheme)
        assert torch.equal(fake_quantize(constant, found), constant)


def test_the_ends_of_float32_and_unsigned_symmetric():
    limit = torch.finfo(torch.float32)
    found = affine_qparams(
        torch.tensor(limit.min), torch.tensor(limit.max), DType.parse("uint8"), ASYMMETRIC
    )
    assert float(found.scale) == pytest.approx(2 * limit.max / 255)
    with pytest.raises(ConfigError, match="uint8 cannot be per_tensor_symmetric"):
        affine_qparams(torch.tensor(-1.0), torch.tensor(1.0), DType.parse("uint8"), SYMMETRIC)


def test_per_channel_parameters_are_those_of_each_channel():
    low, high = torch.tensor([-1.0, 0.5, -3.0]), torch.tensor([2.0, 0.5, -1.0])
    dtype = DType.parse("uint8")
    found = affine_qparams(low, high, dtype, QScheme.PER_CHANNEL_ASYMMETRIC, axis=1)
    for channel in range(3):
        alone = affine_qparams(low[channel], high[channel], dtype, ASYMMETRIC)
        assert found.scale[channel] == alone.scale
        assert found.zero_point[channel] == alone.zero_point


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 0.0), (-math.inf, 0.0), (0.0, math.inf), (math.nan, math.nan)]
)
def test_a_range_that_is_none_is_an_error(low, high):
    with pytest.raises(QParamsError, match="finite and in order"):
        affine_qparams(torch.tensor(low), torch.tensor(high), DType.parse("int8"), ASYMMETRIC)


def test_axis_and_scheme_must_agree():
    with pytest.raises(QParamsError, match="axis"):
        affine_qparams(torch.zeros(2), torch.ones(2), DType.parse("int8"), ASYMMETRIC, axis=0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-50])
def test_a_scale_that_is_none_is_an_error(scale):
    with pytest.raises(QParamsError, match="positive and finite"):
        qparams(scale)


def test_zero_points_that_do_not_fit():
    with pytest.raises(QParamsError, match=r"\[0, 255\]"):
        qparams(1.0, 256)
    with pytest.raises(QParamsError, match=r"0-d"):
        AffineQParams(torch.ones(3), torch.zeros(3), DType.parse("int8"))
    with pytest.raises(QParamsError, match=r"\[channels\]"):
        AffineQParams(torch.ones(3), torch.zeros(2), DType.parse("int8"), axis=0)


# --- quantise and dequantise


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(TYPES))
def test_codes_and_back_is_fake_quantisation(seed, dtype):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 10
    parameters = affine_qparams(x.min() / 2, x.max() / 2, dtype, ASYMMETRIC)
    codes = quantize(x, parameters)
    assert codes.dtype == torch.int32
    assert dtype.qmin <= int(codes.min())
    assert int(codes.max()) <= dtype.qmax
    assert torch.equal(dequantize(codes, parameters), fake_quantize(x, parameters))


def test_codes_per_channel_by_numpy():
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    scale, zero_point = np.float32([0.1, 0.02, 0.5]), np.int32([3, 0, 100])
    parameters = AffineQParams(
        torch.from_numpy(scale), torch.from_numpy(zero_point), DType.parse("uint8"), axis=1
    )
    inverse = (np.float32(1) / scale)[None, :, None]
    expected = np.clip(np.rint(x * inverse) + zero_point[None, :, None], 0, 255)
    codes = quantize(torch.from_numpy(x), parameters)
    assert (codes.numpy() == expected).all()
    back = (expected - zero_point[None, :, None]).astype(np.float32) * scale[None, :, None]
    assert (dequantize(codes, parameters).numpy() == back).all()


def test_infinities_saturate_and_nan_has_no_code():
    parameters = qparams(0.5, 10)
    assert quantize(torch.tensor([math.inf, -math.inf]), parameters).tolist() == [255, 0]
    with pytest.raises(TensorError, match="NaN"):
        quantize(torch.tensor([math.nan]), parameters)


# --- fake quantisation: the bits of torch's operator


@pytest.fixture(autouse=True)
def even_few_elements(monkeypatch):
    """Small tensors take our own path too, so that the tests see it."""
    monkeypatch.setattr(sys.modules["wrappers.numerics.affine"], "FEW", 0)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-12, 1e30).map(np.float32).map(float),
    dtype=st.sampled_from(TYPES), zero=st.floats(0, 1), kind=st.sampled_from(list(BITS)),
)  # fmt: skip
def test_the_bits_of_torch_for_any_bits(seed, scale, dtype, zero, kind):
    generator = torch.Generator().manual_seed(seed)
    zero_point = dtype.qmin + round(zero * (dtype.qmax - dtype.qmin))
    parameters = AffineQParams(torch.tensor(scale), torch.tensor(zero_point), dtype)
    width = torch.iinfo(BITS[kind])
    anything = torch.randint(width.min, width.max, (300,), generator=generator)
    in_range = torch.randn(300, generator=generator) * scale * dtype.qmax / 2
    halves = (torch.arange(-300, 300) + 0.5) * scale  # where rounding to even shows
    x = torch.cat((anything.to(BITS[kind]).view(kind), in_range.to(kind), halves.to(kind)))
    assert same_bits(fake_quantize(x, parameters), by_torch(x, parameters))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, 0), (0.0371, 128), (3e-5, 255)])
def test_the_bits_of_torch_for_every_half_precision_number(kind, scale, zero_point):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(kind)
    parameters = qparams(scale, zero_point)
    assert same_bits(fake_quantize(x, parameters), by_torch(x, parameters))


def test_the_bits_of_torch_for_zero_infinities_and_nan():
    x = torch.tensor([0.0, -0.0, -0.4, 0.4, math.inf, -math.inf, math.nan, 1e38, -1e38])
    for zero_point in (0, 7, 255):
        parameters = qparams(1.0, zero_point)
        assert same_bits(fake_quantize(x, parameters), by_torch(x, parameters))


def layouts():
    base = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)) * 30
    return {
        "contiguous": base, "transposed": base.transpose(0, 2),
        "heads": base.view(4, 6, 2, 4).transpose(1, 2), "first half": base[..., :4],
        "second half": base[..., 4:], "every other": base[:, ::2], "column": base[:, :, 3],
        "expanded": base[:1].expand(5, 6, 8), "flipped": base.flip(0), "0-d": base[0, 0, 0],
        "one": base[:1, :1, :1], "empty": base[:0],
        "channels last": base.view(4, 2, 3, 8).to(memory_format=torch.channels_last),
    }  # fmt: skip


@pytest.mark.parametrize("may_overwrite", [False, True])
@pytest.mark.parametrize("chunk", [CHUNK, 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", layouts())
def test_any_layout_and_size(monkeypatch, layout, kind, chunk, may_overwrite):
    monkeypatch.setattr(sys.modules["wrappers.numerics.affine"], "CHUNK", chunk)
    x = layouts()[layout]
    x = x.to(kind) if layout != "expanded" else x[:1].to(kind).expand(5, 6, 8)
    before = x.clone()
    parameters = qparams(0.1, 100)
    found = fake_quantize(x, parameters, may_overwrite=may_overwrite)
    assert found.shape == x.shape
    assert same_bits(found.contiguous(), by_torch(before, parameters).contiguous())
    if not may_overwrite:
        assert torch.equal(x, before)


def test_chunks_and_owned_tensors():
    x = torch.randn(CHUNK + 10)
    x[-1] = math.nan
    parameters = qparams(0.1, 3)
    assert same_bits(fake_quantize(x, parameters), by_torch(x, parameters))
    x = torch.randn(64)
    assert fake_quantize(x, qparams(0.1), may_overwrite=True) is x


def test_few_elements_are_left_to_torch(monkeypatch):
    monkeypatch.undo()
    x = torch.randn(FEW - 1)
    assert fake_quantize(x, qparams(0.1), may_overwrite=True) is not x
    assert same_bits(fake_quantize(x, qparams(0.1)), by_torch(x, qparams(0.1)))


@pytest.mark.parametrize("chunk_first", [True, False])
def test_gradients_are_those_of_torch(chunk_first):
    x = (torch.randn(100) * 20).requires_grad_()
    parameters = qparams(0.1, 100)
    fake_quantize(x, parameters, may_overwrite=chunk_first).sum().backward()
    expected = x.detach().clone().requires_grad_()
    by_torch(expected, parameters).sum().backward()
    assert torch.equal(x.grad, expected.grad)
    assert 0 < x.grad.sum() < 100  # clamped values pass none


def test_float64_is_torchs_own():
    x = torch.randn(1000, dtype=torch.float64) * 20
    parameters = qparams(0.1, 100)
    assert torch.equal(fake_quantize(x, parameters), by_torch(x, parameters))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_per_channel_is_torchs_own(kind):
    x = (torch.randn(4, 3, 5) * 20).to(kind)
    scale, zero_point = torch.tensor([0.1, 0.02, 0.5]), torch.tensor([3, 0, 100])
    parameters = AffineQParams(scale, zero_point, DType.parse("uint8"), axis=1)
    expected = torch.fake_quantize_per_channel_affine(
        x, scale, zero_point.to(torch.int32), 1, 0, 255
    )
    assert torch.equal(fake_quantize(x, parameters), expected)


@pytest.mark.parametrize("x", [torch.arange(3), torch.tensor([True]), torch.tensor([1j])])
def test_what_is_not_floating_point_is_refused(x):
    with pytest.raises(TensorError, match="floating-point"):
        fake_quantize(x, qparams(1.0))
    with pytest.raises(TensorError, match="floating-point"):
        quantize(x, qparams(1.0))


class Rounded(torch.nn.Module):
    def forward(self, x):
        return fake_quantize(x, qparams(0.1, 100))


def test_exports_and_moves():
    x = torch.randn(8)
    program = torch.export.export(Rounded(), (x,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("fake_quantize_per_tensor_affine" in target for target in targets)
    assert torch.equal(program.module()(x), Rounded()(x))
    parameters = qparams(0.1)
    assert parameters.to(torch.device("cpu")) is parameters


@pytest.mark.slow
def test_the_package_attribute_is_the_factory_whatever_is_imported_first():
    assert affine_factory("uint8").dtype == DType.parse("uint8")
    assert sys.modules["wrappers.numerics.affine"].fake_quantize is fake_quantize
    program = (
        "import wrappers.numerics.affine; import wrappers; "
        "from wrappers.numerics.affine import fake_quantize; "
        "print(wrappers.affine('uint8').dtype, fake_quantize.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["uint8", "wrappers.numerics.affine"], done.stderr
