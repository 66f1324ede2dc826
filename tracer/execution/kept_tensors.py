"""Tensors of modules as they were: where their values lie, and what they are."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from tracer.execution.torch_internals import memory_of
from tracer.tensors.leaves import version_of


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor as it was: where its values lie, and a copy of them if they may be edited."""

    tensor: torch.Tensor
    alias: torch.Tensor
    values: torch.Tensor | None
    version: int | None
    requires_grad: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, *, copied: bool) -> "KeptTensor":
        alias = tensor.detach()
        return cls(
            tensor,
            alias,
            alias.clone() if copied and not tensor.is_meta else None,
            version_of(tensor),
            tensor.requires_grad,
        )

    def put_back(self) -> None:
        tensor = self.tensor
        if _lies_elsewhere(tensor, self.alias):
            tensor.data = self.alias
        if self.values is not None and not (
            self.version == version_of(self.alias) and has_same_numbers(self.alias, self.values)
        ):
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                self.alias.copy_(self.values)
        if tensor.requires_grad != self.requires_grad and tensor.is_leaf:
            tensor.requires_grad_(self.requires_grad)

    def holds(self, *, by_version: bool) -> bool:
        """Whether it is as it was."""
        tensor = self.tensor
        if self.version != version_of(tensor) or tensor.requires_grad != self.requires_grad:
            return False
        if _lies_elsewhere(tensor, self.alias):
            return False
        return by_version or self.values is None or has_same_numbers(self.alias, self.values)


@dataclass(frozen=True, slots=True)
class KeptPlaces:
    """Tensors that are not copied, as parameters are as a rule: where their values lie."""

    tensors: list[torch.Tensor]
    aliases: list[torch.Tensor]
    versions: list[int | None]
    requires_grad: list[bool]

    @classmethod
    def of(cls, tensors: list[torch.Tensor]) -> "KeptPlaces":
        return cls(
            tensors,
            [tensor.data for tensor in tensors],
            [*map(version_of, tensors)],
            [tensor.requires_grad for tensor in tensors],
        )

    @staticmethod
    def takes(tensor: torch.Tensor) -> bool:
        """Whether a tensor is none of a kind of its own."""
        return type(tensor) in _USUAL

    def put_back(self) -> None:
        for tensor, alias in self._moved():
            tensor.data = alias
        if [tensor.requires_grad for tensor in self.tensors] != self.requires_grad:
            for tensor, requires_grad in zip(self.tensors, self.requires_grad, strict=True):
                if tensor.is_leaf:
                    tensor.requires_grad_(requires_grad)

    def holds(self, *, by_version: bool) -> bool:
        """Whether they are as they were; by the counts of edits alone, for want of copies."""
        return (
            self.versions == [*map(version_of, self.tensors)]
            and self.requires_grad == [tensor.requires_grad for tensor in self.tensors]
            and not self._moved()
        )

    def _moved(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Those whose values lie elsewhere now, each with where they did."""
        tensors, aliases = self.tensors, self.aliases
        try:
            if all(map(torch.Tensor.is_set_to, tensors, aliases)) and (
                [tensor.dtype for tensor in tensors] == [alias.dtype for alias in aliases]
            ):
                return []
        except RuntimeError:  # not for each device and layout
            pass
        return [pair for pair in zip(tensors, aliases, strict=True) if _lies_elsewhere(*pair)]


@dataclass(frozen=True, slots=True)
class KeptNumbers:
    """Tensors of one number each, which observers have by the hundred, copied in one go."""

    tensors: list[torch.Tensor]
    aliases: list[torch.Tensor]
    values: torch.Tensor
    versions: list[int | None]

    @classmethod
    def of(cls, tensors: Iterable[torch.Tensor]) -> "list[KeptNumbers]":
        """Those of each dtype together."""
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        with torch.no_grad():
            return [
                cls(own, [t.detach() for t in own], torch.stack(own), [*map(version_of, own)])
                for own in by_dtype.values()
            ]

    @staticmethod
    def takes(tensor: torch.Tensor) -> bool:
        """Whether a tensor is such a one; inference mode knows others than are made outside it."""
        return (
            type(tensor) is torch.Tensor
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and not (tensor.is_nested or tensor.is_quantized)
            and tensor.shape == _NUMBER
            and not (tensor.requires_grad or tensor.is_inference())
        )

    def put_back(self) -> None:
        for tensor, alias in zip(self.tensors, self.aliases, strict=True):
            if not _is_in_place(tensor, alias):
                tensor.data = alias
            if tensor.requires_grad and tensor.is_leaf:
                tensor.requires_grad_(False)
        with torch.no_grad():
            is_edited = self.versions != [*map(version_of, self.aliases)]  # 0 may be -0 now
            if not is_edited and has_same_numbers(torch.stack(self.aliases), self.values):
                return
            kept = zip(self.aliases, self.values, self.versions, strict=True)
            for alias, value, version in kept:
                if version != version_of(alias) or not has_same_numbers(alias, value):
                    alias.copy_(value)

    def holds(self, *, by_version: bool) -> bool:
        """Whether they are as they were."""
        if self.versions != [*map(version_of, self.tensors)]:
            return False
        for tensor, alias in zip(self.tensors, self.aliases, strict=True):
            if tensor.requires_grad or not _is_in_place(tensor, alias):
                return False
        with torch.no_grad():
            return by_version or has_same_numbers(torch.stack(self.aliases), self.values)


_NUMBER = torch.Size(())
_USUAL = frozenset({torch.Tensor, nn.Parameter})


def _lies_elsewhere(tensor: torch.Tensor, alias: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not _is_in_place(tensor, alias)


def _is_in_place(tensor: torch.Tensor, alias: torch.Tensor) -> bool:
    """Whether a tensor's values lie where they did, laid out as they were."""
    is_usual = type(tensor) in _USUAL and not tensor.is_quantized
    if not (is_usual and tensor.is_cpu and alias.is_cpu and not alias.is_quantized):
        return _place(tensor) == _place(alias)  # not every kind of tensor knows `is_set_to`
    if tensor.is_nested or alias.is_nested:
        return tensor.is_nested and alias.is_nested
    return tensor.dtype is alias.dtype and tensor.is_set_to(alias)


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor's values lie, and how they are laid out."""
    if tensor.is_nested:
        return ()
    return memory_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def has_same_numbers(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same: `x.data.add_(1)` goes past the counter of versions.

    So does batch normalisation in training mode.
    """
    try:
        return torch.equal(tensor, other)
    except (RuntimeError, NotImplementedError):  # not for this dtype or layout
        return False
