"""From the settings of a trial to quantised models.

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

import fnmatch
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from wrappers.core.config import PTQConfig, QuantSpec, affine, no_quantization
from wrappers.core.module import iter_points, iter_wrappers
from wrappers.core.observers import IdentityQuantizer
from wrappers.deploy.decode_calibration import Source, decode_inputs
from wrappers.errors import ConfigError, StudyError, WrappersError
from wrappers.quantize import calibrate, convert, prepare
from wrappers.studies.plan.trials import Settings, Trial
from wrappers.studies.plan.workload import Loaded, batches

DEFAULTS: Settings = {
    "activation": "uint8",
    "weight": "uint8",
    "variant": "prefill_reference",
    "calibration": 8,
    "steps": 16,
}
_OF_CONFIG = ("attention_mask_fill_value", "model_args", "strict_wrap")
KNOWN = (*DEFAULTS, *_OF_CONFIG, "overrides", "leave_out", "only", "source")
SOURCES = ("float", "quantized", "both")
_DECODE = "decode"
# Settings on which it depends whether a model can be prepared.
_OF_WRAPPERS = ("activation", "weight", "model_args", "strict_wrap")
_OF_PARTS = ("overrides", "leave_out", "only")
_TOGETHER = 8  # prompts whose steps are run together


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
    if settings.get("variant") == _DECODE:
        raise StudyError(
            "the variant is that of the prefill model: with a source there is a decode model as "
            "well, and both are measured together"
        )
    try:
        _plain_config(settings, settings.get("variant", DEFAULTS["variant"]))
        for spec in settings.get("overrides", {}).values():
            _spec(spec)
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


def check_on(loaded: Loaded, trials: Iterable[Trial]) -> None:
    """Checks settings against the model and the calibration sequences before a study begins.

    Raises:
        StudyError: names or a variant that the model does not have, or more steps than tokens.
    """
    checked = set()
    for trial in trials:
        settings = {**DEFAULTS, **trial.settings}
        variants = [settings["variant"]]
        if "source" in settings:
            variants.append(_DECODE)
            _check_steps(settings["steps"], loaded.workload.calibration_length)
        others = [settings.get(name) for name in (*_OF_WRAPPERS, *_OF_PARTS)]
        key = json.dumps([variants, others], sort_keys=True)
        if key in checked:
            continue
        checked.add(key)
        for variant in variants:
            try:
                _prepared(loaded.model, settings, variant)
            except StudyError:
                raise
            except WrappersError as error:
                raise StudyError(
                    f"these settings do not fit the model: {error}; found "
                    f"{json.dumps(dict(trial.settings))}"
                ) from error


def _check_steps(steps: int, length: int) -> None:
    if steps >= length:
        raise StudyError(
            f"found {steps} steps of calibration sequences of {length} tokens; expected fewer, as "
            "at least one token is the prompt"
        )


def prefill_model(loaded: Loaded, trial: Trial) -> nn.Module:
    """The quantised model of a trial, in the variant of its settings."""
    settings = {**DEFAULTS, **trial.settings}
    wrapped = _prepared(loaded.model, settings, str(settings["variant"]))
    # One by one, as observers that follow a mean want them.
    calibrate(wrapped, batches(loaded.calibration_set(trial.seed, settings["calibration"]), 1))
    _leave_out_unreached(wrapped)
    return convert(wrapped)


def _leave_out_unreached(wrapped: nn.Module) -> None:
    """Leaves float what no text reaches: a vision model, and where its features come in."""
    for _, module in iter_wrappers(wrapped):
        for name in module.unfreezable_points():
            module.points[name].quantizer = IdentityQuantizer()


def decode_model(loaded: Loaded, trial: Trial, prefill: nn.Module) -> nn.Module:
    """The quantised decode model of a trial, calibrated on the past that its settings name.

    Args:
        prefill: the quantised prefill model of the same trial.
    """
    settings = {**DEFAULTS, **trial.settings}
    decode = _prepared(loaded.model, settings, _DECODE)
    prompts = loaded.calibration_set(trial.seed, settings["calibration"])
    source, steps = settings["source"], settings["steps"]
    # With both, each prompt is seen once all the same: the budget is that of the others.
    shares = {"float": prompts[::2], "quantized": prompts[1::2]}
    streams = []
    pasts: dict[Source, nn.Module] = {"float": loaded.model, "quantized": prefill}
    for name, past in pasts.items():
        if source in (name, "both"):
            own = batches(shares[name] if source == "both" else prompts, _TOGETHER)
            streams.append(decode_inputs(past, decode, own, steps=steps, source=name))
    calibrate(decode, itertools.chain(*streams))
    return convert(decode)


def _prepared(model: nn.Module, settings: Settings, variant: str) -> nn.Module:
    config = _plain_config(settings, variant)
    patterns = settings.get("overrides", {})
    chosen = settings.get("leave_out"), settings.get("only")
    if not patterns and chosen == (None, None):
        return prepare(model, config)
    paths = [f"{name}.{point}" for name, point, _ in iter_points(prepare(model, config))]
    overrides = _by_glob(patterns, paths) | _of_modules(*chosen, paths)
    return prepare(model, PTQConfig.from_dict(config.to_dict() | {"overrides": overrides}))


def _plain_config(settings: Settings, variant: str) -> PTQConfig:
    return PTQConfig(
        activation=_spec(settings.get("activation", DEFAULTS["activation"])),
        weight=_spec(settings.get("weight", DEFAULTS["weight"])),
        variant=variant,
        **{name: settings[name] for name in _OF_CONFIG if name in settings},
    )


def _spec(value: Any) -> QuantSpec:
    if value == "off":
        return no_quantization()
    if not isinstance(value, Mapping):
        return affine(value)
    if not isinstance(options := value.get("options", {}), Mapping):
        raise StudyError(f"found the options {options!r} of an observer; expected a table")
    return QuantSpec.from_dict(value)


def _by_glob(patterns: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        matched = fnmatch.filter(paths, pattern)
        if not matched:
            raise StudyError(
                f"the override {pattern!r} matches none of the {len(paths)} quantization points, "
                f"such as {', '.join(paths[:3])}"
            )
        found |= dict.fromkeys(matched, _spec(value).to_dict())
    return found


def _of_modules(leave_out: str | None, only: str | None, paths: list[str]) -> dict[str, Any]:
    """The points that a module's being left out, or being the only one, switches off."""
    name = leave_out or only
    if name is None:
        return {}
    inside = [path for path in paths if path.startswith(f"{name}.")]
    if not inside:
        modules = list(dict.fromkeys(path.rpartition(".")[0] for path in paths))
        raise StudyError(
            f"the model has no wrapped module {name!r}, such as {', '.join(modules[:3])}"
        )
    off = inside if leave_out else [path for path in paths if path not in set(inside)]
    return dict.fromkeys(off, no_quantization().to_dict())
