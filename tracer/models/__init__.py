"""A name or a path becomes a model with inputs, and a kind of candidate becomes a second model.

>>> loaded = tracer.models.load("random-llama", batch=2)
>>> candidate = tracer.models.candidate(loaded, "sdpa")
>>> comparison = tracer.compare(loaded.model, candidate, loaded.inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.execution.stepping import Stepping, decode_step, ending_in_steps
    from tracer.models.calibration_data import Calibration, calibration
    from tracer.models.candidates import candidate, share_parameters
    from tracer.models.loading import Loaded, cast, load, moved, usable_device

__all__ = [
    "Calibration",
    "Loaded",
    "Stepping",
    "calibration",
    "candidate",
    "cast",
    "decode_step",
    "ending_in_steps",
    "load",
    "moved",
    "share_parameters",
    "usable_device",
]

# Imported when first used: the command line asks `locate` for names before PyTorch is loaded.
_ROOMS = {
    "tracer.execution.stepping": ("Stepping", "decode_step", "ending_in_steps"),
    "tracer.models.calibration_data": ("Calibration", "calibration"),
    "tracer.models.candidates": ("candidate", "share_parameters"),
    "tracer.models.loading": ("Loaded", "cast", "load", "moved", "usable_device"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _ROOM_OF:
        value = getattr(import_module(_ROOM_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'tracer.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
