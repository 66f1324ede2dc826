"""A second device that any machine has: tensors that say they are on it, and compute on the CPU.

    with second_device():
        model.to(DEVICE)

As between CPU and GPU, an operation on tensors of both devices is an error, but for those without
dimensions, and NumPy cannot read them. What PyTorch does on a real device (kernels, streams, random
numbers) is not imitated; `Elsewhere.waits` counts what would make the host wait for it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

# A device that PyTorch knows by name and asks nothing of.
DEVICE = torch.device("xla:0")


class Elsewhere(torch.Tensor):
    """A tensor on the second device."""

    held: torch.Tensor
    waits = 0

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> "Elsewhere":
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, layout=held.layout, requires_grad=requires_grad,
        )  # fmt: skip

    def __init__(self, held: torch.Tensor, requires_grad: bool = False) -> None:
        self.held = held

    # By these `nn.Module.to` knows that it must not put the one into the place of the other.

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> "Elsewhere":
        return Elsewhere(inner["held"])

    @property
    def device(self) -> torch.device:
        return DEVICE

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        stays = device is None or device == DEVICE
        if stays and not copy and dtype in (None, self.dtype) and memory_format is None:
            return self
        Elsewhere.waits += not stays
        moved = self.detach().held.to(dtype, copy=True)
        return Elsewhere(moved) if stays else moved

    def cpu(self) -> torch.Tensor:
        return self.to("cpu")

    def tolist(self) -> list[Any]:
        Elsewhere.waits += 1
        return self.held.tolist()

    def numpy(self) -> NoReturn:
        raise TypeError("a tensor on another device is not NumPy's to read: move it to the CPU")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[None]:
    """Tensors are made on the second device where they are asked for there."""
    with _Numbers(), _Tensors():
        yield


class _Tensors(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Numbers become tensors without a dispatch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        if func is torch.unravel_index:
            return tuple(
                part.to(args[0].device) for part in func(args[0].cpu(), *args[1:], **kwargs)
            )
        return func(*args, **kwargs)


_MOVING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_aten = torch.ops.aten
# Their results, or the sizes of these, are known on the device only.
_WAITING = {
    _aten._local_scalar_dense, _aten.equal, _aten.is_nonzero, _aten.nonzero, _aten.masked_select,
    _aten._unique2, _aten.unique_dim, _aten.unique_consecutive, _aten.repeat_interleave,
}  # fmt: skip


def _run(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    theirs = [tensor for tensor in given if isinstance(tensor, Elsewhere)]
    ours = [tensor for tensor in given if not isinstance(tensor, Elsewhere) and tensor.dim()]
    if theirs and ours and func not in _MOVING:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {DEVICE} and cpu")
    Elsewhere.waits += _waits(func, args, kwargs) if theirs or func in _MOVING else 0
    wanted = kwargs.get("device")
    is_there = isinstance(args[0], Elsewhere) if func in _MOVING else bool(theirs)
    if wanted is not None:
        # What PyTorch makes like a tensor it makes on the CPU, where it takes that to be.
        is_there = torch.device(wanted) == DEVICE or bool(theirs)
        kwargs = {**kwargs, "device": torch.device("cpu")}
    made = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    if not is_there:
        return made
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_outside, made))


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if func in (_aten.index.Tensor, _aten.index_put_.default):
        places = [place for place in args[1] if place is not None]
        return any(place.dtype in (torch.bool, torch.uint8) for place in places)
    where = {type(arg) is Elsewhere for arg in args if isinstance(arg, torch.Tensor)}
    if func in _MOVING and kwargs.get("device") is not None:
        where.add(torch.device(kwargs["device"]) == DEVICE)
    return func.overloadpacket in _WAITING or (func in _MOVING and len(where) > 1)


def _inside(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _outside(value: Any) -> Any:
    is_ours = isinstance(value, torch.Tensor) and not isinstance(value, Elsewhere)
    return Elsewhere(value) if is_ours else value
