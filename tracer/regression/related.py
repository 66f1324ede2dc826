"""Whether a baseline is of the same comparison, and what differs if it is not.

>>> mismatches(baseline.identity, comparison.identity)
(Mismatch('setting', 'activation', 'uint8', 'int16'),)

The candidate is what a gate watches: its weights and what it computes may change. What it is made
from, and how, may not; nor may the reference and the inputs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from tracer.comparison.identity import Content, Identity, SideIdentity

# Weights that a seed makes differ by 1e-7 between processors, and pixels of a photo by more.
_SAME_WEIGHTS, _SAME_FLOATS = 1e-5, 1e-2
# Settings that name a model, which may stand in another folder on another machine.
_NAMES = ("reference", "candidate")
# "tiny-llama (LlamaForCausalLM, float32, cpu)", "quantized (variant prefill, activation uint8)":
# how a report of an older version names its sides.
_DESCRIBED = re.compile(r"(?P<name>.*) \((?P<settings>[^()]*)\)")
_OLD_SETTINGS = ("variant", "activation", "weight")


@dataclass(frozen=True)
class Mismatch:
    """Something in which two comparisons are not of the same.

    Attributes:
        what: "class", "dtype", "mode" (training or evaluation), "steps", "points" (the dtypes of
            quantization points), "weights", "form" (dtype and shape of an input), "values" (of an
            input), or "setting".
        name: the side, the path of the input, or the setting.
        then, now: in the baseline and in the comparison; empty where there is none.
        distance: the relative L2 distance of the values, estimated; None for all else.
    """

    what: Literal["class", "dtype", "mode", "steps", "points", "weights", "form", "values",
                  "setting"]  # fmt: skip
    name: str
    then: str = ""
    now: str = ""
    distance: float | None = None


def mismatches(then: Identity | None, now: Identity | None) -> tuple[Mismatch, ...]:
    """In what two comparisons differ, as far as both are known."""
    if then is None or now is None:
        return ()
    return tuple(_mismatches(then, now))


def unchecked(then: Identity | None, now: Identity | None) -> tuple[str, ...]:
    """What the baseline does not say and the comparison does: "weights", "inputs", "settings"."""
    if now is None:
        return ()
    known = {
        "weights": (then and then.reference.weights, now.reference.weights),
        "inputs": (then and then.inputs, now.inputs),
        "settings": (then and then.settings, now.settings),
    }
    return tuple(name for name, (before, here) in known.items() if here and not before)


def of_older(run: Mapping[str, Any] | None) -> Identity | None:
    """What the words of an older report say of its two sides."""
    if run is None:
        return None
    reference, candidate = (_DESCRIBED.fullmatch(str(run[side])) for side in _NAMES)
    if reference is None:
        return None
    model, _, rest = str(reference["settings"]).partition(", ")
    dtype = rest.partition(", ")[0]
    settings = {"reference": reference["name"]}
    settings["candidate"] = str(run["candidate"]) if candidate is None else candidate["name"]
    for each in () if candidate is None else candidate["settings"].split(", "):
        name, _, value = each.partition(" ")
        if name in _OLD_SETTINGS:
            settings[name] = value
    return Identity(SideIdentity(model, dtype or None), SideIdentity(""), None, settings)


def _mismatches(then: Identity, now: Identity) -> Iterator[Mismatch]:
    yield from _sides("reference", then.reference, now.reference)
    yield from _weights(then, now)
    is_named = all("candidate" in identity.settings for identity in (then, now))
    yield from _sides("candidate", then.candidate, now.candidate, by_class=not is_named)
    yield from _settings(then, now)
    if then.inputs is not None and now.inputs is not None:
        yield from _inputs(then.inputs, now.inputs)


def _sides(
    name: str, then: SideIdentity, now: SideIdentity, *, by_class: bool = True
) -> Iterator[Mismatch]:
    """What differs in a side; the class of a candidate counts where nothing else names it."""
    if by_class and then.model and then.model != now.model:
        yield Mismatch("class", name, then.model, now.model)
    if None not in (then.dtype, now.dtype) and then.dtype != now.dtype:
        yield Mismatch("dtype", name, str(then.dtype), str(now.dtype))
    if then.training is None:  # of an older report, which says no more
        return
    if then.training != now.training:
        yield Mismatch("mode", name, _mode(then), _mode(now))
    if then.steps != now.steps:
        yield Mismatch("steps", name, str(then.steps or ""), str(now.steps or ""))
    if then.points != now.points:
        yield Mismatch("points", name, ", ".join(then.points), ", ".join(now.points))


def _mode(side: SideIdentity) -> str:
    return "training" if side.training else "evaluation"


def _weights(then: Identity, now: Identity) -> Iterator[Mismatch]:
    """Other weights of the reference; its name counts where nothing is known of them."""
    before, here = then.reference, now.reference
    if before.weights is not None and here.weights is not None:
        if before.weights.shape != here.weights.shape:
            yield Mismatch("weights", "reference", before.weights.form, here.weights.form)
        elif (distance := before.weights.distance(here.weights)) > _SAME_WEIGHTS:
            yield Mismatch("weights", "reference", distance=distance)
    elif before.recording and here.recording:
        if before.recording != here.recording:
            yield Mismatch("weights", "reference", before.recording, here.recording)
    else:
        yield from _setting("reference", then.settings, now.settings)


def _settings(then: Identity, now: Identity) -> Iterator[Mismatch]:
    """How the candidate is made; of an older report what it says of it."""
    if "candidate" not in then.settings or "candidate" not in now.settings:
        return
    names = dict.fromkeys((*then.settings, *now.settings))
    for name in names:
        is_known = then.inputs is not None or (name in then.settings and name in now.settings)
        if name != "reference" and is_known:
            yield from _setting(name, then.settings, now.settings)


def _setting(name: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Mismatch]:
    before, here = then.get(name, ""), now.get(name, "")
    if name in _NAMES and (_ends_in(before, here) or _ends_in(here, before)):
        return
    if before != here:
        yield Mismatch("setting", name, before, here)


def _ends_in(path: str, end: str) -> bool:
    """Whether the last parts of a path are those of another."""
    parts, last = PurePath(path).parts, PurePath(end).parts
    return parts[len(parts) - len(last) :] == last


def _inputs(then: Mapping[str, Content], now: Mapping[str, Content]) -> Iterator[Mismatch]:
    for path in dict.fromkeys((*then, *now)):
        before, here = then.get(path), now.get(path)
        if before is None or here is None or before.form != here.form:
            forms = ["" if content is None else content.form for content in (before, here)]
            yield Mismatch("form", path, forms[0], forms[1])
            continue
        distance = before.distance(here)
        if distance > (_SAME_FLOATS if here.is_inexact else 0.0):
            yield Mismatch("values", path, distance=distance)
