"""Packed states: rows of different lengths against each row alone, and no drift."""

import pytest
import torch

from wrappers.attention.packed import PackedStates
from wrappers.numerics.windowed import WindowedQuantizer

EACH_ALONG = pytest.mark.parametrize("along", ["tokens", "channels"])


def states(batch, length, seed=0):
    return torch.randn(batch, 2, length, 8, generator=torch.Generator().manual_seed(seed))


@EACH_ALONG
@pytest.mark.parametrize("residual", [0, 3, 16])
def test_rows_of_different_lengths_are_what_each_is_alone(along, residual):
    quantizer = WindowedQuantizer(4, along, group=4, residual=residual)
    every, counts = states(3, 60), torch.tensor([11, 1, 6])
    packed = PackedStates(quantizer, every)
    packed.append(every[:, :, :11], counts)
    generator = torch.Generator().manual_seed(1)
    for step in range(50):
        lengths = packed.lengths.tolist()
        for row, length in enumerate(lengths):
            expected = quantizer.fake_quantize(every[row : row + 1, :, :length])
            found = packed.read(60)[row : row + 1]
            assert torch.equal(found[:, :, :length], expected) and not found[:, :, length:].any()
        # One token as in decode, or some as in append-prefill; of some rows none.
        most = 1 if step % 5 else 4
        counts = torch.randint(0, most + 1, (3,), generator=generator)
        counts = torch.minimum(counts, 60 - packed.lengths)
        new = torch.zeros(3, 2, most, 8)
        for row, (length, count) in enumerate(zip(lengths, counts.tolist(), strict=True)):
            new[row, :, :count] = every[row, :, length : length + count]
        packed.append(new, counts)


@EACH_ALONG
def test_a_token_is_rounded_once(along):
    quantizer = WindowedQuantizer(4, along, group=8, residual=4)
    every, one = states(1, 140), torch.ones(1, dtype=torch.int64)
    packed = PackedStates(quantizer, every)
    packed.append(every[:, :, :40], 40 * one)
    rounded = packed.read(140)[:, :, :32]
    assert not torch.equal(rounded, every[:, :, :32])
    for place in range(40, 140):
        packed.append(every[:, :, place : place + 1], one)
        assert torch.equal(packed.read(140)[:, :, :32], rounded)


@pytest.mark.parametrize(("bits", "in_byte"), [(8, 1), (4, 2), (2, 4)])
def test_bytes(bits, in_byte):
    packed = PackedStates(WindowedQuantizer(bits, "tokens", group=8, residual=4), states(2, 1))
    packed.append(states(2, 30), torch.tensor([30, 30]))  # 24 are codes, 6 floats
    codes, scales = 2 * 2 * 24 * 8 // in_byte, 2 * 2 * 3 * 8 * 2 * 2
    assert packed.nbytes == codes + scales + 2 * 2 * 6 * 8 * 4


def test_what_is_given_is_left_alone():
    given = states(1, 20)
    before = given.clone()
    packed = PackedStates(WindowedQuantizer(8, "tokens", group=4, residual=2), given)
    packed.append(given, torch.tensor([20]))
    packed.read(20).zero_()
    assert torch.equal(given, before) and packed.read(20).any()
