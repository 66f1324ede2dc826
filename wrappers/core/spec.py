"""How one tensor is observed and quantised: `QuantSpec`, and the short ways to make one.

    spec = affine("uint8", observer="percentile", percentile=99.9)
    spec = spec.changed({"dtype": "int16"})

Specs are frozen, can be hashed, and turn into plain JSON values and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trace_model.annotations import checked
from wrappers.core.observers import OBSERVERS, build_observer
from wrappers.errors import ArgumentError, ConfigError
from wrappers.numerics.dtypes import (
    MX_TYPES,
    DType,
    FloatType,
    NumberType,
    QScheme,
    check_qscheme,
    default_qscheme,
    parse_type,
)
from wrappers.numerics.windowed import WINDOWED_BITS

Role = Literal["activation", "weight", "cache"]
"""What is at a point; "cache" is for keys and values that a cache keeps in few bits."""


class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping with string keys that can be hashed, copied and pickled.

    Mappings inside it are frozen too, lists and tuples become tuples.

    Raises:
        ConfigError: a key is not a string, or a value is none of: None, bool, int, float, str,
            a list or mapping of these, a QuantSpec.
    """

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        if not isinstance(items, Mapping | None):
            raise ConfigError(f"expected a mapping of names to values, found {items!r}")
        self._items = {text_key(key): _freeze(value) for key, value in (items or {}).items()}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is observed and quantised. `affine`, `microscaling` and `no_quantization`
    are the short ways to make one.

    Args:
        dtype: the type or its name; None for observers that have none. The name of a microscaling
            type, such as "mxfp4", alone stands for the observer `mx` with that element format.
        qscheme: a `QScheme` or its value; None for the default (weights with channels:
            per-channel asymmetric; else per-tensor, symmetric for signed types).
        observer: a name in `wrappers.core.observers.OBSERVERS`.
        options: keyword arguments of that observer.

    Raises:
        ConfigError: any of these is unknown, or they do not go together.
    """

    dtype: NumberType | None = None
    qscheme: QScheme | None = None
    observer: str = "minmax"
    options: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        if not isinstance(self.observer, str) or self.observer not in OBSERVERS:
            raise ConfigError(
                f"unknown observer {self.observer!r}: choose one of {', '.join(OBSERVERS)}"
            )
        object.__setattr__(self, "options", FrozenMapping(self.options))
        if str(self.dtype) in MX_TYPES:
            self._take_element(str(self.dtype))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", parse_type(self.dtype))
        if self.qscheme is not None:
            object.__setattr__(self, "qscheme", QScheme.parse(self.qscheme))
        affine_observer = OBSERVERS[self.observer].affine
        if affine_observer and self.dtype is None:
            raise ConfigError(f"the observer {self.observer!r} needs a dtype such as 'uint8'")
        if not affine_observer and (self.dtype is not None or self.qscheme is not None):
            raise ConfigError(
                f"the observer {self.observer!r} has no integer type and no qscheme; "
                f"found dtype {self.dtype} and qscheme {self.qscheme}"
            )
        if self.dtype is not None and self.qscheme is not None:
            check_qscheme(self.dtype, self.qscheme)
        build_observer(self.observer, self.dtype, self.qscheme, axis=0, options=self.options)

    def _take_element(self, name: str) -> None:
        """Turn the name of a microscaling type into the observer that it stands for."""
        if (self.observer, self.qscheme, dict(self.options)) != ("minmax", None, {}):
            raise ConfigError(
                f"{name} takes its scales from each tensor: it has no qscheme, observer and options"
            )
        object.__setattr__(self, "dtype", None)
        object.__setattr__(self, "observer", "mx")
        object.__setattr__(self, "options", FrozenMapping({"element": MX_TYPES[name]}))

    def resolved_qscheme(self, *, channels: bool) -> QScheme | None:
        """The scheme with the type's default filled in; None for observers without a type.

        Args:
            channels: the tensor is a weight with an axis of channels.
        """
        if self.dtype is None or self.qscheme is not None:
            return self.qscheme
        return default_qscheme(self.dtype, channels=channels)

    def changed(self, keywords: Mapping[str, Any]) -> QuantSpec:
        """This spec with only `keywords` changed.

        Another observer takes along no options, and no type if it has none; to a microscaling type
        and from one to another type nothing is taken along.
        """
        changes = dict(keywords)
        leaves_blocks = self.observer == "mx" and "observer" not in changes
        dtype = changes.get("dtype")
        if str(dtype) in MX_TYPES or (leaves_blocks and dtype):
            return QuantSpec(**changes)
        observer = changes.get("observer", self.observer)
        if observer != self.observer:
            changes.setdefault("options", {})
            if observer in OBSERVERS and not OBSERVERS[observer].affine:
                changes.setdefault("dtype", None)
                changes.setdefault("qscheme", None)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all fields; `from_dict` reads them."""
        return {
            "dtype": None if self.dtype is None else str(self.dtype),
            "qscheme": None if self.qscheme is None else self.qscheme.value,
            "observer": self.observer,
            "options": thaw(self.options),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> QuantSpec:
        """The spec that `to_dict` wrote; a missing field is at its default.

        Raises:
            ConfigError: `plain` holds a keyword that a QuantSpec does not have.
        """
        check_keywords(plain, cls)
        return cls(**plain)


@checked(ArgumentError)
@dataclass(frozen=True)
class KVCacheSpec:
    """How cached keys and values are rounded; see `wrappers.numerics.windowed`.

    Keys have a scale for each channel of a group of tokens, values one for each token.

    Args:
        keys: `int8`, `int4` or `int2`.
        values: likewise.
        group: how many tokens are rounded together.
        residual: how many of the latest tokens stay as they are, at least.

    Raises:
        ConfigError: any of these cannot be.
    """

    keys: str = "int8"
    values: str = "int8"
    group: int = 32
    residual: int = 32

    def __post_init__(self) -> None:
        known = [f"int{bits}" for bits in WINDOWED_BITS]
        for name in (self.keys, self.values):
            if name not in known:
                raise ConfigError(f"cached states are {', '.join(known)}; found {name!r}")
        self.specs()

    def specs(self) -> dict[str, QuantSpec]:
        """The specs of an attention's points."""
        points = {"kv_key": (self.keys, "tokens"), "kv_value": (self.values, "channels")}
        window = {"group": self.group, "residual": self.residual}
        return {
            name: QuantSpec(
                observer="windowed",
                options={"bits": DType.parse(dtype).bits, "along": along, **window},
            )
            for name, (dtype, along) in points.items()
        }


@checked(ArgumentError)
def affine(
    dtype: str | NumberType,
    *,
    qscheme: str | QScheme | None = None,
    observer: str = "minmax",
    **options: Any,
) -> QuantSpec:
    """Numbers under a scale: `affine("uint8")`.

    Args:
        dtype: integers, which have a zero point too: `uint4`, `int4`, `uint8`, `int8`, `int16`, or
            any of 2 to 16 bits; floats: `fp8_e4m3`, `fp8_e5m2`, `nvfp4`; or, with nothing else
            beside it, a microscaling type such as `mxfp4` (see `microscaling`).
        qscheme: the scheme; by default that of the type, see `QuantSpec`.
        observer: `minmax`, `ema` or `percentile`.
        **options: of the observer: `momentum=0.9`, `percentile=99.9`, ...

    Raises:
        ConfigError: as `QuantSpec`.
    """
    return QuantSpec(
        dtype=dtype,  # type: ignore[arg-type] # a name is parsed
        qscheme=None if qscheme is None else QScheme.parse(qscheme),
        observer=observer,
        options=options,
    )


@checked(ArgumentError)
def microscaling(element: str = "int8", *, block_size: int = 32, axis: int = -1) -> QuantSpec:
    """Blocks of values that share a power of two as their scale, after the OCP MX specification.

    Args:
        element: `int8`, `fp8_e4m3`, `fp8_e5m2`, `fp6_e2m3`, `fp6_e3m2` or `fp4_e2m1`.
        block_size: how many values share a scale.
        axis: the dimension that blocks run along.

    Raises:
        ConfigError: any of these cannot be.
    """
    options = {"element": element, "block_size": block_size, "block_axis": axis}
    return QuantSpec(observer="mx", options=options)


def no_quantization() -> QuantSpec:
    """Never quantised, in no mode."""
    return QuantSpec(observer="identity")


def check_keywords(plain: Mapping[str, Any], cls: type[Any]) -> None:
    """Checks that a dataclass has fields of these names.

    Raises:
        ConfigError: it has none of some name.
    """
    known = [spec_field.name for spec_field in dataclasses.fields(cls) if spec_field.init]
    unknown = sorted(set(plain) - set(known))
    if unknown:
        raise ConfigError(
            f"a {cls.__name__} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )


def text_key(key: object) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"keys must be strings, found {key!r}")
    return key


_VALUES = bool | int | float | str | QuantSpec | DType | FloatType | QScheme


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenMapping(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if value is None or isinstance(value, _VALUES):
        return value
    raise ConfigError(
        f"expected None, bool, int, float, str, or lists and mappings of these, found {value!r}"
    )


def thaw(value: Any) -> Any:
    """The plain JSON value of a frozen one."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [thaw(item) for item in value]
    if isinstance(value, NumberType):
        return str(value)
    if isinstance(value, QScheme):
        return value.value
    return value
