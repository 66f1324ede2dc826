"""Known mistakes are named when they explain a divergence, and not when they do not."""

from collections.abc import Callable

import pytest
import torch

from tracer.tensors.known_mistakes import known_mistakes

LIMIT = 1e-5


def activation(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


R = activation(2, 12, 16)
BIAS = activation(16, seed=1)


def one_channel(r: torch.Tensor) -> torch.Tensor:
    c = r.clone()
    c[..., 5] += 3.0
    return c


def one_head(r: torch.Tensor) -> torch.Tensor:
    c = r.clone()
    c[:, 7] *= -1.0
    return c


def shuffled(r: torch.Tensor) -> torch.Tensor:
    return r[..., torch.randperm(16, generator=torch.Generator().manual_seed(2))]


MISTAKES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "scale": (lambda r: 2.5 * r, "scaled by 2.5"),
    "a small scale": (lambda r: 1.001 * r, "scaled by 1.001"),
    "sign": (lambda r: -r, "negated"),
    "permuted dimensions": (lambda r: r.permute(0, 2, 1), "permuted to dimensions (0, 2, 1)"),
    "read without the permutation": (
        lambda r: r.permute(1, 0, 2).reshape(r.shape),
        "permuted to dimensions (1, 0, 2), then read in the shape [2, 12, 16]",
    ),
    "permuted channels": (shuffled, "permuted along the last dimension"),
    "shift": (lambda r: r.roll(1, dims=1), "shifted by +1 along dimension 1"),
    "shift back": (lambda r: r.roll(-1, dims=1), "shifted by -1 along dimension 1"),
    "missing bias": (lambda r: r - BIAS, "offset by a constant per channel"),
    "offset": (lambda r: r + 0.25, "offset by 0.25 everywhere"),
    "clipped": (lambda r: r.clamp(-1.0, 1.5), "clipped to [-1, 1.5]"),
    "one channel": (one_channel, "wrong in one channel only, number 5"),
    "one head": (one_head, "wrong in one index of dimension 1 only, number 7"),
    "float16": (lambda r: r.half().float(), "cast down to float16 on the way"),
    "bfloat16": (lambda r: r.bfloat16().float(), "cast down to bfloat16 on the way"),
    "float8": (
        lambda r: r.to(torch.float8_e4m3fn).float(),
        "cast down to float8_e4m3fn on the way",
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_the_best_fit_for_itself(mistake: str, dtype: torch.dtype) -> None:
    change, words = MISTAKES[mistake]
    fits = known_mistakes(R.to(dtype), change(R).to(dtype), LIMIT)
    assert fits
    assert fits[0].mistake.startswith(words)
    assert fits[0].residual < 1e-6


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found_under_rounding(mistake: str) -> None:
    change, words = MISTAKES[mistake]
    candidate = change(R) * (1 + 1e-7 * activation(*change(R).shape, seed=3))
    fits = known_mistakes(R, candidate, LIMIT)
    assert any(fit.mistake.startswith(words) for fit in fits)


def test_channels_and_dimensions() -> None:
    r = activation(6, 9)
    assert known_mistakes(r, r.T, LIMIT)[0].mistake == "transposed"
    square = activation(6, 6)
    assert known_mistakes(square, square.T.contiguous(), LIMIT)[0].mistake == "transposed"
    r = activation(2, 3, 4, 5)
    fits = known_mistakes(r, r.permute(0, 2, 3, 1), LIMIT)
    assert [fit.mistake for fit in fits] == ["permuted to dimensions (0, 2, 3, 1)"]
    c = R.clone()
    c[..., [2, 9]] = R[..., [9, 2]]
    fits = known_mistakes(R, c, LIMIT)
    assert fits[0].mistake == "permuted along the last dimension (2 of 16 channels moved)"
    r = activation(2, 6, 5, 5)
    c = r + activation(6, 1, 1, seed=4)
    assert "constant per channel of dimension 1" in known_mistakes(r, c, LIMIT)[0].mistake


@pytest.mark.parametrize("size", [0.01, 0.1, 1.0])
def test_an_unrelated_error_has_no_name(size: float) -> None:
    candidate = R + size * activation(2, 12, 16, seed=5)
    assert known_mistakes(R, candidate, LIMIT) == []


def test_fits_come_best_first_or_there_are_none() -> None:
    assert known_mistakes(R, activation(2, 12, 16, seed=6), LIMIT) == []
    assert known_mistakes(R, one_channel(one_head(R)), LIMIT) == []
    fits = known_mistakes(R, 1.0001 * R, LIMIT)
    assert fits == sorted(fits, key=lambda fit: fit.residual)


NOTHING_TO_FIT = {
    "equal": (R, R.clone()), "empty": (torch.empty(0, 3), torch.empty(0, 3)),
    "integers": (torch.arange(6), torch.arange(6) + 1),
    "booleans": (torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)),
    "complex": (torch.ones(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64)),
    "sparse": (R[0].to_sparse(), R[0].to_sparse()), "NaN": (R, torch.full_like(R, torch.nan)),
    "infinity": (torch.full_like(R, torch.inf), R), "another size": (R, R[:, :5]),
    "a zero reference": (torch.zeros(8, 8), activation(8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING_TO_FIT)
def test_nothing_to_fit(case: str) -> None:
    assert known_mistakes(*NOTHING_TO_FIT[case], LIMIT) == []


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (1, 1, 1, 1), (3, 1), (2, 2, 2, 2, 2)])
def test_any_shape_is_looked_at(shape: tuple[int, ...]) -> None:
    r = activation(*shape) if shape else torch.tensor(1.5)
    for candidate in (r * 2, r + 1, torch.zeros_like(r)):
        for fit in known_mistakes(r, candidate, LIMIT):
            assert 0.0 <= fit.residual < 0.02


def test_names_and_inputs_that_are_left_alone() -> None:
    assert not any("scaled" in f.mistake for f in known_mistakes(R, torch.zeros_like(R), LIMIT))
    r = R * 1e6
    assert known_mistakes(r, r.bfloat16().float(), LIMIT)[0].mistake.startswith("cast down to bf")
    r, c = R.clone().requires_grad_(), (2 * R).clone()
    known_mistakes(r, c, LIMIT)
    assert torch.equal(r, R)
    assert torch.equal(c, 2 * R)
    assert r.grad_fn is None
