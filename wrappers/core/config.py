"""What is quantised how: `QuantSpec` for one tensor, `PTQConfig` for a model. Both are frozen.

    config = PTQConfig(
        activation=affine("int16"),
        weight=affine("uint8"),
        overrides={
            "model.layers.0.mlp.down_proj": {"weight": affine("int8"), "act_in": {"dtype": "int8"}},
            "lm_head.act_out": no_quantization(),
        },
    )

The spec of a quantization point is, in this order: the override of the point, the default of its
wrapper, the config's `weight` or `activation` after the point's role. An override that is a
`QuantSpec` replaces that spec whole; one that is a dict of keywords changes only those.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wrappers.core.observers import OBSERVERS, build_observer
from wrappers.errors import ConfigError
from wrappers.numerics.dtypes import DType, QScheme, check_qscheme, default_qscheme

Role = Literal["activation", "weight"]


class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping with string keys that can be hashed, copied and pickled.

    Mappings inside it are frozen too, lists and tuples become tuples.

    Raises:
        ConfigError: a key is not a string, or a value is none of: None, bool, int, float, str,
            a list or mapping of these, a QuantSpec.
    """

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = {_text_key(key): _freeze(value) for key, value in (items or {}).items()}

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
        dtype: the integer type, a `DType` or its name; None for observers that have none.
        qscheme: a `QScheme` or its value; None for the default of the type (signed: per-tensor
            symmetric; unsigned: per-tensor asymmetric, for weights with channels per-channel).
        observer: a name in `wrappers.core.observers.OBSERVERS`.
        options: keyword arguments of that observer.

    Raises:
        ConfigError: any of these is unknown, or they do not go together.
    """

    dtype: DType | None = None
    qscheme: QScheme | None = None
    observer: str = "minmax"
    options: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            raise ConfigError(
                f"unknown observer {self.observer!r}: choose one of {', '.join(OBSERVERS)}"
            )
        object.__setattr__(self, "options", FrozenMapping(self.options))
        if self.dtype is not None:
            object.__setattr__(self, "dtype", DType.parse(self.dtype))
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

        Another observer takes along no options, and no integer type if it has none.
        """
        changes = dict(keywords)
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
            "options": _thaw(self.options),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> QuantSpec:
        """The spec that `to_dict` wrote; a missing field is at its default.

        Raises:
            ConfigError: `plain` holds a keyword that a QuantSpec does not have.
        """
        _check_keywords(plain, cls)
        return cls(**plain)


def affine(
    dtype: str | DType,
    *,
    qscheme: str | QScheme | None = None,
    observer: str = "minmax",
    **options: Any,
) -> QuantSpec:
    """Integers with a scale and a zero point: `affine("uint8")`.

    Args:
        dtype: `uint4`, `int4`, `uint8`, `int8`, `int16`, or any of 2 to 16 bits.
        qscheme: the scheme; by default that of the type, see `QuantSpec`.
        observer: `minmax`, `ema` or `percentile`.
        **options: of the observer: `momentum=0.9`, `percentile=99.9`, ...

    Raises:
        ConfigError: as `QuantSpec`.
    """
    return QuantSpec(
        dtype=DType.parse(dtype),
        qscheme=None if qscheme is None else QScheme.parse(qscheme),
        observer=observer,
        options=options,
    )


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


