"""The settings of a trial: their names, their defaults, and what they can be.

| setting | what | default |
|---|---|---|
| `activation`, `weight` | a dtype's name, or the fields of a `QuantSpec` | uint8 |
| `variant` | of the prefill model | prefill_reference |
| `attention_mask_fill_value`, `model_args`, `strict_wrap` | as in `PTQConfig` | its own |
| `overrides` | by glob over the paths of quantization points: a dtype's name, fields of a `QuantSpec`, or "off"; later ones win | none |
| `leave_out` | a module that stays float, with all inside it | none |
| `only` | the one module that is quantised, with all inside it | all |
| `calibration` | how many sequences to calibrate on | 8 |
| `source` | where a decode model's past comes from in calibration: float, quantized, both | none: no decode |
| `steps` | tokens of each calibration sequence that are decoded | 16 |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrappers.core.config import PTQConfig
from wrappers.core.spec import QuantSpec, affine, no_quantization
from wrappers.errors import ConfigError, StudyError
from wrappers.studies.plan.trials import Settings

DEFAULTS: Settings = {
    "activation": "uint8", "weight": "uint8", "variant": "prefill_reference", "calibration": 8,
    "steps": 16,
}  # fmt: skip
_OF_CONFIG = ("attention_mask_fill_value", "model_args", "strict_wrap")
KNOWN = (*DEFAULTS, *_OF_CONFIG, "overrides", "leave_out", "only", "source")
SOURCES = ("float", "quantized", "both")
DECODE = "decode"
"""The variant of decode models, which no setting names."""


def check_settings(settings: Settings) -> None:
    """Checks names and values before a study begins.

    Raises:
        StudyError: a setting that is not known, or a value that it cannot have.
    """
    for name in settings:
        if name not in KNOWN:
            raise StudyError(f"unknown setting {name!r}; expected one of {', '.join(KNOWN)}")
    source = settings.get("source")
    if "source" in settings and source not in SOURCES:
        raise StudyError(f"found the source {source!r}; expected one of {', '.join(SOURCES)}")
    _check_types(settings)
    if source == "both" and settings.get("calibration", DEFAULTS["calibration"]) < 2:
        raise StudyError("calibration on both sources takes at least 2 sequences, one for each")
    if settings.get("leave_out") and settings.get("only"):
        raise StudyError("leave_out and only exclude each other: give one of them")
    if settings.get("variant") == DECODE:
        raise StudyError(
            "the variant is that of the prefill model: with a source there is a decode model as "
            "well, and both are measured together"
        )
    try:
        plain_config(settings, settings.get("variant", DEFAULTS["variant"]))
        for spec in settings.get("overrides", {}).values():
            spec_of(spec)
    except (ConfigError, TypeError) as error:
        raise StudyError(f"these settings make no PTQConfig: {error}") from error


def _check_types(settings: Settings) -> None:
    for name in ("calibration", "steps"):
        value = settings.get(name, DEFAULTS[name])
        if type(value) is not int or value < 1:  # True is an int too
            raise StudyError(f"found {name} {value!r}; expected a whole number from 1 up")
    for name in ("overrides", "model_args"):
        if not isinstance(value := settings.get(name, {}), Mapping):
            raise StudyError(f"found {name} {value!r}; expected a table")
    for name in ("leave_out", "only"):
        value = settings.get(name)
        if value is not None and not isinstance(value, str):
            raise StudyError(f"found {name} {value!r}; expected the name of a module")


def plain_config(settings: Settings, variant: str) -> PTQConfig:
    """The config without what depends on the model: overrides, and modules that stay float."""
    return PTQConfig(
        activation=spec_of(settings.get("activation", DEFAULTS["activation"])),
        weight=spec_of(settings.get("weight", DEFAULTS["weight"])),
        variant=variant,
        **{name: settings[name] for name in _OF_CONFIG if name in settings},
    )


def spec_of(value: Any) -> QuantSpec:
    """The spec that a setting stands for: "off", a dtype's name, or fields of a `QuantSpec`.

    Raises:
        StudyError: the options of the observer are no table.
        ConfigError: no such dtype, or fields that do not go together.
    """
    if value == "off":
        return no_quantization()
    if not isinstance(value, Mapping):
        return affine(value)
    if not isinstance(options := value.get("options", {}), Mapping):
        raise StudyError(f"found the options {options!r} of an observer; expected a table")
    return QuantSpec.from_dict(value)
