"""From the settings of a trial, see `wrappers.studies.plan.settings`, to quantised models."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from wrappers.core.config import PTQConfig
from wrappers.core.module import iter_points, iter_wrappers
from wrappers.core.quantizers import IdentityQuantizer
from wrappers.core.spec import no_quantization
from wrappers.deploy.decode_calibration import Source, decode_inputs
from wrappers.errors import StudyError, WrappersError
from wrappers.quantize import calibrate, convert, prepare
from wrappers.studies.plan.settings import DECODE, DEFAULTS, plain_config, spec_of
from wrappers.studies.plan.trials import Settings, Trial
from wrappers.studies.plan.workload import LoadedWorkload, batches

# Settings on which it depends whether a model can be prepared.
_OF_WRAPPERS = ("activation", "weight", "model_args", "strict_wrap")
_OF_PARTS = ("overrides", "leave_out", "only")
_TOGETHER = 8  # prompts whose steps are run together


def check_on(loaded: LoadedWorkload, trials: Iterable[Trial]) -> None:
    """Checks settings against the model and the calibration sequences before a study begins.

    Raises:
        StudyError: names or a variant that the model does not have, or more steps than tokens.
    """
    checked = set()
    for trial in trials:
        settings = {**DEFAULTS, **trial.settings}
        variants = [settings["variant"]]
        if "source" in settings:
            variants.append(DECODE)
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


def check_sets(loaded: LoadedWorkload, trials: Iterable[Trial]) -> None:
    """Checks that the text to calibrate on gives each seed a set of its own.

    Args:
        trials: all that are wanted, those that have been run included.

    Raises:
        StudyError: it is too short for that.
    """
    trials = list(trials)
    largest = max({**DEFAULTS, **trial.settings}["calibration"] for trial in trials)
    loaded.check_sets(len({trial.seed for trial in trials}), largest)


def _check_steps(steps: int, length: int) -> None:
    if steps >= length:
        raise StudyError(
            f"found {steps} steps of calibration sequences of {length} tokens; expected fewer, as "
            "at least one token is the prompt"
        )


def prefill_model(loaded: LoadedWorkload, trial: Trial) -> nn.Module:
    """The quantised model of a trial, in the variant of its settings."""
    settings = {**DEFAULTS, **trial.settings}
    wrapped = _prepared(loaded.model, settings, str(settings["variant"]))
    # One by one, as observers that follow a mean want them.
    sequences = loaded.calibration_set(trial.seed, settings["calibration"])
    calibrate(wrapped, batches(sequences, 1, loaded.calibration_beginning(trial.seed)))
    _leave_out_unreached(wrapped)
    return convert(wrapped)


def _leave_out_unreached(wrapped: nn.Module) -> None:
    """Leaves float what a text alone does not reach: a vision model, and where its features come
    in."""
    for _, module in iter_wrappers(wrapped):
        for name in module.unfreezable_points():
            module.points[name].quantizer = IdentityQuantizer()


def decode_model(loaded: LoadedWorkload, trial: Trial, prefill: nn.Module) -> nn.Module:
    """The quantised decode model of a trial, calibrated on the past that its settings name.

    Args:
        prefill: the quantised prefill model of the same trial.
    """
    settings = {**DEFAULTS, **trial.settings}
    decode = _prepared(loaded.model, settings, DECODE)
    prompts = loaded.calibration_set(trial.seed, settings["calibration"])
    source, steps = settings["source"], settings["steps"]
    # With both, each prompt is seen once all the same: the budget is that of the others.
    shares = {"float": prompts[::2], "quantized": prompts[1::2]}
    streams = []
    pasts: dict[Source, nn.Module] = {"float": loaded.model, "quantized": prefill}
    for name, past in pasts.items():
        if source in (name, "both"):
            share = shares[name] if source == "both" else prompts
            own = batches(share, _TOGETHER, loaded.calibration_beginning(trial.seed))
            streams.append(decode_inputs(past, decode, own, steps=steps, source=name))
    calibrate(decode, itertools.chain(*streams))
    _leave_out_unreached(decode)
    return convert(decode)


def _prepared(model: nn.Module, settings: Settings, variant: str) -> nn.Module:
    config = plain_config(settings, variant)
    patterns = settings.get("overrides", {})
    chosen = settings.get("leave_out"), settings.get("only")
    if not patterns and chosen == (None, None):
        return prepare(model, config)
    paths = [f"{name}.{point}" for name, point, _ in iter_points(prepare(model, config))]
    overrides = _by_glob(patterns, paths) | _of_modules(*chosen, paths)
    return prepare(model, PTQConfig.from_dict(config.to_dict() | {"overrides": overrides}))


def _by_glob(patterns: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pattern, value in patterns.items():
        matched = fnmatch.filter(paths, pattern)
        if not matched:
            raise StudyError(
                f"the override {pattern!r} matches none of the {len(paths)} quantization points, "
                f"such as {', '.join(paths[:3])}"
            )
        found |= dict.fromkeys(matched, spec_of(value).to_dict())
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
