"""Observers: ranges against numpy, and what NaN, infinities, emptiness and integers do."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrappers.core.observers import OBSERVERS, AffineObserver, build_observer
from wrappers.core.quantizers import IdentityQuantizer
from wrappers.errors import ConfigError, TensorError, UnseenObserverError
from wrappers.numerics.affine import AffineQParams, affine_qparams
from wrappers.numerics.dtypes import UINT8, QScheme
from wrappers.numerics.microscaling import MXQuantizer

PER_TENSOR, PER_CHANNEL = QScheme.PER_TENSOR_ASYMMETRIC, QScheme.PER_CHANNEL_ASYMMETRIC
AFFINE = [name for name, kind in OBSERVERS.items() if kind.affine]


def affine_observer(name, axis=None, **options) -> AffineObserver:
    qscheme = PER_TENSOR if axis is None else PER_CHANNEL
    observer = build_observer(name, UINT8, qscheme, axis=axis, options=options)
    assert isinstance(observer, AffineObserver)
    return observer


def same(a: AffineQParams, b: AffineQParams) -> bool:
    return torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pieces=st.integers(1, 5))
@pytest.mark.parametrize("name", ["minmax", "percentile"])
def test_in_pieces_or_whole_is_the_same(name, seed, pieces):
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    whole, parts = affine_observer(name), affine_observer(name)
    whole.observe(x)
    for piece in x.chunk(pieces):
        parts.observe(piece)
    assert same(whole.quantizer(), parts.quantizer())
    assert whole.seen == parts.seen == x.numel()


def test_minmax_is_the_range_seen():
    observer = affine_observer("minmax")
    observer.observe(torch.tensor([1.0, 2.0]))
    observer.observe(torch.tensor([[-3.0], [0.5]]))
    expected = affine_qparams(torch.tensor(-3.0), torch.tensor(2.0), UINT8, PER_TENSOR)
    assert same(observer.quantizer(), expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", AFFINE)
def test_per_channel_is_per_tensor_of_each_channel(name, axis):
    x = torch.randn(3, 4, 5)
    observer = affine_observer(name, axis=axis)
    observer.observe(x)
    observer.observe(2 * x)
    found = observer.quantizer()
    for channel in range(x.shape[axis]):
        alone = affine_observer(name)
        alone.observe(x.select(axis, channel))
        alone.observe(2 * x.select(axis, channel))
        assert found.scale[channel] == alone.quantizer().scale
        assert found.zero_point[channel] == alone.quantizer().zero_point


def test_the_moving_average():
    observer = affine_observer("ema", momentum=0.75)
    low, high = -1.0, 3.0
    observer.observe(torch.tensor([low, high]))
    for next_low, next_high in ((-2.0, 2.0), (-0.5, 7.0)):
        observer.observe(torch.tensor([next_low, next_high]))
        low = 0.75 * low + 0.25 * next_low
        high = 0.75 * high + 0.25 * next_high
    assert (float(observer.minimum), float(observer.maximum)) == (low, high)
    observer = affine_observer("ema")
    observer.observe(torch.tensor([0.0, 1.0]))
    observer.observe(torch.tensor([0.0, 2.0]))
    assert float(observer.maximum) == pytest.approx(1.1)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), percentile=st.floats(50.1, 100))
def test_percentiles_of_a_complete_sample_are_numpys(seed, percentile):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    observer = affine_observer("percentile", percentile=percentile)
    observer.observe(x)
    low, high = np.percentile(x.double().numpy(), [100 - percentile, percentile])
    expected = affine_qparams(torch.tensor(low), torch.tensor(high), UINT8, PER_TENSOR)
    assert float(observer.quantizer().scale) == pytest.approx(float(expected.scale), rel=1e-5)


def test_percentiles_of_a_sample_are_close_and_reproducible():
    x = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    scales = []
    for _ in range(2):
        observer = affine_observer("percentile", percentile=99.0, capacity=4096)
        for batch in x:
            observer.observe(batch)
        scales.append(observer.quantizer().scale)
    assert scales[0] == scales[1]
    low, high = np.percentile(x.numpy(), [1, 99])
    assert float(scales[0]) == pytest.approx((high - low) / 255, rel=0.05)


def test_the_sample_of_a_percentile():
    scales = set()
    for seed in range(3):
        observer = affine_observer("percentile", percentile=90.0, capacity=64, seed=seed)
        observer.observe(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
        scales.add(float(observer.quantizer().scale))
    assert len(scales) == 3
    observer = affine_observer("percentile", percentile=100, capacity=16)
    x = torch.randn(10_000)
    x[17], x[4711] = 50.0, -60.0
    observer.observe(x)
    expected = affine_qparams(torch.tensor(-60.0), torch.tensor(50.0), UINT8, PER_TENSOR)
    assert same(observer.quantizer(), expected)
    observer = affine_observer("percentile")
    observer.observe(torch.tensor(0.3))
    assert float(observer.quantizer().scale) == pytest.approx(0.3)


@pytest.mark.parametrize("name", AFFINE)
def test_nan_and_infinities_are_left_out_and_counted(name):
    clean, dirty = affine_observer(name), affine_observer(name)
    x = torch.randn(50)
    clean.observe(x)
    dirty.observe(torch.cat((x, torch.tensor([math.nan, math.inf, -math.inf]))))
    dirty.observe(torch.full((4,), math.nan))
    assert same(clean.quantizer(), dirty.quantizer())
    assert (dirty.seen, dirty.dropped) == (50, 7)


@pytest.mark.parametrize("name", AFFINE)
def test_a_channel_may_be_without_finite_values_for_a_while(name):
    observer = affine_observer(name, axis=0)
    observer.observe(torch.tensor([[1.0, 2.0], [math.nan, math.inf]]))
    with pytest.raises(UnseenObserverError, match=r"no finite value in channels \[1\]"):
        observer.quantizer()
    observer.observe(torch.tensor([[math.nan, math.nan], [5.0, 10.0]]))
    assert observer.maximum.tolist() == [2.0, 10.0]
    assert observer.minimum.tolist() == [1.0, 5.0]


@pytest.mark.parametrize("name", AFFINE)
def test_an_observer_that_saw_nothing_gives_nothing(name):
    observer = affine_observer(name)
    observer.observe(torch.empty(0, 3))
    with pytest.raises(UnseenObserverError, match="no data"):
        observer.quantizer()
    observer.observe(torch.tensor(math.nan))
    with pytest.raises(UnseenObserverError, match=r"only NaN and infinities \(1 of them\)"):
        observer.quantizer()


@pytest.mark.parametrize("name", AFFINE)
def test_a_reset_forgets_everything(name):
    fresh, used = affine_observer(name), affine_observer(name)
    used.observe(torch.randn(100) * 1000)
    used.reset()
    assert used.seen == 0
    x = torch.randn(100)
    for observer in (fresh, used):
        observer.observe(x)
    assert same(fresh.quantizer(), used.quantizer())


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("x", [torch.arange(3), torch.tensor([True])])
def test_integers_are_refused(name, x):
    dtype = UINT8 if OBSERVERS[name].affine else None
    observer = build_observer(name, dtype, PER_TENSOR if dtype else None)
    with pytest.raises(TensorError, match="floating-point"):
        observer.observe(x)


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(2.0), torch.randn(4, 6).T, torch.randn(1, 3).expand(4, 3),
        torch.randn(5).bfloat16(), torch.randn(5).half(), torch.randn(5).double(),
        torch.randn(5, requires_grad=True),
    ],
    ids=["0-d", "transposed", "expanded", "bfloat16", "float16", "float64", "with gradient"],
)  # fmt: skip
def test_any_floating_tensor_is_observed_and_left_alone(name, x):
    before = x.detach().clone()
    observer = affine_observer(name)
    observer.observe(x)
    assert torch.equal(x, before)
    assert observer.minimum.dtype == torch.float32
    assert not observer.minimum.requires_grad
    assert float(observer.minimum) == pytest.approx(float(before.min()))


def test_channels_and_observers_that_need_no_data():
    observer = affine_observer("minmax", axis=0)
    observer.observe(torch.randn(3, 2))
    with pytest.raises(TensorError, match="4 channels along dimension 0 after 3"):
        observer.observe(torch.randn(4, 2))
    assert build_observer("identity").quantizer() == IdentityQuantizer()
    assert build_observer("mx", options={"element": "fp4_e2m1"}).quantizer() == MXQuantizer(
        "fp4_e2m1"
    )
    x = torch.randn(4)
    assert IdentityQuantizer().fake_quantize(x) is x


@pytest.mark.parametrize(("name", "options", "message"), [
    ("minmax", {"momentum": 0.5}, "no option 'momentum'; its options: none"),
    ("ema", {"momentum": 1.0}, r"\[0, 1\)"),
    ("ema", {"momentum": "0.5"}, r"\[0, 1\)"),
    ("ema", {"mommentum": 0.5}, "its options: momentum"),
    ("percentile", {"percentile": 50}, r"\(50, 100\]"),
    ("percentile", {"capacity": 1}, "at least 2"),
    ("percentile", {"seed": 1.5}, "seed must be an integer"),
    ("mx", {"element": "fp4"}, "unknown element format 'fp4'"),
    ("mx", {"block_size": 0}, "positive"),
    ("mx", {"block_axis": "last"}, "axis must be an integer"),
    ("histogram", {}, "unknown observer 'histogram'"),
])  # fmt: skip
def test_options_are_checked_when_made(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_observer(name, options=options)


@pytest.mark.parametrize("name", AFFINE)
def test_observers_can_be_copied_and_pickled(name):
    observer = affine_observer(name)
    observer.observe(torch.randn(20))
    for twin in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert same(twin.quantizer(), observer.quantizer())