@dataclass(frozen=True)
class PTQConfig:
    """How a model is quantised.

    Args:
        activation: the spec of points with the role of an activation.
        weight: the spec of points with the role of a weight.
        overrides: specs of single points, by dot path from the root of the prepared model
            (`"model.layers.0.mlp.down_proj.weight"`) or nested dicts, or both mixed. Leaves are
            a `QuantSpec`, or a dict of its keywords.
        model_args: what a family's wrappers need to know beforehand, such as image grids.
        strict_wrap: a module that owns parameters and has no wrapper is an error instead of
            staying float.
        attention_mask_fill_value: the finite number that stands for minus infinity in additive
            attention masks.
        variant: the form of the wrappers: `prefill`, `prefill_reference`, `decode`.

    Raises:
        ConfigError: a field is of the wrong type or out of range, two overrides name the same
            point, or an override is not a spec.
    """

    activation: QuantSpec = field(default_factory=lambda: affine("uint8"))
    weight: QuantSpec = field(default_factory=lambda: affine("uint8"))
    overrides: Mapping[str, Any] = field(default_factory=FrozenMapping)
    model_args: Mapping[str, Any] = field(default_factory=FrozenMapping)
    strict_wrap: bool = False
    attention_mask_fill_value: float = -120.0
    variant: str = "prefill"
    # Where in the model this config applies: `child` sets it.
    scope: str = field(default="", init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("activation", "weight"):
            value = getattr(self, name)
            if not isinstance(value, QuantSpec):
                raise ConfigError(
                    f"{name} must be a QuantSpec such as affine('uint8'), not {value!r}"
                )
        if not isinstance(self.strict_wrap, bool):
            raise ConfigError(f"strict_wrap must be True or False, not {self.strict_wrap!r}")
        if not isinstance(self.variant, str) or not self.variant:
            raise ConfigError(f"variant must be a name such as 'prefill', not {self.variant!r}")
        fill = self.attention_mask_fill_value
        if (
            isinstance(fill, bool)
            or not isinstance(fill, int | float)
            or not (math.isfinite(fill) and fill < 0)
        ):
            raise ConfigError(
                "attention_mask_fill_value must be a finite number below zero, not "
                f"{fill!r}: it is quantised along with the mask"
            )
        overrides = dict(_flatten_overrides(self.overrides, ""))
        object.__setattr__(self, "overrides", FrozenMapping(overrides))
        object.__setattr__(self, "model_args", FrozenMapping(self.model_args))

    def child(self, name: str) -> PTQConfig:
        """The config of the child module `name`: everything, with the overrides below it."""
        prefix = f"{name}."
        child = dataclasses.replace(
            self,
            overrides={
                path.removeprefix(prefix): leaf
                for path, leaf in self.overrides.items()
                if path.startswith(prefix)
            },
        )
        object.__setattr__(child, "scope", f"{self.scope}.{name}" if self.scope else name)
        return child

    def with_model_args(self, **model_args: Any) -> PTQConfig:
        """The same config, knowing more of the model; what it knew already stays.

        Args:
            **model_args: see the field.
        """
        config = dataclasses.replace(self, model_args={**model_args, **self.model_args})
        object.__setattr__(config, "scope", self.scope)
        return config

    def spec_for(
        self, point: str, *, role: Role = "activation", default: QuantSpec | None = None
    ) -> QuantSpec:
        """The spec of a point of the module that this config is for.

        Args:
            point: the point's name.
            role: which of the config's two specs it takes when nothing else is said.
            default: the wrapper's own default.
        """
        base = default or (self.weight if role == "weight" else self.activation)
        override = self.overrides.get(point)
        if override is None:
            return base
        if isinstance(override, QuantSpec):
            return override
        return base.changed(override)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them."""
        return {
            "activation": self.activation.to_dict(),
            "weight": self.weight.to_dict(),
            "overrides": {
                path: leaf.to_dict() if isinstance(leaf, QuantSpec) else _thaw(leaf)
                for path, leaf in self.overrides.items()
            },
            "model_args": _thaw(self.model_args),
            "strict_wrap": self.strict_wrap,
            "attention_mask_fill_value": self.attention_mask_fill_value,
            "variant": self.variant,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PTQConfig:
        """The config that `to_dict` wrote; a missing field is at its default.

        Raises:
            ConfigError: `plain` holds a keyword that a PTQConfig does not have.
        """
        _check_keywords(plain, cls)
        fields = dict(plain)
        for name in ("activation", "weight"):
            if isinstance(fields.get(name), Mapping):
                fields[name] = QuantSpec.from_dict(fields[name])
        return cls(**fields)

    def to_json(self) -> str:
        """The config as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> PTQConfig:
        """The config that `to_json` wrote.

        Raises:
            ConfigError: `text` is not JSON, or not of a PTQConfig.
        """
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not a PTQConfig in JSON: {error}") from error
        if not isinstance(plain, dict):
            raise ConfigError(f"not a PTQConfig in JSON: expected an object, found {plain!r}")
        return cls.from_dict(plain)


def _flatten_overrides(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nested overrides as {dot path: QuantSpec or keywords}."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"overrides must be a mapping of paths to specs, not {node!r}")
    flat: dict[str, Any] = {}
    for key, value in node.items():
        here = f"{path}.{_text_key(key)}" if path else _text_key(key)
        if isinstance(value, QuantSpec):
            found: dict[str, Any] = {here: value}
        elif isinstance(value, Mapping) and _holds_keywords(value):
            found = {here: _override(value, here)}
        elif isinstance(value, Mapping) and value:
            found = _flatten_overrides(value, here)
        else:
            raise ConfigError(
                f"the override {here!r} is {value!r}: expected a QuantSpec such as "
                f"affine('uint8'), or a dict of its keywords {sorted(_SPEC_KEYWORDS)}"
            )
        twice = sorted(flat.keys() & found.keys())
        if twice:
            raise ConfigError(f"two overrides for the same point: {', '.join(twice)}")
        flat.update(found)
    return flat


_SPEC_KEYWORDS = {spec_field.name for spec_field in dataclasses.fields(QuantSpec)}


def _override(keywords: Mapping[str, Any], path: str) -> QuantSpec | dict[str, Any]:
    """All keywords together are a spec; some of them are kept, with names made values."""
    try:
        if set(keywords) == _SPEC_KEYWORDS:
            return QuantSpec.from_dict(keywords)
        checked = dict(keywords)
        if checked.get("dtype") is not None:
            checked["dtype"] = DType.parse(checked["dtype"])
        if checked.get("qscheme") is not None:
            checked["qscheme"] = QScheme.parse(checked["qscheme"])
        if "observer" in checked:
            build_observer(checked["observer"], options=checked.get("options"))
    except ConfigError as error:
        raise ConfigError(f"the override {path!r}: {error}") from error
    return checked


def _holds_keywords(node: Mapping[str, Any]) -> bool:
    """Keywords of a QuantSpec rather than names of modules and points."""
    return bool(node) and all(
        key in _SPEC_KEYWORDS and (key == "options" or not isinstance(value, Mapping | QuantSpec))
        for key, value in node.items()
    )


def _check_keywords(plain: Mapping[str, Any], cls: type[QuantSpec] | type[PTQConfig]) -> None:
    known = [spec_field.name for spec_field in dataclasses.fields(cls) if spec_field.init]
    unknown = sorted(set(plain) - set(known))
    if unknown:
        raise ConfigError(
            f"a {cls.__name__} has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}"
        )


def _text_key(key: object) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"keys must be strings, found {key!r}")
    return key


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenMapping(value)
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | QuantSpec | DType | QScheme):
        return value
    raise ConfigError(
        f"expected None, bool, int, float, str, or lists and mappings of these, found {value!r}"
    )


def _thaw(value: Any) -> Any:
    """The plain JSON value of a frozen one."""
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_thaw(item) for item in value]
    if isinstance(value, DType):
        return str(value)
    if isinstance(value, QScheme):
        return value.value
    return value
