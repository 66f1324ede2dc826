"""What is quantised how in a model: `PTQConfig`, which is frozen.

    config = PTQConfig(
        activation=affine("int16"),
        weight=affine("uint8"),
        overrides={
            "model.layers.0.mlp.down_proj": {"weight": affine("int8"), "act_in": {"dtype": "int8"}},
            "lm_head.act_out": no_quantization(),
            "model.visual.*": no_quantization(),
            "*.self_attn.*:weight": {"qscheme": "per_channel_symmetric"},
        },
    )

The spec of a quantization point is, in this order: the override of the point, the overrides by
pattern that match it, the default of its wrapper, the config's `weight` or `activation` after the
point's role. An override that is a `QuantSpec` replaces that spec whole; one that is a dict of
keywords changes only those. Of several patterns that match, each changes what those before it made.

A pattern is a path from the root of the prepared model with `*` for any characters, dots among
them, and `?` for one; `:weight` or `:activation` after it confines it to points of that role.
Points of cached keys and values are overridden by their own names or with `:cache` only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from wrappers.core.observers import build_observer
from wrappers.core.spec import (
    FrozenMapping,
    KVCacheSpec,
    QuantSpec,
    Role,
    affine,
    check_keywords,
    text_key,
    thaw,
)
from wrappers.errors import ConfigError
from wrappers.numerics.dtypes import MX_TYPES, QScheme, parse_type


@dataclass(frozen=True)
class PTQConfig:
    """How a model is quantised.

    Args:
        activation: the spec of points with the role of an activation.
        weight: the spec of points with the role of a weight.
        overrides: specs of single points, by dot path from the root of the prepared model
            (`"model.layers.0.mlp.down_proj.weight"`) or nested dicts, or both mixed; or of all
            points that a pattern matches (`"model.visual.*"`, `"*.mlp.*:weight"`). Leaves are a
            `QuantSpec`, or a dict of its keywords.
        model_args: what a family's wrappers need to know beforehand, such as image grids.
        strict_wrap: a module that owns parameters and has no wrapper is an error instead of
            staying float.
        attention_mask_fill_value: the finite number that stands for minus infinity in additive
            attention masks.
        variant: the form of the wrappers: `prefill`, `prefill_reference`, `decode`.
        kv_cache: how cached keys and values are rounded; None for not at all.

    Raises:
        ConfigError: a field is of the wrong type or out of range, two overrides name the same
            point, a pattern names no role, or an override is not a spec.
    """

    activation: QuantSpec = field(default_factory=lambda: affine("uint8"))
    weight: QuantSpec = field(default_factory=lambda: affine("uint8"))
    overrides: Mapping[str, Any] = field(default_factory=FrozenMapping)
    model_args: Mapping[str, Any] = field(default_factory=FrozenMapping)
    strict_wrap: bool = False
    attention_mask_fill_value: float = -120.0
    variant: str = "prefill"
    kv_cache: KVCacheSpec | None = None
    # Where in the model this config applies: `child` sets it.
    scope: str = field(default="", init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("activation", "weight"):
            value = getattr(self, name)
            if not isinstance(value, QuantSpec):
                raise ConfigError(
                    f"{name} must be a QuantSpec such as affine('uint8'), not {value!r}"
                )
        if not isinstance(self.kv_cache, KVCacheSpec | None):
            raise ConfigError(f"kv_cache must be a KVCacheSpec or None, not {self.kv_cache!r}")
        if not isinstance(self.model_args, Mapping):
            raise ConfigError(
                f"model_args must be a mapping of names to values, not {self.model_args!r}"
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
        for path in overrides:
            check_role(path)
        object.__setattr__(self, "overrides", FrozenMapping(overrides))
        object.__setattr__(self, "model_args", FrozenMapping(self.model_args))

    def child(self, name: str) -> PTQConfig:
        """The config of the child module `name`: everything, with the overrides below it, and
        those by pattern, which stay patterns of paths from the root."""
        prefix = f"{name}."
        child = dataclasses.replace(
            self,
            overrides={
                path if is_pattern(path) else path.removeprefix(prefix): leaf
                for path, leaf in self.overrides.items()
                if is_pattern(path) or path.startswith(prefix)
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
        spec = default or (self.weight if role == "weight" else self.activation)
        path = f"{self.scope}.{point}".lstrip(".")
        matching = [
            override
            for pattern, override in self.overrides.items()
            if is_pattern(pattern) and matches(pattern, path, role)
        ]
        if point in self.overrides:
            matching.append(self.overrides[point])
        for override in matching:
            spec = override if isinstance(override, QuantSpec) else spec.changed(override)
        return spec

    def states_qscheme(self, point: str) -> bool:
        """Whether the override of just this point, not one by pattern, gives it its qscheme."""
        override = self.overrides.get(point)
        if isinstance(override, QuantSpec):
            return override.qscheme is not None
        return override is not None and override.get("qscheme") is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them."""
        return {
            "activation": self.activation.to_dict(),
            "weight": self.weight.to_dict(),
            "overrides": {
                path: leaf.to_dict() if isinstance(leaf, QuantSpec) else thaw(leaf)
                for path, leaf in self.overrides.items()
            },
            "model_args": thaw(self.model_args),
            "strict_wrap": self.strict_wrap,
            "attention_mask_fill_value": self.attention_mask_fill_value,
            "variant": self.variant,
            "kv_cache": None if self.kv_cache is None else dict(vars(self.kv_cache)),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PTQConfig:
        """The config that `to_dict` wrote; a missing field is at its default.

        Raises:
            ConfigError: `plain` holds a keyword that a PTQConfig does not have.
        """
        check_keywords(plain, cls)
        fields = dict(plain)
        for name in ("activation", "weight"):
            if isinstance(fields.get(name), Mapping):
                fields[name] = QuantSpec.from_dict(fields[name])
        if isinstance(fields.get("kv_cache"), Mapping):
            check_keywords(fields["kv_cache"], KVCacheSpec)
            fields["kv_cache"] = KVCacheSpec(**fields["kv_cache"])
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


def is_pattern(path: str) -> bool:
    """Whether an override is of all points that match, rather than of one."""
    return any(character in path for character in "*?:")


def matches(pattern: str, path: str, role: Role) -> bool:
    """Whether a pattern matches a point, given its path from the root and its role."""
    glob, _, wanted = pattern.partition(":")
    written = re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".")
    anything = "" if role != "cache" else role
    return wanted in (anything, role) and re.fullmatch(written, path) is not None


def check_role(path: str) -> None:
    """Checks the part of an override's path that says the role.

    Raises:
        ConfigError: there is no such role.
    """
    _, colon, role = path.partition(":")
    if colon and role not in get_args(Role):
        raise ConfigError(
            f"the override {path!r} is for points of the role {role!r}: write "
            + " or ".join(f"':{known}'" for known in get_args(Role))
        )


def _flatten_overrides(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Nested overrides as {dot path: QuantSpec or keywords}."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"overrides must be a mapping of paths to specs, not {node!r}")
    flat: dict[str, Any] = {}
    for key, value in node.items():
        here = f"{path}.{text_key(key)}" if path else text_key(key)
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
        if checked.get("dtype") is not None and checked["dtype"] not in MX_TYPES:
            checked["dtype"] = parse_type(checked["dtype"])
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
