"""Padding: which positions of a call's sequences are none, as a mask among its arguments says."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tracer.execution.hooks import Call
from tracer.tensors.fingerprints import Fingerprint, checksum
from tracer.tensors.leaves import leaves
from tracer.tensors.masks import visible_positions
from tracer.tensors.roles import DEFAULT_ROLES, Roles, is_any


@dataclass(frozen=True, slots=True)
class Padding:
    """Which positions of a call's sequences are not padding, and the lengths that these come in."""

    visible: torch.Tensor  # bool, [batch, sequence]
    lengths: frozenset[int]

    def is_same(self, other: "Padding") -> bool:
        return self.lengths == other.lengths and torch.equal(self.visible, other.visible)

    def places(
        self, shape: tuple[int, ...], *, is_kept: bool = False
    ) -> list[tuple[int, torch.Tensor]]:
        """Dimensions of a value that may be positions, each with which of them are not padding.

        They are looked for along the dimensions of the length of the mask or of the input, but not
        along the last one, of channels or keys. Where heads are as many as positions, only a
        sequence without padding shows that it is not a head that is wrong.

        Args:
            is_kept: whether it is of a cache, [batch, heads, positions, dim]. That of a sliding
                window keeps the last ones.
        """
        batch, length = self.visible.shape
        places: list[tuple[int, torch.Tensor]] = []
        if len(shape) > 1 and shape[0] == batch:
            for dim in range(1, max(len(shape) - 1, 2)):
                if shape[dim] in self.lengths:
                    places.append((dim, self.visible[:, length - shape[dim] :]))
            if len(places) > 1 and not bool(self.visible.all(dim=1).any()):
                return []
            if is_kept and not places and len(shape) == 4 and shape[2] < length:
                places.append((2, self.visible[:, length - shape[2] :]))
        if shape and shape[0] == batch * length:
            places.append((0, self.visible.flatten()))
        return places


class Paddings:
    """What calls say of padding, for themselves, and for those inside and around them.

    A call is known by its key; where one is asked for, it and those around it are given, the
    innermost first.
    """

    def __init__(self) -> None:
        self._noted: dict[Hashable, list[Padding]] = {}

    def __bool__(self) -> bool:
        return bool(self._noted)

    def note(self, keys: Sequence[Hashable], padding: Padding | None) -> None:
        """Notes what a call says, for itself and for those around it that know of some.

        Whoever generates calls the model with masks of other lengths than its own.
        """
        if padding is None or any(padding.is_same(known) for known in self.known(keys)):
            return
        self._noted[keys[0]] = [padding]
        for key in keys[1:]:
            if key in self._noted:
                self._noted[key].append(padding)

    def known(self, keys: Sequence[Hashable]) -> Iterator[Padding]:
        """What a call and those around it say."""
        for key in keys:
            yield from self._noted.get(key, ())

    def parts(
        self, keys: Sequence[Hashable], shape: tuple[int, ...]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """What of a value may be the part that is not padding; see `Padding.places`."""
        for padding in self.known(keys):
            yield from padding.places(shape)


def visible_part(value: torch.Tensor, dim: int, visible: torch.Tensor) -> torch.Tensor:
    """The elements of a value at the positions along a dimension that are not padding."""
    moved = value.movedim(dim, 1) if dim else value
    return moved[visible.to(value.device)]


def part_name(dim: int, visible: torch.Tensor) -> str:
    """What tells such a part from others of the same value, wherever it is taken."""
    return f"{dim}:{checksum(visible)}"


def visible_on_host(mask: object) -> torch.Tensor | None:
    """What a [batch, sequence] mask lets through, where it hides some of it and not all."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    visible = visible_positions(mask.cpu())
    is_padding = visible is not None and not bool(visible.all()) and bool(visible.any())
    return visible if is_padding else None


def padding_of(
    call: Call,
    roles: Roles = DEFAULT_ROLES,
    visible_in: Callable[[object], torch.Tensor | None] = visible_on_host,
) -> Padding | None:
    """What a [batch, sequence] mask among a call's arguments says of padding.

    By default only `attention_mask` is known to be 1 where there is a token; PyTorch's own
    `key_padding_mask`, for one, says the opposite. In an encoder-decoder model it is the encoder's:
    where the decoder's sequences are as long, a value does not tell whose it is.

    Args:
        visible_in: what a mask lets through, as `visible_on_host` says it.
    """
    names = [name for name in call.arguments if is_any(name, roles.padding)]
    mask = call.arguments[names[0]] if names else None
    visible = None if mask is None else visible_in(mask)
    if visible is None:
        return None
    assert isinstance(mask, torch.Tensor)
    for name, value in _tensors(call):
        is_ids = len(value.shape) == 2 and not value.dtype.is_floating_point
        is_embeddings = len(value.shape) == 3 and value.dtype.is_floating_point
        if roles.is_mask(name) or not (is_ids or is_embeddings):
            continue
        if value.shape[0] == mask.shape[0] and value.shape[1] <= mask.shape[1]:
            lengths = frozenset({mask.shape[1], value.shape[1]})
            return None if lengths & _decoder_lengths(call, roles) else Padding(visible, lengths)
    return None


def _decoder_lengths(call: Call, roles: Roles) -> set[int]:
    """The lengths of the sequences that an encoder-decoder model is given for its decoder."""
    config = getattr(call.module, "config", None)
    labels = roles.labels if getattr(config, "is_encoder_decoder", False) else ()
    return {
        value.shape[1]
        for path, value in _tensors(call)
        if len(value.shape) > 1 and is_any(path, (*roles.decoder, *labels))
    }


def _tensors(call: Call) -> Iterator[tuple[str, torch.Tensor | Fingerprint]]:
    """A call's arguments as far as their shapes are known."""
    for path, value in leaves(call.arguments, ""):
        if isinstance(value, torch.Tensor | Fingerprint):
            yield path, value
