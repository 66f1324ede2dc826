"""Tensors that hold their values in few bits, as floats.

torchao's weights are subclasses of a tensor that compute what their matrices do and answer few of
PyTorch's other functions. What looks at values looks at those of `dequantised`.
"""

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def dequantised(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor that is quantised as a whole, as a plain one; any other as it is.

    Those that cannot say their values are multiplied with the identity.
    """
    if not is_dequantisable(tensor):
        return tensor
    with torch.no_grad():
        if type(tensor).dequantize is not torch.Tensor.dequantize:
            plain: torch.Tensor = tensor.dequantize()
            return plain
        rows = torch.eye(tensor.shape[-1], dtype=tensor.dtype, device=tensor.device)
        return nn.functional.linear(rows, tensor).mT


def is_dequantisable(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of these: a subclass around integers or floats of few bits."""
    if type(tensor) in (torch.Tensor, nn.Parameter) or not is_traceable_wrapper_subclass(tensor):
        return False
    parts = [getattr(tensor, name, None) for name in tensor.__tensor_flatten__()[0]]
    return any(isinstance(part, torch.Tensor) and part.dtype != tensor.dtype for part in parts)
