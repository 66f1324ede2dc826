"""Tensors of every kind are compared by their values, or a row says why not."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tracer

KINDS: dict[str, Callable[[Tensor], object]] = {
    "nested": lambda h: torch.nested.nested_tensor([h[:2], h[2:]]),
    "jagged": lambda h: torch.nested.nested_tensor([h[:1], h[1:]], layout=torch.jagged),
    "quantised": lambda h: torch.quantize_per_tensor(h, 0.1, 0, torch.qint8),
    "sparse coo": lambda h: h.to_sparse(),
    "sparse csr": lambda h: h.to_sparse_csr(),
    "sparse bsr": lambda h: h.to_sparse_bsr((2, 2)),
    "mkldnn": lambda h: h.to_mkldnn(),
    "float8": lambda h: h.to(torch.float8_e4m3fn),
    "float8 of powers of two": lambda h: h.abs().to(torch.float8_e8m0fnu),
    "float4": lambda h: (h * 9).to(torch.uint8).view(torch.float4_e2m1fn_x2),
    "uint4": lambda h: (h * 9).to(torch.uint8).view(torch.uint4),
    "bits": lambda h: (h * 9).to(torch.uint8).view(torch.bits8),
    "masked": lambda h: torch.masked.masked_tensor(h, h > 0),
    "complex of halves": lambda h: torch.complex(h, h).to(torch.complex32),
}


class Makes(nn.Module):
    def __init__(self, make: Callable[[Tensor], object], *, is_last: bool, by: float = 1.0) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.same = nn.Identity()
        self.make, self.is_last, self.by = make, is_last, by

    def forward(self, x: Tensor) -> object:
        hidden = self.a(x) * self.by
        return self.make(hidden) if self.is_last else (hidden + 0, self.same(self.make(hidden)))


@pytest.mark.covers
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore")
def test_compared(make: Callable[[Tensor], object], is_last: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = Makes(make, is_last=is_last).eval()
    wrong = copy.deepcopy(model)
    wrong.by = -2.0
    assert tracer.compare(model, copy.deepcopy(model), x).verdict.agrees
    assert not tracer.compare(model, wrong, x).verdict.agrees
    tracer.record(model, x, tmp_path / "a.trace")
    assert tracer.compare(tracer.open_trace(tmp_path / "a.trace"), model).verdict.agrees
