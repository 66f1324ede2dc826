"""Kinds of tensors that PyTorch's operators do not all take, and their values."""

import torch


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor in a dense strided layout, free of autograd and lazy views.

    Of a distributed one those of all ranks, of a masked one zeros where it is masked, of a nested
    one all in a row, and of dtypes without operators (parts of a byte) the bytes.
    """
    tensor = tensor.detach()
    if type(tensor) is torch.Tensor and tensor.dtype in _USUAL and _is_dense(tensor):
        return tensor
    if isinstance(tensor, torch.masked.MaskedTensor):
        tensor = tensor.to_tensor(0)
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if tensor.is_nested:
        tensor = torch.cat([part.reshape(-1) for part in tensor.unbind()])
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.dtype in _BYTES:
        return tensor.view(torch.uint8)
    if tensor.dtype is torch.complex32:
        tensor = tensor.to(torch.complex64)
    return tensor.resolve_conj().resolve_neg()


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with values of its own, of dtypes without operators too."""
    tensor = tensor.detach()
    if tensor.dtype in _BYTES:
        return tensor.view(torch.uint8).clone().view(tensor.dtype)
    return tensor.clone()


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_neg()


_USUAL = frozenset(
    (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)
)

_BYTES = frozenset(
    getattr(torch, name)
    for name in (
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
        *("bits1x8", "bits2x4", "bits4x2", "bits8", "bits16", "float4_e2m1fn_x2"),
    )
    if hasattr(torch, name)
)
